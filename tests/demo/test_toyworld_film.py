"""The demo film says only what the model was trained on, and the benchmark gives it the right prompts."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from world import caption_table


@pytest.fixture(scope="module")
def benchmark_module(toyworld: Path) -> ModuleType:
    path = toyworld.parents[1] / "benchmarks" / "identity.py"
    spec = importlib.util.spec_from_file_location("benchmark_identity", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_film_has_ten_clips_of_three_seconds_in_changing_scenes(benchmark_module: ModuleType, toyworld: Path) -> None:
    _, _, scenes = benchmark_module.read_film(toyworld / "film.json")
    assert [scene.start for scene in scenes] == [3 * clip for clip in range(10)]
    places = [scene.text.split()[-1] for scene in scenes]
    assert all(before != after for before, after in pairwise(places))


def test_prompts_are_trained_ones_and_name_the_hero_where_eight_seconds_pass(
    benchmark_module: ModuleType, toyworld: Path
) -> None:
    film = benchmark_module.read_film(toyworld / "film.json")
    trained = set(caption_table()[0])
    for reanchor, named in ((True, [0, 3, 6, 8]), (False, [0])):
        texts = benchmark_module.clip_texts(*film, reanchor)
        assert set(texts) <= trained
        assert [clip for clip, text in enumerate(texts) if text.startswith(film[0])] == named


def test_random_heroes_differ(benchmark_module: ModuleType) -> None:
    heroes = benchmark_module.random_identities(120)
    assert len(set(heroes)) == 120
    assert set(heroes) <= {text.split(" waves")[0] for text in caption_table()[0]}
