"""A node of the pack taken from the node library with the mouse: dropped on the canvas, wired, queued."""

from __future__ import annotations

import pytest

from .editor import press_run, use_nodes_2

pytestmark = [pytest.mark.browser, pytest.mark.server]

EMPTY = """() => {
  app.graph.clear();
  const text = LiteGraph.createNode('PreviewAny');
  app.graph.add(text);
  text.pos = [1050, 300];
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
}"""
TYPES = "() => app.graph.nodes.map(node => node.type)"
DOTS = """(isVue) => {
  const [memory, text] = ['VideoMemoryPersistentMemory', 'PreviewAny'].map(
    type => app.graph.nodes.find(node => node.type === type));
  const box = app.canvas.canvas.getBoundingClientRect();
  const middle = ({x, y, width, height}) => [x + width / 2, y + height / 2];
  const dot = (node, isInput, slot) => {
    const key = `${node.id}-${isInput ? 'in' : 'out'}-${slot}`;
    if (isVue) return middle(document.querySelector(`[data-slot-key$="${key}"]`).getBoundingClientRect());
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([...node.getConnectionPos(isInput, slot)]);
    return [box.left + x, box.top + y];
  };
  return [dot(memory, false, memory.outputs.findIndex(output => output.name === 'report')), dot(text, true, 0)];
}"""
SHOWS = """(words) => [...document.querySelectorAll('textarea')].some(text => text.value.includes(words))
  || document.body.innerText.includes(words)"""


@pytest.mark.parametrize("is_vue", [False, True], ids=["classic", "nodes_2"])
def test_a_node_from_the_library_is_dropped_wired_and_queued(page, is_vue):
    use_nodes_2(page, is_vue)
    page.evaluate(EMPTY)
    take_from_library(page, "Persistent Memory", (600, 280))
    page.wait_for_function(f"() => ({TYPES})().length === 2")
    assert page.evaluate(TYPES) == ["PreviewAny", "VideoMemoryPersistentMemory"]
    if is_vue:
        page.wait_for_function("() => document.querySelectorAll('[data-node-id]').length === 2")
    drag(page, *page.evaluate(DOTS, is_vue))
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    ids = {node["class_type"]: node_id for node_id, node in graph.items()}
    assert graph[ids["PreviewAny"]]["inputs"]["source"] == [ids["VideoMemoryPersistentMemory"], 1]
    heard = press_run(page)
    (report,) = (event["output"]["text"][0] for event in heard
                 if event["name"] == "executed" and event["node"] == ids["PreviewAny"])
    assert "LongLive 2.0" in report
    page.wait_for_function(SHOWS, arg="LongLive 2.0", timeout=30_000)
    assert page.errors == []


def take_from_library(page, name: str, place: tuple[float, float]) -> None:
    """Look the node up in the side bar and drag it to a place on the canvas."""
    search = page.get_by_placeholder("Search Nodes...").first
    if not search.is_visible():
        page.get_by_role("button", name="Node Library (n)").click()
    search.fill(name)
    leaf = page.locator(".tree-leaf, [role=treeitem][draggable=true]").filter(has_text=name).first
    leaf.wait_for()
    page.wait_for_timeout(1000)  # the list is drawn anew a moment after the last letter
    box = leaf.bounding_box()
    drag(page, (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), place)


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(end[0] - 20, end[1] - 10, steps=8)
    page.mouse.move(*end, steps=4)
    page.mouse.up()
