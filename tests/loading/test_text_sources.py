"""The forms in which text encoder files come: fp8 plain and scaled, torch files, damaged ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from .text_files import T5_SIZES, core_model, tiny_state, write_full_size, write_sparse

pytestmark = pytest.mark.comfy
PROMPT = "a blue circle hero with a green hat"
MEASURE = """
import pathlib, re, sys
root, comfyui, path = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import types
for name, folder in (("pack", pathlib.Path(root)), ("pack.nodes", pathlib.Path(root) / "nodes")):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [str(folder)]
import torch
from pack.nodes.loading import bridge_text, nf4
nf4.quantize(torch.randn(512, 512))
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports is none of ours
before = peak()
clip, _ = bridge_text.load_text_encoder(path, "nf4", min_bytes=0)
print(clip.patcher.model_size(), peak() - before)
"""


@pytest.fixture(scope="module")
def bridge_text() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge_text

    return bridge_text


def write(folder: Path, name: str, state: dict[str, torch.Tensor]) -> str:
    save_file(state, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def as_plain_fp8(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As t5xxl_fp8_e4m3fn.safetensors: everything in fp8."""
    return {name: tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()}


def as_scaled_fp8(state: dict[str, torch.Tensor], scale: str = "scale_weight") -> dict[str, torch.Tensor]:
    """As umt5_xxl_fp8_e4m3fn_scaled.safetensors: matrices of the layers in fp8 with a scale each, a marker, the rest as
    it is."""
    scaled = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if tensor.ndim == 2 and ".layer" in name and "bias" not in name:
            number = tensor.float().abs().max() / 448
            scaled[name] = (tensor.float() / number).to(torch.float8_e4m3fn)
            scaled[f"{name.removesuffix('.weight')}.{scale}"] = number
        else:
            scaled[name] = tensor
    return scaled


