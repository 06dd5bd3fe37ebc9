"""A hero in a place: what a clip begins with of a VIDEO_MEMORY, beside what its cameras see of a spatial memory.

A latent memory gives the film's first frame and the last frames of the clip before, as Clip Sampler gives them. The
keys and values of a rolling memory belong to causal checkpoints, which are shown no place: its oldest chunk and its
last frames are taken as a latent memory, and from there the film goes on with that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..common.errors import message
from ..common.types import Anchor, Geometry, MemorySpec, VideoMemory
from ..memory.latent_memory import ClipStart, check_latent_spec, clip_start, frames_to_keep, latents_of, make_anchor
from ..memory.latent_memory import remember as remember_clip
from ..sampling.latent_presets import LATENT_PRESETS, LATENT_RECIPES
from ..sampling.presets import find_preset
from .values import CameraPath

Decode = Callable[[torch.Tensor], torch.Tensor]  # normalised latents [C, n, h, w] -> frames [m, H, W, 3] float 0..1
DECODE_CONTEXT = 4  # latents decoded before the last frames, as many as a join needs that is not seen


def check_hero(memory: object, preset: str, geometry: Geometry, latents: int, path: CameraPath, has_image: bool,
               asked: str) -> None:
    """Raise ValueError for a memory that cannot go on with the checkpoint of a recipe, a size, a clip or a path.

    has_image: a start image is connected, which only a film that begins can take.
    """
    if not isinstance(memory, VideoMemory):
        raise ValueError(message(f"{asked}: video_memory", type(memory).__name__, "a VIDEO_MEMORY",
                                 "Connect Persistent Memory, or the memory after another clip."))
    spec, is_latent = memory.spec, find_preset(memory.spec).strategy == "latent"
    if is_latent and spec.preset != preset:
        raise ValueError(message(f"{asked}: video_memory for this MODEL", spec.preset,
                                 f"{preset}, or the rolling memory of a causal checkpoint",
                                 "Choose on Persistent Memory the checkpoint of your MODEL."))
    if memory.geometry not in (None, geometry):
        raise ValueError(message(f"{asked}: a video_memory of another size or VAE", f"{memory.geometry}",
                                 f"{geometry}, as the place", "Keep one size and one VAE for the whole film."))
    if has_image and (memory.anchor is not None or memory.blocks):
        raise ValueError(message(f"{asked}: start_image beside the video_memory of a film that goes on", "both",
                                 "one of them: the memory brings the last frames itself", "Disconnect the image."))
    if path.fps != spec.fps:
        raise ValueError(message(f"{asked}: camera path and video_memory at one rate", f"{path.fps:g} fps",
                                 f"{spec.fps:g} fps, the memory's", "Give the camera path that rate."))
    recipe, spec = LATENT_RECIPES[preset], _latent_spec(memory, preset)
    check_latent_spec(spec, recipe.max_overlap, recipe.min_overlap)
    needed = latents_of(frames_to_keep(spec))
    if latents <= needed:
        raise ValueError(message(f"{asked}: the clip is shorter than what the next one is given of it",
                                 f"{latents} latents", f"{needed + 1} or more",
                                 "Make the clip longer or the overlap shorter."))


def as_latent(memory: VideoMemory, preset: str, decode: Decode) -> VideoMemory:
    """A latent memory as it is; a rolling one as a latent memory of the same film, without keys and values."""
    spec = _latent_spec(memory, preset)
    if spec is memory.spec:
        return memory
    memory = replace(memory, spec=spec, model_key="")
    if memory.blocks and memory.tail is not None:
        oldest = memory.blocks[0].latents
        anchor = make_anchor(oldest, decode(oldest[:, :1])[0])
        last = decode(memory.tail)[-frames_to_keep(spec):]
        memory = replace(remember_clip(memory, memory.tail[:, :0], last, anchor), clips_done=memory.clips_done)
    return replace(memory, blocks=(), archive=())


def _latent_spec(memory: VideoMemory, preset: str) -> MemorySpec:
    """What the film goes on with: a latent memory's own spec, the recipe's for a rolling one."""
    if find_preset(memory.spec).strategy == "latent":
        return memory.spec
    return MemorySpec(preset, memory.spec.fps, LATENT_PRESETS[preset].chunk, 0, 0,
                      overlap_latents=LATENT_RECIPES[preset].overlap)


def hero_start(memory: VideoMemory, start_image: torch.Tensor | None) -> ClipStart:
    """What the next clip begins with; start_image: [1, H, W, 3] of the film's size, or None."""
    recipe = LATENT_RECIPES[memory.spec.preset]
    return clip_start(memory, start_image, False, recipe.reanchors, recipe.family != "vace")


def shared_latents(start: ClipStart) -> int:
    """Latents of the sampled clip that lie before its first camera: all but one of those that the film has already."""
    return max(0, start.dropped - 1)


def remembered(memory: VideoMemory, start: ClipStart, clean: torch.Tensor, first: torch.Tensor | None,
               decode: Decode) -> VideoMemory:
    """The memory after a clip of normalised latents [C, T, h, w]; first: [C, 1, h, w], the encoded start image."""
    anchor: Anchor | None = memory.anchor
    if anchor is None:
        frame = decode(clean[:, :1])[0] if start.frames is None else start.frames[0]
        anchor = make_anchor(clean, frame, first)
    last = decode(clean[:, -(latents_of(frames_to_keep(memory.spec)) + DECODE_CONTEXT):])
    return remember_clip(memory, clean[:, start.dropped:], last, anchor)


def hero_line(memory: VideoMemory, start: ClipStart, has_reference: bool) -> str:
    """How the hero was shown, in one sentence."""
    parts = ["the film's first frame beside the clip"] if has_reference else []
    if start.frames is not None:
        count = len(start.frames)
        shown = f"the film's first frame and the last {count - 1}" if start.is_anchored else f"{count}"
        parts.append(f"{shown} frame{'s' * (count > 1)} at its beginning")
    return f"Clip {memory.clips_done + 1}, the hero: {' and '.join(parts) or 'nothing remembered yet'}."
