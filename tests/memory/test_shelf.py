"""Older memories' K/V leave RAM by themselves, with the same bits; where they cannot, they are rebuilt."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pack.nodes.common.types import Geometry, MemorySpec
from pack.nodes.memory import shelf as shelf_module
from pack.nodes.memory.files import load_memory, rest_on_file, save_memory
from pack.nodes.memory.kv_cache import BlockKV, pack_layer
from pack.nodes.memory.shelf import Shelf
from pack.nodes.memory.state import begin_clip, caches, commit, empty_memory, memory_bytes

SPEC = MemorySpec("toyworld", 8.0, chunk_latents=3, sink_latents=3, window_latents=6)


def cache(seed: int, precision: str = "4bit", dtype: torch.dtype = torch.bfloat16) -> BlockKV:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, 9, 2, 64, generator=generator).to(dtype)
    return BlockKV((pack_layer(k, v, precision), pack_layer(v, k, precision)))


def bits(kv: BlockKV) -> list[torch.Tensor]:
    return [tensor.clone().view(torch.uint8) for layer in kv.layers for side in (layer.k, layer.v)
            for tensor in side.tensors().values()]


@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
def test_least_recently_used_goes_to_a_file_with_the_same_bits(tmp_path, precision):
    shelf, kept = Shelf(), [cache(i, precision) for i in range(3)]
    before, size = [bits(kv) for kv in kept], cache(0, precision).nbytes
    assert shelf.put(kept, 3 * size, tmp_path) == (0, 0)
    assert shelf.put(kept[:1], 2 * size, tmp_path) == (size, 0)  # the first was just used: the second goes
    assert [kv.in_file for kv in kept] == [False, True, False]
    assert shelf.ram_bytes == 2 * size
    assert all(torch.equal(a, b) for kv, old in zip(kept, before, strict=True)
               for a, b in zip(bits(kv), old, strict=True))


def test_a_cache_in_a_file_takes_no_ram_and_leaves_nothing_behind(tmp_path):
    shelf, kv = Shelf(), cache(0)
    shelf.put([kv], 0, tmp_path)
    if sys.platform == "linux":
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "videomemory_kv_" in line]
        spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
        data = kv.layers[0].k.data.data_ptr()
        assert any(start <= data < stop for start, stop in spans)
    del kv
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_dead_values_count_nothing(tmp_path):
    shelf, kept = Shelf(), cache(0)
    shelf.put([cache(1), cache(2), kept], 10**9, tmp_path)
    gc.collect()
    assert shelf.ram_bytes == kept.nbytes
    shelf.reset()
    assert shelf.ram_bytes == 0 and not kept.is_gone


def test_without_a_disk_older_caches_are_let_go_of_and_rebuilt_later(tmp_path):
    nowhere = tmp_path / "file" / "folder"
    nowhere.parent.write_text("not a folder")
    shelf, grid = Shelf(), Geometry(4, 2, 2)
    memory = begin_clip(empty_memory(SPEC), grid, "model", torch.ones(2))
    old = commit(memory, torch.zeros(4, 3, 2, 2), cache(0), cache(5))
    shelf.put(caches(old), 10**9, nowhere)
    new, size = cache(1), cache(1).nbytes
    assert shelf.put([new], 0, nowhere) == (0, 2 * size)
    assert not new.is_gone and memory_bytes(old)[1] == 0
    saved = save_memory(old, tmp_path / "m.safetensors")
    rest_on_file(old, saved)
    assert load_memory(saved).blocks[0].kv is None
    again = begin_clip(old, grid, "model", torch.ones(2)).blocks[0]
    assert again.kv is None and again.negative_kv is None and torch.equal(again.latents, torch.zeros(4, 3, 2, 2))


def test_what_lies_elsewhere_already_is_not_moved_again(tmp_path):
    shelf, kv = Shelf(), cache(0)
    kv.rest_on(cache(0))
    assert shelf.put([kv], 0, tmp_path) == (0, 0)
    assert kv.to("cpu") is kv
    assert replace(kv, in_file=False).to(torch.device("meta")).layers[0].k.data.is_meta


def test_a_file_that_cannot_be_removed_while_it_is_mapped_goes_at_the_next_chance(tmp_path, monkeypatch):
    shelf, kept = Shelf(), [cache(1)]
    with monkeypatch.context() as windows:
        windows.setattr(shelf_module, "discard", lambda path: False)
        assert shelf.put(kept, 0, tmp_path) == (kept[0].nbytes, 0)
    assert len(list(tmp_path.iterdir())) == 1
    shelf.put([], 0, tmp_path)
    assert list(tmp_path.iterdir()) == []
