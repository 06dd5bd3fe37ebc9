"""How far one video is from another, frame by frame: PSNR, SSIM and flicker.

Frames are [T, H, W, 3] float in 0..1. Everything is computed one frame at a time, so that beside the two videos only
a few frames' worth of memory is used, whatever their length.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..common.errors import message
from ..common.progress import SILENT, Progress

_SSIM_SIDE, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2  # (K L)^2 with K1 = 0.01, K2 = 0.03 and values up to L = 1
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Quality(NamedTuple):
    """One number per frame. flicker_*: change from the frame before in 8-bit levels; frame 0 has none (nan)."""

    mse: tuple[float, ...]
    ssim: tuple[float, ...]
    flicker_a: tuple[float, ...]
    flicker_b: tuple[float, ...]

    @property
    def psnr(self) -> tuple[float, ...]:
        return tuple(map(psnr_db, self.mse))


def compare(a: torch.Tensor, b: torch.Tensor, progress: Progress = SILENT) -> Quality:
    """Compare two videos of the same length and size.

    a, b: [T, H, W, 3], float, 0..1, H and W at least 11. Raises ValueError (see require_comparable).
    """
    require_comparable(a, b)
    rows, before = [], None
    for i in range(len(a)):
        progress.check_cancel()
        one, other = a[i].double(), b[i].double()
        mse = (one - other).square().mean().item()
        moved = (math.nan, math.nan) if before is None else (flicker(before[0], one), flicker(before[1], other))
        rows.append((mse, ssim(one, other), *moved))
        before = one, other
        progress.update(i + 1)
    return Quality(*zip(*rows, strict=True))


def require_comparable(a: torch.Tensor, b: torch.Tensor) -> None:
    """Raise ValueError unless both are [T, H, W, 3] of one shape with T >= 1 and sides of at least 11 pixels."""
    if a.shape != b.shape:
        raise ValueError(message("The two videos to compare differ in length or size", f"{_size(a)} and {_size(b)}",
                                 "equal length, width and height", "Sample both with the same settings."))
    if a.ndim != 4 or a.shape[-1] != 3 or not len(a) or min(a.shape[1:3]) < _SSIM_SIDE:
        raise ValueError(message("Videos cannot be compared", f"a tensor of shape {tuple(a.shape)}",
                                 f"RGB frames [T, H, W, 3] of at least {_SSIM_SIDE}x{_SSIM_SIDE} pixels",
                                 "Connect the images of a VAE Decode."))


def psnr_db(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error of values in 0..1; infinite for 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two frames, 1 for equal ones.

    a, b: [H, W, 3] float64, 0..1. On luma, Gaussian window of 11x11 with sigma 1.5, averaged where the window lies
    inside the frame. Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE TIP 2004, eq. 13; no downsampling before it.
    """
    weights = torch.tensor(_LUMA, dtype=a.dtype, device=a.device)
    x, y = a @ weights, b.to(a.device) @ weights
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack((x, y, x * x, y * y, x * y)))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    above = (2 * mean_x * mean_y + _SSIM_C1) * (2 * cov + _SSIM_C2)
    below = (mean_x**2 + mean_y**2 + _SSIM_C1) * (var_x + var_y + _SSIM_C2)
    return (above / below).mean().item()


def flicker(before: torch.Tensor, frame: torch.Tensor) -> float:
    """Mean absolute change between two frames in 8-bit levels (0..255).

    Motion counts too, so a single value says little: what one video has more than the other, at the same motion, is
    flicker. Source: VBench's "temporal flickering", Huang et al., CVPR 2024 (mean absolute difference of neighbours).
    """
    return (frame - before).abs().mean().item() * 255


def table(quality: Quality, names: tuple[str, str]) -> str:
    """Averages, the worst frame, then one line per frame; PSNR of equal frames reads "identical"."""
    a, b = names
    mse = sum(quality.mse) / len(quality.mse)
    worst = max(range(len(quality.mse)), key=quality.mse.__getitem__)
    moved_a, moved_b = _mean(quality.flicker_a), _mean(quality.flicker_b)
    lines = [f"{b} against {a}, {len(quality.mse)} frames",
             f"PSNR {_db(psnr_db(mse))} (of the mean squared error of all frames)",
             f"SSIM {_mean(quality.ssim):.4f} (mean; 1 = equal)"]
    if len(quality.mse) > 1:
        lines.append(f"change from frame to frame, 8-bit levels: {a} {moved_a:.2f}, {b} {moved_b:.2f} "
                     f"({moved_b - moved_a:+.2f}: above 0, {b} flickers or moves more)")
    if mse > 0:
        lines.append(f"worst frame by PSNR: {worst}")
    lines += ["", "frame | PSNR dB | SSIM | change a | change b"]
    lines += [f"{i} | {_db(psnr, '')} | {ssim:.4f} | {_level(fa)} | {_level(fb)}" for i, (psnr, ssim, fa, fb)
              in enumerate(zip(quality.psnr, quality.ssim, quality.flicker_a, quality.flicker_b, strict=True))]
    return "\n".join(lines)


def _blur(maps: torch.Tensor) -> torch.Tensor:
    at = torch.arange(_SSIM_SIDE, dtype=maps.dtype, device=maps.device) - _SSIM_SIDE // 2
    window = torch.exp(-at.square() / (2 * _SSIM_SIGMA**2))
    window = window / window.sum()
    down = F.conv2d(maps[:, None], window.view(1, 1, -1, 1))
    return F.conv2d(down, window.view(1, 1, 1, -1))[:, 0]


def _mean(values: tuple[float, ...]) -> float:
    """Mean of all but the first frame's missing value."""
    known = values[1:] if math.isnan(values[0]) else values
    return sum(known) / len(known) if known else math.nan


def _db(value: float, unit: str = " dB") -> str:
    return "identical" if math.isinf(value) else f"{value:.2f}{unit}"


def _level(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _size(video: torch.Tensor) -> str:
    if video.ndim != 4:
        return f"shape {tuple(video.shape)}"
    return f"{video.shape[0]} frames of {video.shape[2]}x{video.shape[1]}"
