"""Who is in these frames? A deterministic pixel classifier without learning, for 128x80 toy-world video.

Saturated pixels vote for the nearest palette hue. The colour with most pixels is the body, the second the hat. The
shape is the best overlap of the body's mask, normalised for position and area, with 29 rotated templates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from shapes import body_distance
from torch import Tensor
from world import COLORS, HEIGHT, PALETTE, SHAPES, WIDTH

NONE = -1
MASK = 48  # side of a template, pixels
TEMPLATE_AREA = 620.0
TEMPLATE_TURNS = ((360, 1), (90, 9), (120, 12), (72, 7))  # per shape: degrees after which it repeats, templates
MIN_SATURATION, MIN_VALUE = 0.5, 0.4
HERO_PIXELS = 150  # of one colour in a frame: fewer means nobody is there
HAT_PIXELS = 20  # of the second colour, mean over the frames
SHAPE_PIXELS = 250  # of the body in a frame that may vote for a shape
BORDER = 18  # a body centred nearer than this to the side is cut off and may not vote


@dataclass(frozen=True)
class Classification:
    """Indices into world.COLORS and world.SHAPES, or NONE; `visible` is the share of frames with a hero."""

    body: int
    hat: int
    shape: int
    visible: float


def classify(video: Tensor) -> Classification:
    """Classify frames [T, 3, HEIGHT, WIDTH] in 0..1 that show one hero or none."""
    hue, saturation, value = _hue_saturation_value(video)  # each [T, H, W]
    palette_hue = _hue_saturation_value(PALETTE.view(-1, 3, 1, 1))[0].flatten()
    difference = (hue.unsqueeze(1) - palette_hue.view(1, -1, 1, 1)).abs()
    nearest = torch.minimum(difference, 360 - difference).argmin(1)  # [T, H, W]
    saturated = (saturation > MIN_SATURATION) & (value > MIN_VALUE)
    counts = [((nearest == color) & saturated).flatten(1).sum(1) for color in range(len(COLORS))]
    counts = torch.stack(counts, 1).float()  # [T, colours]
    seen = counts.amax(1) > HERO_PIXELS
    visible = float(seen.float().mean())
    if not seen.any():
        return Classification(NONE, NONE, NONE, visible)
    total = counts[seen].sum(0)
    body = int(total.argmax())
    total[body] = -1
    hat = int(total.argmax())
    if total[hat] / seen.sum() <= HAT_PIXELS:
        hat = NONE
    return Classification(body, hat, _vote_shape(((nearest == body) & saturated)[seen].float()), visible)


def _hue_saturation_value(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[..., 3, H, W] in 0..1 -> hue in degrees, saturation and value in 0..1, each [..., H, W]."""
    value, strongest = image.max(-3)
    chroma = value - image.amin(-3)
    divisor = chroma.clamp(min=1e-6)
    red, green, blue = image.unbind(-3)
    sixth = torch.where(strongest == 1, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sixth = torch.where(strongest == 0, ((green - blue) / divisor) % 6, sixth)
    return sixth * 60, chroma / value.clamp(min=1e-6), value


def _vote_shape(masks: Tensor) -> int:
    """The shape most frames agree on; masks [T, H, W] of 0 and 1, NONE when no mask is whole and large enough."""
    templates, labels = _templates()
    rows, columns = torch.arange(HEIGHT)[:, None] + 0.5, torch.arange(WIDTH)[None] + 0.5
    score, voters = torch.zeros(len(SHAPES)), 0
    for mask in masks:
        area = mask.sum()
        if area < SHAPE_PIXELS:
            continue
        x, y = float((mask * columns).sum() / area), float((mask * rows).sum() / area)
        if not BORDER <= x <= WIDTH - BORDER:
            continue
        normalised = _normalise(_close_holes(_crop(mask, round(x), round(y))))
        overlap = torch.minimum(normalised, templates).flatten(1).sum(1)
        overlap = overlap / torch.maximum(normalised, templates).flatten(1).sum(1)
        best = torch.stack([overlap[labels == shape].max() for shape in range(len(SHAPES))])
        score += torch.softmax(best * 40, 0)
        voters += 1
    return int(score.argmax()) if voters else NONE


def _crop(mask: Tensor, x: int, y: int) -> Tensor:
    """MASK x MASK pixels around (x, y), zeros outside the picture."""
    padded = F.pad(mask, (MASK,) * 4)
    top, left = y + MASK // 2, x + MASK // 2
    return padded[top : top + MASK, left : left + MASK]


def _close_holes(mask: Tensor) -> Tensor:
    """Fill the eyes by a 7x7 closing."""
    grown = F.max_pool2d(mask[None, None], 7, 1, 3)
    return -F.max_pool2d(-grown, 7, 1, 3)[0, 0]


def _mask_grid() -> tuple[Tensor, Tensor]:
    axis = torch.arange(MASK) - MASK / 2 + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _normalise(mask: Tensor) -> Tensor:
    """Move a mask's centre of mass to the middle and scale its area to TEMPLATE_AREA."""
    x, y = _mask_grid()
    area = mask.sum().clamp(min=1)
    center_x, center_y = (mask * x).sum() / area, (mask * y).sum() / area
    scale = torch.sqrt(area / TEMPLATE_AREA)
    grid = torch.stack([(x * scale + center_x) / (MASK / 2), (y * scale + center_y) / (MASK / 2)], -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Every shape at several angles -> masks [29, MASK, MASK] and their shape index [29]."""
    x, y = _mask_grid()
    masks, labels = [], []
    for shape, (period, turns) in enumerate(TEMPLATE_TURNS):
        for turn in range(turns):
            angle = math.radians(period * turn / turns)
            turned_x = math.cos(angle) * x + math.sin(angle) * y
            turned_y = -math.sin(angle) * x + math.cos(angle) * y
            distance = body_distance(torch.tensor([shape]), turned_x[None], turned_y[None])[0]
            masks.append(_normalise((distance < 0).float()))
            labels.append(shape)
    return torch.stack(masks), torch.tensor(labels)
