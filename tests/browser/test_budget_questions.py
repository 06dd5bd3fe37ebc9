"""What the budget panel asks the server: nothing is done for it that only a run does, and when it is asked again."""

from __future__ import annotations

import pytest

from .budget import GIB, OPEN, TICK_MS, change, verdict
from .editor import bundled, use_nodes_2

pytestmark = [pytest.mark.browser, pytest.mark.server]

QUIET = """(kind) => {  // three widgets that tell when they are asked what to queue, one of them by its class
  const node = app.graph.nodes.find(n => n.type === kind);
  window.asked = 0;
  const ask = () => { window.asked += 1; };
  const throws = () => { ask(); throw new Error('No webcam image captured'); };
  const add = (name) => node.addCustomWidget({name, type: 'other', y: 0, options: {}, value: 1});
  add('asked').serializeValue = ask;
  add('throws').serializeValue = throws;
  const last = add('of_class');
  Object.setPrototypeOf(last, Object.assign(Object.create(Object.getPrototypeOf(last)), {serializeValue: ask}));
  window.isAsItWas = () => {
    const [one, two, three] = node.widgets.slice(-3);
    return one.serializeValue === ask && two.serializeValue === throws && three.serializeValue === ask
      && !Object.hasOwn(three, 'serializeValue');
  };
}"""
FOLD = """(kinds) => {  // into a subgraph that is placed twice
  const {subgraph, node} = app.graph.convertToSubgraph(new Set(app.graph.nodes.filter(n => kinds.includes(n.type))));
  const second = LiteGraph.createNode(subgraph.id);
  app.graph.add(second);
  window.folded = {subgraph, node, second};
  return [String(node.id), String(second.id), String(subgraph.nodes[0].id)];
}"""
OTHER, BEFORE = "VideoMemoryLoadRife", "VideoMemoryPersistentMemory"


@pytest.mark.parametrize("kind", [OTHER, BEFORE])
def test_no_widget_is_asked_what_it_would_queue(page, panel, kind):
    """It may stop a recording, take a picture or upload one."""
    verdict(page, "128 x 80")
    page.evaluate(QUIET, kind)
    change(page, "width", 224)
    verdict(page, "224 x 80")
    assert page.evaluate("() => [window.asked, window.isAsItWas()]") == [0, True]
    with pytest.raises(Exception, match="No webcam image captured"):
        page.evaluate("() => app.graphToPrompt()")


def test_a_webcam_and_a_recorder_elsewhere_stop_no_plan(page, panel):
    """The first may throw when it is asked and has no picture, the second alerts."""
    verdict(page, "128 x 80")
    page.evaluate("""() => {
      for (const kind of ['WebcamCapture', 'RecordAudio']) app.graph.add(LiteGraph.createNode(kind));
    }""")
    change(page, "width", 224)
    verdict(page, "224 x 80")
    assert page.get_by_text("No audio recorded").count() == page.get_by_text("No webcam image").count() == 0


def test_nor_one_in_a_subgraph_that_is_placed_twice(page, panel):
    verdict(page, "128 x 80")
    page.evaluate(QUIET, OTHER)
    page.evaluate(FOLD, [OTHER])
    page.evaluate("""() => { window.asked = 0;
      const [widget] = window.folded.subgraph.nodes[0].widgets;
      window.inner = widget;
      window.before = widget.serializeValue = () => { window.asked += 1; };
    }""")
    change(page, "width", 224)
    verdict(page, "224 x 80")
    assert page.evaluate("() => [window.asked, window.inner.serializeValue === window.before]") == [0, True]


def test_two_panels_leave_every_widget_as_it_was(page, panel):
    verdict(page, "128 x 80")
    page.evaluate(QUIET, OTHER)
    asked, same = page.evaluate("""async () => {
      const { quietPrompt } = await import('/extensions/ComfyUI-VideoMemory/budget/prompt.js');
      const { graphToPrompt } = app;
      app.graphToPrompt = async function () {
        await new Promise(done => setTimeout(done, window.wait -= 50));
        return graphToPrompt.call(this);
      };
      window.wait = 150;
      await Promise.all([quietPrompt(), quietPrompt()]);
      app.graphToPrompt = graphToPrompt;
      return [window.asked, window.isAsItWas()];
    }""")
    assert (asked, same) == (0, True)


def test_only_what_lies_before_the_gate_is_sent(page, asks, panel):
    verdict(page, "128 x 80")
    kinds = {node["class_type"] for node in asks[-1]["prompt"].values()}
    assert {"VideoMemoryBudgetGate", BEFORE, "VideoMemoryLoadDiffusionModel"} <= kinds
    assert not kinds & {OTHER, "VideoMemoryRenderShort"}


