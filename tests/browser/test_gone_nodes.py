"""What runs for a node ends with it: inside a subgraph too, and for a node that was only made to be copied."""

from __future__ import annotations

import pytest

from .editor import load

pytestmark = [pytest.mark.browser, pytest.mark.server]

PANELS = ["VideoMemoryRenderShort", "VideoMemoryPromptSchedule", "VideoMemoryBudgetGate"]
COUNT = """() => {  // what the pack's own code starts and ends from here on
  if (window.living) return;
  const isOurs = () => new Error().stack.includes('ComfyUI-VideoMemory');
  const {setInterval, clearInterval} = window, {addEventListener, removeEventListener} = app.api;
  const timers = new Set(), listeners = new Set();
  window.living = () => [timers.size, listeners.size];
  window.setInterval = (...rest) => {
    const timer = setInterval(...rest);
    if (isOurs()) timers.add(timer);
    return timer;
  };
  window.clearInterval = timer => { timers.delete(timer); clearInterval(timer); };
  app.api.addEventListener = function (name, listener, ...rest) {
    if (isOurs()) listeners.add(listener);
    return addEventListener.call(this, name, listener, ...rest);
  };
  app.api.removeEventListener = function (name, listener, ...rest) {
    listeners.delete(listener);
    return removeEventListener.call(this, name, listener, ...rest);
  };
}"""
FOLD = """(kinds) => {  // into a subgraph inside a subgraph
  const outer = app.graph.convertToSubgraph(new Set(app.graph.nodes.filter(n => kinds.includes(n.type)))).subgraph;
  outer.convertToSubgraph(new Set(outer.nodes.filter(n => n.type === kinds[0])));
  app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
}"""
CHANGE = """() => {
  app.graph.nodes[0].title += ' changed';
  app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
}"""
UNDO = "async () => { await app.extensionManager.command.execute('Comfy.Undo'); }"
TITLES = "() => app.graph.nodes.filter(n => n.title.endsWith(' changed')).length"
ALONE = [2 * len(PANELS), 6]  # two timers for each panel; the film strip listens to six events


@pytest.fixture(autouse=True)
def counted(page):
    page.evaluate(COUNT)
    load(page, "demo_toyworld")
    living(page, ALONE)


def living(page, wanted: list[int]) -> None:
    """Wait until so many timers and listeners of the pack live, and see that they go on to."""
    page.wait_for_timeout(2_500)
    assert page.evaluate("() => window.living()") == wanted


def test_what_runs_for_nodes_in_subgraphs_ends_when_undo_replaces_them(page):
    page.evaluate(FOLD, PANELS)
    living(page, ALONE)
    for _ in range(3):
        page.evaluate(CHANGE)
        page.evaluate(UNDO)
        assert page.evaluate(TITLES) == 0
    living(page, ALONE)
    load(page, "demo_toyworld")
    living(page, ALONE)
    assert page.errors == []


def test_a_node_that_is_only_made_leaves_nothing_running(page):
    page.evaluate("(kinds) => { for (const kind of kinds) LiteGraph.createNode(kind); }", PANELS)
    living(page, ALONE)


def test_what_runs_for_a_node_begins_again_when_it_is_added_again(page):
    page.evaluate("""(kind) => {
      window.taken = app.graph.nodes.find(n => n.type === kind);
      app.graph.remove(window.taken);
    }""", PANELS[0])
    living(page, [ALONE[0] - 2, 0])
    page.evaluate("() => { app.graph.add(window.taken); }")  # what it returns cannot leave the page
    living(page, ALONE)


def test_unpacking_a_subgraph_leaves_nothing_running(page):
    page.evaluate("""(kinds) => {
      const chosen = new Set(app.graph.nodes.filter(n => kinds.includes(n.type)));
      app.graph.unpackSubgraph(app.graph.convertToSubgraph(chosen).node);
    }""", PANELS)
    living(page, ALONE)
