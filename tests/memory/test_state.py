"""VIDEO_MEMORY is a value: operations return new ones, nothing is lost or changed behind anybody's back."""

from __future__ import annotations

import sys
import weakref
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.common.types import Geometry, MemorySpec
from pack.nodes.memory.files import load_memory, rest_on_file, save_memory
from pack.nodes.memory.kv_cache import BlockKV, pack_layer
from pack.nodes.memory.state import (
    begin_clip,
    begin_scene,
    commit,
    empty_memory,
    end_clip,
    forget,
    hash_prompt,
    memory_bytes,
)

SPEC = MemorySpec("toyworld", 8.0, chunk_latents=3, sink_latents=3, window_latents=6)
GRID = Geometry(16, 10, 16)


def chunk(i: int) -> torch.Tensor:
    return torch.full((16, 3, 10, 16), float(i))


def cache(seed: int, precision: str = "4bit") -> BlockKV:
    generator = torch.Generator().manual_seed(seed)
    return BlockKV(tuple(pack_layer(torch.randn(1, 9, 2, 64, generator=generator),
                                    torch.randn(1, 9, 2, 64, generator=generator), precision) for _ in range(2)))


def film(chunks: int, spec: MemorySpec = SPEC):
    memory = begin_clip(empty_memory(spec), GRID, "model", torch.ones(1, 2, 3))
    for i in range(chunks):
        memory = commit(memory, chunk(i), cache(i))
    return memory


def finished(memory):
    return end_clip(memory, empty_memory(memory.spec))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.integers(0, 3), st.integers(0, 4))
