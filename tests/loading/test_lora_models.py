"""LoRAs on a quantised model inside the real ModelPatcher, whatever is loaded, unloaded, cloned or taken away."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.comfy
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


@pytest.fixture(scope="module")
def models(bridge: ModuleType, toyworld: Path) -> tuple[Any, Any]:
    """The toy model in NF4, and the same values in core's own layers."""
    import comfy.sd
    from pack.nodes.loading import formats, nf4
    from pack.nodes.loading.plan import plan_layers

    path = toyworld / "toyworld_dit_fp16.safetensors"
    plan = plan_layers(formats.read_checkpoint(path, formats.DIFFUSION_MODELS), min_bytes=0)
    state = {name: nf4.dequantize(nf4.quantize(weight), torch.float32) if name in plan.quantize else weight.float()
             for name, weight in load_file(path).items()}
    return (bridge.load_diffusion_model(str(path), "nf4", min_bytes=0)[0],
            comfy.sd.load_diffusion_model_state_dict(state))


def lora_for(model: Any, seed: int, rank: int = 4, parts: tuple[str, str] = ("lora_A", "lora_B")) -> dict:
    generator, lora = torch.Generator().manual_seed(seed), {}
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith(("self_attn.q", "ffn.0", "cross_attn.k")):
            key = f"diffusion_model.{name}"
            lora[f"{key}.{parts[0]}.weight"] = torch.randn(rank, module.in_features, generator=generator) * 0.02
            lora[f"{key}.{parts[1]}.weight"] = torch.randn(module.out_features, rank, generator=generator)
            lora[f"{key}.alpha"] = torch.tensor(rank / 2)
    return lora


def with_lora(model: Any, lora: dict, strength: float = 1.0) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]


@torch.no_grad()
def velocity(model: Any, is_loaded: bool = False) -> torch.Tensor:
    import comfy.model_management

    if not is_loaded:
        comfy.model_management.load_models_gpu([model])
    generator = torch.Generator().manual_seed(1)
    inner = model.model.diffusion_model
    x = torch.randn(1, inner.in_dim, 1, 8, 8, generator=generator)
    return inner(x, torch.tensor([700.0]), torch.randn(1, 16, inner.text_dim, generator=generator))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def packed_with_side_path(model: Any) -> int:
    return sum(getattr(module, "has_side_path", False) for module in model.model.modules())


