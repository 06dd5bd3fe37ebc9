"""A memory in a file: bit-equal when it comes back, whole or refused, whichever version wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.common.types import Anchor, Geometry, MemoryBlock, MemorySpec, VideoMemory
from pack.nodes.memory.files import file_bytes, load_memory, rest_on_file, save_memory
from pack.nodes.memory.kv_cache import BlockKV, pack_layer
from pack.nodes.memory.state import begin_clip, caches, commit, empty_memory, end_clip, prompt_tokens
from pack.nodes.sampling.presets import custom_preset, memory_spec
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
CHUNK, GRID = 3, Geometry(2, 2, 3)


def cache(seed: int, precision: str) -> BlockKV:
    draw = torch.Generator().manual_seed(seed)
    sides = (torch.randn(2, 1, 6, 2, 64, generator=draw) for _ in range(2))
    return BlockKV(tuple(pack_layer(k, v, precision) for k, v in sides))


@st.composite
def memories(draw) -> VideoMemory:
    """Any memory that a film can reach: strategy, recipe, pins, archive, caches that are there or not."""
    places = st.integers(0, 2).map(lambda chunks: CHUNK * chunks)
    custom = draw(st.sampled_from([None, custom_preset("My own", 12.5, CHUNK, 3, 6, "1.0, 0.5")]))
    precision = draw(st.sampled_from(["model", "int8", "4bit"]))
    spec = MemorySpec("custom" if custom else "toyworld", 8.0, CHUNK, draw(places), draw(places), precision,
                      draw(st.sampled_from(["vram", "ram"])), draw(st.sampled_from(["keep", "recache", "pin"])),
                      draw(places), draw(places), custom, draw(st.integers(1, 3)), draw(st.integers(0, 4)),
                      draw(st.floats(0, 1)))
    memory = empty_memory(spec)
    prompts = torch.eye(3)
    for prompt in draw(st.lists(st.integers(0, 2), max_size=5)):
        before, memory = memory, begin_clip(memory, GRID, "model", prompts[prompt])
        for _ in range(draw(st.integers(1, 3))):
            i = memory.latents_done
            kv = cache(i, precision) if draw(st.booleans()) else None
            negative = cache(i + 1000, precision) if kv and draw(st.booleans()) else None
            memory = commit(memory, torch.randn(2, CHUNK, 2, 3), kv, negative,
                            prompt_tokens(prompts[prompt][None]))
        memory = end_clip(memory, before)
    if memory.latents_done and draw(st.booleans()):
        frames = torch.randint(0, 256, (9, 16, 24, 3), dtype=torch.uint8)
        anchor = Anchor(torch.randn(2, 1, 2, 3), frames[0], torch.randn(2), torch.rand(2))
        memory = replace(memory, anchor=anchor, overlap=frames[-5:], cuts=draw(st.integers(0, 3)))
    return memory


def parts(value: object, path: str = "memory") -> dict[str, object]:
    """Every leaf of a value by its path; where K/V lie (in_file) is no part of the value."""
    if is_dataclass(value):
        pairs = [(f.name, getattr(value, f.name)) for f in fields(value) if f.name != "in_file"]
    elif isinstance(value, tuple):
        pairs = list(enumerate(value))
    else:
        return {path: value}
    return {k: v for name, inner in pairs for k, v in parts(inner, f"{path}.{name}").items()}


def assert_same(a: VideoMemory, b: VideoMemory) -> None:
    mine, theirs = parts(a), parts(b)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name], name


@settings(max_examples=60, deadline=None)
@given(memory=memories())
def test_every_memory_comes_back_bit_equal(tmp_path_factory, memory):
    folder = tmp_path_factory.mktemp("round")
    path = save_memory(memory, folder / "m.safetensors")
    again = load_memory(path)
    assert_same(memory, again)
    assert_same(memory, load_memory(save_memory(again, folder / "twice.safetensors")))
    assert file_bytes(memory) < path.stat().st_size < file_bytes(memory) + 100_000
    assert sorted(p.name for p in folder.iterdir()) == ["m.safetensors", "twice.safetensors"]


@settings(max_examples=20, deadline=None)
@given(memory=memories())
def test_without_kv_all_else_comes_back(tmp_path_factory, memory):
    def bare(blocks: tuple[MemoryBlock, ...]) -> tuple[MemoryBlock, ...]:
        return tuple(replace(block, kv=None, negative_kv=None) for block in blocks)

    path = save_memory(memory, tmp_path_factory.mktemp("bare") / "m.safetensors", with_kv=False)
    assert_same(replace(memory, blocks=bare(memory.blocks), archive=bare(memory.archive)), load_memory(path))
    assert file_bytes(memory) - file_bytes(memory, with_kv=False) == sum(kv.nbytes for kv in caches(memory))


@settings(max_examples=10, deadline=None)
@given(memory=memories())
def test_archive_and_negative_kv_rest_in_the_file_too(tmp_path_factory, memory):
    before = {name: value.clone() for name, value in parts(memory).items() if isinstance(value, torch.Tensor)}
    rest_on_file(memory, save_memory(memory, tmp_path_factory.mktemp("rest") / "m.safetensors"))
    assert all(kv.in_file for kv in caches(memory))
    assert all(torch.equal(value, parts(memory)[name]) for name, value in before.items())


def test_loaded_kv_counts_as_lying_in_a_file(tmp_path):
    """Else the shelf would copy a mapped file into a second one."""
    assert all(kv.in_file for kv in caches(load_memory(save_memory(film(3), tmp_path / "m.safetensors"))))


def test_chunks_of_one_prompt_share_it_and_are_saved_all_the_same(tmp_path):
    """Clip Sampler commits all chunks of a clip with one tensor."""
    prompt = torch.ones(1, 4)
    memory = begin_clip(empty_memory(memory_spec("toyworld", retrieved_s=1.5)), GRID, "model", None)
    for i in range(4):
        memory = commit(memory, torch.full((2, CHUNK, 2, 3), float(i)), cache(i, "model"), None, prompt)
    assert_same(memory, load_memory(save_memory(memory, tmp_path / "m.safetensors")))


def test_prompts_in_words_are_saved_once_each(tmp_path):
    memory = empty_memory(memory_spec("toyworld"))
    for text in ("a hero in the forest", "a hero by the sea"):
        memory = begin_clip(memory, Geometry(16, 2, 2), "model", torch.full((1, 3, 4), float(len(text))), text)
        for _ in range(2):
            memory = commit(memory, torch.zeros(16, 3, 2, 2), None)
    again = load_memory(save_memory(memory, tmp_path / "told.safetensors"))
    assert [block.text for block in again.blocks] == ["a hero in the forest"] + ["a hero by the sea"] * 2
    assert again.text == memory.text == "a hero by the sea"
    assert (tmp_path / "told.safetensors").read_bytes().count(b"a hero by the sea") == 1


def film(chunks: int, **spec: object) -> VideoMemory:
    memory = begin_clip(empty_memory(replace(memory_spec("toyworld"), **spec)), GRID, "model", torch.ones(2))
    for i in range(chunks):
        memory = commit(memory, torch.full((2, CHUNK, 2, 3), float(i)), cache(i, "int8"))
    return end_clip(memory, empty_memory(memory.spec))


def test_a_file_of_version_1_is_read():
    """Written by the first published Save Memory, before pins, archive, anchors and cuts."""
    memory = load_memory(Path(__file__).parent / "data" / "version1.safetensors")
    assert memory.spec == memory_spec("toyworld", precision="4bit", placement="ram")
    assert (memory.model_key, memory.latents_done, memory.clips_done, memory.cuts) == ("model of version 1", 12, 1, 0)
    assert [block.start for block in memory.blocks] == [0, 6, 9] and memory.archive == ()
    assert [float(block.latents.mean()) for block in memory.blocks] == [0.0, 2.0, 3.0]
    assert [block.kv.layers[0].k.precision for block in memory.blocks] == ["int8", "4bit", "4bit"]
    k, v = memory.blocks[0].kv.layers[0].unpack(torch.float32, torch.device("cpu"))
    want = torch.arange(192).reshape(1, 3, 1, 64).float()
    assert torch.allclose(k, want, atol=1.0) and torch.allclose(v, -want, atol=1.0)
    assert memory.blocks[0].negative_kv is None and memory.anchor is None


def rewritten(source: Path, target: Path, metadata: dict | None = None, **tensors: torch.Tensor | None) -> Path:
    """The file with other metadata or tensors (None: without it), its digest as it was."""
    with safe_open(str(source), framework="pt") as file:
        old = file.metadata()
    changed = {**load_file(str(source)), **tensors}
    save_file({name: t for name, t in changed.items() if t is not None}, str(target), {**old, **(metadata or {})})
    return target


def test_a_newer_version_is_refused_by_name(tmp_path):
    path = save_memory(film(2), tmp_path / "m.safetensors")
    newer = rewritten(path, tmp_path / "newer.safetensors", {"version": "3"})
    with pytest.raises(ValueError, match=r"^Load Memory cannot use newer.safetensors, but got a memory of format "
                                         r"version 3; allowed: videomemory.memory version 1 to 2. Update VideoMemory"):
        load_memory(newer)
    for version in ("", "0", "-1", "2.0", "two"):
        with pytest.raises(ValueError, match="allowed: videomemory.memory version 1 to 2. Choose a file"):
            load_memory(rewritten(path, tmp_path / "odd.safetensors", {"version": version}))


def test_changed_headers_and_tensors_are_refused_whole(tmp_path):
    path = save_memory(film(3), tmp_path / "m.safetensors")
    with safe_open(str(path), framework="pt") as file:
        text = file.metadata()["memory"]
    assert '"latents_done": 9' in text
    changes = [
        ({"memory": text.replace('"latents_done": 9', '"latents_done": 8')}, {}),
        ({"memory": text.replace('"start": 3', '"start": 6')}, {}),
        ({"digest": "0" * 64}, {}),
        ({}, {"block.1.latents": None}),
        ({}, {"block.1.latents": torch.zeros(2, 3, 2, 4)}),
        ({}, {"block.0.layer.0.k.scale": None}),
        ({}, {"block.0.layer.1.v.data": None}),
        ({}, {"stowaway": torch.zeros(1)}),
    ]
    for metadata, tensors in changes:
        broken = rewritten(path, tmp_path / "broken.safetensors", metadata, **tensors)
        with pytest.raises(ValueError, match=r"^Load Memory cannot read broken.safetensors, but got a damaged header "
                                             r"\(.*\); allowed: a file written by Save Memory, unchanged. Choose"):
            load_memory(broken)


@pytest.mark.parametrize(("name", "tensor", "said"), [
    ("block.1.latents", torch.zeros(2, 3, 2, 4), "chunk 6: torch.float32 (2, 3, 2, 4)"),
    ("block.1.latents", torch.zeros(2, 0, 2, 2), "chunk 6: torch.float32 (2, 0, 2, 2)"),
    ("block.1.latents", torch.zeros(2, 3, 2, 2).half(), "chunk 6: torch.float16"),
    ("block.1.latents", torch.zeros(2, 5, 2, 2), "chunks: chunks at [0, 6, 9]"),
    ("tail", torch.zeros(8), "tail: torch.float32 (8,)"),
    ("block.0.layer.0.k.data", torch.zeros(1, 3, 1, 32, dtype=torch.int8), "K/V of chunk 0: mean"),
    ("block.0.layer.0.k.data", torch.zeros(1, 4, 1, 64, dtype=torch.int8), "K/V of chunk 0: scale"),
    ("block.1.layer.0.v.offset", None, "K/V of chunk 6: offset None"),
    ("block.1.layer.0.k.mean", torch.zeros(1, 1, 1, 32), "K/V of chunk 6: mean"),
    ("block.1.layer.0.k.data", None, "block.1.layer.0.k.data is missing"),
])
def test_version_1_has_no_digest_so_that_its_shapes_are_checked(tmp_path, name, tensor, said):
    source = Path(__file__).parent / "data" / "version1.safetensors"
    with pytest.raises(ValueError) as caught:
        load_memory(rewritten(source, tmp_path / "odd.safetensors", **{name: tensor}))
    assert said in str(caught.value) and str(caught.value).startswith("Load Memory cannot read odd.safetensors")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_of_the_header_and_no_cut_is_loaded_as_another_memory(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "flip.safetensors"
    memory = film(2, custom=None)
    whole = bytearray(save_memory(memory, path).read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    if data.draw(st.booleans()):
        whole[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del whole[data.draw(st.integers(0, len(whole) - 1)):]
    path.write_bytes(whole)
    try:
        again = load_memory(path)
    except ValueError as error:
        assert str(error).startswith(("Load Memory cannot read flip.safetensors", "Load Memory cannot use flip"))
    else:
        assert_same(memory, again)  # a flip of padding, or of an order that says nothing


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
import conftest, torch
from pathlib import Path
from pack.nodes.common.types import Geometry
from pack.nodes.memory.files import save_memory
from pack.nodes.memory.state import begin_clip, commit, empty_memory
from pack.nodes.sampling.presets import memory_spec
memory = begin_clip(empty_memory(memory_spec("toyworld")), Geometry(2, 64, 64), "model", torch.ones(2))
memory = commit(memory, torch.zeros(2, 3, 64, 64), None)
path = Path({path!r})
if {older}:
    save_memory(empty_memory(memory.spec), path)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_memory(memory, path)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of a process's files")
@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_leaves_no_half_file(tmp_path, older):
    path = tmp_path / "m.safetensors"
    code = FULL_DISK.format(tests=str(ROOT / "tests"), path=str(path), older=older)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("The memory m.safetensors could not be written, but got ")
    assert "allowed: 0.2 MB of free space" in done.stdout and "Nothing was left behind" in done.stdout
    assert list(tmp_path.iterdir()) == [path] * older
    assert not older or load_memory(path).latents_done == 0


def test_header_is_plain_json_that_names_the_model_and_the_recipe(tmp_path):
    spec = memory_spec("", custom=custom_preset("My own", 16, 3, 3, 6, "1.0, 0.5"))
    memory = replace(film(2), spec=spec)
    with safe_open(str(save_memory(memory, tmp_path / "m.safetensors")), framework="pt") as file:
        header = json.loads(file.metadata()["memory"])
    assert header["model_key"] == "model" and header["geometry"] == {"channels": 2, "height": 2, "width": 3}
    assert header["spec"]["custom"]["label"] == "My own" and header["spec"]["custom"]["sigmas"] == [1.0, 0.5, 0.0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_only_keys_and_values_stay_in_the_file(tmp_path):
    path = save_memory(film(2), tmp_path / "hero.safetensors")
    loaded = load_memory(path)
    low, high = next(line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
                     if line.endswith(str(path)))

    def is_mapped(tensor: torch.Tensor) -> bool:
        return int(low, 16) <= tensor.data_ptr() < int(high, 16)

    block = loaded.blocks[0]
    assert all(is_mapped(tensor) for layer in block.kv.layers for tensor in layer.k.tensors().values())
    assert not is_mapped(block.latents)
