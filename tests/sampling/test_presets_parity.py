"""Every causal recipe: the film made chunk by chunk with the memory is the film of the full-sequence reference."""

from __future__ import annotations

import pytest
import torch

from .rolling_films import FILMS, empty, ours, places, recipe, reference, reference_chunk, seen

pytestmark = pytest.mark.comfy

LIMIT = 2e-6  # largest difference, in standard deviations of the latents


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.std())


@pytest.mark.parametrize("name", FILMS)
def test_the_film_equals_the_reference_before_and_after_chunks_are_forgotten(name):
    film = FILMS[name]
    latents, memory = ours(film)
    assert largest(latents, reference(film)) < LIMIT
    size = recipe(film).chunk
    assert [block.start // size for block in memory.blocks] == seen(film, film.chunks)[0]
    assert len(memory.blocks) < film.chunks  # something was forgotten
    assert latents.std() > 0.5  # the comparison means something


def without_sink(film, chunk):
    visible = [c for c in seen(film, chunk)[0] if c >= empty(film).spec.sink_latents // recipe(film).chunk]
    return visible, places(film, visible, chunk)


def with_one_chunk_less(film, chunk):
    visible = seen(film, chunk)[0][1:]
    return visible, places(film, visible, chunk)


def without_pins(film, chunk):
    sink = empty(film).spec.sink_latents // recipe(film).chunk
    count = len(seen(film, chunk)[0])
    visible = [*range(min(sink, count)), *range(max(sink, chunk - max(0, count - sink)), chunk)]
    return visible, places(film, visible, chunk)


def where_the_film_is(film, chunk):
    """Positions that count on from the film's beginning."""
    size, gap = recipe(film).chunk, recipe(film).shot_gap
    visible, _ = seen(film, chunk)
    return visible, [c * size + step + gap * sum(cut <= c for cut in film.cuts)
                     for c in (*visible, chunk) for step in range(size)]


def without_gaps(film, chunk):
    visible, positions = seen(film, chunk)
    return visible, list(range(len(positions)))


WRONG = [*((without_sink, name) for name in ("toyworld", "longlive_1", "longlive_2", "custom")),
         *((with_one_chunk_less, name) for name in FILMS),
         *((without_pins, name) for name in ("longlive_2, cuts and pins", "custom")),
         *((where_the_film_is, name) for name in ("toyworld", "longlive_1", "longlive_2, cuts", "custom")),
         *((without_gaps, name) for name in ("longlive_2, cuts", "custom"))]


@pytest.mark.parametrize(("rule", "name"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_the_comparison_sees_every_rule(rule, name):
    """With one rule broken the reference makes another last chunk: the test above would have seen it."""
    film = FILMS[name]
    right = reference(film)
    *done, last = right.split(recipe(film).chunk, 2)
    assert largest(reference_chunk(film, film.chunks - 1, done, rule), last) > 1000 * LIMIT


@pytest.mark.parametrize("name", ["toyworld", "self_forcing", "longlive_2, cuts", "custom"])
def test_positions_stay_inside_the_memory_however_long_the_film_is(name, monkeypatch):
    from pack.nodes.sampling.bridge_hook import MemoryHook

    film, starts, look_at = FILMS[name], [], MemoryHook.look_at

    def watched(hook, remembered, negative, positions, start):
        starts.append((start, max(positions, default=0)))
        look_at(hook, remembered, negative, positions, start)

    monkeypatch.setattr(MemoryHook, "look_at", watched)
    ours(film)
    room = empty(film).spec.capacity_latents + len(film.cuts) * recipe(film).shot_gap
    assert all(last < start <= room or start == 0 for start, last in starts)
    assert max(starts)[0] >= empty(film).spec.capacity_latents  # and the memory was full
