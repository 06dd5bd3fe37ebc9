"""What people ask of Persistent Memory, made into a MemorySpec: seconds and frames to latents, contradictions refused.

Settings that belong to the other kind of memory (a window for frames given as conditions, an overlap for keys and
values) are no contradiction: they are left aside, and `ignored` names them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE, MemorySpec, Preset
from ..sampling.latent_presets import LATENT_RECIPES
from ..sampling.presets import CUSTOM, find_preset, memory_spec
from .latent_memory import check_latent_spec, overlap_frames
from .state import check_spec

LABELS = {"preset": "checkpoint", "window_seconds": "window (seconds)", "sink_seconds": "first seconds kept",
          "prompt_change": "on a new prompt", "pinned_seconds": "pinned (seconds)",
          "retrieved_seconds": "retrieved (seconds)", "overlap_frames": "overlap (frames)",
          "reanchor_clips": "re-anchor (every n clips)", "colour_hold": "colour hold"}  # as the node shows them
_OF_BOTH = ("preset", "recipe")
_OF_LATENT_MEMORY = ("overlap_frames", "reanchor_clips", "colour_hold")


@dataclass(frozen=True)
class Choices:
    """The inputs of Persistent Memory as they were typed; what each value means is said in the node's tooltips.

    recipe: the Preset of Custom Checkpoint Recipe, or None.
    """

    preset: str
    window_seconds: float = 0.0
    sink_seconds: float = -1.0
    precision: str = "model"
    placement: str = "vram"
    prompt_change: str = "keep"
    pinned_seconds: float = -1.0
    retrieved_seconds: float = 0.0
    recipe: Preset | None = None
    overlap_frames: int = 0
    reanchor_clips: int = 0
    colour_hold: float = -1.0


def spec_of(choices: Choices) -> MemorySpec:
    """The spec of these choices; ValueError for what is unknown or contradicts itself."""
    check_recipe(choices.preset, choices.recipe is not None)
    preset = find_preset(choices.preset) if choices.recipe is None else choices.recipe
    spec = _latent_spec(choices) if preset.strategy == "latent" else _rolling_spec(choices)
    check_spec(spec)
    return spec


def check_recipe(preset: str, has_recipe: bool) -> None:
    """Raise ValueError for a recipe beside another checkpoint."""
    if has_recipe and preset != CUSTOM:
        raise ValueError(message(
            "Persistent Memory: a recipe is connected, and another checkpoint is chosen", preset,
            f"a recipe with the checkpoint {CUSTOM}, or another checkpoint without a recipe",
            f"Set the checkpoint to {CUSTOM}, or disconnect the recipe."))


def ignored(choices: Choices) -> tuple[str, ...]:
    """The inputs, as the node shows them, that were changed and have no meaning for this kind of memory."""
    preset = find_preset(choices.preset) if choices.recipe is None else choices.recipe
    is_latent = preset.strategy == "latent"
    return tuple(LABELS.get(field.name, field.name) for field in fields(Choices)
                 if field.name not in _OF_BOTH and (field.name in _OF_LATENT_MEMORY) != is_latent
                 and getattr(choices, field.name) != field.default)


def _rolling_spec(choices: Choices) -> MemorySpec:
    change, seconds = choices.prompt_change, choices.pinned_seconds
    if change != "pin" and seconds > 0:
        raise ValueError(message(
            "Persistent Memory: the beginning of a shot is pinned only where a new prompt is told to do so",
            f"pinned (seconds) {seconds:g} with {change!r} on a new prompt", "pinned (seconds) with 'pin'",
            "Set 'on a new prompt' to pin, or 'pinned (seconds)' to -1."))
    spec = memory_spec(choices.preset, choices.window_seconds, choices.sink_seconds, choices.precision,
                       choices.placement, change, seconds, choices.retrieved_seconds, choices.recipe)
    if change == "pin" and spec.pinned_latents == 0:
        got = "0" if seconds == 0 else f"{seconds:g}, and the recipe of this checkpoint pins nothing"
        raise ValueError(message("Persistent Memory: pin needs seconds to pin", got, "more than 0",
                                 "Type how many seconds of a shot's beginning stay, or choose keep."))
    return spec


def _latent_spec(choices: Choices) -> MemorySpec:
    recipe = LATENT_RECIPES[choices.preset]
    for name, least in (("overlap_frames", 0), ("reanchor_clips", 0), ("colour_hold", -1)):
        if getattr(choices, name) < least:
            raise ValueError(message(f"Persistent Memory: {LABELS[name]!r} is below its smallest value",
                                     getattr(choices, name), f"{least} and more", f"Set it to {least}."))
    if choices.reanchor_clips and not recipe.reanchors:
        raise ValueError(message(
            f"Persistent Memory: {recipe.label} cannot be re-anchored", f"every {choices.reanchor_clips} clips",
            "0: it is given the film's first frame in every clip, or has no place for it",
            f"Set {LABELS['reanchor_clips']!r} to 0."))
    least, most = overlap_frames(recipe.min_overlap), overlap_frames(recipe.max_overlap)
    if choices.overlap_frames and not least <= choices.overlap_frames <= most:
        raise ValueError(message(
            f"Persistent Memory: {recipe.label} cannot take this overlap", f"{choices.overlap_frames} frames",
            f"{least} to {most} frames, and 0 for as its recipe says", "Change the overlap."))
    spec = memory_spec(choices.preset, overlap_latents=_latents_for(choices.overlap_frames),
                       reanchor_clips=choices.reanchor_clips, colour_hold=choices.colour_hold)
    check_latent_spec(spec, recipe.max_overlap, recipe.min_overlap)
    return spec


def _latents_for(frames: int) -> int:
    """Latents that hold at least so many frames at the beginning of a clip: 1 to 4 for 1, 5, 9, 13 frames; 0 for 0."""
    return -(-(frames - 1) // TEMPORAL_STRIDE) + 1 if frames else 0
