"""The identity score reads the hero back, compares it, and refuses what it cannot read."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from render import render, to_uint8
from world import COLORS, SHAPES, sample_specs


@pytest.fixture(scope="module")
def identity(toyworld: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("toyworld_identity", toyworld / "identity.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def videos() -> tuple[list[np.ndarray], list[tuple[str, str, str]]]:
    specs = sample_specs(3, 7, 2)
    frames = to_uint8(render(specs)).permute(0, 1, 3, 4, 2).numpy()
    names = zip(specs.body, specs.hat, specs.shape, strict=True)
    return list(frames), [(COLORS[body], COLORS[hat], SHAPES[shape]) for body, hat, shape in names]


def test_score_names_the_hero(identity: ModuleType, videos: tuple) -> None:
    for frames, expected in zip(*videos, strict=True):
        seen = identity.score_clip(frames)
        assert (seen.body, seen.hat, seen.shape, seen.visible) == (*expected, 1.0)


def test_score_names_nobody_when_the_scene_is_empty(identity: ModuleType) -> None:
    assert identity.score_clip(np.full((4, 80, 128, 3), 90, np.uint8)) == identity.Identity(None, None, None, 0.0)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((4, 160, 256, 3), np.uint8), np.zeros((4, 80, 128, 3), np.float32), np.zeros((0, 80, 128, 3), np.uint8)],
)
def test_frames_are_refused_when_not_native(identity: ModuleType, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[T, 80, 128, 3\] with T >= 1. Reduce enlarged frames to 128x80"):
        identity.score_clip(frames)


def test_retention_judges_the_last_half_of_a_clip(identity: ModuleType, videos: tuple) -> None:
    (first, second, _), ((body, hat, shape), *_) = videos
    changed = np.concatenate([first[:8], second[:8]])
    recovered = np.concatenate([second[:8], first[:8]])
    kept = identity.retention([first, changed, recovered], identity.Identity(body, hat, shape))
    assert kept.all_three.tolist() == [True, False, True]
    wrong_hat = identity.retention([first], identity.Identity(body, body, shape))
    parts = (wrong_hat.body, wrong_hat.hat, wrong_hat.shape, wrong_hat.all_three)
    assert [bool(part[0]) for part in parts] == [True, False, True, False]


def test_identity_is_read_from_a_prompt(identity: ModuleType) -> None:
    read = identity.parse_identity("A blue circle hero with a green hat walks right in the forest")
    assert read == identity.Identity("blue", "green", "circle")
    with pytest.raises(ValueError, match="got 'the hero jumps'; allowed: 'a {colour} {shape} hero"):
        identity.parse_identity("the hero jumps")


def test_table_leaves_out_the_first_clip_and_counts_films_without_a_slip(identity: ModuleType) -> None:
    good = identity.Retention(*[np.array([True, True, True])] * 4)
    slip = identity.Retention(*[np.array([True, True, False])] * 4)
    lines = identity.table({"with memory": [good, slip]}).splitlines()
    assert "same body colour" in lines[0] and "films with no slip" in lines[0]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["with memory", *["75%"] * 4, "1 of 2"]
