"""Quantised models inside the real ModelPatcher: same numbers as their unpacked weights, with and without LoRA."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.comfy
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


@pytest.fixture(scope="module")
def dit(toyworld: Path) -> Path:
    return toyworld / "toyworld_dit_fp16.safetensors"


@pytest.fixture(scope="module")
def reference(toyworld: Path) -> dict[str, torch.Tensor]:
    return load_file(toyworld / "reference_rollout.safetensors")


@pytest.fixture
def nf4_model(bridge: ModuleType, dit: Path) -> Any:
    return bridge.load_diffusion_model(str(dit), "nf4", min_bytes=0)[0]


@pytest.fixture
def unpacked_model(dit: Path) -> Any:
    return unpacked(dit, "nf4")


def unpacked(dit: Path, form: str) -> Any:
    """The toy model through core's own loader, with every weight replaced by what its packed form stands for."""
    import comfy.sd
    from pack.nodes.loading import formats
    from pack.nodes.loading.codecs import CODECS
    from pack.nodes.loading.plan import plan_layers

    plan, codec = plan_layers(formats.read_checkpoint(dit, formats.DIFFUSION_MODELS), 0, form), CODECS[form]
    assert set(plan.quantize.values()) == {form}
    state = {name: codec.dequantize(codec.quantize(weight), torch.float32) if name in plan.quantize else weight.float()
             for name, weight in load_file(dit).items()}
    return comfy.sd.load_diffusion_model_state_dict(state)


def context(reference: dict[str, torch.Tensor]) -> torch.Tensor:
    padded = torch.zeros(1, 512, 4096)  # zero padding as ComfyUI's Wan text encoder gives it
    padded[0, :15] = reference["text_embedding_prompt0"]
    return padded


@torch.no_grad()
def velocity(model: Any, reference: dict[str, torch.Tensor]) -> torch.Tensor:
    inner = model.model.diffusion_model
    return inner(reference["noise"][:1], torch.tensor([1000.0]), context(reference))[0]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def load_with_core(model: Any) -> Any:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    return model


