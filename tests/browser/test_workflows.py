"""The bundled workflows in the real editor: no missing node, and the editor queues what our converter would."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.server]

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
READY = "() => window.app?.graph && 'VideoMemoryRenderShort' in LiteGraph.registered_node_types"
OPEN = """async (workflow) => {
  await app.loadGraphData(workflow, true, true, 'test.json');
  const lacksFile = n => n.widgets?.some(w => w.options?.values?.includes && !w.options.values.includes(w.value));
  const missing = app.graph.nodes.filter(
    n => (n.has_errors && !lacksFile(n)) || !(n.type in LiteGraph.registered_node_types));
  return {missing: missing.map(n => n.type), titles: app.graph.nodes.map(n => n.title),
          groups: app.graph.groups.map(g => g.title), prompt: (await app.graphToPrompt()).output};
}"""


@pytest.fixture(scope="module")
def page(server) -> Iterator:
    """A fresh editor on the real server; errors of our own files and page errors are collected in page.errors."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM_PATH") or pytest.skip("no Chromium: run python scripts/test.py")
    server.client.post("/settings", {"Comfy.TutorialCompleted": True})
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=[
            "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": 1600, "height": 950})
        page.errors = []
        page.on("console", lambda message: page.errors.append(message.text)
                if message.type == "error" and "VideoMemory" in message.text else None)
        page.goto(f"http://127.0.0.1:{server.client.port}", wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=120_000)
        yield page
        browser.close()


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
    workflow = json.loads(next(path for path in WORKFLOWS if path.stem == "demo_toyworld").read_text(encoding="utf-8"))
    prompt = page.evaluate(OPEN, workflow)["prompt"]
    assert server.client.queue(prompt)
    server.client.interrupt()


def test_templates_are_listed_and_served(server):
    listed = server.client.get("/workflow_templates")["ComfyUI-VideoMemory"]
    assert sorted(listed) == [path.stem for path in WORKFLOWS]
    for path in WORKFLOWS:
        served = server.client.get(f"/api/workflow_templates/ComfyUI-VideoMemory/{path.name}")
        assert served == json.loads(path.read_text(encoding="utf-8"))
