"""Where a new shot starts: the two frames that must not be morphed into each other.

Hard cut: the geometric mean of two differences between neighbours is over CUT_SCORE: of contents (mean absolute
difference of the images shrunk to about 32 columns) and of colours (half the L1 distance of 16-bin histograms, mean
over R, G, B). Motion moves the first, a change of light the second, a cut both.
Measured: 192 cuts of rendered demo films score at least 0.22, their 4,140 in-clip pairs at 8 fps at most 0.04; in a
camera film of street traffic at 8 fps the four cuts score at least 0.19, the worst passing car 0.14.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

CUT_SCORE = 0.165
SMALL_COLUMNS = 32
BINS = 16


def cut_score(first: torch.Tensor, second: torch.Tensor) -> float:
    """How much two frames [H, W, 3] (uint8 or float 0..1) look like two shots: 0 (equal) to 1."""
    a, b = _small(first), _small(second)
    difference = float((a - b).abs().mean())
    histogram = sum(float((_histogram(a[c]) - _histogram(b[c])).abs().sum()) / 2 for c in range(3)) / 3
    return math.sqrt(difference * histogram)


def is_hard_cut(first: torch.Tensor, second: torch.Tensor) -> bool:
    """True when a new shot starts at `second`: nothing may be interpolated between the two."""
    return cut_score(first, second) > CUT_SCORE


def _small(frame: torch.Tensor) -> torch.Tensor:
    """[H, W, 3] -> [3, h, w] float 0..1 with about SMALL_COLUMNS columns, each pixel the mean of its area."""
    image = frame.permute(2, 0, 1).float() / (255.0 if frame.dtype == torch.uint8 else 1.0)
    side = max(1, round(image.shape[2] / SMALL_COLUMNS))
    return F.avg_pool2d(image[None], side, ceil_mode=True)[0]


def _histogram(channel: torch.Tensor) -> torch.Tensor:
    return torch.histc(channel, BINS, 0.0, 1.0) / channel.numel()
