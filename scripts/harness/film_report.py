"""Scores the demo films and draws the contact sheet: python film_report.py JOB.json, in ComfyUI's own Python.

The job (written by demo.py): `films` {condition: {folder, schedule}} with the film itself first, `film` (its mp4),
`title`, `sheet` (PNG to write), `result` (JSON to write). Uses PyAV, PIL and numpy, which ComfyUI needs anyway, and the
pack's own prompt and scoring code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
COLUMNS, SHOWN_FRAMES = 2, 3
FRAME_PX = (224, 140)  # the model's 128x80, enlarged
MARGIN, TITLE, CAPTION, STRIP_GAP = 14, 44, 46, 4
PAPER, INK, GREY, GREEN, RED = "#fafaf7", "#202020", "#777777", "#1d7a3a", "#b3261e"


def main(job_path: str) -> None:
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    identity = load_identity()
    scores, films = {}, {}
    for name, film in job["films"].items():
        clips, clip_s = read_clips(Path(film["folder"]))
        prompts = clip_prompts(film["schedule"], clip_s)
        wanted = identity.parse_identity(prompts[0].text)
        scores[name] = {"clips": [clip_score(identity, frames, wanted, prompt)
                                  for frames, prompt in zip(clips, prompts, strict=False)]}
        films[name] = clips
    sheet = draw_sheet(films, {name: each["clips"] for name, each in scores.items()}, job["title"])
    sheet.save(f"{job['sheet']}.partial", format="PNG")
    os.replace(f"{job['sheet']}.partial", job["sheet"])
    result = {"film": film_facts(Path(job["film"])), "conditions": scores}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def load_identity() -> types.ModuleType:
    """The classifier that comes with the toy world."""
    spec = importlib.util.spec_from_file_location("toyworld_identity", ROOT / "demo" / "toyworld" / "identity.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def clip_prompts(schedule: dict, clip_s: float) -> tuple:
    """What every clip was asked to show, resolved as Render Short does: the film is cut by the real clip length."""
    for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):  # the pack's own __init__ needs a ComfyUI
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [str(path)]
    timeline = importlib.import_module("pack.nodes.prompts.timeline")
    seconds = (schedule[name] for name in ("reanchor_seconds", "clip_seconds", "film_seconds"))
    resolved = timeline.resolve(schedule["identity"], schedule["hero"], schedule["scenes"], *seconds)
    return timeline.clip_prompts(timeline.re_resolve(resolved, clip_s))


def clip_score(identity: types.ModuleType, frames: np.ndarray, wanted: object, prompt: object) -> dict:
    """The clip's prompt, who was seen in its last half, and which of the three attributes are those of the hero."""
    seen = identity.score_clip(frames[len(frames) // 2:])
    kept = {part: getattr(seen, part) == getattr(wanted, part) for part in ("body", "hat", "shape")}
    return {"start_s": round(prompt.start_s, 3), "prompt": prompt.text, "names_identity": prompt.anchored,
            "seen": {part: getattr(seen, part) for part in kept}, "kept": kept, "same_hero": all(kept.values())}


def read_clips(folder: Path) -> tuple[list[np.ndarray], float]:
    """The frames of every finished clip of a run folder, in order, and the length of one clip in seconds."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    done = sorted((clip for clip in manifest["clips"] if clip["status"] == "done"), key=lambda clip: clip["index"])
    clips = [read_frames(folder / clip["files"]["video"]["name"]) for clip in done]
    return clips, len(clips[-1]) / done[-1]["fps"]  # the first clip of a film may be three frames shorter


def read_frames(path: Path) -> np.ndarray:
    """All frames of a short video, uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def film_facts(path: Path) -> dict:
    """Size, length and frame rate of the assembled film."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.demux(stream)) - 1  # the last packet is the flush
        fps = float(stream.average_rate)
        return {"file": path.name, "bytes": path.stat().st_size, "width": stream.width, "height": stream.height,
                "frames": frames, "fps": fps, "seconds": round(frames / fps, 3), "codec": stream.codec_context.name}


def draw_sheet(films: dict[str, list[np.ndarray]], scores: dict[str, list[dict]], title: str) -> Image.Image:
    """The first film clip by clip, and below it one strip per film, for comparing the same clips with one glance."""
    clips, first = next(iter(films.values())), next(iter(scores.values()))
    rows = -(-len(clips) // COLUMNS)
    cell_w, cell_h = SHOWN_FRAMES * FRAME_PX[0] + MARGIN, FRAME_PX[1] + CAPTION + MARGIN
    width, grid_h = COLUMNS * cell_w + MARGIN, TITLE + rows * cell_h
    small_w = (width - 2 * MARGIN) // len(clips) - STRIP_GAP
    strip_h = small_w * FRAME_PX[1] // FRAME_PX[0] + CAPTION
    strips = len(films) if len(films) > 1 else 0
    sheet = Image.new("RGB", (width, grid_h + strips * strip_h + MARGIN), PAPER)
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), title, INK, ImageFont.load_default(18))
    for index, (frames, score) in enumerate(zip(clips, first, strict=True)):
        # down the first column, then down the second
        _draw_clip(sheet, MARGIN + index // rows * cell_w, TITLE + index % rows * cell_h, index, frames, score)
    for row, name in enumerate(films if strips else ()):
        _draw_strip(sheet, grid_h + row * strip_h, small_w, name, films[name], scores[name])
    return sheet


def _draw_clip(sheet: Image.Image, left: int, top: int, index: int, frames: np.ndarray, score: dict) -> None:
    """Three frames of one clip, its prompt, and whether the hero is the same."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, at in enumerate(np.linspace(0, len(frames) - 1, SHOWN_FRAMES).round().astype(int)):
        picture = Image.fromarray(frames[at]).resize(FRAME_PX, Image.Resampling.NEAREST)
        sheet.paste(picture, (left + place * FRAME_PX[0], top))
    names = "  (names the hero)" if score["names_identity"] else ""
    heading, line = f"clip {index + 1}, from {score['start_s']:g} s{names}", top + FRAME_PX[1] + 4
    pen.text((left, line), heading, GREY, font)
    verdict, colour = ("same hero", GREEN) if score["same_hero"] else (lost_text(score), RED)
    pen.text((left + pen.textlength(heading, font) + 16, line), verdict, colour, font)
    pen.text((left, line + 18), score["prompt"], INK, font)


def _draw_strip(sheet: Image.Image, top: int, width: int, name: str, clips: list[np.ndarray],
                scores: list[dict]) -> None:
    """The last frame of every clip of one film, underlined in green where the hero is the same, in red where not."""
    pen = ImageDraw.Draw(sheet)
    height = width * FRAME_PX[1] // FRAME_PX[0]
    pen.text((MARGIN, top), f"{name}: the last frame of every clip", INK, ImageFont.load_default(14))
    for index, (frames, score) in enumerate(zip(clips, scores, strict=True)):
        left = MARGIN + index * (width + STRIP_GAP)
        sheet.paste(Image.fromarray(frames[-1]).resize((width, height), Image.Resampling.NEAREST), (left, top + 20))
        colour = GREEN if score["same_hero"] else RED
        pen.rectangle((left, top + 20 + height, left + width - 1, top + 25 + height), fill=colour)


def lost_text(score: dict) -> str:
    """`other shape (star), hat not seen`: what is not the hero's."""
    return ", ".join(f"{part} not seen" if score["seen"][part] is None else f"other {part} ({score['seen'][part]})"
                     for part, kept in score["kept"].items() if not kept)


if __name__ == "__main__":
    main(sys.argv[1])
