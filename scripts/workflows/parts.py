"""Nodes that the workflows share: files in, plan, texts, film out."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .checkpoints import LONGLIVE_2, TOY_MODEL, TOY_TEXT, TOY_VAE, UMT5, VAE_22
from .graph import Node

File = tuple[str, str, str]
TOY = json.loads((Path(__file__).resolve().parents[2] / "demo" / "toyworld" / "film.json").read_text(encoding="utf-8"))
TOY_FILES = (TOY_MODEL, TOY_TEXT, TOY_VAE)
LONGLIVE_FILES = (LONGLIVE_2, UMT5, VAE_22)
HERO = ("A woman in her thirties with short silver hair, a dark green raincoat and a small brass compass on a cord "
        "around her neck")
ACTS = (
    "{hero} steps off a night train onto an empty platform, steam drifting, cinematic wide shot",
    "{hero} walks through a rain-soaked market street, neon reflections, tracking shot",
    "{hero} stops under an awning and opens the compass, close-up",
    "{hero} climbs a narrow stone staircase above the roofs, low angle",
    "{hero} crosses a footbridge over a dark canal, side view",
    "{hero} pushes open an old wooden door, warm light falls on her face",
    "{hero} stands in a lighthouse room looking out to sea at dawn, slow dolly in",
)
NEGATIVE = "blurry, low quality, static picture, subtitles, watermark, deformed hands, deformed face"


def load(files: tuple[File, File, File], weights: str, text_weights: str = "nf4") -> list[Node]:
    """Diffusion model, text encoder and VAE."""
    model, text, vae = files
    return [
        Node("model", "VideoMemoryLoadDiffusionModel", 1, {"model_name": model[0], "weights": weights},
             models=linked(model)),
        Node("clip", "VideoMemoryLoadTextEncoder", 1, {"text_encoder_name": text[0], "weights": text_weights},
             models=linked(text)),
        Node("vae", "VAELoader", 1, {"vae_name": vae[0]}, models=linked(vae)),
    ]


def linked(file: File) -> tuple[File, ...]:
    """What the editor may offer to fetch: nothing for files that come with the pack."""
    return (file,) if file[1] else ()


def plan(preset: str, size: tuple[int, int], clip_s: float, budget_gb: float, gate: dict | None = None,
         place: str = "", **memory: object) -> list[Node]:
    """Persistent Memory and the gate; `gate` and `memory` are inputs of theirs that differ from the defaults. place:
    the output that a spatial memory comes from, "" = none."""
    return [
        Node("memory", "VideoMemoryPersistentMemory", 2, {"preset": preset, **memory}),
        Node("gate", "VideoMemoryBudgetGate", 2,
             {"width": size[0], "height": size[1], "clip_seconds": clip_s, "budget_gb": budget_gb, **(gate or {})},
             {"model": "model.0", "vae": "vae.0", "memory": "memory.0", "clip": "clip.0",
              **({"spatial_memory": place} if place else {})}),
    ]


def scenes_of(clip_s: float, film_s: float) -> str:
    """The acts, one per clip; the last one ends the film."""
    clips = math.ceil(film_s / clip_s)
    acts = [*ACTS[:min(clips, len(ACTS)) - 1], ACTS[-1]]
    ends = [*(i * clip_s for i in range(1, len(acts))), clips * clip_s]
    return "\n".join(f"{i * clip_s:g}-{end:g}: {act}" for i, (act, end) in enumerate(zip(acts, ends, strict=True)))


def write(clip_s: float, film_s: float = 30.0, identity: str = HERO, hero: str = "the woman",
          scenes: str = "") -> list[Node]:
    """Who and what, "" = the acts; the identity is named again every 8 seconds."""
    return [Node("schedule", "VideoMemoryPromptSchedule", 3,
                 {"identity": identity, "hero": hero, "scenes": scenes or scenes_of(clip_s, film_s),
                  "reanchor_seconds": 8.0,
                  "clip_seconds": clip_s, "film_seconds": film_s})]


def toy_write(scenes: int = 10) -> list[Node]:
    """The demo's own film, or its beginning, in clips of 3 seconds."""
    return write(3.0, 3.0 * scenes, TOY["identity"], TOY["hero"], "\n".join(TOY["scenes"][:scenes]))


def negative() -> Node:
    """What must not be seen, where a checkpoint is sampled with cfg other than 1."""
    return Node("negative", "CLIPTextEncode", 3, {"text": NEGATIVE}, {"clip": "clip.0"}, title="Negative prompt")


def render(run_name: str, widgets: dict | None = None, **links: str) -> list[Node]:
    """Render Short with everything that it needs, and what it says."""
    return [
        Node("render", "VideoMemoryRenderShort", 4, {"seed": 7, "run_name": run_name, **(widgets or {})},
             {"model": "model.0", "clip": "clip.0", "vae": "vae.0", "memory": "gate.1", "timeline": "schedule.0",
              "plan": "gate.0", **links}),
        Node("status", "PreviewAny", 4, {}, {"source": "render.2"}, title="What was used again"),
    ]


def finish(run_name: str, target_fps: float, clips: str = "render.0", enlarge: int = 1) -> list[Node]:
    """RIFE and the film."""
    return [
        Node("rife", "VideoMemoryLoadRife", 5, {"model_name": "rife_v4.26_fp16.safetensors"}),
        Node("film", "VideoMemoryAssembleShort", 5,
             {"target_fps": target_fps, "enlarge": enlarge, "crf": 16, "filename_prefix": f"video/{run_name}"},
             {"clips": clips, "rife": "rife.0", "plan": "gate.0"}),
    ]