def test_kept_chunks_are_sink_and_window(chunks, sink, window):
    memory = film(chunks, replace(SPEC, sink_latents=3 * sink, window_latents=3 * window))
    expected = sorted({i for i in range(chunks) if i < sink or i >= chunks - window})
    assert [block.start // 3 for block in memory.blocks] == expected
    assert memory.latents_done == 3 * chunks


@pytest.mark.parametrize(("keep_window", "starts"), [(True, [0, 9, 12]), (False, [0])])
def test_a_cut_keeps_the_sink_and_is_counted(keep_window, starts):
    after = begin_scene(film(5), keep_window)
    assert [block.start for block in after.blocks] == starts
    assert (after.cuts, after.shot, after.latents_done) == (1, film(5).shot + 1, 15)
    assert [block.cuts for block in commit(after, chunk(5), None).blocks] == [0] * len(after.blocks[:2]) + [1]
    assert begin_scene(film(0), keep_window) == film(0)


def test_values_never_change():
    before = film(3)
    starts = [block.start for block in before.blocks]
    after = commit(before, chunk(3), cache(3))
    assert [block.start for block in before.blocks] == starts
    assert after.blocks[0] is before.blocks[0]  # shared, not copied
    with pytest.raises(FrozenInstanceError):
        before.latents_done = 0


def test_tail_holds_the_end_of_the_film_even_without_window():
    memory = film(5, replace(SPEC, sink_latents=0, window_latents=0))
    assert memory.blocks == ()
    assert memory.tail[0, :, 0, 0].tolist() == [2, 2, 3, 3, 3, 4, 4, 4]


def test_forget_keeps_the_place_and_opens_a_new_sink():
    memory = forget(film(4))
    assert memory.blocks == () and memory.latents_done == 12
    for i in range(4, 9):
        memory = commit(memory, chunk(i), cache(i))
    assert [block.start // 3 for block in memory.blocks] == [4, 7, 8]


def test_another_model_drops_the_cache_and_keeps_the_latents():
    memory = begin_clip(film(2), GRID, "other model", torch.ones(1, 2, 3))
    assert all(block.kv is None for block in memory.blocks)
    assert torch.equal(memory.blocks[1].latents, chunk(1))


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="got 80x44 latent pixels of 48 channels; allowed: 16x10 of 16"):
        begin_clip(film(1), Geometry(48, 44, 80), "model", None)


def test_a_new_prompt_is_a_new_shot():
    memory = film(1)
    same = begin_clip(memory, GRID, "model", torch.ones(1, 2, 3))
    other = begin_clip(same, GRID, "model", torch.zeros(1, 2, 3))
    assert (memory.shot, same.shot, other.shot) == (0, 0, 1)
    assert hash_prompt(torch.ones(2)) != hash_prompt(torch.zeros(2))


def test_inconsistent_spec_is_refused():
    with pytest.raises(ValueError, match="window_latents must be whole chunks.*got 4; allowed: multiples of 3"):
        empty_memory(replace(SPEC, window_latents=4))
    with pytest.raises(ValueError, match="unknown placement, but got 'disk'; allowed: vram, ram"):
        empty_memory(replace(SPEC, placement="disk"))


@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
def test_file_round_trip_is_exact(tmp_path, precision):
    memory = finished(replace(film(4), blocks=tuple(
        replace(block, kv=cache(block.start, precision)) for block in film(4).blocks)))
    again = load_memory(save_memory(memory, tmp_path / "m.safetensors"))
    assert replace(again, blocks=(), tail=None) == replace(memory, blocks=(), tail=None)
    assert torch.equal(again.tail, memory.tail)
    for mine, theirs in zip(memory.blocks, again.blocks, strict=True):
        assert (mine.start, mine.shot) == (theirs.start, theirs.shot)
        assert torch.equal(mine.latents, theirs.latents)
        for a, b in zip(mine.kv.layers, theirs.kv.layers, strict=True):
            for side in ("k", "v"):
                want, got = getattr(a, side).tensors(), getattr(b, side).tensors()
                assert want.keys() == got.keys() and all(torch.equal(want[n], got[n]) for n in want)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.safetensors"]


def test_memory_after_a_clip_shares_what_was_at_rest_before():
    """The sampler moves caches to the card and back: the film's start must not be copied with every clip."""
    before = finished(film(2))

    def moved(kv):
        return BlockKV(tuple(type(layer)(layer.k.map(torch.clone), layer.v.map(torch.clone)) for layer in kv.layers))

    on_card = replace(before, blocks=tuple(replace(block, kv=moved(block.kv)) for block in before.blocks))
    after = end_clip(commit(on_card, chunk(2), cache(2)), before)
    assert [a.kv is b.kv for a, b in zip(after.blocks, before.blocks, strict=False)] == [True, True]
    assert after.blocks[2].kv is not None and after.clips_done == 2


@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
def test_saved_memory_rests_in_its_file_with_the_same_bits(tmp_path, precision):
    memory = replace(film(4), blocks=tuple(replace(block, kv=cache(block.start, precision))
                                           for block in film(4).blocks))
    tensors = [tensor.clone() for tensor in kv_tensors(memory)]
    gone = [weakref.ref(tensor) for tensor in kv_tensors(memory)]
    rest_on_file(memory, save_memory(memory, tmp_path / "m.safetensors"))
    assert not any(reference() is not None for reference in gone)
    assert all(torch.equal(a, b) for a, b in zip(tensors, kv_tensors(memory), strict=True))
    if sys.platform == "linux":
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("m.safetensors")]
        spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
        assert all(any(start <= tensor.data_ptr() < stop for start, stop in spans) for tensor in kv_tensors(memory))


def kv_tensors(memory):
    return [tensor for block in memory.blocks for layer in block.kv.layers for packed in (layer.k, layer.v)
            for tensor in packed.tensors().values()]


def test_file_without_cache_is_small_and_says_so(tmp_path):
    memory = film(4)
    again = load_memory(save_memory(memory, tmp_path / "m.safetensors", with_kv=False))
    assert all(block.kv is None for block in again.blocks)
    assert memory_bytes(again) == (memory_bytes(memory)[0], 0)


def test_empty_memory_survives_a_file(tmp_path):
    memory = empty_memory(SPEC)
    assert load_memory(save_memory(memory, tmp_path / "m.safetensors")) == memory


def test_foreign_and_broken_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "lora.safetensors"))
    with pytest.raises(ValueError, match=r"cannot use lora.safetensors.*allowed: videomemory.memory version 1"):
        load_memory(tmp_path / "lora.safetensors")
    whole = save_memory(film(2), tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot read cut.safetensors"):
        load_memory(tmp_path / "cut.safetensors")
    for header in ("{", "[]", "{}", '{"blocks": [{"start": 0}]}'):
        save_file({"x": torch.zeros(1)}, str(tmp_path / "odd.safetensors"),
                  metadata={"format": "videomemory.memory", "version": "1", "memory": header})
        with pytest.raises(ValueError, match="cannot read odd.safetensors, but got a damaged header"):
            load_memory(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="cannot read absent.safetensors"):
        load_memory(tmp_path / "absent.safetensors")
