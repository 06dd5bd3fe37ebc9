"""Where two frames belong to two shots, and how evenly the film moves over the join of two clips.

Hard cut: the geometric mean of two differences between neighbours is over CUT_SCORE: of contents (mean absolute
difference of the images shrunk to about 32 columns) and of colours (half the L1 distance of 16-bin histograms, mean
over R, G, B). Motion moves the first, a change of light the second, a cut both.
Measured: 192 cuts of rendered demo films score at least 0.22, their 4,140 in-clip pairs at 8 fps at most 0.04; in a
camera film of street traffic at 8 fps the four cuts score at least 0.19, the worst passing car 0.14.

Seam score: the motion between a clip's last frame and the next clip's first one, divided by the median motion between
frames around it. 1 is even; 0 is a repeated frame, which is seen as a stutter; 3 is a jump three times as wide as the
steps around it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

CUT_SCORE = 0.165
SMALL_COLUMNS = 32
BINS = 16

STUTTER, JUMP = 0.5, 2.0  # seam scores between the two are even enough
STILL = 0.1  # motion below this is none: noise over a still picture is neither a stutter nor a jump
DIFFERENCE_COLUMNS = 160

# Ghosting of in-between frames that are good, measured on a camera film and an animated one: 0.1 to 7.3, also between
# frames four apart; where the two frames have little in common (twelve apart, or two shots): 13.9 to 96.
GHOSTS = 10.0


class Moved(NamedTuple):
    """How far the picture moves from one frame to another, and how unlike the two are where they are blended (8-bit
    levels)."""

    distance: float
    ghosting: float = 0.0


Motion = Callable[[torch.Tensor, torch.Tensor], Moved]


@dataclass(frozen=True)
class Seam:
    """One join of a film. clip: the number of the clip that begins there, counted from 0. before, after: seam scores as
    the clips have it and in the film, None at a cut. what: "cut", "even", "smoothed", "faded" or "left"."""

    clip: int
    before: float | None
    after: float | None
    what: str


def cut_score(first: torch.Tensor, second: torch.Tensor) -> float:
    """How much two frames [H, W, 3] (uint8 or float 0..1) look like two shots: 0 (equal) to 1."""
    a, b = _small(first, SMALL_COLUMNS), _small(second, SMALL_COLUMNS)
    difference = float((a - b).abs().mean())
    histogram = sum(float((_histogram(a[c]) - _histogram(b[c])).abs().sum()) / 2 for c in range(3)) / 3
    return math.sqrt(difference * histogram)


def is_hard_cut(first: torch.Tensor, second: torch.Tensor) -> bool:
    """True when a new shot starts at `second`: nothing may be interpolated between the two."""
    return cut_score(first, second) > CUT_SCORE


def seam_score(at_join: float, around: Sequence[float]) -> float:
    """Motion at the join against the median of the motions around it, see the module; 1 where nothing moves."""
    usual = statistics.median(around) if around else at_join
    return 1.0 if max(at_join, usual) < STILL else at_join / max(usual, STILL)


def is_even(score: float) -> bool:
    """True when a score is near enough to 1 that nobody will notice."""
    return STUTTER <= score <= JUMP


def stands_out(at_join: float, before: Sequence[float], behind: Sequence[float]) -> bool:
    """True when the film stops or leaps just at the join, and does not merely slow down or speed up there.

    Compared with the nearest step that moves at all on each side: less than half of the smaller one, or more than twice
    the larger one. before, behind: motions on both sides of the join, in the order of the film.
    """
    sides = (reversed(before), behind)
    near = [moved for side in sides if (moved := next((step for step in side if step >= STILL), None)) is not None]
    return bool(near) and not STUTTER * min(near) <= at_join <= JUMP * max(near)


def unevenness(score: float) -> float:
    """How far a seam score is from 1, on a scale on which half and double are equally far."""
    return abs(math.log(max(score, 1e-3)))


def difference_motion(first: torch.Tensor, second: torch.Tensor) -> Moved:
    """A Motion without a network: mean absolute difference of the shrunk frames, in 8-bit levels."""
    return Moved(255 * float((_small(first, DIFFERENCE_COLUMNS) - _small(second, DIFFERENCE_COLUMNS)).abs().mean()))


def describe(seams: Sequence[Seam]) -> str:
    """The seams in one line for the report; clips are counted from 0, like the numbers in the run folder."""
    if not seams:
        return ""
    joins = [f"{seam.clip - 1}|{seam.clip} {seam.what}" if seam.before is None else
             f"{seam.clip - 1}|{seam.clip} {seam.before:.2f}"
             + (f" -> {seam.after:.2f} {seam.what}" if seam.what in ("smoothed", "faded") else
                " left as it is" if seam.what == "left" else "") for seam in seams]
    return f" Joins of clips (1 = as even as the motion around): {', '.join(joins)}."


def _small(frame: torch.Tensor, columns: int) -> torch.Tensor:
    """[H, W, 3] -> [3, h, w] float 0..1 with about `columns` columns, each pixel the mean of its area."""
    image = frame.permute(2, 0, 1).float() / (255.0 if frame.dtype == torch.uint8 else 1.0)
    side = max(1, round(image.shape[2] / columns))
    return F.avg_pool2d(image[None], side, ceil_mode=True)[0]


def _histogram(channel: torch.Tensor) -> torch.Tensor:
    return torch.histc(channel, BINS, 0.0, 1.0) / channel.numel()
