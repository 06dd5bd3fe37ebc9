"""Thumbnails of the bundled workflows: the template browser shows a picture and a file name, and no other word."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from .graph import Node

SIZE = (600, 338)  # pixels of a thumbnail
BACK, TEXT, QUIET, EDGE = "#1d2025", "#f2f2f2", "#aab4bf", "#0b0c0e"
KEPT, RECENT = "#e08a1e", "#4f8df0"  # the first seconds and the last ones, as in the memory strip
SCENES = ("#39465c", "#6d3b62", "#2d6168", "#6b5442", "#2b3a6b", "#8a6a2f", "#8c5563", "#4c6650")
COAT, HAIR, FACE = "#1f5a45", "#c9ccd1", "#e2b99b"
EDGE_X, TOP, BOTTOM = 24, 168, 272  # of the film


@dataclass(frozen=True)
class Card:
    """What a thumbnail says, and the film that it draws: a scene per clip, and pixels between clips (below 0: they
    overlap). recent: how many clips the memory reaches back, 0 = none; keeps_first: and the film's beginning;
    has_picture: clip 1 begins with a given one."""

    headline: str
    promise: str
    scenes: tuple[int, ...] = tuple(range(8))
    gap: int = 3
    recent: int = 1
    keeps_first: bool = True
    has_picture: bool = False


CARDS = {
    "compare_quantization": Card("Original or packed?", "the same clip from both, side by side", (0, 0), 8, 0, False),
    "short_30s_720p_12gb": Card("A short of 30 seconds", "one node makes every clip"),
    "short_30s_720p_12gb_unrolled": Card("A short of 30 seconds", "a subgraph per clip, memory from each to the next",
                                         gap=22),
    "short_30s_i2v_character_12gb": Card("A short of your character", "begins with your own picture", has_picture=True),
    "short_30s_wan22_ti2v_latent_memory_12gb": Card("A short, ordinary checkpoint", "clips begin where the last ended",
                                                    tuple(range(6)), -18),
    "short_30s_wan21_1.3b_causal_8gb": Card("A short on a small card", "480p, one node makes every clip",
                                            keeps_first=False),
    "clip_14b_i2v_12gb": Card("One clip of a large model", "5 seconds from your own picture", (5,) * 5, 0, 0, False,
                              True),
    "short_1080p_16gb": Card("A short in 1080p", "decoded in tiles without seams"),
    "short_30s_24gb_long_memory": Card("A short with a long memory", "remembers 8 seconds and the beginning", recent=2),
    "world_walk_720p_12gb": Card("A place that stays", "the camera walks there and back", (0, 1, 2, 3, 3, 2, 1, 0), 0,
                                 0, False, True),
}


def draw_card(card: Card, nodes: list[Node]) -> Image.Image:
    """The thumbnail of a workflow with these nodes."""
    picture = Image.new("RGB", SIZE, BACK)
    draw = ImageDraw.Draw(picture)
    draw.text((EDGE_X, 20), card.headline, TEXT, ImageFont.load_default(42))
    draw.text((EDGE_X, 80), card.promise, QUIET, ImageFont.load_default(24))
    cells = _cells(card)
    for cell, scene in zip(cells, card.scenes, strict=True):
        _draw_frame(draw, cell, SCENES[scene])
    for (_, right), (left, _) in pairwise(cells):
        if left > right + 10:
            _draw_arrow(draw, right, left)
    if card.has_picture:
        draw.rectangle((cells[0][0] - 3, TOP - 3, cells[0][1] + 1, BOTTOM + 3), outline="white", width=4)
    if card.keeps_first:
        _draw_span(draw, cells[:1], KEPT)
    if card.recent:
        _draw_span(draw, cells[-card.recent - 1:-1], RECENT)
    draw.text((EDGE_X, 292), facts(nodes), TEXT, ImageFont.load_default(24))
    return picture


def facts(nodes: list[Node]) -> str:
    """Size, card and weights, as the workflow's own widgets have them."""
    by_key = {node.key: node.widgets for node in nodes}
    gate, model, packed = by_key["gate"], by_key["model"], by_key.get("packed")
    weights = model["weights"] if packed is None else f"{model['weights']}, {packed['weights']}"
    card = f", {gate['budget_gb']:.0f} GB card" if gate["budget_gb"] else ", any computer"
    return f"{gate['width']} x {gate['height']}{card}, {weights}"


def _cells(card: Card) -> list[tuple[int, int]]:
    """Left and right of each clip."""
    count = len(card.scenes)
    width = (SIZE[0] - 2 * EDGE_X - (count - 1) * card.gap) / count
    lefts = [EDGE_X + i * (width + card.gap) for i in range(count)]
    return [(round(left), round(left + width)) for left in lefts]


def _draw_frame(draw: ImageDraw.ImageDraw, cell: tuple[int, int], scene: str) -> None:
    """One clip: its scene and the hero, who is the same in all."""
    left, right = cell
    middle = (left + right) // 2
    draw.rectangle((left, TOP, right, BOTTOM), scene, EDGE)
    draw.rectangle((left + 1, BOTTOM - 22, right - 1, BOTTOM - 1), EDGE)
    draw.polygon([(middle, TOP + 42), (middle + 20, BOTTOM - 10), (middle - 20, BOTTOM - 10)], COAT)
    draw.ellipse((middle - 13, TOP + 21, middle + 13, TOP + 49), HAIR)
    draw.ellipse((middle - 9, TOP + 28, middle + 9, TOP + 50), FACE)


def _draw_arrow(draw: ImageDraw.ImageDraw, left: int, right: int) -> None:
    y = (TOP + BOTTOM) // 2
    draw.line((left + 2, y, right - 6, y), KEPT, 3)
    draw.polygon([(right - 2, y), (right - 9, y - 6), (right - 9, y + 6)], KEPT)


def _draw_span(draw: ImageDraw.ImageDraw, cells: list[tuple[int, int]], colour: str) -> None:
    """What the memory holds while the last clip is made."""
    draw.rectangle((cells[0][0], TOP - 14, cells[-1][1], TOP - 7), colour)