def lora_for(model: Any, rank: int = 4, size: float = 0.02) -> dict[str, torch.Tensor]:
    """A LoRA file's tensors for every attention query and feed-forward of the model, and one bias."""
    generator, lora = torch.Generator().manual_seed(3), {}
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith(("self_attn.q", "ffn.0", "ffn.2", "time_projection.1")):
            key = f"diffusion_model.{name}"
            lora[f"{key}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=generator) * size
            lora[f"{key}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=generator)
    lora["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.randn(960, generator=generator)
    return lora


def test_original_weights_give_the_reference_velocity_and_cores_own(bridge: ModuleType, dit: Path,
                                                                    reference: dict) -> None:
    import comfy.sd

    ours, report = bridge.load_diffusion_model(str(dit), "original")
    theirs = comfy.sd.load_diffusion_model(str(dit))
    result = velocity(load_with_core(ours), reference)
    assert (result - reference["velocity_chunk0_t1000"]).abs().max() < 1e-4
    assert torch.equal(result, velocity(load_with_core(theirs), reference))
    assert "toyworld_dit_fp16.safetensors: loaded as it is through ComfyUI, 15.6 MB in the file" in report


@pytest.mark.parametrize(("form", "least", "most"), [("nf4", 0.01, 0.2), ("int8", 1e-4, 0.01)])
def test_packed_model_equals_its_unpacked_weights(bridge: ModuleType, dit: Path, reference: dict, form: str,
                                                  least: float, most: float) -> None:
    model, report = bridge.load_diffusion_model(str(dit), form, min_bytes=0)
    assert isinstance(model, bridge.QuantPatcher) and f"{form.replace('nf', 'NF')}: 60 weights" in report
    ours = velocity(load_with_core(model), reference)
    assert relative(ours, velocity(load_with_core(unpacked(dit, form)), reference)) < 1e-5
    assert least < relative(ours, reference["velocity_chunk0_t1000"]) < most  # it is quantised, and not broken


def test_small_models_stay_exact_by_default(bridge: ModuleType, dit: Path, reference: dict) -> None:
    model, report = bridge.load_diffusion_model(str(dit), "nf4")
    assert "NF4: no weight" in report
    assert (velocity(load_with_core(model), reference) - reference["velocity_chunk0_t1000"]).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_lora_counts_once_whatever_the_patcher_does(bridge: ModuleType, dit: Path, reference: dict, form: str) -> None:
    import comfy.sd

    model, unpacked_model = bridge.load_diffusion_model(str(dit), form, min_bytes=0)[0], unpacked(dit, form)
    lora = lora_for(unpacked_model)
    plain = velocity(load_with_core(unpacked_model), reference)
    expected_model, _ = comfy.sd.load_lora_for_models(unpacked_model, None, lora, 1.0, 0.0)
    expected = velocity(load_with_core(expected_model), reference)
    assert relative(expected, plain) > 0.05

    model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    size = model.model_size()
    seen = {}

    def look(state: str) -> None:
        seen[state] = velocity(model, reference)

    model.patch_model(CPU)
    look("loaded completely")
    model.partially_unload(CPU, 1)
    look("one module unloaded")
    model.partially_unload(CPU, size // 2)
    look("half unloaded")
    model.partially_load(CPU, size)
    look("loaded again")
    model.partially_unload(CPU, 10**12)
    look("all unloaded")
    model.unpatch_model(CPU)
    without = velocity(model, reference)
    model.patch_model(CPU, lowvram_model_memory=size // 2)
    look("half loaded")
    model.unpatch_model(CPU)
    model.patch_model(CPU, lowvram_model_memory=size // 2, force_patch_weights=True)
    look("half loaded, patches forced")
    model.unpatch_model(CPU)

    assert {state: relative(value, expected) for state, value in seen.items()} == {
        state: pytest.approx(0, abs=1e-3) for state in seen}
    assert relative(without, plain) < 1e-5
    assert relative(velocity(model, reference), plain) < 1e-5


def test_clones_share_weights_but_not_loras(nf4_model: Any, unpacked_model: Any, bridge: ModuleType,
                                            reference: dict) -> None:
    import comfy.sd

    plain = velocity(load_with_core(nf4_model), reference)
    patched, _ = comfy.sd.load_lora_for_models(nf4_model, None, lora_for(unpacked_model), 1.0, 0.0)
    assert isinstance(patched, bridge.QuantPatcher) and patched.model is nf4_model.model
    assert relative(velocity(load_with_core(patched), reference), plain) > 0.05
    assert torch.equal(velocity(load_with_core(nf4_model), reference), plain)


def test_lora_hooks_are_refused_because_bytes_cannot_be_patched(nf4_model: Any) -> None:
    key = "diffusion_model.blocks.0.ffn.0.weight"
    with pytest.raises(ValueError, match=rf"LoRA hooks .* but got the quantised weight {key}"):
        nf4_model.patch_hook_weight_to_device(None, {key: []}, key, {}, None)


def test_bitsandbytes_files_load_as_they_are(bridge: ModuleType, dit: Path, nf4_model: Any, reference: dict,
                                             tmp_path: Path) -> None:
    from pack.nodes.loading import formats
    from pack.nodes.loading.plan import plan_layers
    from pack.nodes.loading.streaming import read_weights

    checkpoint = formats.read_checkpoint(dit, formats.DIFFUSION_MODELS)
    plan = plan_layers(checkpoint, min_bytes=0)
    state = read_weights(checkpoint, plan, CPU)
    state |= {name: state[name].reshape(-1, 1) for name in plan.quantize}  # bitsandbytes' own shape
    path = tmp_path / "bnb.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, path)
    expected = velocity(load_with_core(nf4_model), reference)
    for weights in bridge.WEIGHTS:
        model, report = bridge.load_diffusion_model(str(path), weights)
        assert "NF4 already in the file: 60 weights" in report
        assert torch.equal(velocity(load_with_core(model), reference), expected)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "single"])
@pytest.mark.parametrize("form", ["nf4", "fp4"])
def test_files_made_by_bitsandbytes_itself_load(bridge: ModuleType, dit: Path, reference: dict, tmp_path: Path,
                                                form: str, nested: bool) -> None:
    import comfy.sd

    functional = pytest.importorskip("bitsandbytes.functional")
    packed, unpacked = {}, {}
    for name, tensor in load_file(dit).items():
        if not name.endswith((".q.weight", "ffn.0.weight")):
            packed[name], unpacked[name] = tensor, tensor.float()
            continue
        data, state = functional.quantize_4bit(tensor, compress_statistics=nested, quant_type=form)
        packed |= {name: data, **{f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}}
        unpacked[name] = functional.dequantize_4bit(data, state).float()
    save_file(packed, tmp_path / "bnb.safetensors")
    model, report = bridge.load_diffusion_model(str(tmp_path / "bnb.safetensors"), "int8", min_bytes=0)
    assert f"{form.upper()} already in the file: 18 weights, taken as they are" in report
    assert "as stored: 42 x left by whoever packed the file" in report
    ours = velocity(load_with_core(model), reference)
    theirs = velocity(load_with_core(comfy.sd.load_diffusion_model_state_dict(unpacked)), reference)
    assert relative(ours, theirs) < 1e-3  # theirs has the unpacked weights rounded to float16


def test_real_wan_layout_is_detected_and_sized_right(bridge: ModuleType, tmp_path: Path) -> None:
    import comfy.model_management
    from pack.nodes.common.compat import model_facts
    from pack.nodes.loading import formats, nf4
    from pack.nodes.loading.plan import plan_layers

    script = Path(__file__).parents[2] / "benchmarks" / "random_wan.py"
    spec = importlib.util.spec_from_file_location("random_wan", script)
    random_wan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(random_wan)
    path = random_wan.write_wan(tmp_path / "wan.safetensors", layers=2)

    model, report = bridge.load_diffusion_model(str(path), "nf4")
    assert type(model.model.model_config).__name__ == "WAN21_T2V"
    facts = model_facts(model)
    assert (facts.layers, facts.heads, facts.head_dim, facts.ffn_dim) == (2, 12, 128, 8960)
    checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
    plan = plan_layers(checkpoint)
    assert len(plan.quantize) == 20 and f"NF4: {len(plan.quantize)} weights" in report
    inner = model.model.diffusion_model
    kept = sum(torch.Size(checkpoint.tensors[name].shape).numel() for name in plan.keep) * inner.dtype.itemsize
    packed = sum(nf4.packed_bytes(*checkpoint.tensors[name].shape) for name in plan.quantize)
    assert comfy.model_management.module_size(inner) == kept + packed
    with torch.no_grad():
        out = inner(torch.zeros(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.zeros(1, 8, 4096))
    assert out.shape == (1, 16, 1, 4, 4) and torch.isfinite(out).all()


def test_incomplete_files_are_refused(bridge: ModuleType, dit: Path, tmp_path: Path) -> None:
    state = load_file(dit)
    del state["blocks.2.ffn.0.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"cut.safetensors' must hold a whole Wan diffusion model, but got a file "
                                         r"without blocks.2.ffn.0.weight"):
        bridge.load_diffusion_model(str(tmp_path / "cut.safetensors"), "nf4", min_bytes=0)