def numbers(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What an fp8 file says, written out in `dtype`."""
    plain = {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        scale = next((state[layer + end] for end in (".scale_weight", ".weight_scale") if layer + end in state), None)
        if tensor.dtype == torch.float8_e4m3fn:
            plain[name] = (tensor.float() * scale if scale is not None else tensor.float()).to(dtype)
        elif not name.endswith(("scale_weight", "weight_scale")):
            plain[name] = tensor
    return {name: tensor for name, tensor in plain.items() if name != "scaled_fp8"}


FP8 = {"plain": (as_plain_fp8, torch.bfloat16), "scaled": (as_scaled_fp8, torch.float16),
       "scaled, newer name": (lambda state: as_scaled_fp8(state, "weight_scale"), torch.float16)}


@pytest.mark.parametrize("weights", ["nf4", "int8", "original"])
@pytest.mark.parametrize("form", FP8)
@pytest.mark.parametrize("part", ["umt5xxl", "t5xxl"])
def test_fp8_files_load_as_the_numbers_they_stand_for(bridge_text: ModuleType, toyworld: Path, tmp_path: Path,
                                                      part: str, form: str, weights: str) -> None:
    make, dtype = FP8[form]
    state = make(tiny_state(part, toyworld))
    paths = write(tmp_path, "fp8", state), write(tmp_path, "numbers", numbers(state, dtype))
    results = []
    for path in paths:
        clip, report = bridge_text.load_text_encoder(path, weights, min_bytes=0)
        results.append(clip.encode_from_tokens(clip.tokenize(PROMPT)))
        assert ("14 weights" in report) == (weights != "original")
    assert torch.equal(*results)
    assert results[0].std() > 0.1


def test_fp8_pairs(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    """HunyuanVideo's llava_llama3_fp8_scaled.safetensors beside a clip_l.safetensors in float16."""
    state, results = as_scaled_fp8(tiny_state("llama", toyworld)), []
    clip_l = write(tmp_path, "clip_l", tiny_state("clip_l", toyworld))
    for path in (write(tmp_path, "fp8", state), write(tmp_path, "numbers", numbers(state, torch.float16))):
        clip, report = bridge_text.load_text_encoder(clip_l, "nf4", min_bytes=0, second=path)
        results.append(clip.encode_from_tokens(clip.tokenize(PROMPT)))
        assert "NF4: 28 weights" in report and "NF4: 18 weights" in report
    assert torch.equal(*results)


@pytest.mark.parametrize(("part", "dtype", "scale", "expected"), [
    ("t5xxl", "F16", None, True), ("t5xxl", "F8_E4M3", None, True), ("umt5xxl", "F8_E4M3", "scale_weight", True),
    ("umt5xxl", "F8_E4M3", "weight_scale", False)])
def test_core_loads_what_it_knows_in_full_size(tmp_path: Path, part: str, dtype: str, scale: str | None,
                                               expected: bool) -> None:
    from pack.nodes.loading import bridge_text_types, text_formats

    extra = [(f"encoder.block.0.layer.0.SelfAttention.q.{scale}", (), "F32")] if scale else []
    encoder = text_formats.read_text_encoder(write_full_size(tmp_path / "full.safetensors", part, dtype, extra))
    kind, encoders = text_formats.resolve_type([encoder], "auto")
    assert bridge_text_types.core_can_load(kind, encoders) == expected


def test_core_does_not_load_reduced_torch_or_prefixed_files(toyworld: Path, tmp_path: Path) -> None:
    from pack.nodes.loading import bridge_text_types, text_formats

    full = write_full_size(tmp_path / "full.safetensors", "clip_l")
    path = tmp_path / "full.pt"
    torch.save({name: torch.zeros(1, dtype=torch.float16).expand(header.shape) for name, header in
                text_formats.read_text_encoder(full).checkpoint.tensors.items()}, path)
    tiny = write(tmp_path, "tiny", tiny_state("clip_l", toyworld))
    prefixed = write_sparse(tmp_path / "prefixed.safetensors", [
        (f"model.{name}", header.shape, "F16") for name, header in
        text_formats.read_text_encoder(full).checkpoint.tensors.items()])
    for file, expected in ((full, True), (path, False), (tiny, False), (prefixed, False)):
        encoder = text_formats.read_text_encoder(file)
        assert bridge_text_types.core_can_load("stable_diffusion", (encoder,)) == expected


@pytest.mark.parametrize("weights", ["nf4", "int8", "original"])
@pytest.mark.parametrize(("part", "name", "replacement", "text"), [
    ("t5xxl", "encoder.block.1.layer.1.DenseReluDense.wo.weight", None,
     "must hold a whole T5 v1.1 text encoder, but got a file without encoder.block.1.layer.1.DenseReluDense.wo.weight"),
    ("clip_l", "text_model.encoder.layers.1.mlp.fc1.bias", None,
     "must hold a whole CLIP-L text encoder, but got a file without text_model.encoder.layers.1.mlp.fc1.bias"),
    ("clip_l", "text_model.encoder.layers.1.mlp.fc2.weight", torch.zeros(128, 190).half(),
     "text_model.encoder.layers.1.mlp.fc2.weight of shape [128, 190]; allowed: [128, 192]"),
])
def test_damaged_files_are_refused_before_loading(bridge_text: ModuleType, toyworld: Path, tmp_path: Path, part: str,
                                                  name: str, replacement: torch.Tensor | None, text: str,
                                                  weights: str) -> None:
    state = tiny_state(part, toyworld)
    del state[name]
    path = write(tmp_path, "damaged", state if replacement is None else state | {name: replacement})
    with pytest.raises(ValueError, match=re.escape(text)):
        bridge_text.load_text_encoder(path, weights, min_bytes=0)


def test_half_a_vision_half_is_refused(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    state = tiny_state("qwen25_7b", toyworld) | {"visual.merger.ln_q.weight": torch.zeros(1280)}
    path, byt5 = write(tmp_path, "half", state), write(tmp_path, "byt5", tiny_state("byt5_small", toyworld))
    with pytest.raises(ValueError, match=r"whole Qwen2.5-VL 7B text encoder, but got a file without visual.patch"):
        bridge_text.load_text_encoder(path, second=byt5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak RAM is read from /proc")
def test_loading_holds_the_embedding_once(tmp_path: Path) -> None:
    """UMT5's embedding is 2 GB: held twice, it alone would break the bound of 1.5 GB over the packed size."""
    sizes = {"t5xxl_model_config": {**T5_SIZES, "d_model": 8192}}
    tensors = core_model("t5xxl", "meta", sizes).state_dict().items()
    path = write_sparse(tmp_path / "wide.safetensors", [(name, tuple(tensor.shape), "F16") for name, tensor in tensors])
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", MEASURE, str(root), os.environ["COMFYUI_PATH"], str(path)],
                            capture_output=True, text=True, check=True)
    size, grown = map(int, result.stdout.split())
    assert 526e6 < size < 540e6
    assert size < grown < size + 350e6  # 256 MB of the file at a time, and the tokenizer


def test_packed_embeddings_are_refused(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    from pack.nodes.loading import nf4

    state = tiny_state("t5xxl", toyworld)
    state |= nf4.to_state_dict(nf4.quantize(state["shared.weight"]), "shared.weight")
    with pytest.raises(ValueError, match=r"packed weights in linear layers only, but got the packed weight shared"):
        bridge_text.load_text_encoder(write(tmp_path, "packed", state))


def test_unknown_kinds_of_weights_are_refused(bridge_text: ModuleType, toyworld: Path) -> None:
    with pytest.raises(ValueError, match=r"but got 'int3'; allowed: nf4, int8, original"):
        bridge_text.load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "int3")
