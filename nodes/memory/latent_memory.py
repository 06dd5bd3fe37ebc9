"""What an ordinary checkpoint remembers: the film's first frame and colours, and the last frames of the clip before.

The VAEs are causal in time: latent 0 of a clip holds one frame, every later one four. So k latents of overlap are the
encoding of 4(k-1)+1 frames; the last latents of a clip can never be copied into slot 0 of the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE, Anchor, MemorySpec, VideoMemory
from .colour import channel_statistics
from .state import TAIL_LATENTS


def overlap_frames(latents: int) -> int:
    """Pixel frames that encode to `latents` latents at the beginning of a clip."""
    return TEMPORAL_STRIDE * (latents - 1) + 1


def latents_of(frames: int) -> int:
    return (frames - 1) // TEMPORAL_STRIDE + 1


@dataclass(frozen=True)
class ClipStart:
    """What a clip begins with.

    frames: [n, H, W, 3] float 0..1 given to the model as the clip's first ones, or None. dropped: latents at the
    beginning of the sampled clip that are not part of the film. is_anchored: the first of the frames is the film's
    first one again. is_continued: the frames behind it, or all of them, are the clip's before this one.
    """

    frames: torch.Tensor | None
    dropped: int
    is_anchored: bool = False
    is_continued: bool = False


def check_latent_spec(spec: MemorySpec, max_overlap: int, min_overlap: int = 1) -> None:
    """Raise ValueError for an overlap that the checkpoint cannot take, or a colour hold outside 0..1."""
    if not min_overlap <= spec.overlap_latents <= max_overlap:
        raise ValueError(message("Persistent Memory: the overlap does not fit this checkpoint", spec.overlap_latents,
                                 f"{min_overlap} to {max_overlap} latents", "Change the overlap."))
    if not 0 <= spec.colour_hold <= 1:
        raise ValueError(message("Persistent Memory: the colour hold is out of range", spec.colour_hold,
                                 "0 (off) to 1", "Take 0.3."))


def clip_start(memory: VideoMemory, start_image: torch.Tensor | None, is_cut: bool, reanchors: bool,
               anchor_on_cut: bool = True) -> ClipStart:
    """What the next clip begins with.

    start_image: [1, H, W, 3] float 0..1 of the film's size, or None; raises ValueError inside a scene. reanchors,
    anchor_on_cut: whether the model takes the film's first frame as a frame of the clip.
    """
    unseen = 1 if memory.latents_done else 0  # the first latent holds one frame: only the film's own begins so
    if memory.anchor is None:
        return ClipStart(start_image, unseen)
    if is_cut:
        shown = _floats(memory.anchor.frame[None]) if start_image is None and anchor_on_cut else start_image
        return ClipStart(shown, unseen, is_anchored=start_image is None and anchor_on_cut)
    if start_image is not None:
        raise ValueError(message("Clip Sampler: a start image in the middle of a scene", "a film that goes on",
                                 "a start image in the first clip, or together with scene_cut",
                                 "Disconnect the image, or switch scene_cut on."))
    spec = memory.spec
    if reanchors and spec.reanchor_clips and memory.clips_done % spec.reanchor_clips == 0:
        slots = max(2, spec.overlap_latents)
        last = memory.overlap[-TEMPORAL_STRIDE * (slots - 1):]
        return ClipStart(_floats(torch.cat((memory.anchor.frame[None], last))), slots, True, True)
    last = memory.overlap[-overlap_frames(spec.overlap_latents):]
    return ClipStart(_floats(last), spec.overlap_latents, is_continued=True)


def frames_to_keep(spec: MemorySpec) -> int:
    """Last frames of a clip that the next one may be given."""
    return overlap_frames(max(2 if spec.reanchor_clips else 1, spec.overlap_latents))


def make_anchor(latents: torch.Tensor, frame: torch.Tensor, first: torch.Tensor | None = None) -> Anchor:
    """The anchor of a film from its first clip's latents [C, T, h, w] (normalised) and first frame [H, W, 3] 0..1.

    first: [C, 1, h, w], the encoded start image, where there was one.
    """
    latents = latents.detach().to("cpu", torch.float32)
    kept = latents[:, :1] if first is None else first.detach().to("cpu", torch.float32)
    return Anchor(kept.clone(), to_bytes(frame), *channel_statistics(latents))


def remember(memory: VideoMemory, latents: torch.Tensor, frames: torch.Tensor, anchor: Anchor,
             made: int | None = None) -> VideoMemory:
    """The memory after a clip of latents [C, n, h, w] (normalised, overlap removed) whose last frames are `frames`.

    made: latents that the film grew by, where a latent holds one frame instead of four (SVD); None = n.
    """
    latents = latents.detach().to("cpu", torch.float32)
    made = latents.shape[1] if made is None else made
    tail = latents if memory.tail is None else torch.cat((memory.tail, latents), 1)
    return replace(memory, latents_done=memory.latents_done + made, clips_done=memory.clips_done + 1,
                   tail=tail[:, -TAIL_LATENTS:].clone(), anchor=anchor,
                   overlap=to_bytes(frames[-frames_to_keep(memory.spec):]))


def to_bytes(frames: torch.Tensor) -> torch.Tensor:
    """float 0..1 -> uint8, on the CPU."""
    return frames.detach().to("cpu", torch.float32).mul(255).round().clamp(0, 255).to(torch.uint8)


def _floats(frames: torch.Tensor) -> torch.Tensor:
    return frames.float() / 255
