"""Writes js/docs/images/<NodeId>.png: python scripts/build_node_pictures.py --url http://127.0.0.1:8188.

A picture is what the real editor of a running ComfyUI shows of the node, alone on the canvas; those with a panel that
fills are taken after a run: out of the demo workflow with a film of 9 seconds, and of a drawn room as a place. Needs
the demo's checkpoint (demo/toyworld) in that ComfyUI, `playwright`, PIL and a Chromium (CHROMIUM_PATH names another).
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

from PIL import Image, ImageDraw

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
SPATIAL, SPATIAL_FILLED = "VideoMemorySpatialReport", ".videomemory-orbit p:has-text('points')"
SIZE = (320, 192)  # of the room
ROOM = """async () => {
  app.graph.clear();
  const add = (type, values = {}) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find(widget => widget.name === name).value = value;
    return node;
  };
  const lift = add('VideoMemoryLiftSpatial', {depth_kind: 'inverse', near: 2, far: 8});
  add('VideoMemoryCameraPath', {moves: 'hold in 1', width: 320, height: 192}).connect(0, lift, 'camera_path');
  add('VAELoader', {vae_name: 'toyworld_vae_fp16.safetensors'}).connect(0, lift, 'vae');
  add('LoadImage', {image: 'node_pictures_depth.png'}).connect(0, lift, 'depth');
  add('LoadImage', {image: 'node_pictures_room.png'}).connect(0, lift, 'image');
  lift.connect(0, add('VideoMemorySpatialReport'), 'spatial_memory');
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
            if name not in (*FILLED, SPATIAL):
                page.evaluate(SHOW, name)
                page.wait_for_timeout(2200)  # panels ask the server
                _take(page, name)
        page.evaluate(FILM, json.loads(DEMO.read_text(encoding="utf-8")))
        for name, content in FILLED.items():
            _take_filled(page, name, content)
        for name, picture in _room().items():
            page.request.post(f"{url}/upload/image", multipart={"overwrite": "true", "image": {
                "name": f"node_pictures_{name}.png", "mimeType": "image/png", "buffer": picture}})
        page.evaluate(ROOM)
        _take_filled(page, SPATIAL, SPATIAL_FILLED)
        browser.close()


def _room() -> dict[str, bytes]:
    """PNGs of a room with two boxes and of its depth, white = near."""
    room, depth = Image.new("RGB", SIZE, (214, 190, 150)), Image.new("RGB", SIZE, (40, 40, 40))
    draw, far = ImageDraw.Draw(room), ImageDraw.Draw(depth)
    for y in range(110, SIZE[1]):
        draw.line((0, y, SIZE[0], y), fill=(90, 110 + (y // 12 % 2) * 40, 80))
        far.line((0, y, SIZE[0], y), fill=(40 + (y - 110) * 2,) * 3)
    for box, colour, near in (((40, 60, 120, 150), (200, 40, 40), 120), ((200, 40, 270, 130), (40, 70, 200), 80)):
        draw.rectangle(box, fill=colour)
        far.rectangle(box, fill=(near,) * 3)
    return {"room": _png(room), "depth": _png(depth)}


def _png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def _take_filled(page: Page, name: str, content: str) -> None:
    page.locator(content).first.wait_for(state="attached", timeout=300_000)
    for _ in range(2):  # the editor measures the node's own picture while it draws, and frames it the next time
        page.evaluate(ALONE, name)
        page.wait_for_timeout(1500)
    _take(page, name)


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
