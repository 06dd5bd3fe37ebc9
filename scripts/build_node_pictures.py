"""Writes js/docs/images/<NodeId>.png: python scripts/build_node_pictures.py --url http://127.0.0.1:8188.

A picture is what the real editor of a running ComfyUI shows of the node, alone on the canvas; those with a panel that
fills are taken out of the demo workflow after a film of 9 seconds was made with it. Needs the demo's checkpoint
(demo/toyworld) in that ComfyUI, `playwright`, PIL and a Chromium (CHROMIUM_PATH names another executable).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = Path(__file__).resolve().parents[1] / "js" / "docs" / "images"
READY = "() => window.app?.graph && 'VideoMemoryRenderShort' in LiteGraph.registered_node_types"
NAMES = "() => Object.keys(LiteGraph.registered_node_types).filter(name => name.startsWith('VideoMemory'))"
DEMO = Path(__file__).resolve().parents[1] / "workflows" / "demo_toyworld.json"
FILLED = {  # node with a panel -> what is in it when it has filled
    "VideoMemoryBudgetGate": ".videomemory-phase", "VideoMemoryMemoryReport": ".videomemory-chunks img",
    "VideoMemoryRenderShort": ".videomemory-strip li:nth-child(3) small",
}
FILM = """async workflow => {
  await app.loadGraphData(workflow, true, true, 'pictures');
  const find = type => app.graph.nodes.find(node => node.type === type);
  const set = (type, name, value) => { find(type).widgets.find(widget => widget.name === name).value = value; };
  set('VideoMemoryPersistentMemory', 'retrieved_seconds', 1.5);
  set('VideoMemoryPromptSchedule', 'film_seconds', 9);
  set('VideoMemoryPromptSchedule', 'scenes', '0-3: {hero} walks right in the forest\\n3-9: {hero} waves by the sea');
  set('VideoMemoryRenderShort', 'run_name', 'node_pictures');
  const report = LiteGraph.createNode('VideoMemoryMemoryReport');
  app.graph.add(report);
  app.graph.remove(find('VideoMemoryAssembleShort'));
  find('VideoMemoryRenderShort').connect(1, report, 'memory');
  find('VAELoader').connect(0, report, 'vae');
  await app.queuePrompt(0);
}"""
ALONE = """type => {
  for (const group of [...app.graph.groups]) app.graph.remove(group);
  for (const node of app.graph.nodes) node.pos = node.type === type ? [0, 0] : [9000, 9000];
  const node = app.graph.nodes.find(node => node.type === type);
  node.setSize([Math.max(node.size[0], 380), node.size[1]]);
  app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [400, 160];
  app.canvas.setDirty(true, true);
}"""
SHOW = """name => {
  app.graph.clear();
  const node = LiteGraph.createNode(name), size = node.computeSize();
  app.graph.add(node);
  node.setSize([Math.max(size[0], 380), size[1]]);
  node.pos = [0, 0];
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [400, 160];
  app.canvas.setDirty(true, true);
}"""
PLACE = """type => {
  const node = app.graph.nodes.find(node => node.type === type), box = app.canvas.canvas.getBoundingClientRect();
  return {x: box.left + 400 - 14, y: box.top + 160 - 32, width: node.size[0] + 28, height: node.size[1] + 44};
}"""
COLOURS = 128


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="a running ComfyUI with this pack, e.g. http://127.0.0.1:8188")
    url = parser.parse_args().url
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1300})
        page.request.post(f"{url}/settings", data={"Comfy.TutorialCompleted": True})  # else templates cover the canvas
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=120_000)
        for name in page.evaluate(NAMES):
            if name not in FILLED:
                page.evaluate(SHOW, name)
                page.wait_for_timeout(2200)  # panels ask the server
                _take(page, name)
        page.evaluate(FILM, json.loads(DEMO.read_text(encoding="utf-8")))
        for name, content in FILLED.items():
            page.locator(content).first.wait_for(state="attached", timeout=300_000)
            for _ in range(2):  # the editor measures the node's own picture while it draws, and frames it the next time
                page.evaluate(ALONE, name)
                page.wait_for_timeout(1500)
            _take(page, name)
        browser.close()


def _take(page: Page, name: str) -> None:
    shot = Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(PLACE, name))))
    shot.convert("RGB").quantize(COLOURS).save(IMAGES / f"{name}.png", optimize=True)


def _chromium() -> str:
    found = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        sys.exit("No Chromium found: install one, or name it in the environment variable CHROMIUM_PATH.")
    return found


if __name__ == "__main__":
    main()
