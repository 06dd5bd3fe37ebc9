"""What was done to make a clip of an ordinary checkpoint, and why, in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.types import VideoMemory
from ..memory.latent_memory import ClipStart, overlap_frames
from .latent_presets import LatentRecipe


@dataclass(frozen=True)
class ClipFacts:
    """What the sentences are made of.

    memory: before the clip. latents: sampled, the dropped ones included. steps: per model. has_reference: the film's
    first frame is seen beside the clip's frames (VACE). notes: sentences about what was given.
    """

    recipe: LatentRecipe
    memory: VideoMemory
    start: ClipStart
    latents: int
    steps: tuple[int, ...]
    cfg: float
    is_cut: bool
    has_reference: bool
    notes: tuple[str, ...] = ()


def clip_report(facts: ClipFacts) -> str:
    """The report of one clip, without the sentence about the strategy."""
    recipe, start, spec = facts.recipe, facts.start, facts.memory.spec
    frames, trimmed = overlap_frames(facts.latents), overlap_frames(start.dropped) if start.dropped else 0
    parts = [f"Clip {facts.memory.clips_done + 1}: {frames} frames sampled ({recipe.label}), begun with "
             f"{_begun(facts)}; {trimmed} of them trimmed."]
    if facts.is_cut and facts.memory.anchor is not None:
        parts.append("Scene cut: it does not go on from the clip before.")
    parts.append(_sampling(facts))
    if frames > recipe.frames:
        parts.append(f"That is longer than the {recipe.frames} frames it was trained on.")
    if spec.reanchor_clips and not recipe.reanchors:
        parts.append("Re-anchoring is of no use here: this checkpoint "
                     + ("sees the film's first frame in every clip." if recipe.family in ("vace", "svi")
                        else "has no place for the film's first frame in a clip that goes on."))
    parts += facts.notes
    if facts.memory.anchor is not None:  # the first clip is what later ones are held to
        parts.append(f"Colours held to the first clip by {spec.colour_hold:g}." if spec.colour_hold
                     else "Colours free.")
    return " ".join(parts)


def _begun(facts: ClipFacts) -> str:
    start, overlap = facts.start, facts.memory.spec.overlap_latents
    if facts.recipe.family == "svi":
        if start.is_continued:
            return f"the film's first frame and the {_last(overlap - 1, 'latent')} of the clip before"
        return "the film's first frame" if start.frames is None else "the start image"
    if start.frames is None:
        begun = "text alone"
    elif start.is_continued and start.is_anchored:
        begun = f"the film's first frame again and the {_last(len(start.frames) - 1, 'frame')} of the clip before"
    elif start.is_continued:
        begun = f"the {_last(len(start.frames), 'frame')} of the clip before"
    else:
        begun = "the film's first frame" if start.is_anchored else "the start image"
    return f"{begun}, the film's first frame beside it as a reference" if facts.has_reference else begun


def _sampling(facts: ClipFacts) -> str:
    counts = [f"{count} step{'s' if count > 1 else ''}" for count in facts.steps]
    steps = counts[0] if len(counts) == 1 else f"{counts[0]} with the high and {counts[1]} with the low noise model"
    if facts.recipe.family == "svd":
        rising = f" rising to {facts.cfg:g} at the last frame" if facts.cfg != 1 else ""
        return f"{steps}, cfg 1{rising}; it reads no text."
    return f"{steps}, cfg {facts.cfg:g}."


def _last(count: int, what: str) -> str:
    return f"last {count} {what}s" if count > 1 else f"last {what}"
