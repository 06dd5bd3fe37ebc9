"""What a memory will keep, in plain words: for Persistent Memory before the film, and in short for the gate."""

from __future__ import annotations

from ..common.types import TEMPORAL_STRIDE, MemorySpec, Preset
from ..sampling.latent_presets import LATENT_RECIPES, LatentRecipe
from ..sampling.presets import find_preset
from .latent_memory import overlap_frames
from .retrieval import ARCHIVE_CHUNKS

STORED = {"model": "as computed", "int8": "in 8 bits", "4bit": "in 4 bits (the first seconds in 8)"}
RESTING = {"vram": "on the card while a clip is sampled", "ram": "in system memory, copied to the card layer by layer"}
ON_NEW_PROMPT = {
    "keep": "On a new prompt everything stays as it is.",
    "recache": "On a new prompt the keys and values after the first seconds are made again under it.",
    "pin": "On a new prompt or a scene cut a shot begins, and its beginning is pinned until the next one.",
}


def promise(spec: MemorySpec, ignored: tuple[str, ...] = ()) -> str:
    """The report of Persistent Memory: what will be remembered, and whether the checkpoint was trained with so much.

    ignored: names of settings that this kind of memory has no use for.
    """
    preset = find_preset(spec)
    lines = _latent_lines(spec, preset) if preset.strategy == "latent" else _rolling_lines(spec, preset)
    if ignored:
        lines.append(f"Not used by this kind of memory, and ignored: {', '.join(ignored)}.")
    return "\n".join(lines)


def in_short(spec: MemorySpec) -> str:
    """What is remembered in one sentence."""
    if find_preset(spec).strategy == "latent":
        hold = f"colours held by {spec.colour_hold:g}" if spec.colour_hold else "colours free"
        return f"Latent memory: the film's first frame, {_overlap(spec)} of the clip before, {hold}."
    parts = [f"{_seconds(spec, spec.sink_latents)} from the start", f"the last {_seconds(spec, spec.window_latents)}"]
    for name, latents in (("pinned", spec.pinned_latents), ("brought back", spec.retrieved_latents)):
        if latents:
            parts.insert(-1, f"{_seconds(spec, latents)} {name}")
    return f"Memory: {', '.join(parts[:-1])} and {parts[-1]}, {spec.precision}, in {spec.placement.upper()}."


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, power in (("GB", 30), ("MB", 20), ("KB", 10)):
        if count >= 0.0995 * 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"


def _rolling_lines(spec: MemorySpec, preset: Preset) -> list[str]:
    def line(name: str, latents: int, what: str) -> str:
        return f"- {name}: {_amount(spec, latents)}{what if latents else ''}"

    return [
        f"{preset.label}: {preset.fps:g} frames per second, made in chunks of {_amount(spec, preset.chunk)}.",
        f"A new chunk sees at most {_amount(spec, spec.capacity_latents)}:",
        line("first seconds (sink)", spec.sink_latents, ", for the whole film"),
        line("beginning of the shot (pinned)", spec.pinned_latents, ", until the next prompt or cut"),
        line("brought back (retrieved)", spec.retrieved_latents, ", earlier chunks whose prompt was like the new one"),
        line("window", spec.window_latents, ", just before the current moment"),
        *_budget_lines(spec, preset),
        ON_NEW_PROMPT[spec.prompt_change],
        f"Keys and values are stored {STORED[spec.precision]}, {RESTING[spec.placement]}.",
    ]


def _budget_lines(spec: MemorySpec, preset: Preset) -> list[str]:
    trained = preset.sink + preset.window
    more = spec.capacity_latents - trained
    if more > 0:
        lines = [f"BEYOND what the checkpoint was trained with: {_amount(spec, more)} more in view than its "
                 f"{_amount(spec, trained)}. It was not made for that, and may get worse."]
    else:
        lines = [f"Inside what the checkpoint was trained with: {_amount(spec, trained)} in view."]
    if spec.retrieved_latents:
        reach = ARCHIVE_CHUNKS * spec.chunk_latents
        lines.append(f"Up to {ARCHIVE_CHUNKS} chunks that have left the view, {_amount(spec, reach)}, are kept to be "
                     "brought back. No checkpoint was trained with chunks brought back.")
    if spec.pinned_latents or spec.retrieved_latents:
        lines.append("Places that nothing is pinned in or brought back to lengthen the window meanwhile.")
    return lines


def _latent_lines(spec: MemorySpec, preset: Preset) -> list[str]:
    recipe = LATENT_RECIPES[spec.preset]
    trained = "as in its recipe"
    other = f"its recipe has {overlap_frames(recipe.overlap)}, so try it on a short film first"
    again = (f"Every {spec.reanchor_clips} clips the film's first frame is given again as a frame of the clip."
             if spec.reanchor_clips else "The film's first frame is not given again as a frame of a later clip.")
    hold = (f"Colours of later clips are held to the first clip by {spec.colour_hold:g} (0 = off, 1 = fully)."
            if spec.colour_hold else "Colours of later clips are free.")
    return [
        f"{preset.label}: latent memory. Clips are made whole ({recipe.frames} frames at {preset.fps:g} per second in "
        "training), and frames are remembered, not keys and values.",
        f"Each later clip begins with {_overlap(spec)} of the clip before ({_count(spec.overlap_latents)}), trimmed "
        f"from it again: {trained if spec.overlap_latents == recipe.overlap else other}.",
        _anchor_line(recipe) if not recipe.reanchors else again,
        hold,
        "It takes next to no memory: the frames above, and the film's last latents for decoding.",
    ]


def _anchor_line(recipe: LatentRecipe) -> str:
    if recipe.family in ("vace", "svi"):
        return "The film's first frame is given as a reference in every clip."
    return "This checkpoint has no place for the film's first frame among those of a later clip."


def _overlap(spec: MemorySpec) -> str:
    frames = overlap_frames(spec.overlap_latents)
    return f"the last {frames} frames" if frames > 1 else "the last frame"


def _amount(spec: MemorySpec, latents: int) -> str:
    return f"{_count(latents)} ({_seconds(spec, latents)})" if latents else "none"


def _count(latents: int) -> str:
    return f"{latents} latent{'s' if latents != 1 else ''}"


def _seconds(spec: MemorySpec, latents: int) -> str:
    return f"{latents * TEMPORAL_STRIDE / spec.fps:.2f} s"
