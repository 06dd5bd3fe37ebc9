"""Writes workflows/*.json with the real editor: python scripts/build_workflows.py --url http://127.0.0.1:8188.

The graphs are described below once; every workflow is the same graph with other files and sizes. The running ComfyUI's
own frontend creates the nodes, sets the widgets, draws the links and groups and serialises the result, so the files are
what the editor itself saves, and a renamed input stops the build. Needs `playwright` and a Chromium (CHROMIUM_PATH
names another executable).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = {"cnr_id": "comfy-core", "ver": "0.3.75"}
OURS = {"cnr_id": "videomemory", "ver": "0.1.0"}
HUB = "https://huggingface.co"
LONGLIVE_2 = f"{HUB}/Efficient-Large-Model/LongLive-2.0-5B/resolve/main/model_bf16.pt"
UMT5 = (f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/"
        "umt5_xxl_fp16.safetensors")
WAN22_VAE = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/vae/wan2.2_vae.safetensors"


@dataclass(frozen=True)
class Settings:
    """What differs between the workflows. files: (diffusion model, text encoder, VAE); urls: likewise, or None."""

    files: tuple[str, str, str]
    urls: tuple[str | None, str | None, str | None]
    weights: str
    preset: str
    size: tuple[int, int]
    clip_s: float
    film_s: float
    window_s: float
    precision: str
    budget_gb: float
    identity: str
    hero: str
    scenes: str
    seed: int
    run_name: str
    target_fps: float
    enlarge: int
    notes: dict[str, str] = field(default_factory=dict)


def nodes_of(s: Settings) -> list[dict]:
    """The graph: every node with its group, place, widgets and the outputs that its inputs come from."""
    model, text_encoder, vae = s.files
    return [
        _node("model", "VideoMemoryLoadDiffusionModel", 1, 0, {"model_name": model, "weights": s.weights},
              models=_models(model, s.urls[0], "diffusion_models")),
        _node("clip", "VideoMemoryLoadTextEncoder", 1, 1, {"text_encoder_name": text_encoder, "weights": s.weights},
              models=_models(text_encoder, s.urls[1], "text_encoders")),
        _node("vae", "VAELoader", 1, 2, {"vae_name": vae}, models=_models(vae, s.urls[2], "vae"), pack=CORE),
        _node("memory", "VideoMemoryPersistentMemory", 2, 0,
              {"preset": s.preset, "window_seconds": s.window_s, "sink_seconds": -1.0, "precision": s.precision,
               "placement": "vram"}),
        _node("gate", "VideoMemoryBudgetGate", 2, 1,
              {"width": s.size[0], "height": s.size[1], "clip_seconds": s.clip_s, "budget_gb": s.budget_gb,
               "profile": "balanced"},
              {"model": "model.0", "vae": "vae.0", "memory": "memory.0"}),
        _node("schedule", "VideoMemoryPromptSchedule", 3, 0,
              {"identity": s.identity, "hero": s.hero, "scenes": s.scenes, "reanchor_seconds": 8.0,
               "clip_seconds": s.clip_s, "film_seconds": s.film_s}),
        _node("render", "VideoMemoryRenderShort", 4, 0,
              {"seed": s.seed, "run_name": s.run_name, "carry_memory": True},
              {"model": "model.0", "clip": "clip.0", "vae": "vae.0", "memory": "gate.1", "timeline": "schedule.0",
               "plan": "gate.0"}),
        _node("rife", "VideoMemoryLoadRife", 5, 0, {"model_name": "rife_v4.26_fp16.safetensors"}),
        _node("film", "VideoMemoryAssembleShort", 5, 1,
              {"target_fps": s.target_fps, "enlarge": s.enlarge, "crf": 16, "filename_prefix": f"video/{s.run_name}"},
              {"clips": "render.0", "rife": "rife.0", "plan": "gate.0"}),
    ]


def _node(key: str, kind: str, group: int, row: int, widgets: dict, links: dict | None = None,
          models: list | None = None, pack: dict = OURS) -> dict:
    return {"key": key, "type": kind, "group": group, "row": row, "widgets": widgets, "links": links or {},
            "properties": {**pack, **({"models": models} if models else {})}}


def _models(name: str, url: str | None, directory: str) -> list | None:
    return [{"name": name, "url": url, "directory": directory}] if url else None


GROUPS = {1: "1. Load", 2: "2. Plan", 3: "3. Write", 4: "4. Render", 5: "5. Finish"}

TOY_SCENES = json.loads((ROOT / "demo" / "toyworld" / "film.json").read_text(encoding="utf-8"))

WORKFLOWS = {
    "demo_toyworld": Settings(
        files=("toyworld_dit_fp16.safetensors", "toyworld_te_fp16.safetensors", "toyworld_vae_fp16.safetensors"),
        urls=(None, None, None), weights="original", preset="toyworld", size=(128, 80), clip_s=3.0, film_s=30.0,
        window_s=0.0, precision="model", budget_gb=0.0, identity=TOY_SCENES["identity"], hero=TOY_SCENES["hero"],
        scenes="\n".join(TOY_SCENES["scenes"]), seed=7, run_name="demo_toyworld", target_fps=24.0,
        enlarge=5,
        notes={
            "1": "The demo checkpoint ships with the pack (demo/toyworld): a real, tiny Wan-architecture model that "
                 "runs on any computer. Nothing to download.",
            "2": "The memory keeps the first 1.5 s of the film and the last 3 s. The gate checks that everything fits "
                 "and says what it chose.",
            "3": "One line per scene. Words the checkpoint knows: walks left, walks right, jumps, waves; in the "
                 "forest, desert, city, snow, cave, by the sea.\n\n**Try**: change the text of clip 5 and queue "
                 "again. Clips 1 to 4 are not made again.",
            "4": "One clip after the other; each is on disk before the next begins "
                 "(output/videomemory/demo_toyworld).\n\n**Try**: carry_memory off, and watch the hero change.",
            "5": "RIFE from 8 to 24 frames per second, enlarged five times for viewing.",
        }),
    "short_30s_720p_12gb": Settings(
        files=("model_bf16.pt", "umt5_xxl_fp16.safetensors", "wan2.2_vae.safetensors"),
        urls=(LONGLIVE_2, UMT5, WAN22_VAE), weights="nf4", preset="longlive_2", size=(1280, 704), clip_s=4.0,
        film_s=30.0, window_s=0.0, precision="4bit", budget_gb=12.0,
        identity="A woman in her thirties with short silver hair, a dark green raincoat and a small brass compass on "
                 "a cord around her neck",
        hero="the woman",
        scenes="\n".join([
            "0-4: {hero} steps off a night train onto an empty platform, steam drifting, cinematic wide shot",
            "4-8: {hero} walks through a rain-soaked market street, neon reflections, tracking shot",
            "8-12: {hero} stops under an awning and opens the compass, close-up",
            "12-16: {hero} climbs a narrow stone staircase above the roofs, low angle",
            "16-20: {hero} crosses a footbridge over a dark canal, side view",
            "20-24: {hero} pushes open an old wooden door, warm light falls on her face",
            "24-32: {hero} stands in a lighthouse room looking out to sea at dawn, slow dolly in",
        ]),
        seed=7, run_name="my_short", target_fps=24.0, enlarge=1,
        notes={
            "1": "**LongLive 2.0 5B** (causal Wan 2.2), quantised to NF4 while it loads. Files: `model_bf16.pt` in "
                 "models/diffusion_models, `umt5_xxl_fp16.safetensors` in models/text_encoders, "
                 "`wan2.2_vae.safetensors` in models/vae.",
            "2": "Four seconds of memory, as the checkpoint was trained: the first 1.3 s of the film and the last "
                 "2.7 s, in 4 bits.\n\nPlanned for 12 GB, whatever card you have; set budget_gb to 0 to use what is "
                 "there. The gate's report says what it chose.",
            "3": "Write who the hero is once, and what happens when. Every 8 seconds the full identity is named again.",
            "4": "Eight clips of 4 seconds. Stop whenever you like: finished clips are used again.",
            "5": "The model already makes 24 frames per second; raise target_fps to 48 for slow, smooth motion.",
        }),
}

BUILD = """async ({nodes, groups, notes}) => {
  app.graph.clear();
  const made = {}, x0 = 40, width = 380, gap = 40;
  const column = g => x0 + (g - 1) * (width + 2 * gap);
  const bottom = {};
  for (const spec of nodes) {
    const node = LiteGraph.createNode(spec.type);
    if (!node) throw new Error('unknown node type ' + spec.type);
    app.graph.add(node);
    for (const [key, value] of Object.entries(spec.widgets)) {
      const widget = (node.widgets || []).find(w => w.name === key);
      if (!widget) throw new Error(spec.type + ' has no widget ' + key);
      widget.value = value;
    }
    const size = node.computeSize();
    node.setSize([width, Math.max(size[1], spec.type.includes('PromptSchedule') ? 560 : size[1])]);
    node.pos = [column(spec.group), bottom[spec.group] ?? 80];
    bottom[spec.group] = node.pos[1] + node.size[1] + 2 * gap;
    Object.assign(node.properties, spec.properties);
    made[spec.key] = node;
  }
  for (const spec of nodes) for (const [input, from] of Object.entries(spec.links)) {
    const [key, slot] = from.split('.');
    const target = made[spec.key].findInputSlot(input);
    if (target < 0) throw new Error(spec.type + ' has no input ' + input);
    if (!made[key].connect(Number(slot), made[spec.key], target)) throw new Error('cannot connect ' + from);
  }
  for (const [g, title] of Object.entries(groups)) {
    const note = LiteGraph.createNode('MarkdownNote');
    app.graph.add(note);
    note.pos = [column(Number(g)), bottom[g]];
    note.setSize([width, 220]);
    note.title = 'About this step';
    note.widgets[0].value = notes[g];
    const group = new LiteGraph.LGraphGroup(title);
    group.pos = [column(Number(g)) - 20, 10];
    group.size = [width + gap, note.pos[1] + note.size[1] + 20 - 10];
    app.graph.add(group);
  }
  const saved = app.graph.serialize();
  saved.extra = {ds: {scale: 0.6, offset: [60, 60]}, frontendVersion: saved.extra?.frontendVersion};
  return JSON.stringify(saved);  // drops what is undefined, as the editor's own export does
}"""


FIT = """() => {
  const nodes = app.graph.nodes, x = nodes.map(n => n.pos[0]), y = nodes.map(n => n.pos[1]);
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
  const low = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
  const scale = Math.min(1560 / (right - Math.min(...x) + 80), 860 / (low - Math.min(...y) + 120));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [40 / scale - Math.min(...x), 70 / scale - Math.min(...y)];
  app.canvas.setDirty(true, true);
}"""


def build(url: str, names: list[str], screenshots: Path | None) -> None:
    """Build the named workflows with the frontend of the server at url; writes workflows/, and pictures if asked."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 950})
        page.goto(url)
        page.wait_for_function("() => window.app?.graph && 'VideoMemoryRenderShort' in LiteGraph.registered_node_types",
                               timeout=120_000)
        for name in names:
            settings = WORKFLOWS[name]
            saved = json.loads(page.evaluate(BUILD, {"nodes": nodes_of(settings), "groups": GROUPS,
                                                     "notes": settings.notes}))
            saved["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"videomemory/{name}"))
            path = ROOT / "workflows" / f"{name}.json"
            path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
            if screenshots:
                page.evaluate(FIT)
                page.wait_for_timeout(1000)
                page.screenshot(path=str(screenshots / f"{name}.png"))
            print(f"{path.relative_to(ROOT)}: {len(saved['nodes'])} nodes, {len(saved['links'])} links")
        browser.close()


def _chromium() -> str:
    found = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        sys.exit("No Chromium found: install one, or name it in the environment variable CHROMIUM_PATH.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="a running ComfyUI with this pack, e.g. http://127.0.0.1:8188")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each workflow in the editor")
    parser.add_argument("names", nargs="*", default=list(WORKFLOWS), help="workflows to build (default: all)")
    arguments = parser.parse_args()
    build(arguments.url, arguments.names, arguments.screenshots)


if __name__ == "__main__":
    main()
