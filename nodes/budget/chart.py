"""The picture of a plan: per phase a stacked bar of what was predicted, beside it what was measured. Pillow only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .report import gb

WIDTH, HEIGHT, MARGIN = 1000, 620, 70
TOP, BOTTOM = 110, 470  # of the bars
INK, FAINT, GRID, PAPER = (28, 28, 32), (120, 120, 128), (226, 226, 230), (255, 255, 255)
COLOURS = {"weights": (35, 95, 190), "memory": (205, 120, 0), "activations": (20, 135, 85), "latents": (160, 50, 150),
           "decode": (60, 150, 190), "workspace": (90, 90, 100), "fragmentation": (170, 175, 180),
           "learned": (225, 90, 80), "RAM": (120, 140, 130)}
MEASURED = (28, 28, 32)


@dataclass(frozen=True)
class Bar:
    """One phase. parts: (name, bytes) as predicted, the lowest first; a negative one shortens the bar. measured: bytes,
    or None where nobody has measured it."""

    label: str
    parts: tuple[tuple[str, int], ...]
    measured: int | None = None

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)


def draw_chart(bars: tuple[Bar, ...], budget_bytes: int, title: str, subtitle: str) -> torch.Tensor:
    """[1, 620, 1000, 3] float32, 0..1. budget_bytes: drawn as a line across all bars."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 20), title, fill=INK, font=_font(26))
    draw.text((MARGIN, 58), subtitle, fill=FAINT, font=_font(15))
    top = max(1, budget_bytes, *(max(bar.total, bar.measured or 0) for bar in bars)) * 1.05
    _draw_scale(draw, top)
    step = (WIDTH - 2 * MARGIN) / len(bars)
    for i, bar in enumerate(bars):
        _draw_bar(draw, bar, MARGIN + step * i + step * 0.12, step * 0.36, top)
    y = _height(budget_bytes, top)
    draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=COLOURS["learned"], width=2)
    draw.text((WIDTH - MARGIN, y - 4), f"budget {gb(budget_bytes)}", fill=COLOURS["learned"], font=_font(14),
              anchor="rb")
    _draw_legend(draw, bars)
    return torch.from_numpy(np.asarray(image).copy())[None].float() / 255


def _draw_bar(draw: ImageDraw.ImageDraw, bar: Bar, x: float, width: float, top: float) -> None:
    done = 0
    for name, size in bar.parts:
        if size > 0:
            draw.rectangle((x, _height(done + size, top), x + width, _height(done, top)), fill=COLOURS[name])
        done += size
    draw.text((x + width / 2, _height(bar.total, top) - 4), gb(bar.total), fill=INK, font=_font(14), anchor="mb")
    if bar.measured is not None:
        left = x + width + 6
        draw.rectangle((left, _height(bar.measured, top), left + width, BOTTOM), fill=MEASURED)
        draw.text((left + width / 2, _height(bar.measured, top) - 4), gb(bar.measured), fill=INK, font=_font(14),
                  anchor="mb")
    draw.text((x + width, BOTTOM + 8), bar.label, fill=INK, font=_font(15), anchor="ma")


def _draw_scale(draw: ImageDraw.ImageDraw, top: float) -> None:
    for quarter in range(5):
        y = BOTTOM - (BOTTOM - TOP) * quarter / 4
        draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=GRID)
        draw.text((MARGIN - 6, y), gb(top * quarter / 4), fill=FAINT, font=_font(12), anchor="rm")


def _draw_legend(draw: ImageDraw.ImageDraw, bars: tuple[Bar, ...]) -> None:
    used = dict.fromkeys(name for bar in bars for name, size in bar.parts if size > 0)
    entries = [(name, COLOURS[name]) for name in used]
    if any(bar.measured is not None for bar in bars):
        entries.append(("measured", MEASURED))
    x, y = MARGIN, BOTTOM + 50
    for name, colour in entries:
        width = 22 + draw.textlength(name, font=_font(15))
        if x + width > WIDTH - MARGIN:
            x, y = MARGIN, y + 26
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=colour)
        draw.text((x + 20, y), name, fill=INK, font=_font(15))
        x += width + 18


def _height(size: float, top: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * size / top


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)
