"""Writes js/docs/images/<NodeId>.png: python scripts/build_node_pictures.py --url http://127.0.0.1:8188.

A picture is what the real editor of a running ComfyUI shows of the node, alone on the canvas. Needs `playwright`, PIL
and a Chromium (CHROMIUM_PATH names another executable).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).resolve().parents[1] / "js" / "docs" / "images"
READY = "() => window.app?.graph && 'VideoMemoryRenderShort' in LiteGraph.registered_node_types"
NAMES = "() => Object.keys(LiteGraph.registered_node_types).filter(name => name.startsWith('VideoMemory'))"
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
PLACE = """() => {
  const node = app.graph.nodes[0], box = app.canvas.canvas.getBoundingClientRect();
  return {x: box.left + 400 - 14, y: box.top + 160 - 32, width: node.size[0] + 28, height: node.size[1] + 44};
}"""
COLOURS = 64


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
            page.evaluate(SHOW, name)
            page.wait_for_timeout(2200)  # panels ask the server
            shot = Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(PLACE))))
            shot.convert("RGB").quantize(COLOURS).save(IMAGES / f"{name}.png", optimize=True)
        browser.close()


def _chromium() -> str:
    found = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        sys.exit("No Chromium found: install one, or name it in the environment variable CHROMIUM_PATH.")
    return found


if __name__ == "__main__":
    main()