def test_stacks_strengths_clones_and_removal(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    one, two = lora_for(theirs, 1), lora_for(theirs, 2, rank=6)
    plain = velocity(ours)
    for strengths in ((1.0, 0.0), (0.7, -1.3), (0.0, 0.0)):
        stacked = [with_lora(with_lora(model, one, strengths[0]), two, strengths[1]) for model in (ours, theirs)]
        assert relative(velocity(stacked[0]), velocity(stacked[1])) < 1e-5
    first, second = with_lora(ours, one), with_lora(ours, two)
    for _ in range(2):
        assert relative(velocity(first), velocity(with_lora(theirs, one))) < 1e-5
        assert relative(velocity(second), velocity(with_lora(theirs, two))) < 1e-5
        assert relative(velocity(first), velocity(second)) > 0.02
    assert torch.equal(velocity(ours), plain) and packed_with_side_path(ours) == 0


def test_partial_loads_and_unloads(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    lora = lora_for(theirs, 1)
    expected = velocity(with_lora(theirs, lora))
    model = with_lora(ours, lora)
    velocity(ours)
    model.detach()
    for budget in (0, model.model_size() // 3, model.model_size() // 2, 1):
        model.patch_model(CPU, lowvram_model_memory=budget)
        assert packed_with_side_path(model) == len(lora) // 3
        assert relative(velocity(model, is_loaded=True), expected) < 1e-5
        model.partially_unload(CPU, model.model_size() // 4)
        assert relative(velocity(model, is_loaded=True), expected) < 1e-5
        model.partially_load(CPU, model.model_size())
        assert relative(velocity(model, is_loaded=True), expected) < 1e-5
        model.detach()
        assert packed_with_side_path(model) == 0


def test_core_counts_the_lora(models: tuple[Any, Any]) -> None:
    from pack.nodes.common.digest import patcher_key

    ours, theirs = models
    lora = lora_for(theirs, 1)
    model, size = with_lora(ours, lora), ours.model_size()
    key = patcher_key(model)
    pairs = [tensor for key, tensor in lora.items() if "lora_" in key]
    added = sum(tensor.nbytes for tensor in pairs) + 4 * 4 * (len(pairs) // 2)  # rank 4, one float32 scale per rank
    assert model.model_size() == size + added == model.clone().model_size()
    velocity(ours)
    model.patch_model(CPU)
    assert model.loaded_size() == size + added
    assert patcher_key(model) == key != patcher_key(ours)
    model.detach()
    assert ours.model_size() == size


def test_other_adapters_change_the_unpacked_weight(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    generator = torch.Generator().manual_seed(4)
    key, module = "diffusion_model.blocks.1.ffn.0", theirs.model.diffusion_model.blocks[1].ffn[0]
    rows, columns = module.out_features, module.in_features
    loha = {f"{key}.hada_{side}": torch.randn(*shape, generator=generator) * 0.3
            for side, shape in (("w1_a", (rows, 4)), ("w1_b", (4, columns)), ("w2_a", (rows, 4)),
                                ("w2_b", (4, columns)))}
    dora = {**lora_for(theirs, 1), f"{key}.dora_scale": torch.rand(rows, 1, generator=generator) + 0.5}
    diff = {f"{key}.diff": torch.randn(rows, columns, generator=generator) * 0.05}
    plain = velocity(ours)
    for lora in (loha, dora, diff):
        expected = velocity(with_lora(theirs, lora))
        model = with_lora(ours, lora)
        assert relative(expected, plain) > 1e-3 and relative(velocity(model), expected) < 1e-5
    assert torch.equal(velocity(ours), plain)


@pytest.mark.parametrize("name", ["lora_unet_input_blocks_1_1_proj_in", "transformer.single_transformer_blocks.0.attn"])
def test_a_lora_of_another_family_is_refused(models: tuple[Any, Any], name: str) -> None:
    foreign = {f"{name}.lora_down.weight": torch.zeros(4, 8), f"{name}.lora_up.weight": torch.zeros(8, 4)}
    with pytest.raises(ValueError, match=r"needs a LoRA made for it, but got one without a name of this model"):
        with_lora(models[0], foreign)


def test_a_lora_of_another_size_is_refused_with_nothing_changed(models: tuple[Any, Any]) -> None:
    lora = {key: torch.zeros(4, 5120) if "lora_A" in key else torch.zeros(5120, 4)
            for key in lora_for(models[1], 1) if "alpha" not in key}
    with pytest.raises(ValueError, match=r"but got one with \d+ weights of another shape"):
        with_lora(models[0], lora)
    assert not models[0].patches


def test_the_coverage_line_counts_the_files_keys(models: tuple[Any, Any]) -> None:
    from pack.nodes.loading.bridge_lora import load_lora

    for model in models:
        lora = lora_for(models[1], 1)
        patched, line = load_lora(model, lora, "a.safetensors", 1.0)
        assert line == f"a.safetensors: {len(lora)} of {len(lora)} keys matched" and patched is not model
        peft = {key.replace("diffusion_model.", "base_model.model."): value for key, value in lora.items()}
        peft["base_model.model.not_there.lora_A.weight"] = torch.zeros(2, 2)
        again, line = load_lora(model, peft, "b.pt", 1.0)
        assert line == (f"b.pt: {len(lora)} of {len(lora) + 1} keys matched; "
                        "not used: diffusion_model.not_there.lora_A.weight")
        assert torch.equal(velocity(again), velocity(patched))
        with pytest.raises(ValueError, match=r"'c' must be a LoRA for .* but got 1 keys of which none fits"):
            load_lora(model, {"x.lora_up.weight": torch.zeros(2, 2)}, "c", 1.0)


def test_weights_that_another_pack_has_packed_take_loras(models: tuple[Any, Any],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """As ComfyUI-GGUF does: bytes of another shape in the state dict, and scratch space for the largest weight."""
    from pack.nodes.loading.bridge_lora import load_lora, logical_shape

    def saved(module: Any, destination: dict, prefix: str, _keep: bool) -> None:
        destination[f"{prefix}weight"] = torch.zeros(module.out_features, module.in_features // 32 * 18,
                                                     dtype=torch.uint8, device="meta")
        destination[f"{prefix}temp.weight"] = torch.zeros(4, 4, device="meta")

    lora, model = lora_for(models[1], 1), models[1].model
    expected = set(load_lora(models[1], lora, "a", 1.0)[0].patches)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            monkeypatch.setattr(module, "_save_to_state_dict", partial(saved, module))
    patched, line = load_lora(models[1], lora, "a", 1.0)
    assert line == f"a: {len(lora)} of {len(lora)} keys matched" and set(patched.patches) == expected
    packed = torch.zeros(9, dtype=torch.uint8)
    other = {key: tensor[..., :3] for key, tensor in lora.items() if "lora_" in key}
    assert logical_shape(model, "diffusion_model.patch_embedding.weight", packed) is None
    with pytest.raises(ValueError, match=r"must be a LoRA for .* but got \d+ keys of which none fits"):
        load_lora(models[1], other, "a", 1.0)


def test_merging_models_with_packed_weights_is_refused(models: tuple[Any, Any]) -> None:
    patches = models[0].get_key_patches("diffusion_model.blocks.0.ffn.0.weight")
    with pytest.raises(ValueError, match=r"Merging models needs weights that can be written to"):
        models[0].clone().add_patches(patches, 0.5, 0.5)
