"""Files written tensor by tensor, and the cache of quantised weights: whole, right, or not there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from pack.nodes.common.progress import SILENT, Progress
from pack.nodes.loading import formats, streaming
from pack.nodes.loading.cache import SafetensorsWriter, cache_path, refuse_without_room
from pack.nodes.loading.plan import plan_layers
from pack.nodes.loading.streaming import read_weights, read_weights_cached
from safetensors import safe_open
from safetensors.torch import load_file

CPU = torch.device("cpu")


class Cancelled(Exception):
    pass


@pytest.fixture
def checkpoint(toyworld: Path, tmp_path: Path) -> formats.Checkpoint:
    path = Path(shutil.copy(toyworld / "toyworld_dit_fp16.safetensors", tmp_path / "dit.safetensors"))
    return formats.read_checkpoint(path, formats.DIFFUSION_MODELS)


def read(checkpoint: formats.Checkpoint, progress: Progress = SILENT, min_bytes: int = 0) -> tuple[dict, str]:
    plan = plan_layers(checkpoint, min_bytes)
    return read_weights_cached(checkpoint, plan, CPU, progress)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_odd_tensors_of_every_dtype_come_back(tmp_path: Path) -> None:
    tensors = {"odd": torch.arange(7, dtype=torch.uint8), "half": torch.randn(3, 3).half(), "one": torch.tensor(2.5),
               "big": torch.randn(4, 6), "none": torch.zeros(0, 4), "bf16": torch.randn(5).bfloat16(),
               "fp8": torch.randn(9).to(torch.float8_e4m3fn), "turned": torch.randn(4, 6).T}
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, len(tensors), {"x": "ü"}) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys() and loaded["one"].shape == ()
    assert all(torch.equal(loaded[name].float(), tensor.float()) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"x": "ü"}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(Cancelled), SafetensorsWriter(tmp_path / "a", 1, {}) as writer:
        writer.add("x", torch.zeros(8))
        raise Cancelled
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_parts_of_killed_writers_go_after_an_hour(tmp_path: Path) -> None:
    old = {"a.nf4.1.part", "a.nf4.99.part", f"a.nf4.{os.getpid()}.part"}
    others = {"b.nf4.1.part", "a.nf4.1.2.part", "xa.nf4.1.part", "a.nf4.x.part", "a.int8.1.part", "a.nf4.1.part.txt"}
    for name in (*old, *others, "a.nf4.2.part"):
        (tmp_path / name).write_bytes(b"half")
        if name != "a.nf4.2.part":  # somebody is writing it
            os.utime(tmp_path / name, (time.time() - 3700,) * 2)
    with pytest.raises(ValueError, match="Nothing was written"):
        refuse_without_room(tmp_path / "a.nf4", 10**18, "Saving")
    assert set(os.listdir(tmp_path)) == {*others, "a.nf4.2.part", f"a.nf4.{os.getpid()}.part"}


def test_written_once_and_read_after(checkpoint: formats.Checkpoint) -> None:
    expected = read_weights(checkpoint, plan_layers(checkpoint, 0), CPU)
    first, line = read(checkpoint)
    assert same(first, expected) and line == "cache: written, dit.safetensors.nf4.videomemory"
    second, line = read(checkpoint)
    assert same(second, expected) and line == "cache: read from dit.safetensors.nf4.videomemory"
    assert read(checkpoint, min_bytes=1)[1].startswith("cache: read")  # the same weights are quantised


def test_stale_and_damaged_caches_are_replaced(checkpoint: formats.Checkpoint) -> None:
    expected, _ = read(checkpoint)
    path = cache_path(checkpoint.path, "nf4")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:1000], b"", whole.replace(b'"videomemory_format": "1"',
                                                                b'"videomemory_format": "0"')):
        path.write_bytes(damaged)
        state, line = read(checkpoint)
        assert line.startswith("cache: an old one replaced") and same(state, expected)
    os.utime(checkpoint.path, ns=(1, 1))
    assert read(checkpoint)[1].startswith("cache: an old one replaced")
    assert read(checkpoint, min_bytes=200_000)[1].startswith("cache: an old one replaced")
    assert read(checkpoint)[1].startswith("cache: an old one replaced")


def test_cancel_leaves_no_file(checkpoint: formats.Checkpoint) -> None:
    calls = iter(range(100))

    def cancel() -> None:
        if next(calls) == 20:
            raise Cancelled

    with pytest.raises(Cancelled):
        read(checkpoint, Progress(check_cancel=cancel))
    assert os.listdir(checkpoint.path.parent) == ["dit.safetensors"]


def test_no_room_is_refused_before_anything_is_read(checkpoint: formats.Checkpoint,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Saving needs 1000000000\.00 GB free in '.*', but got .* GB free; allowed"):
        refuse_without_room(checkpoint.path, 10**18, "Saving")
    monkeypatch.setattr(streaming, "HEADER_BYTES", 10**18)

    def read_nothing() -> None:
        raise AssertionError("something was read")

    with pytest.raises(ValueError, match=r"The cache needs .* Nothing was written"):
        read(checkpoint, Progress(check_cancel=read_nothing))
    assert os.listdir(checkpoint.path.parent) == ["dit.safetensors"]


def test_a_cache_that_cannot_be_written_costs_only_itself(checkpoint: formats.Checkpoint) -> None:
    path = cache_path(checkpoint.path, "nf4")
    path.mkdir()  # os.replace cannot put a file there
    (path / "x").touch()
    state, line = read(checkpoint)
    assert line.startswith("cache: not written (") and len(state) > 100
    assert sorted(os.listdir(path.parent)) == ["dit.safetensors", path.name]


def test_the_written_header_is_plain_safetensors(checkpoint: formats.Checkpoint) -> None:
    read(checkpoint)
    with open(cache_path(checkpoint.path, "nf4"), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header.pop("__metadata__")["source_bytes"] == str(checkpoint.path.stat().st_size)
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends)) and ends[0][0] == 0
