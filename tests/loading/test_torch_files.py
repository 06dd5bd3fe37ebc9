"""Files of torch.save: every wrapping gives what the safetensors file gives, and nothing in a file is run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pack.nodes.loading import families, files, formats
from pack.nodes.loading.plan import plan_layers
from pack.nodes.loading.report import describe_load, describe_original
from pack.nodes.loading.streaming import map_weights, read_weights
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
FSDP = "model._fsdp_wrapped_module."
STRINGS = {"step": 1000, "config": "longlive", "names": ["a"]}  # what training code stores beside the weights
WRAPPINGS: dict[str, Callable[[dict], dict]] = {
    "flat": lambda state: state,
    "model. inside generator": lambda state: {"generator": prefixed("model.", state), **STRINGS},
    "FSDP inside generator": lambda state: {"generator": prefixed(FSDP, state), **STRINGS},
    "FSDP at every level": lambda state: {"generator": {
        FSDP + name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): tensor for name, tensor in state.items()}},
    "generator_ema alone": lambda state: {"generator_ema": prefixed("model.", state)},
    "generator_ema beside generator": lambda state: {
        "generator": prefixed("model.", {name: tensor + 1 for name, tensor in state.items()}),
        "generator_ema": prefixed("model.", state)},
    "generator_ema left empty": lambda state: {"generator_ema": None, "generator": prefixed("model.", state)},
    "model": lambda state: {"model": state, "optimizer": {"lr": 1e-5}},
    "state_dict": lambda state: {"state_dict": prefixed("model.diffusion_model.", state), "epoch": 3},
    "module": lambda state: {"module": state},  # as Tencent publishes HunyuanVideo
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
}


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def save(content: Any, path: Path, is_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def read_nf4(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
    return read_weights(checkpoint, plan_layers(checkpoint, min_bytes=0), CPU)


def assert_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
        assert not ours[name].requires_grad


@pytest.fixture(scope="module")
def dit(toyworld: Path) -> Path:
    return toyworld / "toyworld_dit_fp16.safetensors"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest Wan by its names, with two matrices to quantise; one is stored transposed in torch files."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(4, 64, generator=generator).half() for name in families.WAN.markers}
    state["blocks.0.ffn.0.weight"] = torch.randn(64, 8, generator=generator).half()
    path = tmp_path_factory.mktemp("small") / "wan.safetensors"
    save_file(state, path)
    return path


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_gives_what_safetensors_gives(small: Path, tmp_path: Path, wrapping: str, is_zip: bool) -> None:
    path = save(WRAPPINGS[wrapping](load_file(small)), tmp_path / "wan.pt", is_zip)
    assert_same(read_nf4(path), read_nf4(small))
    assert_same(map_weights(formats.read_checkpoint(path, formats.DIFFUSION_MODELS)), load_file(small))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PT"])
def test_every_ending_is_read(small: Path, tmp_path: Path, suffix: str) -> None:
    assert_same(read_nf4(save(load_file(small), tmp_path / f"wan{suffix}")), read_nf4(small))


def test_strided_and_shared_tensors_are_read_right(small: Path, tmp_path: Path) -> None:
    state = load_file(small)
    state["blocks.0.ffn.0.weight"] = state["blocks.0.ffn.0.weight"].T.contiguous().T
    whole = torch.cat([state[name] for name in families.WAN.markers])
    state |= dict(zip(families.WAN.markers, whole.split(4), strict=True))
    assert_same(read_nf4(save(state, tmp_path / "wan.pt")), read_nf4(small))


def test_opening_anew_on_the_way_changes_nothing(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"generator": load_file(small)}, tmp_path / "wan.pt")
    opened: list[Path] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: (opened.append(path), load(path, **options))[1])
    monkeypatch.setattr(files, "RELEASE_BYTES", 1)
    assert_same(read_nf4(path), read_nf4(small))
    assert len(opened) == 2 + len(load_file(small))


def test_zip_files_are_mapped_and_never_pickled_freely(small: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: (asked.append(options), load(path, **options))[1])
    for is_zip in (True, False):
        formats.read_header(save(load_file(small), tmp_path / "wan.pt", is_zip))
    assert asked == [{"map_location": "cpu", "weights_only": True, "mmap": is_zip} for is_zip in (True, False)]


def test_compressed_archives_are_read_right(small: Path, tmp_path: Path) -> None:
    plain = save({"generator": load_file(small)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "wan.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_same(read_nf4(tmp_path / "wan.pt"), read_nf4(small))


@pytest.mark.parametrize(("wrapping", "is_zip", "note"), [
    ("flat", True, "torch file: weights from the top level"),
    ("generator_ema beside generator", True, "torch file: weights from 'generator_ema', not used: 'generator'"),
    ("generator_ema left empty", True, "torch file: weights from 'generator'"),
    ("model", False, "torch file: weights from 'model'; a format that is read into RAM as a whole"),
])
def test_report_names_the_wrapper(small: Path, tmp_path: Path, wrapping: str, is_zip: bool, note: str) -> None:
    path = save(WRAPPINGS[wrapping](load_file(small)), tmp_path / "wan.pt", is_zip)
    checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
    report = describe_load(checkpoint, plan_layers(checkpoint), 1000)
    assert report.splitlines()[1] == note
    assert describe_original(path, 1000, checkpoint.note).splitlines()[1] == note


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_files_that_want_to_run_code_are_refused_unrun(small: Path, tmp_path: Path, is_zip: bool) -> None:
    trap = tmp_path / "executed"
    path = save({"generator": load_file(small), "step": Malicious(trap)}, tmp_path / "evil.pt", is_zip)
    with pytest.raises(ValueError, match=r"'evil.pt' must hold only tensors and plain values, but got a pickle that "
                                         r"asks for \w+\.mkdir; allowed: .*weights_only=True. Nothing in it was run"):
        formats.read_header(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_truncated_files_are_refused_wherever_they_end(small: Path, tmp_path: Path, is_zip: bool) -> None:
    path = save(load_file(small), tmp_path / "wan.pt", is_zip)
    content = path.read_bytes()
    for size in (*range(0, 40, 3), *range(40, len(content), len(content) // 60), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"^'wan.pt' must .*; allowed: .* [Dd]ownload"):
            formats.read_header(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match=r"'model.pt' must be a whole file of torch.save, but got one that cannot be "
                                         r"read \(RuntimeError: .*\); allowed: safetensors, or .pt.*Download it again"):
        formats.read_header(tmp_path / "model.pt")
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match=r"'model.safetensors' must be a whole safetensors file, but got one that "):
        formats.read_header(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        formats.read_header(tmp_path / "absent.pt")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"generator": "none"}, {"a": {"b": 1}}, {}],
                         ids=["tensor", "list", "string", "nested", "empty"])
def test_torch_files_without_a_model_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match=r"'wan.pt' must be a checkpoint that this node knows, but got a file with 0"):
        formats.read_checkpoint(save(content, tmp_path / "wan.pt"), formats.DIFFUSION_MODELS)


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


@pytest.mark.comfy
@torch.no_grad()
@pytest.mark.parametrize("weights", ["nf4", "original"])
def test_wrapped_model_runs_like_its_safetensors(bridge: ModuleType, dit: Path, tmp_path: Path, weights: str) -> None:
    import comfy.model_management

    path = save(WRAPPINGS["FSDP inside generator"](load_file(dit)), tmp_path / "model_bf16.pt")
    results, reports = [], []
    for file in (path, dit):
        model, report = bridge.load_diffusion_model(str(file), weights, min_bytes=0)
        comfy.model_management.load_models_gpu([model])
        generator = torch.Generator().manual_seed(1)
        x, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 3, 8, 8), (1, 16, 4096)))
        results.append(model.model.diffusion_model(x, torch.tensor([500.0]), text))
        reports.append(report)
    assert torch.equal(*results)
    assert isinstance(model, bridge.QuantPatcher) == (weights == "nf4")
    assert reports[0].startswith("model_bf16.pt: ") and "torch file: weights from 'generator'" in reports[0]
    assert "torch file" not in reports[1]


@pytest.mark.comfy
def test_packed_torch_files_load_as_they_are(bridge: ModuleType, dit: Path, tmp_path: Path) -> None:
    path = save({"generator": prefixed("model.", read_nf4(dit))}, tmp_path / "packed.pt")
    for weights in bridge.WEIGHTS:
        _, report = bridge.load_diffusion_model(str(path), weights)
        assert "NF4 already in the file: 60 weights" in report


@pytest.mark.comfy
@pytest.mark.parametrize("weights", ["nf4", "original"])
def test_wrapped_text_encoder_encodes_like_its_safetensors(toyworld: Path, tmp_path: Path, weights: str) -> None:
    from pack.nodes.loading import bridge_text

    source = toyworld / "toyworld_te_fp16.safetensors"
    path = save({"state_dict": load_file(source)}, tmp_path / "encoder.pth")
    results, reports = [], []
    for file in (path, source):
        clip, report = bridge_text.load_text_encoder(str(file), weights, min_bytes=0)
        results.append(clip.encode_from_tokens(clip.tokenize("a blue circle hero")))
        reports.append(report)
    assert torch.equal(*results)
    assert "torch file: weights from 'state_dict'" in reports[0] and "torch file" not in reports[1]


@pytest.mark.comfy
@pytest.mark.parametrize("weights", ["nf4", "original"])
@pytest.mark.parametrize("load", ["load_diffusion_model", "load_text_encoder"])
def test_loaders_run_no_code_of_a_file(tmp_path: Path, load: str, weights: str) -> None:
    from pack.nodes.loading import bridge, bridge_text

    trap = tmp_path / "executed"
    path = save({"state_dict": {"a": torch.zeros(1)}, "step": Malicious(trap)}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"'evil.ckpt' must hold only tensors and plain values"):
        getattr(bridge if load == "load_diffusion_model" else bridge_text, load)(str(path), weights)
    assert not trap.exists()
