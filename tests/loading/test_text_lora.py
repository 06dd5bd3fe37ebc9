"""LoRAs that patch a quantised text encoder, alone or together with the model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from .text_files import core_clip, encode, load, relative, tiny_state, unpacked, write_parts

pytestmark = pytest.mark.comfy
PROMPT = "a blue circle hero with a green hat walks right in the forest"


@pytest.fixture(scope="module")
def bridge_text() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge_text

    return bridge_text


def lora_for(state: dict[str, torch.Tensor], stem: str) -> dict[str, torch.Tensor]:
    """A LoRA file in kohya's names for all matrices of the layers. stem: what the file calls the encoder."""
    generator, lora = torch.Generator().manual_seed(5), {}
    for name, tensor in state.items():
        if ".layers." in name and tensor.ndim == 2:
            key = f"{stem}_{name.removesuffix('.weight').replace('.', '_')}"
            lora[f"{key}.lora_down.weight"] = torch.randn(4, tensor.shape[1], generator=generator) * 0.1
            lora[f"{key}.lora_up.weight"] = torch.randn(tensor.shape[0], 4, generator=generator) * 0.1
            lora[f"{key}.alpha"] = torch.tensor(2.0)
    return lora


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_lora_counts_as_on_the_unpacked_weights(bridge_text: ModuleType, toyworld: Path, tmp_path: Path,
                                                weights: str) -> None:
    import comfy.sd

    paths = write_parts("hunyuan_video", tmp_path, toyworld)
    states = [unpacked(path, weights) for path in paths]
    lora = lora_for(states[1], "lora_te")
    ours, _ = load(bridge_text, paths, weights)
    theirs = core_clip("hunyuan_video", states)
    without = encode(ours, PROMPT)
    patched = []
    for clip in (ours, theirs):
        _, new = comfy.sd.load_lora_for_models(None, clip, lora, 0.0, 0.7)
        patched.append(encode(new, PROMPT))
    assert relative(*(out["pooled_output"] for out in patched)) < 1e-5
    assert relative(patched[0]["pooled_output"], without["pooled_output"]) > 0.01
    assert torch.equal(encode(ours, PROMPT)["pooled_output"], without["pooled_output"])  # and it leaves again


def test_lora_for_model_and_encoder_reaches_both(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    import comfy.sd
    from pack.nodes.loading import bridge

    clip_l = tiny_state("clip_l", toyworld)
    clip, _ = load(bridge_text, write_parts("stable_diffusion", tmp_path, toyworld), "nf4")
    model, _ = bridge.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"), "nf4", min_bytes=0)
    weight = load_file(toyworld / "toyworld_dit_fp16.safetensors")["blocks.0.ffn.0.weight"]
    lora = lora_for(clip_l, "lora_te")
    lora["diffusion_model.blocks.0.ffn.0.lora_A.weight"] = torch.ones(2, weight.shape[1])
    lora["diffusion_model.blocks.0.ffn.0.lora_B.weight"] = torch.ones(weight.shape[0], 2)
    new_model, new_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    assert set(new_model.patches) == {"diffusion_model.blocks.0.ffn.0.weight"}
    assert len(new_clip.patcher.patches) == 18
    assert relative(encode(new_clip, PROMPT)["cond"], encode(clip, PROMPT)["cond"]) > 0.01


def test_lora_of_another_size_changes_nothing(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    import comfy.sd

    clip, _ = load(bridge_text, write_parts("stable_diffusion", tmp_path, toyworld), "nf4")
    wide = {name: torch.zeros(3 * tensor.shape[0], 3 * tensor.shape[-1]) if tensor.ndim == 2 else tensor
            for name, tensor in tiny_state("clip_l", toyworld).items()}
    _, new = comfy.sd.load_lora_for_models(None, clip, lora_for(wide, "lora_te"), 0.0, 1.0)
    assert not new.patcher.patches
    assert torch.equal(encode(new, PROMPT)["cond"], encode(clip, PROMPT)["cond"])
