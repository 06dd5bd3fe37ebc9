"""The bundled workflows in the real editor: no missing node, and the editor queues what our converter would."""

from __future__ import annotations

import json

import pytest

from .editor import WORKFLOWS, bundled, use_nodes_2

pytestmark = [pytest.mark.browser, pytest.mark.server]

OPEN = """async (workflow) => {
  // 1.58.1 keeps the pictures of the graph before, by node id: a Load Image's on whatever has its number now
  for (const id of Object.keys(app.nodeOutputs ?? {})) delete app.nodeOutputs[id];
  await app.loadGraphData(workflow, true, true, 'test.json');
  const lacksFile = n => n.widgets?.some(w => w.options?.values?.includes && !w.options.values.includes(w.value));
  const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])];
  const missing = graphs.flatMap(graph => graph.nodes).filter(
    n => (n.has_errors && !lacksFile(n)) || !(n.type in LiteGraph.registered_node_types));
  return {missing: missing.map(n => n.type), subgraphs: graphs.length - 1, titles: app.graph.nodes.map(n => n.title),
          groups: app.graph.groups.map(g => g.title), prompt: (await app.graphToPrompt()).output};
}"""
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('[data-node-id]')]
    .map(node => [node.innerText.split('\\n')[0], node.getBoundingClientRect()]);
  const touch = (p, q) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1;
  return boxes.flatMap(([name, box], i) => boxes.slice(i + 1)
    .filter(([, other]) => touch(box, other)).map(([other]) => `${name} lies on ${other}`));
}"""


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes_2"])
def is_vue(page, request) -> bool:
    """The renderer that the editor is switched to."""
    use_nodes_2(page, request.param)
    return request.param


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_opens_and_is_queued_as_our_converter_makes_it(page, server, is_vue, path):
    from pack.scripts.harness.workflow_api import prompt_from_workflow

    workflow = bundled(path.stem)
    opened = page.evaluate(OPEN, workflow)
    assert opened["missing"] == [] and page.errors == []
    assert len(opened["titles"]) == len(workflow["nodes"])
    assert opened["subgraphs"] == len(workflow.get("definitions", {}).get("subgraphs", []))
    assert opened["groups"] == ["1. Load", "2. Plan", "3. Write", "4. Render", "5. Finish"]
    theirs, ours = opened["prompt"], prompt_from_workflow(workflow, server.client.get("/object_info"))
    for node in theirs.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # the editor's own widget: the text that the node showed last
    assert {key: (node["class_type"], node["inputs"]) for key, node in ours.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in theirs.items()}
    if is_vue:
        page.wait_for_function("(count) => document.querySelectorAll('[data-node-id]').length === count",
                               arg=len(workflow["nodes"]))
        assert page.evaluate(OVERLAPS) == []


def test_demo_runs_from_the_editor_as_it_is_on_disk(page, server):
    """The Run button's own prompt is accepted; it is taken off the queue at once, the film has its own test."""
    prompt = page.evaluate(OPEN, bundled("demo_toyworld"))["prompt"]
    assert server.client.queue(prompt)
    server.client.interrupt()


def test_templates_are_listed_and_served(server):
    listed = server.client.get("/workflow_templates")["ComfyUI-VideoMemory"]
    assert sorted(listed) == [path.stem for path in WORKFLOWS]
    for path in WORKFLOWS:
        served = server.client.get(f"/api/workflow_templates/ComfyUI-VideoMemory/{path.name}")
        assert served == json.loads(path.read_text(encoding="utf-8"))
