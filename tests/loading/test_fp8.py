"""fp8 files of other people: what is packed of them equals packing the numbers that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pack.nodes.loading import formats, fp8
from pack.nodes.loading.plan import plan_layers
from pack.nodes.loading.streaming import read_weights, read_weights_cached
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2
NAME = "blocks.0.ffn.0"


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim == 2


def scales(weight: torch.Tensor, per_row: bool) -> torch.Tensor:
    largest = weight.float().abs().amax(1, keepdim=True) if per_row else weight.float().abs().max()
    return largest / 448


def fp8_file(source: Path, path: Path, style: str) -> dict[str, torch.Tensor]:
    """Write the model in one of the STYLES and return the numbers that the file stands for, rounded to bfloat16."""
    stored, numbers = {}, {}
    dtype = E5 if style == "plain e5m2" else E4
    for name, tensor in load_file(source).items():
        layer = name.removesuffix(".weight")
        if not is_matrix(name, tensor):
            stored[name] = numbers[name] = tensor.float() if style == "metadata" else tensor.bfloat16()
            continue
        scale = torch.tensor(1.0) if style.startswith("plain") else scales(tensor, style.endswith("per row"))
        stored[name] = (tensor.float() / scale).to(dtype)
        numbers[name] = (stored[name].float() * scale).bfloat16()
        stored |= STYLES[style](layer, scale)
    if "scaled_fp8" in style:
        stored["scaled_fp8"] = torch.zeros(2 if "2" in style else 0, dtype=E4)
    layers = {name.removesuffix(".weight"): {"format": "float8_e4m3fn"} for name in stored if name.endswith(".weight")}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})} if style == "metadata" else None
    save_file(stored, path, metadata)
    return numbers


def comfy_quant() -> torch.Tensor:
    return torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)


STYLES: dict[str, Any] = {
    "plain e4m3": lambda layer, scale: {},
    "plain e5m2": lambda layer, scale: {},
    "scaled_fp8": lambda layer, scale: {f"{layer}.scale_weight": scale},
    "scaled_fp8 2, inputs": lambda layer, scale: {f"{layer}.scale_weight": scale.reshape(1),
                                                  f"{layer}.scale_input": torch.tensor(0.7)},
    "scaled_fp8 per row": lambda layer, scale: {f"{layer}.scale_weight": scale},
    "comfy_quant": lambda layer, scale: {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": comfy_quant(),
                                         f"{layer}.input_scale": torch.tensor(0.7)},
    "metadata": lambda layer, scale: {f"{layer}.weight_scale": scale},
}


@pytest.fixture(scope="module")
def dit(toyworld: Path) -> Path:
    return toyworld / "toyworld_dit_fp16.safetensors"


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("style", STYLES)
def test_packing_equals_packing_the_numbers(dit: Path, tmp_path: Path, style: str, form: str) -> None:
    numbers = fp8_file(dit, tmp_path / "fp8.safetensors", style)
    save_file(numbers, tmp_path / "bf16.safetensors")
    results = []
    for name in ("fp8.safetensors", "bf16.safetensors"):
        checkpoint = formats.read_checkpoint(tmp_path / name, formats.DIFFUSION_MODELS)
        assert checkpoint.dtype == torch.bfloat16 and "_quantization_metadata" not in checkpoint.metadata
        plan = plan_layers(checkpoint, 200_000, form)
        assert 0 < len(plan.quantize) < 60
        results.append((plan, read_weights(checkpoint, plan, CPU)))
    (ours_plan, ours), (expected_plan, expected) = results
    assert ours_plan == expected_plan and ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_nothing_to_pack_still_unpacks_fp8(dit: Path, tmp_path: Path) -> None:
    numbers = fp8_file(dit, tmp_path / "fp8.safetensors", "scaled_fp8")
    checkpoint = formats.read_checkpoint(tmp_path / "fp8.safetensors", formats.DIFFUSION_MODELS)
    state = read_weights(checkpoint, plan_layers(checkpoint), CPU)
    assert state.keys() == numbers.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in numbers.items())


def test_the_cache_of_an_fp8_file_is_what_was_read(dit: Path, tmp_path: Path) -> None:
    from pack.nodes.common.progress import SILENT

    fp8_file(dit, tmp_path / "fp8.safetensors", "scaled_fp8")
    checkpoint = formats.read_checkpoint(tmp_path / "fp8.safetensors", formats.DIFFUSION_MODELS)
    plan = plan_layers(checkpoint, 200_000)
    expected = read_weights(checkpoint, plan, CPU)
    for line in ("cache: written", "cache: read from"):
        state, said = read_weights_cached(checkpoint, plan, CPU, SILENT)
        assert said.startswith(line) and state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_large_weights_are_unpacked_in_parts_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale = torch.randn(7, 5).to(E4), torch.rand(7, 1)
    monkeypatch.setattr(fp8, "_CHUNK_VALUES", 10)
    for factor in (scale, scale[:, 0], scale[0], torch.tensor(0.3)):
        expected = weight.float() * factor.reshape(-1, 1)
        assert torch.equal(fp8.to_numbers(weight, factor, torch.float32), expected)


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (4, 0), (2, 3, 1, 2, 2)], ids=str)
def test_tensors_of_every_shape_are_unpacked(shape: tuple[int, ...]) -> None:
    weight, scale = torch.randn(shape).to(E4), torch.tensor(0.5)
    assert torch.equal(fp8.to_numbers(weight, scale, torch.float32), weight.float() * 0.5)
    assert torch.equal(fp8.to_numbers(weight, None, torch.float16), weight.half())


@pytest.mark.parametrize(("changes", "text"), [
    ({f"{NAME}.weight": torch.zeros(4, 4, dtype=torch.int8), f"{NAME}.weight_scale": torch.ones(4, 1)},
     r"blocks.0.ffn.0.weight in int8 of another quantiser"),
    ({f"{NAME}.weight": torch.zeros(4, 2, dtype=torch.uint8), f"{NAME}.weight_scale_2": torch.ones(())},
     r"blocks.0.ffn.0.weight in uint8 of another quantiser"),
    ({f"{NAME}.weight": torch.zeros(4, 4).to(E4), f"{NAME}.weight_scale": torch.ones(2, 2)},
     r"blocks.0.ffn.0.weight with scales of shape \[2, 2\]"),
    ({f"{NAME}.weight": torch.zeros(()).to(E4), f"{NAME}.scale_weight": torch.ones(2)},
     r"blocks.0.ffn.0.weight with scales of shape \[2\]"),
])
def test_other_packed_forms_are_refused_by_the_header(tmp_path: Path, changes: dict, text: str) -> None:
    markers = {marker: torch.zeros(2, 2) for marker in formats.DIFFUSION_MODELS[0].markers}
    save_file(markers | changes, tmp_path / "wan.safetensors")
    checkpoint = formats.read_checkpoint(tmp_path / "wan.safetensors", formats.DIFFUSION_MODELS)
    with pytest.raises(ValueError, match=f"'wan.safetensors' must be in a form that can be unpacked, but got {text}"):
        plan_layers(checkpoint)


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


@pytest.mark.comfy
@pytest.mark.parametrize("style", STYLES)
def test_loaded_model_equals_cores_of_the_numbers(bridge: ModuleType, dit: Path, tmp_path: Path, style: str) -> None:
    import comfy.sd
    from pack.nodes.loading import int8

    numbers = fp8_file(dit, tmp_path / "fp8.safetensors", style)
    model, report = bridge.load_diffusion_model(str(tmp_path / "fp8.safetensors"), "int8", min_bytes=200_000)
    assert "int8: " in report and model.model.model_config.layer_quant_config is None
    packed = plan_layers(formats.read_checkpoint(dit, formats.DIFFUSION_MODELS), 200_000, "int8").quantize
    state = {name: int8.dequantize(int8.quantize(tensor), torch.float32) if name in packed else tensor.float()
             for name, tensor in numbers.items()}
    assert difference(model, comfy.sd.load_diffusion_model_state_dict(state)) < 1e-5


@pytest.mark.comfy
@pytest.mark.parametrize("style", [style for style in STYLES if style != "comfy_quant" and "row" not in style])
def test_original_leaves_fp8_to_core(bridge: ModuleType, dit: Path, tmp_path: Path, style: str) -> None:
    import comfy.sd

    fp8_file(dit, tmp_path / "fp8.safetensors", style)
    model, report = bridge.load_diffusion_model(str(tmp_path / "fp8.safetensors"), "original")
    assert "loaded as it is through ComfyUI" in report
    assert difference(model, comfy.sd.load_diffusion_model(str(tmp_path / "fp8.safetensors"))) == 0


@pytest.mark.comfy
def test_tensors_that_this_comfyui_would_overlook_are_refused(bridge: ModuleType, dit: Path, tmp_path: Path) -> None:
    import comfy.utils

    fp8_file(dit, tmp_path / "fp8.safetensors", "comfy_quant")
    if hasattr(comfy.utils, "convert_old_quants"):
        pytest.skip("this ComfyUI reads them")
    with pytest.raises(ValueError, match=r"'original' needs a ComfyUI that reads .* comfy_quant .* nf4 or int8"):
        bridge.load_diffusion_model(str(tmp_path / "fp8.safetensors"), "original")


OVERLOOKED: dict[str, tuple[str, tuple[str, ...]]] = {  # style of the file, what is changed
    "weight_scale that nothing speaks of": ("metadata", ("metadata",)),
    "weight_scale beside a marker": ("metadata", ("metadata", "marker")),
    "scale_weight without the marker": ("scaled_fp8", ("scaled_fp8",)),
    "scale_weight per row without it": ("scaled_fp8 per row", ("scaled_fp8",)),
    "one layer that the metadata forget": ("metadata", (f'"{NAME}"',)),
}


@pytest.mark.comfy
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("how", OVERLOOKED)
def test_scales_that_core_would_overlook_are_refused(bridge: ModuleType, dit: Path, tmp_path: Path, how: str,
                                                     prefix: str) -> None:
    from pack.nodes.loading.bridge_checkpoint import load_checkpoint

    (style, without), path = OVERLOOKED[how], tmp_path / "fp8.safetensors"
    fp8_file(dit, path, style)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata() or {})
    state = {prefix + name: tensor for name, tensor in load_file(path).items() if name not in without}
    if "metadata" in without:
        metadata = {}
    if "marker" in without:
        state[f"{prefix}scaled_fp8"] = torch.zeros(0, dtype=E4)
    save_file(state, path, {key: value.replace(without[0], '"x"') for key, value in metadata.items()})
    for load in (bridge.load_diffusion_model, load_checkpoint):
        with pytest.raises(ValueError, match=r"'original' needs fp8 weights in 'fp8.safetensors' whose scales ComfyUI "
                                             r"reads, but got blocks.* overlook.*allowed: nf4, int8, nf4_int8"):
            load(str(path), "original")
    assert "int8: " in bridge.load_diffusion_model(str(path), "int8", min_bytes=200_000)[1]


@torch.no_grad()
def difference(ours: Any, theirs: Any) -> float:
    generator = torch.Generator().manual_seed(1)
    given = {"x": torch.randn(1, 16, 3, 8, 8, generator=generator), "timestep": torch.tensor([500.0]),
             "context": torch.randn(1, 9, 4096, generator=generator)}
    a, b = (model.model.diffusion_model(**given) for model in (ours, theirs))
    assert torch.isfinite(a).all()
    return float((a - b).norm() / b.norm())
