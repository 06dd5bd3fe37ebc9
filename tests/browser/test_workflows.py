"""The bundled workflows in the real editor: no missing node, and the editor queues what our converter would."""

from __future__ import annotations

import json

import pytest

from .editor import WORKFLOWS, bundled

pytestmark = [pytest.mark.browser, pytest.mark.server]

OPEN = """async (workflow) => {
  await app.loadGraphData(workflow, true, true, 'test.json');
  const lacksFile = n => n.widgets?.some(w => w.options?.values?.includes && !w.options.values.includes(w.value));
  const missing = app.graph.nodes.filter(
    n => (n.has_errors && !lacksFile(n)) || !(n.type in LiteGraph.registered_node_types));
  return {missing: missing.map(n => n.type), titles: app.graph.nodes.map(n => n.title),
          groups: app.graph.groups.map(g => g.title), prompt: (await app.graphToPrompt()).output};
}"""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_opens_without_a_red_node(page, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    opened = page.evaluate(OPEN, workflow)
    assert opened["missing"] == [] and page.errors == []
    assert len(opened["titles"]) == len(workflow["nodes"])
    assert opened["groups"] == ["1. Load", "2. Plan", "3. Write", "4. Render", "5. Finish"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_editor_queues_what_our_converter_makes(page, server, path):
    from pack.scripts.harness.workflow_api import prompt_from_workflow

    workflow = json.loads(path.read_text(encoding="utf-8"))
    theirs = page.evaluate(OPEN, workflow)["prompt"]
    ours = prompt_from_workflow(workflow, server.client.get("/object_info"))
    for node in theirs.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # the editor's own widget: the text that the node showed last
    assert {key: (node["class_type"], node["inputs"]) for key, node in ours.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in theirs.items()}


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
