"""The real graph editor: how it is opened, what is opened in it, and where a picture of it goes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SCREENSHOTS = ROOT / "artefacts" / "screenshots"
READY = "() => window.app?.graph && 'VideoMemoryRenderShort' in LiteGraph.registered_node_types"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
SETTINGS = {"Comfy.TutorialCompleted": True,  # else the templates cover the canvas
            "Comfy.Workflow.ShowMissingModelsWarning": False,  # and the offer of models that are not here
            "Comfy.VueNodes.Enabled": False}  # Nodes 2.0, where a test does not ask for it
LOAD = "async ([workflow, name]) => { await app.loadGraphData(workflow, true, true, name); }"
VALUE_PLACE = """([kind, name]) => {
  const node = app.graph.nodes.find(n => n.type === kind), box = app.canvas.canvas.getBoundingClientRect();
  app.canvas.ds.scale = 1;
  app.canvas.centerOnNode(node);
  app.canvas.draw(true, true);
  const y = node.pos[1] + node.widgets.find(w => w.name === name).last_y + 10;
  const [left, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 0.6 * node.size[0], y]);
  return [box.left + left, box.top + top];
}"""
VALUE = "([kind, name]) => app.graph.nodes.find(n => n.type === kind).widgets.find(w => w.name === name).value"
LISTEN = """() => {
  window.heard = [];
  const names = ['progress', 'executed', 'execution_success', 'execution_error', 'execution_interrupted'];
  if (!window.listens) for (const name of names) app.api.addEventListener(name, ({detail}) =>
    window.heard.push({name, node: String(detail.node ?? ''), value: detail.value, output: detail.output ?? {},
                       message: detail.exception_message ?? ''}));
  window.listens = true;
}"""
ENDED = "() => window.heard.some(event => event.name.startsWith('execution_'))"


def bundled(name: str) -> dict:
    """The bundled workflow of that name."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@contextmanager
def opened_editor(server) -> Iterator:
    """A fresh page with the editor of `server`, 1600 x 950; console errors that name the pack are in page.errors."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM_PATH") or pytest.skip("no Chromium: run python scripts/test.py")
    server.client.post("/settings", SETTINGS)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1600, "height": 950})
        page.errors = []
        page.on("console", lambda message: page.errors.append(message.text)
                if message.type == "error" and "VideoMemory" in message.text else None)
        page.home = f"http://127.0.0.1:{server.client.port}"
        reopen(page)
        yield page
        browser.close()


def reopen(page) -> None:
    """Load the editor's page anew, as a new tab would (1.58.1 keeps the open subgraph in the address)."""
    page.goto("about:blank")
    page.goto(page.home, wait_until="domcontentloaded")
    page.wait_for_function(READY, timeout=120_000)


def load(page, name: str) -> dict:
    """Open the bundled workflow of that name, as from the template browser; returns it."""
    page.evaluate(LOAD, [bundled(name), name])
    return bundled(name)


def use_nodes_2(page, on: bool) -> None:
    """Switch to Nodes 2.0 or back to the classic canvas."""
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)


def type_into(page, kind: str, name: str, text: str) -> object:
    """Type into a number or a line of text of the only node of that kind, on the classic canvas; the value after it."""
    page.mouse.dblclick(*page.evaluate(VALUE_PLACE, [kind, name]))
    field = page.locator(".graphdialog input")
    field.fill(text)
    field.press("Enter")
    return page.evaluate(VALUE, [kind, name])


def press_run(page, until: str = ENDED) -> list[dict]:
    """Press Run and wait for the end, or until something else is true; what the page has heard from the server."""
    page.evaluate(LISTEN)
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_function(f"() => ({ENDED})() || ({until})()", timeout=240_000)
    heard = page.evaluate("() => window.heard")
    assert [event["message"] for event in heard if event["name"] == "execution_error"] == []
    return heard


def screenshot_path(test_id: str) -> Path:
    """artefacts/screenshots/<test file>/<test and its parameters>.png of a pytest node id."""
    file, _, test = test_id.partition("::")
    return SCREENSHOTS / Path(file).stem / f"{re.sub(r'[^0-9A-Za-z_.-]+', '-', test).strip('-')[:120]}.png"
