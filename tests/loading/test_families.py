"""Every family through the loader: recognised, packed, and equal to core's own model of the unpacked weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .tiny_models import MODELS, output, write

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


def plan_of(path: Path, form: str) -> Any:
    from pack.nodes.loading import formats
    from pack.nodes.loading.bridge_place import find_place
    from pack.nodes.loading.plan import plan_layers

    checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
    return plan_layers(checkpoint, 0, form, find_place(checkpoint).linears)


def unpacked(path: Path, form: str) -> Any:
    """The file through core's own loader, with every weight replaced by what its packed form stands for."""
    import comfy.sd
    from pack.nodes.loading.codecs import CODECS

    plan = plan_of(path, form)
    state = {}
    for name, weight in load_file(path).items():
        codec = CODECS[plan.quantize[name]] if name in plan.quantize else None
        state[name] = codec.dequantize(codec.quantize(weight), torch.float32) if codec else weight.float()
    return comfy.sd.load_diffusion_model_state_dict(state)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("kind", MODELS)
def test_packed_model_equals_cores_of_its_unpacked_weights(bridge: ModuleType, tmp_path: Path, kind: str,
                                                           form: str) -> None:
    path = write(tmp_path, kind)
    model, _ = bridge.load_diffusion_model(str(path), form, min_bytes=0)
    assert type(model.model.model_config).__name__ == MODELS[kind][0]
    ours, theirs = output(kind, model), output(kind, unpacked(path, form))
    assert torch.isfinite(ours).all() and relative(ours, theirs) < 1e-4
    original = output(kind, bridge.load_diffusion_model(str(path), "original")[0])
    assert relative(ours, original.float()) > 1e-4  # it is packed


# kind, then what every tensor of the file must be kept for or packed to: {line of the report: one of its names}
KEPT = {
    "wan_i2v": {"embedding": ["text_embedding.0.weight", "img_emb.proj.1.weight", "patch_embedding.weight"],
                "time modulation": ["time_projection.1.weight"], "output head": ["head.head.weight"]},
    "wan_s2v": {"audio encoder": ["casual_audio_encoder.encoder.final_linear.weight"],
                "embedding": ["trainable_cond_mask.weight"],
                "int8": ["audio_injector.injector_adain_layers.0.linear.weight"]},
    "wan_animate": {"face encoder": ["face_encoder.out_proj.weight", "motion_encoder.enc.fc.0.weight"],
                    "nf4": ["face_adapter.fuser_blocks.0.linear1_kv.weight"]},
    "hunyuan": {"embedding": ["img_in.proj.weight", "txt_in.input_embedder.weight", "vector_in.in_layer.weight",
                              "guidance_in.out_layer.weight", "txt_in.c_embedder.in_layer.weight"],
                "time modulation": ["txt_in.individual_token_refiner.blocks.1.adaLN_modulation.1.weight"],
                "int8": ["double_blocks.0.img_mod.lin.weight", "single_blocks.0.modulation.lin.weight"],
                "nf4": ["double_blocks.0.txt_attn.qkv.weight", "single_blocks.0.linear2.weight"]},
    "hunyuan_15": {"embedding": ["vision_in.proj.1.weight", "byt5_in.fc2.weight", "cond_type_embedding.weight"]},
    "ltx": {"embedding": ["patchify_proj.weight", "caption_projection.linear_1.weight"],
            "time modulation": ["adaln_single.linear.weight"], "output head": ["proj_out.weight"],
            "nf4": ["transformer_blocks.0.attn2.to_k.weight", "transformer_blocks.1.ff.net.2.weight"]},
    "sd15": {"embedding": ["time_embed.0.weight"], "time modulation": ["input_blocks.1.0.emb_layers.1.weight"],
             "convolution": ["input_blocks.1.1.proj_in.weight", "input_blocks.0.0.weight"],
             "nf4": ["input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight"]},
}


@pytest.mark.parametrize("kind", KEPT)
def test_sensitive_layers_stay_and_are_reported(bridge: ModuleType, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    plan, report = plan_of(path, "nf4"), bridge.load_diffusion_model(str(path), "nf4", min_bytes=0)[1]
    fates = {**plan.keep, **plan.quantize}
    for fate, names in KEPT[kind].items():
        assert {name: fates[name] for name in names} == dict.fromkeys(names, fate)
        assert {"nf4": "NF4: ", "int8": "int8: "}.get(fate, f" x {fate}, ") in report
