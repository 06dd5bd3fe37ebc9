"""Is it still the same hero? Scores frames of the toy world against the identity that was asked for.

Works on the model's own 128x80 pixels, on the CPU, with torch and numpy only. A clip is judged on its last half, well
after the cut. Chance: body 0.17, hat 0.20, shape 0.25, all three 0.008.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parent / "training"))  # appended: shadows no module of the host

from classify import NONE, classify
from world import COLORS, HEIGHT, SHAPES, WIDTH

_IDENTITY = re.compile(
    rf"a (?P<body>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)}) hero with a (?P<hat>{'|'.join(COLORS)}) hat"
)


@dataclass(frozen=True)
class Identity:
    """Who is seen; None where nothing is recognised. `visible` is the share of judged frames with a hero."""

    body: str | None
    hat: str | None
    shape: str | None
    visible: float = 1.0


@dataclass(frozen=True)
class Retention:
    """Per clip, whether it shows the body colour, the hat colour, the shape asked for, and all three; bool [clips]."""

    body: np.ndarray
    hat: np.ndarray
    shape: np.ndarray
    all_three: np.ndarray


def parse_identity(prompt: str) -> Identity:
    """The identity a prompt names, as in "a blue circle hero with a green hat walks ..."; ValueError without one."""
    found = _IDENTITY.search(prompt.lower())
    if found is None:
        raise ValueError(
            f"Toy-world scoring needs a prompt that names the hero, but got {prompt!r}; allowed: "
            f"'a {{colour}} {{shape}} hero with a {{colour}} hat', colours {', '.join(COLORS)}, shapes "
            f"{', '.join(SHAPES)}. Name the identity in these words."
        )
    return Identity(found["body"], found["hat"], found["shape"])


def score_clip(frames: np.ndarray) -> Identity:
    """Who is in frames uint8 [T, 80, 128, 3]; ValueError for another size or type."""
    if frames.ndim != 4 or frames.shape[1:] != (HEIGHT, WIDTH, 3) or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"Toy-world scoring needs frames at the model's own size, but got shape {tuple(frames.shape)} of "
            f"{frames.dtype}; allowed: uint8 [T, {HEIGHT}, {WIDTH}, 3] with T >= 1. Reduce enlarged frames to "
            f"{WIDTH}x{HEIGHT} (nearest pixel) first."
        )
    seen = classify(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255)
    return Identity(
        body=None if seen.body == NONE else COLORS[seen.body],
        hat=None if seen.hat == NONE else COLORS[seen.hat],
        shape=None if seen.shape == NONE else SHAPES[seen.shape],
        visible=seen.visible,
    )


def retention(clips: Sequence[np.ndarray], identity: Identity) -> Retention:
    """Compare the last half of every clip, uint8 [T, 80, 128, 3], with the identity that was asked for."""
    seen = [score_clip(clip[len(clip) // 2 :]) for clip in clips]
    body, hat, shape = (
        np.array([getattr(one, part) == getattr(identity, part) for one in seen], bool)
        for part in ("body", "hat", "shape")
    )
    return Retention(body, hat, shape, body & hat & shape)


def table(films: Mapping[str, Sequence[Retention]]) -> str:
    """A Markdown table, one row per condition: how often clips after the first kept the hero, over all its films.

    The last column counts the films in which every clip showed the whole hero.
    """
    header = ("", "same body colour", "same hat colour", "same shape", "same hero (all three)", "films with no slip")
    rows = [header, ("---",) * len(header)]
    for name, scores in films.items():
        parts = ("body", "hat", "shape", "all_three")
        shares = [f"{np.mean([getattr(score, part)[1:] for score in scores]):.0%}" for part in parts]
        rows.append((name, *shares, f"{sum(bool(score.all_three.all()) for score in scores)} of {len(scores)}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
