"""The names that training codes give to a LoRA's keys: one LoRA, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pack.nodes.loading.lora import model_names

from .tiny_models import write

pytestmark = pytest.mark.comfy
# kind -> what diffusers calls a layer
DIFFUSERS = {"wan_t2v": ((r"self_attn\.([qkv])$", r"attn1.to_\1"), (r"self_attn\.o$", "attn1.to_out.0"),
                         (r"cross_attn\.([qkv])$", r"attn2.to_\1"), (r"cross_attn\.o$", "attn2.to_out.0"),
                         (r"ffn\.0$", "ffn.net.0.proj"), (r"ffn\.2$", "ffn.net.2"), (r"^head\.head$", "proj_out"),
                         (r"^(time|text)_embedding\.0$", r"condition_embedder.\1_embedder.linear_1"),
                         (r"^(time|text)_embedding\.2$", r"condition_embedder.\1_embedder.linear_2"),
                         (r"^time_projection\.1$", "condition_embedder.time_proj")),
             "ltx": ((r"^patchify_proj$", "proj_in"), (r"^adaln_single", "time_embed"))}


def diffusers(kind: str, name: str) -> str:
    for pattern, replacement in DIFFUSERS[kind]:
        name = re.sub(pattern, replacement, name)
    return name


STYLES: dict[str, Callable[[str, str], str]] = {
    "DiffSynth": lambda kind, name: f"{name}.lora_{{}}.default.weight",
    "DiffSynth, whole pipeline": lambda kind, name: f"pipe.dit.{name}.lora_{{}}.default.weight",
    "peft": lambda kind, name: f"base_model.model.{name}.lora_{{}}.weight",
    "diffusers": lambda kind, name: f"transformer.{diffusers(kind, name)}.lora_{{}}.weight",
    "diffusers, model alone": lambda kind, name: f"{diffusers(kind, name)}.lora_{{}}.weight",
    "diffusers through peft": lambda kind, name: f"base_model.model.{diffusers(kind, name)}.lora_{{}}.default.weight",
    "transformer with ComfyUI's layers": lambda kind, name: f"transformer.{name}.lora_{{}}.weight",
    "ComfyUI with diffusers' layers": lambda kind, name: f"diffusion_model.{diffusers(kind, name)}.lora_{{}}.weight",
}


@pytest.fixture(scope="module", params=["wan_t2v", "ltx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading.bridge import load_diffusion_model

    path = write(tmp_path_factory.mktemp("models"), request.param)
    return request.param, load_diffusion_model(str(path), "nf4", min_bytes=0)[0]


def lora_for(model: Any, spell: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """Every linear layer's LoRA; spell: of a layer, what a file calls its matrices."""
    generator, lora = torch.Generator().manual_seed(1), {}
    for name, module in model.model.diffusion_model.named_modules():
        if hasattr(module, "in_features"):
            lora[spell(name).format("A")] = torch.randn(2, module.in_features, generator=generator)
            lora[spell(name).format("B")] = torch.randn(module.out_features, 2, generator=generator)
    return lora


@pytest.mark.parametrize("style", STYLES)
def test_every_spelling_is_the_same_lora(model: tuple[str, Any], style: str) -> None:
    from pack.nodes.loading.bridge_lora import load_lora

    kind, ours = model
    expected = load_lora(ours, lora_for(ours, lambda name: f"diffusion_model.{name}.lora_{{}}.weight"), "a", 1.0)[0]
    given = lora_for(ours, lambda name: STYLES[style](kind, name))
    patched, line = load_lora(ours, given, "a", 1.0)
    assert line == f"a: {len(given)} of {len(given)} keys matched" and len(given) > 20
    for key, patches in patched.patches.items():
        assert all(torch.equal(*pair) for pair in zip(patches[0][1].weights[:2],
                                                      expected.patches[key][0][1].weights[:2], strict=True))
    assert len(patched.patches) == len(given) // 2


def test_hunyuanvideos_of_diffusers_are_refused(tmp_path: Path) -> None:
    """Its queries, keys and values are one layer in ComfyUI: a LoRA of the other layers alone would be half of one."""
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading.bridge import load_diffusion_model
    from pack.nodes.loading.bridge_lora import load_lora

    model = load_diffusion_model(str(write(tmp_path, "hunyuan")), "nf4", min_bytes=0)[0]
    lora = {f"transformer.transformer_blocks.0.attn.{layer}.lora_{side}.weight": torch.zeros(4, 128)
            for layer in ("to_q", "to_k", "to_v", "to_out.0") for side in "AB"}
    with pytest.raises(ValueError, match=r"'a' must be a LoRA for HunyuanVideo, but got 8 keys of which none fits, the "
                                         r"first named 'transformer.transformer_blocks.0.attn.to_q.lora_A.weight'"):
        load_lora(model, lora, "a", 1.0)


def test_names_of_no_layer_stay() -> None:
    layers = {"blocks.0.ffn.0"}
    lora = {name: torch.zeros(1) for name in (
        "blocks.0.ffn.0.alpha", "blocks.0.ffn.1.alpha", "blocks.0.ffn.00.alpha", "transformer.blocks.1.ffn.0.alpha")}
    assert list(model_names(lora, layers)) == ["diffusion_model.blocks.0.ffn.0.alpha", *list(lora)[1:]]
