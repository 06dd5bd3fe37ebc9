"""What a chunk attends to: sink, pins, retrieved chunks and window, in the order of the film, inside the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.common.types import Geometry, MemoryBlock, MemorySpec
from pack.nodes.memory.kv_cache import BlockKV, pack_layer
from pack.nodes.memory.retrieval import likeness, nearest, thinned
from pack.nodes.memory.state import (
    begin_clip,
    begin_scene,
    caches,
    commit,
    empty_memory,
    end_clip,
    forget,
    memory_bytes,
    view,
)
from pack.nodes.sampling.presets import memory_spec

SPEC = MemorySpec("toyworld", 8.0, chunk_latents=3, sink_latents=3, window_latents=3)
GRID = Geometry(4, 2, 2)
HERO, FOREST, SEA = torch.eye(3)[:, None]  # prompts of one token


def cache() -> BlockKV:
    return BlockKV((pack_layer(torch.ones(1, 2, 1, 64), torch.ones(1, 2, 1, 64), "model"),))


def film(spec: MemorySpec, *clips: tuple[torch.Tensor, int], cut: bool = False):
    """A film of clips (prompt, chunks); every clip has a prompt of its own."""
    memory = empty_memory(spec)
    for prompt, chunks in clips:
        if cut:
            memory = begin_scene(memory, keep_window=True)
        memory = begin_clip(memory, GRID, "model", torch.cat((prompt[0], torch.tensor([memory.latents_done]))))
        for _ in range(chunks):
            memory = commit(memory, torch.zeros(4, 3, 2, 2), cache(), cache(), prompt)
    return memory


def chunks(blocks) -> list[int]:
    return [block.start // 3 for block in blocks]


def test_the_hero_is_brought_back_after_clips_without_it():
    memory = film(replace(SPEC, retrieved_latents=3), (HERO, 3), (FOREST, 2), (SEA, 2), (FOREST, 2))
    assert chunks(view(memory, HERO)) == [0, 2, 8]
    assert chunks(view(memory, SEA)) == [0, 6, 8]
    assert chunks(view(memory, FOREST)) == [0, 7, 8]  # nothing older is nearer: a longer window
    assert chunks(view(memory)) == [0, 7, 8]
    assert all(block.kv is not None for block in view(memory, HERO))


def test_unequal_words_still_find_the_nearest():
    memory = film(replace(SPEC, retrieved_latents=3), (FOREST, 1), (HERO, 1), (SEA, 3))
    assert chunks(view(memory, torch.tensor([[0.8, 0.0, 0.6]]))) == [0, 1, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 3),
       st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=7), st.integers(0, 2))
def test_view_is_bounded_ordered_and_without_repeats(sink, pinned, retrieved, window, clips, newest):
    spec = replace(SPEC, sink_latents=3 * sink, pinned_latents=3 * pinned, retrieved_latents=3 * retrieved,
                   window_latents=3 * window, prompt_change="pin")
    memory = film(spec, *((torch.eye(3)[i:i + 1], count) for i, count in clips))
    seen, total = chunks(view(memory, torch.eye(3)[newest:newest + 1])), sum(count for _, count in clips)
    assert seen == sorted(set(seen)) and len(seen) <= sink + pinned + retrieved + window
    assert set(range(min(sink, total))) <= set(seen)
    assert set(range(max(0, total - window), total)) <= set(seen)
    assert bool(memory.archive) <= bool(retrieved) and len(memory.archive) <= 16
    assert not {block.start for block in memory.archive} & {block.start for block in memory.blocks}


def test_the_beginning_of_a_shot_is_pinned_until_the_next_one_begins():
    spec = replace(SPEC, prompt_change="pin", pinned_latents=3)
    seen = []
    for count in range(1, 5):
        seen.append(chunks(view(film(spec, (HERO, 3), (SEA, count)))))
    assert seen == [[0, 2, 3], [0, 3, 4], [0, 3, 5], [0, 3, 6]]
    assert chunks(view(film(spec, (HERO, 3), (SEA, 4), (FOREST, 1)))) == [0, 6, 7]
    assert chunks(view(film(spec, (HERO, 3), (SEA, 4), (FOREST, 4), cut=True))) == [0, 7, 10]


def test_places_for_pins_serve_the_window_while_nothing_is_pinned():
    assert chunks(view(film(replace(SPEC, prompt_change="pin", pinned_latents=3), (HERO, 5)))) == [0, 3, 4]


def test_recache_drops_what_was_made_under_the_old_prompt_but_the_sink():
    memory = film(replace(SPEC, prompt_change="recache", window_latents=6), (HERO, 4))
    same = begin_clip(memory, GRID, "model", torch.cat((HERO[0], torch.zeros(1))))
    other = begin_clip(memory, GRID, "model", SEA)
    assert [block.kv is None for block in same.blocks] == [False, False, False]
    assert [block.kv is None for block in other.blocks] == [False, True, True]
    assert [block.negative_kv is None for block in other.blocks] == [False, True, True]


def test_a_cut_that_drops_the_window_archives_it():
    memory = begin_scene(film(replace(SPEC, retrieved_latents=3), (HERO, 2), (SEA, 2)), keep_window=False)
    assert chunks(memory.blocks) == [0] and chunks(memory.archive) == [1, 2, 3]
    assert chunks(view(memory, HERO)) == [0, 1]


def test_forgetting_and_another_model_reach_the_archive():
    memory = film(replace(SPEC, retrieved_latents=3), (HERO, 3), (SEA, 4))
    assert memory.archive and forget(memory).archive == ()
    assert caches(begin_clip(memory, GRID, "another model", SEA)) == ()
    assert memory_bytes(memory)[1] == 14 * cache().nbytes  # archive too, and both conditions


def test_a_finished_clip_shares_every_cache_that_rested_already():
    before = film(replace(SPEC, retrieved_latents=3), (HERO, 3), (SEA, 4))
    after = end_clip(replace(before, blocks=tuple(replace(b, kv=cache()) for b in before.blocks)), before)
    assert [id(kv) for kv in caches(after)] == [id(kv) for kv in caches(before)]


def test_archive_thins_the_prompt_that_has_most():
    blocks = [MemoryBlock(i, torch.zeros(1, 1, 1, 1), shot) for i, shot in enumerate((0, 1, 1, 1, 2, 2))]
    assert [block.start for block in thinned(blocks, 4)] == [0, 3, 4, 5]
    assert [block.start for block in thinned(blocks, 3)] == [0, 3, 5]


def test_chunks_without_a_prompt_come_last_and_ties_go_to_the_newest():
    def block(start, prompt):
        return MemoryBlock(start, torch.zeros(1, 3, 1, 1), prompt=prompt)

    blocks = [block(0, HERO), block(3, HERO.clone()), block(6, SEA), block(9, None), block(12, torch.ones(1, 5))]
    assert [found.start for found in nearest(blocks, HERO, 3)] == [3]
    assert [found.start for found in nearest(blocks, HERO, 9)] == [0, 3, 6]
    assert nearest(blocks, HERO, 2) == ()


def test_a_name_is_found_in_a_long_prompt_where_a_short_one_shares_all_but_the_name():
    words = torch.eye(9)
    the, hero, cave, empty = words[:4]
    asked = torch.stack((the, hero, cave))
    told, bare = torch.stack((the, hero, *words[4:])), torch.stack((the, empty, the))
    assert (likeness(asked, told), likeness(asked, bare)) == (0.6667, 0.3333)
    means = [torch.nn.functional.normalize(prompt.mean(0), dim=0) for prompt in (asked, told, bare)]
    assert means[0] @ means[1] < means[0] @ means[2]  # a cosine of whole prompts gets it wrong
    assert likeness(asked, None) == likeness(asked, torch.ones(2, 5)) == likeness(asked, words[:0]) == -2


def test_inconsistent_places_are_refused():
    with pytest.raises(ValueError, match="retrieved_latents must be whole chunks.*got 2; allowed: multiples of 3"):
        empty_memory(replace(SPEC, retrieved_latents=2))
    with pytest.raises(ValueError, match="unknown prompt_change, but got 'drop'; allowed: keep, recache, pin"):
        empty_memory(replace(SPEC, prompt_change="drop"))


def test_as_trained_means_inside_the_trained_budget():
    plain = memory_spec("longlive_2")
    pin = memory_spec("longlive_2", prompt_change="pin")
    assert plain.capacity_latents == pin.capacity_latents == 24 and pin.pinned_latents == 8
    assert memory_spec("toyworld", retrieved_s=1).window_latents == 3