def test_what_the_editor_cannot_make_a_prompt_of_is_told(page, panel):
    verdict(page, "128 x 80")
    page.evaluate("""() => { window.make = app.graphToPrompt;
      app.graphToPrompt = async () => { throw new Error('a link leads nowhere'); }; }""")
    change(page, "width", 192)
    verdict(page, "Cannot be said yet")
    assert panel.locator("li").all_inner_texts() == [
        "The editor can make no prompt of this graph: a link leads nowhere"]
    page.evaluate("() => { app.graphToPrompt = window.make; }")
    change(page, "width", 160)
    verdict(page, "160 x 80")


@pytest.mark.parametrize("answer", ["nothing", "an error"])
def test_a_server_that_did_not_answer_is_asked_again(page, card, asks, answer):
    page.route("**/videomemory/plan", lambda route: route.abort() if answer == "nothing" else route.fulfill(
        status=502, body="<html>Bad gateway</html>"))
    try:
        page.evaluate(OPEN, bundled("demo_toyworld"))
        verdict(page, "Cannot be said yet")
        assert "The server does not answer" in page.locator(".videomemory-said").inner_text()
        before = len(asks)
        page.wait_for_timeout(2 * TICK_MS)
        assert 1 <= len(asks) - before <= 3, "no more often than the card is looked at"
    finally:
        page.unroute("**/videomemory/plan")
    verdict(page, "128 x 80")


def test_a_card_that_has_moved_is_another_plan(page, card, asks, panel):
    verdict(page, "128 x 80")
    before = len(asks)
    card["free"] += GIB // 5
    page.wait_for_timeout(1.5 * TICK_MS)
    assert len(asks) == before, "by too little"
    card["free"] += GIB // 10
    page.wait_for_timeout(1.5 * TICK_MS)
    assert len(asks) == before + 1
    card["total"] *= 2
    page.wait_for_timeout(1.5 * TICK_MS)
    assert len(asks) == before + 2


def test_what_a_run_takes_of_the_card_is_no_other_plan(page, card, asks, panel):
    verdict(page, "128 x 80")
    before = len(asks)
    page.evaluate("() => { Object.defineProperty(app, 'runningNodeId', {get: () => '1', configurable: true}); }")
    try:
        card["free"] -= 4 * GIB
        page.evaluate("() => window.dispatchEvent(new Event('focus'))")
        page.wait_for_timeout(1.5 * TICK_MS)
        assert len(asks) == before
    finally:
        page.evaluate("() => { delete app.runningNodeId; }")
    page.wait_for_timeout(1.5 * TICK_MS)
    assert len(asks) == before + 1


@pytest.mark.parametrize("event", ["window.dispatchEvent(new Event('focus'))",
                                   "document.dispatchEvent(new Event('visibilitychange'))"])
def test_who_comes_back_to_the_page_sees_a_new_plan(page, card, asks, panel, event):
    """A model may have been downloaded meanwhile; many events at once are one question."""
    verdict(page, "128 x 80")
    before = len(asks)
    page.evaluate(f"() => {{ for (let time = 0; time < 9; time++) {event}; }}")
    page.wait_for_timeout(1.5 * TICK_MS)
    assert len(asks) == before + 1


def test_a_subgraph_that_is_placed_twice_is_planned_where_it_is_first(page, asks, panel):
    verdict(page, "128 x 80")
    first, second, inner = page.evaluate(FOLD, ["VideoMemoryBudgetGate"])
    places = page.evaluate("""async (inner) => {
      const { placesOf } = await import('/extensions/ComfyUI-VideoMemory/budget/prompt.js');
      const root = LiteGraph.createNode('VideoMemoryBudgetGate');
      root.id = Number(inner);
      app.graph.add(root);
      const { output } = await app.graphToPrompt();
      return [placesOf(root, output), placesOf(window.folded.subgraph.nodes[0], output), String(root.id)];
    }""", inner)
    root = places[2]  # 1.32.9 leaves it the same id, 1.58.1 gives it another
    assert places == [[root], [f"{first}:{inner}", f"{second}:{inner}"], root]
    page.evaluate("() => app.canvas.openSubgraph(window.folded.subgraph, window.folded.node)")
    try:
        sentence = "The plan of the first of 2 places that this node runs in."
        page.get_by_text(sentence).wait_for(timeout=30_000)
        assert f"{first}:{inner}" in [asked["node_id"] for asked in asks]
        assert f"{second}:{inner}" not in [asked["node_id"] for asked in asks]
    finally:
        page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")


def test_all_this_in_nodes_2(page, card, asks):
    use_nodes_2(page, True)
    try:
        page.evaluate(OPEN, bundled("demo_toyworld"))
        verdict(page, "128 x 80")
        page.evaluate(QUIET, OTHER)
        change(page, "width", 224)
        verdict(page, "224 x 80")
        assert page.evaluate("() => [window.asked, window.isAsItWas()]") == [0, True]
        before = len(asks)
        card["free"] -= GIB
        page.wait_for_timeout(1.5 * TICK_MS)
        assert len(asks) == before + 1
    finally:
        use_nodes_2(page, False)
