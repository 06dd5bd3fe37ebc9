"""Signed distances in pixels (negative inside) and how to paint them.

The triangle and the five-pointed star follow Inigo Quilez, "2D distance functions". All functions are vectorised over
[n, height, width] coordinates and run on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CIRCLE, SQUARE, TRIANGLE, STAR = range(4)
_STAR_FOLD = (0.809016994375, -0.587785252292)  # cos 36 degrees, -sin 36 degrees
_STAR_INNER = 0.45  # inner radius over outer radius


def box_distance(x: Tensor, y: Tensor, half_width: float, half_height: float | Tensor) -> Tensor:
    """Distance to an axis-aligned box centred at 0."""
    dx, dy = x.abs() - half_width, y.abs() - half_height
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0)


def triangle_distance(x: Tensor, y: Tensor, half_side: float) -> Tensor:
    """Distance to an equilateral triangle, apex up (y points down), centre of mass at 0."""
    root3 = math.sqrt(3.0)
    y = -y
    x = x.abs() - half_side
    y = y + half_side / root3
    fold = (x + root3 * y) > 0
    folded_x = torch.where(fold, (x - root3 * y) / 2, x)
    folded_y = torch.where(fold, (-root3 * x - y) / 2, y)
    folded_x = folded_x - folded_x.clamp(-2 * half_side, 0)
    return -torch.hypot(folded_x, folded_y) * torch.sign(folded_y)


def star_distance(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Distance to a five-pointed star, apex up, centred at 0."""
    cos, sin = _STAR_FOLD
    x, y = x.abs(), -y
    for fold_x, fold_y in ((cos, sin), (-cos, sin)):
        overlap = 2 * (fold_x * x + fold_y * y).clamp(min=0)
        x, y = x - overlap * fold_x, y - overlap * fold_y
    x, y = x.abs(), y - radius
    edge_x, edge_y = _STAR_INNER * -sin, _STAR_INNER * cos - 1.0
    along = ((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2)).clamp(min=0).clamp(max=radius)
    return torch.hypot(x - edge_x * along, y - edge_y * along) * torch.sign(y * edge_x - x * edge_y)


def body_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the hero's body, about 30 pixels across; shape [n] long, x and y [n, height, width]."""
    distance = {
        CIRCLE: lambda x, y: torch.hypot(x, y) - 14.5,
        SQUARE: lambda x, y: box_distance(x, y, 11.0, 11.0) - 2.0,
        TRIANGLE: lambda x, y: triangle_distance(x, y - 4.0, 15.0) - 2.0,
        STAR: lambda x, y: star_distance(x, y - 1.0, 18.0) - 1.0,
    }
    out = torch.empty_like(x)
    for index in shape.unique().tolist():
        chosen = shape == index
        out[chosen] = distance[index](x[chosen], y[chosen])
    return out


def coverage(distance: Tensor) -> Tensor:
    """How much of each pixel lies inside, 0..1 (one pixel of anti-aliasing)."""
    return (0.5 - distance).clamp(0, 1)


def paint(image: Tensor, color: Tensor, alpha: Tensor) -> Tensor:
    """Blend a colour ([3] or [n, 3]) over image [n, 3, height, width] with alpha [n, height, width]."""
    color = color.to(image).reshape(-1, 3, 1, 1)
    return image + (color - image) * alpha.unsqueeze(1)


def rgb(red: int, green: int, blue: int) -> Tensor:
    """A colour [3] in 0..1 from 0..255."""
    return torch.tensor((red, green, blue), dtype=torch.float32) / 255


def pixel_grid(width: int, height: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """x and y of the pixel centres, each [height, width]."""
    rows, columns = torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x, y
