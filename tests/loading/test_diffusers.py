"""Sharded folders and diffusers' names: the same numbers as diffusers' own models, and packed like any other file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pack.nodes.loading import formats
from pack.nodes.loading.cache import cache_key
from pack.nodes.loading.files import INDEX, files_of, open_tensors
from pack.nodes.loading.plan import plan_layers
from pack.nodes.loading.streaming import map_weights, read_weights
from safetensors import safe_open
from safetensors.torch import save_file

from .diffusers_weights import inputs_of, state_of

CPU = torch.device("cpu")
DATA = Path(__file__).with_name("data") / "diffusers_models.safetensors"
with safe_open(DATA, "pt") as _file:
    SHAPES: dict[str, dict[str, list[int]]] = json.loads(_file.metadata()["shapes"])
    OUTPUTS = {kind: _file.get_tensor(kind) for kind in SHAPES}
LISTED = "diffusion_pytorch_model.safetensors.index.json"


def save_shards(state: dict[str, torch.Tensor], folder: Path, count: int = 3) -> Path:
    """A folder as diffusers writes it; returns the list of its files."""
    names, weight_map = list(state), {}
    for number in range(count):
        file = f"diffusion_pytorch_model-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[number * len(names) // count:(number + 1) * len(names) // count]
        save_file({name: state[name].contiguous() for name in mine}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    (folder / LISTED).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return folder / LISTED


def read(path: Path) -> formats.Checkpoint:
    return formats.read_checkpoint(path, formats.DIFFUSION_MODELS)


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


@torch.no_grad()
def output(kind: str, model: Any) -> torch.Tensor:
    given = inputs_of(kind)
    if kind == "wan_vace":
        given |= {"vace_context": given.pop("vace")[:, None], "vace_strength": [1.0]}
    if kind == "hunyuan":
        given["guidance"] = torch.tensor([6.0])
    if kind == "ltx":
        given["attention_mask"] = None
    return model.model.diffusion_model(timestep=torch.tensor([0.7 if kind == "ltx" else 700.0]), **given)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.comfy
@pytest.mark.parametrize("kind", SHAPES)
def test_models_in_diffusers_names_give_diffusers_numbers(bridge: ModuleType, tmp_path: Path, kind: str) -> None:
    path = save_shards(state_of(SHAPES[kind]), tmp_path)
    model, report = bridge.load_diffusion_model(str(path), "original")
    assert relative(output(kind, model), OUTPUTS[kind]) < 1e-5
    assert "sharded: 3 files; names: diffusers', put into ComfyUI's" in report
    size = sum(part.stat().st_size for part in files_of(path))
    assert f"{size / 1e6:.1f} MB in the file" in report
    packed, report = bridge.load_diffusion_model(str(path), "int8", min_bytes=0)
    assert 1e-6 < relative(output(kind, packed), OUTPUTS[kind]) < 0.05
    assert "int8: " in report and report.splitlines()[1].startswith("sharded: 3 files; names: diffusers'")


@pytest.mark.comfy
@pytest.mark.parametrize(("layers", "pipeline", "causal"), [
    (2, None, False), (2, "LTXPipeline", False), (2, "LTXConditionPipeline", True), (48, None, True)])
def test_time_positions_of_ltx_are_those_of_its_version(bridge: ModuleType, tmp_path: Path, layers: int,
                                                        pipeline: str | None, causal: bool) -> None:
    """Its own files say it in their metadata, which diffusers leaves out."""
    block = {name: shape for name, shape in SHAPES["ltx"].items() if name.startswith("transformer_blocks.0.")}
    shapes = SHAPES["ltx"] | {name.replace(".0.", f".{layer}.", 1): shape for name, shape in block.items()
                              for layer in range(layers)}
    (tmp_path / "transformer").mkdir()
    if pipeline is not None:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    save_file(state_of(shapes), tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    for weights in ("nf4", "original"):
        model, report = bridge.load_diffusion_model(
            str(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"), weights, min_bytes=0)
        assert len(model.model.diffusion_model.transformer_blocks) == layers
        assert model.model.diffusion_model.causal_temporal_positioning == causal
        assert f"time positions: {'as since' if causal else 'as before'} LTX-Video 0.9.5" in report


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("kind", SHAPES)
def test_packed_like_the_file_in_comfyuis_names(tmp_path: Path, kind: str, form: str) -> None:
    sharded = read(save_shards({name: tensor.half() for name, tensor in state_of(SHAPES[kind]).items()}, tmp_path))
    save_file(map_weights(sharded), tmp_path / "whole.safetensors")
    whole = read(tmp_path / "whole.safetensors")
    assert whole.is_plain and not sharded.is_plain and whole.family is sharded.family
    plan = plan_layers(sharded, 0, form)
    assert plan == plan_layers(whole, 0, form) and plan.quantize
    ours, expected = read_weights(sharded, plan, CPU), read_weights(whole, plan, CPU)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert sharded.bytes == whole.bytes


def test_any_file_of_a_set_means_the_whole_set(tmp_path: Path) -> None:
    path = save_shards(state_of(SHAPES["wan_ti2v"]), tmp_path)
    parts = files_of(path)
    assert len(parts) == 3 and all(files_of(part) == parts for part in parts)
    expected = map_weights(read(path))
    for part in parts:
        assert map_weights(read(part)).keys() == expected.keys()
    path.unlink()
    assert map_weights(read(parts[1])).keys() == expected.keys()


def test_a_set_in_comfyuis_names_needs_no_renaming(tmp_path: Path) -> None:
    """As the Wan team publishes its models."""
    state = map_weights(read(save_shards(state_of(SHAPES["wan_ti2v"]), tmp_path)))
    (tmp_path / "wan").mkdir()
    checkpoint = read(save_shards(state, tmp_path / "wan"))
    assert checkpoint.note == "sharded: 3 files" and checkpoint.tensors.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in map_weights(checkpoint).items())


def test_the_cache_of_a_set_follows_every_file(tmp_path: Path) -> None:
    path = save_shards(state_of(SHAPES["ltx"]), tmp_path)
    key = cache_key(path, "nf4", {})
    assert key == cache_key(path, "nf4", {})
    assert key["source_bytes"] == str(sum(part.stat().st_size for part in files_of(path)))
    os.utime(files_of(path)[2], (1, 1))
    assert cache_key(path, "nf4", {}) != key


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_file_is_refused_whatever_is_asked_for(tmp_path: Path, lost: int) -> None:
    path = save_shards(state_of(SHAPES["ltx"]), tmp_path)
    parts = files_of(path)
    parts[lost].unlink()
    for asked in (path, *(part for part in parts if part.exists())):
        with pytest.raises(ValueError, match=rf"must lie beside all files of its set, but got a folder without "
                                             rf"{parts[lost].name}; allowed: all 3 files"):
            read(asked)


@pytest.mark.parametrize(("content", "text"), [
    ("", "one that cannot be read"), ("[]", "one that cannot be read"), ("{}", "one that cannot be read"),
    ('{"weight_map": []}', "one that cannot be read"), ('{"weight_map": {"a": 3}}', "one that cannot be read"),
    ("[" * 100_000, "one that cannot be read"),
    ('{"weight_map": {"a": "../../secret.safetensors"}}', "files of other folders"),
    ('{"weight_map": {"a": "/etc/secret.safetensors"}}', "files of other folders"),
    ('{"weight_map": {}}', "a folder without"), ('{"weight_map": {"a": "absent.safetensors"}}', "without absent.saf"),
])
def test_damaged_lists_are_refused(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / LISTED).write_text(content)
    with pytest.raises(ValueError, match=text):
        read(tmp_path / LISTED)


def test_a_list_with_a_tensor_that_no_file_has_is_refused(tmp_path: Path) -> None:
    path = save_shards(state_of(SHAPES["ltx"]), tmp_path)
    listed = json.loads(path.read_text())
    listed["weight_map"]["more.weight"] = files_of(path)[0].name
    path.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"must list tensors of its files, but got more.weight, which is in none"):
        read(path)


def test_a_damaged_file_of_a_set_is_refused_by_its_name(tmp_path: Path) -> None:
    path = save_shards(state_of(SHAPES["ltx"]), tmp_path)
    second = files_of(path)[1]
    second.write_bytes(second.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"'{second.name}' must be a whole safetensors file"):
        read(path)


def test_one_file_is_open_at_a_time_and_tensors_outlive_it(tmp_path: Path) -> None:
    state = state_of(SHAPES["wan_ti2v"])
    with open_tensors(save_shards(state, tmp_path)) as file:
        read_back = {name: file.get(name) for name in reversed(state)}
        file.release()
    assert all(torch.equal(read_back[name], tensor) for name, tensor in state.items())


def test_packed_parts_cannot_be_put_together(tmp_path: Path) -> None:
    state = state_of(SHAPES["hunyuan"])
    name = "transformer_blocks.0.attn.to_q.weight"
    save_file(state | {name: state[name].to(torch.float8_e4m3fn)}, tmp_path / "fp8.safetensors")
    with pytest.raises(ValueError, match=r"The parts of double_blocks.0.img_attn.qkv.weight must fit below each other"):
        read(tmp_path / "fp8.safetensors")


@pytest.mark.comfy
def test_an_incomplete_set_of_pieces_is_refused(bridge: ModuleType, tmp_path: Path) -> None:
    state = state_of(SHAPES["hunyuan"])
    del state["single_transformer_blocks.0.attn.to_k.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"whose shapes agree, but got single_blocks.0.linear1.weight of shape"):
        bridge.load_diffusion_model(str(tmp_path / "cut.safetensors"), "nf4")


def test_the_set_is_offered_once_by_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_paths = pytest.importorskip("folder_paths")
    from pack.nodes.loading.nodes_names import check_name, fingerprint, model_names

    (tmp_path / "LTX").mkdir()
    path = save_shards(state_of(SHAPES["ltx"]), tmp_path / "LTX")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {
        "diffusion_models": ([str(tmp_path)], {".safetensors"})})
    names = model_names("diffusion_models")
    listed = f"LTX/{LISTED}"
    assert names.count(listed) == 1 and len(names) == 4 and all(check_name("n", "diffusion_models", n) is True
                                                                for n in names)
    before = fingerprint("diffusion_models", listed)
    os.utime(files_of(path)[1], (1, 1))
    assert fingerprint("diffusion_models", listed) != before
    path.unlink()
    assert not any(name.endswith(INDEX) for name in model_names("diffusion_models"))
