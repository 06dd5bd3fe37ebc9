"""The timeline goes with its node: undo and redo, copy and paste, into a subgraph and through a saved file."""

from __future__ import annotations

import urllib.parse

import pytest

from .editor import LOAD, load, reopen, use_nodes_2

pytestmark = [pytest.mark.browser, pytest.mark.server]

SCHEDULE = "VideoMemoryPromptSchedule"
SHOW = """([kind, scale]) => {
  const node = app.canvas.graph.nodes.find(n => n.type === kind);
  app.canvas.ds.scale = scale;
  app.canvas.centerOnNode(node);
  app.canvas.setDirty(true, true);
}"""
TITLE = """(fromRight) => {  // of the schedule, or of the only subgraph
  const node = app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule' || n.isSubgraphNode?.());
  const box = app.canvas.canvas.getBoundingClientRect();
  const x = fromRight ? node.pos[0] + node.size[0] - 14 : node.pos[0] + node.size[0] / 2;
  const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, node.pos[1] - 15]);
  return [box.left + left, box.top + top];
}"""
STATE = """() => app.canvas.graph.nodes.filter(n => n.type === 'VideoMemoryPromptSchedule').map(node => {
  const {element} = node.widgets.find(w => w.name === 'timeline');
  return {text: node.widgets.find(w => w.name === 'scenes').value,
          shown: element.isConnected ? element.querySelectorAll('.videomemory-scene').length : -1};
})"""
SHOWN = f"(counts) => JSON.stringify(({STATE})().map(one => one.shown)) === JSON.stringify(counts)"
ALONE = """() => {  // the schedule, small and on the left
  for (const node of [...app.graph.nodes]) if (node.type !== 'VideoMemoryPromptSchedule') app.graph.remove(node);
  for (const group of [...app.graph.groups]) app.graph.remove(group);
  app.canvas.ds.scale = 0.7;
  const {pos} = app.graph.nodes[0];
  app.canvas.ds.offset = [300 - pos[0], 300 - pos[1]];
  app.canvas.setDirty(true, true);
}"""
PANEL = """(index) => app.canvas.graph.nodes.filter(n => n.type === 'VideoMemoryPromptSchedule')[index]
  .widgets.find(w => w.name === 'timeline').element"""
SCENES = 10  # of the demo


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes_2"])
def is_vue(page, request) -> bool:
    use_nodes_2(page, request.param)
    return request.param


@pytest.fixture
def text(page, is_vue) -> str:
    """The scenes of the demo, which is open with its schedule in view."""
    load(page, "demo_toyworld")
    page.evaluate(SHOW, [SCHEDULE, 0.8])
    wait_for(page, SCENES)
    return page.evaluate(STATE)[0]["text"]


def wait_for(page, *counts: int) -> None:
    """Until the schedules of the open graph show so many scenes."""
    page.wait_for_function(SHOWN, arg=list(counts), timeout=30_000)


def split(page, index: int = 0) -> None:
    """Cut the first scene in two, with the button of that schedule's timeline."""
    panel = page.evaluate_handle(PANEL, index).as_element()
    next(button for button in panel.query_selector_all("button") if button.inner_text() == "Split").click()


def texts(page) -> list[str]:
    return [one["text"] for one in page.evaluate(STATE)]


def test_undo_and_redo_are_seen(page, text):
    split(page)
    wait_for(page, SCENES + 1)
    changed = texts(page)
    page.keyboard.press("Control+z")  # the button that was pressed has the focus
    wait_for(page, SCENES)
    assert texts(page) == [text]
    page.keyboard.press("Control+y")
    wait_for(page, SCENES + 1)
    assert texts(page) == changed != [text]
    split(page)  # the panel on the page is the one of the node that came back
    wait_for(page, SCENES + 2)
    assert page.errors == []


def test_a_step_that_fails_does_not_block_undo(page, text):
    failed = page.evaluate("""async () => {
      const {asOneStep} = await import('/extensions/ComfyUI-VideoMemory/page.js');
      try { asOneStep(() => { throw new Error('on purpose'); }); } catch (error) { return error.message; }
    }""")
    assert failed == "on purpose"
    split(page)
    wait_for(page, SCENES + 1)
    page.keyboard.press("Control+z")
    wait_for(page, SCENES)
    assert texts(page) == [text]


def test_a_pasted_node_has_a_timeline_of_its_own(page, text):
    page.evaluate(ALONE)
    page.mouse.click(*page.evaluate(TITLE, False))
    page.keyboard.press("Control+c")
    page.mouse.move(1000, 250)
    page.keyboard.press("Control+v")
    wait_for(page, SCENES, SCENES)
    split(page, 1)
    wait_for(page, SCENES, SCENES + 1)
    assert texts(page)[0] == text != texts(page)[1]
    assert page.errors == []


def test_in_a_subgraph_it_is_edited_saved_and_read_again(page, server, is_vue, text):
    name = f"timeline_in_a_subgraph_{is_vue}"
    page.mouse.click(*page.evaluate(TITLE, False))
    page.keyboard.press("Control+Shift+e")
    page.wait_for_function("() => app.graph.nodes.some(node => node.isSubgraphNode?.())")
    enter_subgraph(page, is_vue)
    wait_for(page, SCENES)
    split(page)
    wait_for(page, SCENES + 1)
    (changed,) = texts(page)
    saved = save_as(page, server, name)
    (inside,) = saved["definitions"]["subgraphs"]
    (node,) = (node for node in inside["nodes"] if node["type"] == SCHEDULE)
    assert changed in node["widgets_values"] and changed != text
    reopen(page)
    page.evaluate(LOAD, [saved, name])
    enter_subgraph(page, is_vue)
    wait_for(page, SCENES + 1)
    assert texts(page) == [changed]
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert [one["inputs"]["scenes"] for one in prompt.values() if one["class_type"] == SCHEDULE] == [changed]
    assert page.errors == []


def enter_subgraph(page, is_vue: bool) -> None:
    """With the button on the subgraph, in either renderer."""
    subgraph = page.evaluate("() => app.graph.nodes.find(node => node.isSubgraphNode?.()).type")
    page.evaluate(SHOW, [subgraph, 0.8])
    if is_vue:
        page.get_by_test_id("subgraph-enter-button").first.click()
    else:
        page.mouse.click(*page.evaluate(TITLE, True))
    page.wait_for_function("() => app.canvas.graph.isRootGraph === false")
    page.evaluate(SHOW, [SCHEDULE, 0.8])


def save_as(page, server, name: str) -> dict:
    """Ctrl+S, a name, Enter; the file that the server has then."""
    page.keyboard.press("Control+s")
    field = page.get_by_role("dialog").get_by_role("textbox")
    field.fill(name)
    field.press("Enter")
    field.wait_for(state="hidden")
    page.wait_for_function(
        "async (name) => (await app.api.listUserDataFullInfo('workflows')).some(file => file.path === name)",
        arg=f"{name}.json", timeout=30_000)
    return server.client.get("/userdata/" + urllib.parse.quote(f"workflows/{name}.json", safe=""))
