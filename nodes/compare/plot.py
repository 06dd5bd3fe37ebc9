"""Pictures of a comparison: curves over the frames, and two videos side by side with their names. Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from .quality import Quality

WIDTH, PANEL, MARGIN, HEAD = 960, 220, 70, 30
MAX_VIDEO_WIDTH = 1920  # wider pairs are shrunk: a 4 s pair of 1280x704 then takes 1.2 GB of RAM, and not 2.1
_A, _B, _INK, _GRID = (31, 99, 180), (214, 90, 30), (30, 30, 30), (220, 220, 220)

Curve = tuple[str, Sequence[float], tuple[int, int, int]]


def draw_plot(quality: Quality, names: tuple[str, str]) -> torch.Tensor:
    """Three panels over the frame number: PSNR, SSIM, change from frame to frame. [1, 660, 960, 3] float, 0..1."""
    image = Image.new("RGB", (WIDTH, 3 * PANEL), "white")
    draw = ImageDraw.Draw(image)
    between = f"{names[1]} against {names[0]}"
    _panel(draw, 0, "PSNR, dB (equal frames have no point)", [(between, quality.psnr, _B)])
    _panel(draw, 1, "SSIM", [(between, quality.ssim, _B)])
    _panel(draw, 2, "change from frame to frame, 8-bit levels",
           [(names[0], quality.flicker_a, _A), (names[1], quality.flicker_b, _B)])
    return torch.from_numpy(np.asarray(image).copy())[None].float() / 255


def side_by_side(a: torch.Tensor, b: torch.Tensor, names: tuple[str, str]) -> torch.Tensor:
    """Both videos next to each other under a line with their names.

    a, b: [T, H, W, 3] float, 0..1, of one shape. Result: [T, H', W', 3] float32 with even sides and W' <= 1920;
    larger pairs are shrunk by area. One tensor is allocated, frames are written into it one at a time.
    """
    count, height, width = a.shape[:3]
    scale = min(1.0, MAX_VIDEO_WIDTH / (2 * width))
    w, h = max(2, int(width * scale)) // 2 * 2, max(2, int(height * scale)) // 2 * 2
    label = _labels(w, names)
    out = torch.empty(count, HEAD + h, 2 * w, 3)
    out[:, :HEAD] = label
    for i in range(count):
        out[i, HEAD:, :w], out[i, HEAD:, w:] = _fit(a[i], h, w), _fit(b[i], h, w)
    return out


def _panel(draw: ImageDraw.ImageDraw, row: int, title: str, curves: list[Curve]) -> None:
    left, right, top, bottom = MARGIN, WIDTH - 20, row * PANEL + HEAD, (row + 1) * PANEL - 26
    draw.text((left, top - 24), title, fill=_INK, font=_font(15))
    values = [v for _, points, _ in curves for v in points if math.isfinite(v)]
    if not values:
        draw.text((left + 8, top + 8), "identical" if row == 0 else "nothing to show", fill=_INK, font=_font(15))
        return
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or max(abs(high) * 0.05, 0.01)
    low, high = low - pad, high + pad
    frames = max(len(points) for _, points, _ in curves)
    for step in range(5):
        y = bottom - (bottom - top) * step / 4
        draw.line((left, y, right, y), fill=_GRID)
        draw.text((left - 6, y), f"{low + (high - low) * step / 4:.4g}", fill=_INK, font=_font(12), anchor="rm")
    for i in sorted({round(k * (frames - 1) / 8) for k in range(9)}):
        draw.text((left + (right - left) * i / max(1, frames - 1), bottom + 4), str(i), fill=_INK, font=_font(12),
                  anchor="ma")
    at = right
    for name, points, colour in reversed(curves):
        draw.text((at, top - 24), name, fill=colour, font=_font(15), anchor="ra")
        at -= draw.textlength(name, font=_font(15)) + 16
        across, up = (right - left) / max(1, frames - 1), (bottom - top) / (high - low)
        _curve(draw, [(left + across * i, bottom - up * (v - low)) if math.isfinite(v) else None
                      for i, v in enumerate(points)], colour)


def _curve(draw: ImageDraw.ImageDraw, points: list[tuple[float, float] | None], colour: tuple[int, int, int]) -> None:
    """Lines between neighbouring points; a missing one leaves a gap, a lone one is still a dot."""
    for before, point in zip([None, *points], points, strict=False):
        if point is not None:
            draw.ellipse((point[0] - 2, point[1] - 2, point[0] + 2, point[1] + 2), fill=colour)
            if before is not None:
                draw.line((*before, *point), fill=colour, width=2)


def _labels(width: int, names: tuple[str, str]) -> torch.Tensor:
    image = Image.new("RGB", (2 * width, HEAD), "black")
    draw = ImageDraw.Draw(image)
    for half, name in enumerate(names):
        size = next((s for s in range(18, 6, -1) if draw.textlength(name, font=_font(s)) <= width - 8), 6)
        draw.text((half * width + width / 2, HEAD / 2), name, fill="white", font=_font(size), anchor="mm")
    return torch.from_numpy(np.asarray(image).copy()).float() / 255


def _fit(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if frame.shape[:2] == (height, width):
        return frame.float()
    chw = frame.permute(2, 0, 1)[None].float()
    return F.interpolate(chw, size=(height, width), mode="area")[0].permute(1, 2, 0)


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)
