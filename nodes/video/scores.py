"""How well the clips of a run go together, measured on their files: the join before each, and its drift from the first.

Join: the seam score of the assembly (interpolation.seams), by differences of frames: motion over the join against the
motion around it. Drift: distance of the mean colours in CIE Lab and of the contrast (spread of L), all in the same
units, from the first clip. A few frames of each file are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import torch

from ..common.errors import message
from ..interpolation.joins import REACH, measure
from ..interpolation.seams import cut_score, difference_motion
from ..memory.drift import direction, look_of
from .tiers import COMPRESSED

SIDE = REACH + 1  # frames on each side of a join
SAMPLES = 5  # frames of a clip, evenly spread, that stand for its look
COLUMNS = 160  # about so many of a frame are looked at for its look
SLIGHT, STRONG = 2.0, 10.0  # drift: about 2 is just seen side by side (memory.drift); 10 nobody overlooks
KEPT = 512  # results


@dataclass(frozen=True)
class ClipFile:
    """The frames of one clip. key: what they were made from; they may be stored in another file later, compressed, and
    score the same. cuts: scene cuts of the film up to and with it, see types.ClipRecord."""

    index: int
    path: Path = field(compare=False)
    key: str
    frames: int
    fps: float
    cuts: int = 0


@dataclass(frozen=True)
class Score:
    """One number and what it means in a word or two. note: more about it, "" where there is nothing to say."""

    word: str
    value: float
    note: str = ""


@lru_cache(maxsize=KEPT)
def join_score(before: ClipFile, clip: ClipFile) -> Score:
    """The join of two clips: "smooth" or "visible" with the seam score, "hard cut" with the cut score."""
    old = frames_at(before, range(max(0, before.frames - SIDE), before.frames))
    new = frames_at(clip, range(min(SIDE, clip.frames)))
    seam = measure(clip.index, old, new, difference_motion, clip.cuts > before.cuts)
    if seam.before is None:
        return Score("hard cut", cut_score(old[-1], new[0]))
    if seam.what == "even":
        return Score("smooth", seam.before)
    return Score("visible", seam.before, "the picture stands still" if seam.before < 1 else "the picture jumps")


def drift_score(first: ClipFile, clip: ClipFile) -> Score:
    """How far a clip's colours and contrast are from the first one's: "none", "slight" or "strong"."""
    start, now = _look(first), _look(clip)
    value = float((now - start).norm())
    word = "none" if value < SLIGHT else "slight" if value < STRONG else "strong"
    contrast = float(now[3] - start[3])
    flatter = ("more contrast" if contrast > 0 else "less contrast") if abs(contrast) >= 1 else ""
    return Score(word, value, ", ".join(filter(None, (direction(start[:3], now[:3]), flatter))))


def frames_at(clip: ClipFile, indexes: Sequence[int]) -> list[torch.Tensor]:
    """These frames of a clip, rising numbers, uint8 [H, W, 3]. Lossless files are sought in; in compressed ones a frame
    needs those before it, so that they are read through.

    RuntimeError when the file is damaged or has fewer frames than it should.
    """
    found: list[torch.Tensor] = []
    try:
        with av.open(str(clip.path)) as container:
            stream, last, can_seek = container.streams.video[0], -2, not clip.path.name.endswith(COMPRESSED)
            frames = container.decode(stream)
            for index in indexes:
                if can_seek and index != last + 1:
                    container.seek(int(index / clip.fps / stream.time_base), stream=stream)
                    frames = container.decode(stream)
                frame = next(one for one in frames if round(float(one.pts * stream.time_base) * clip.fps) >= index)
                found.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                last = index
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise RuntimeError(message(
            f"The frames {list(indexes)} of {str(clip.path)!r} could not be read", f"the error {error!r}",
            f"a complete file of {clip.frames} frames", "Render the clip again: delete its file and queue.")) from error
    return found


@lru_cache(maxsize=KEPT)
def _look(clip: ClipFile) -> torch.Tensor:
    """drift.look_of of a clip, [4]."""
    step = (clip.frames - 1) / max(1, SAMPLES - 1)
    indexes = sorted({round(i * step) for i in range(SAMPLES)})
    frames = [frame[:: (side := max(1, frame.shape[1] // COLUMNS)), ::side] for frame in frames_at(clip, indexes)]
    return look_of(torch.stack(frames))
