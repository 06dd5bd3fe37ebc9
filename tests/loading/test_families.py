"""Every family through the loader: recognised, packed, and equal to core's own model of the unpacked weights."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .tiny_models import MODELS, core_model, output, write

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


SLOW = ("svd", "wan_animate")


@pytest.mark.parametrize("form", ["nf4", "int8", "nf4_int8"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind
                                  for kind in MODELS])
def test_packed_model_equals_cores_of_its_unpacked_weights(bridge: ModuleType, tmp_path: Path, kind: str,
                                                           form: str) -> None:
    path = write(tmp_path, kind)
    model, _ = bridge.load_diffusion_model(str(path), form, min_bytes=0)
    assert type(model.model.model_config).__name__ == MODELS[kind][0]
    ours, theirs = output(kind, model), output(kind, unpacked(path, form))
    assert torch.isfinite(ours).all() and relative(ours, theirs) < 1e-4
    original = output(kind, bridge.load_diffusion_model(str(path), "original")[0])
    assert relative(ours, original.float()) > 1e-4  # it is packed


def test_buffers_that_a_file_leaves_out_are_made_by_the_model(bridge: ModuleType, tmp_path: Path) -> None:
    path = write(tmp_path, "wan_animate")
    state = load_file(path)
    kernels = [name for name in state if name.endswith(".kernel")]
    made = dict(core_model("wan_animate").named_buffers())
    save_file({name: tensor for name, tensor in state.items() if name not in kernels}, path)
    model, _ = bridge.load_diffusion_model(str(path), "nf4", min_bytes=0)
    loaded = model.model.diffusion_model.state_dict()
    assert kernels and all(torch.equal(loaded[name], made[name]) for name in kernels)


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
    "svd": {"embedding": ["label_emb.0.2.weight", "input_blocks.1.1.time_pos_embed.0.weight"],
            "time modulation": ["input_blocks.1.0.time_stack.emb_layers.1.weight"],
            "convolution": ["input_blocks.1.0.time_stack.in_layers.2.weight"],
            "nf4": ["input_blocks.1.1.time_stack.0.attn1.to_q.weight", "input_blocks.1.1.proj_in.weight"]},
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
        line = {"nf4": r"^NF4: \d+ weights", "int8": r"^int8: \d+ x .*modulation, "}
        assert re.search(line.get(fate, rf"^as stored: \d+ x {fate}, "), report, re.MULTILINE), report


# kind: weights that the mix has in 8 bits, and some that it leaves in 4
MIXED = {
    "wan_t2v": (["blocks.0.self_attn.v.weight", "blocks.1.self_attn.o.weight", "blocks.1.ffn.2.weight"],
                ["blocks.0.self_attn.q.weight", "blocks.1.cross_attn.v.weight", "blocks.0.ffn.2.weight"]),
    "hunyuan": (["double_blocks.0.img_attn.qkv.weight", "double_blocks.0.txt_attn.proj.weight"],
                ["single_blocks.0.linear2.weight", "double_blocks.0.img_mlp.0.weight"]),
    "ltx": (["transformer_blocks.0.attn1.to_out.0.weight", "transformer_blocks.1.ff.net.2.weight"],
            ["transformer_blocks.0.ff.net.2.weight", "transformer_blocks.1.attn2.to_v.weight"]),
    "sd15": (["input_blocks.1.1.transformer_blocks.0.attn1.to_v.weight",
              "output_blocks.0.1.transformer_blocks.0.ff.net.2.weight"],
             ["input_blocks.1.1.transformer_blocks.0.ff.net.2.weight"]),
}


@pytest.mark.parametrize("kind", MIXED)
def test_the_mix_gives_eight_bits_to_what_attention_hands_on_and_to_later_blocks(
        bridge: ModuleType, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    plan, report = plan_of(path, "nf4_int8"), bridge.load_diffusion_model(str(path), "nf4_int8", min_bytes=0)[1]
    fine, plain = MIXED[kind]
    assert {name: plan.quantize[name] for name in fine + plain} == (
        dict.fromkeys(fine, "int8") | dict.fromkeys(plain, "nf4"))
    assert plan.keep == plan_of(path, "nf4").keep
    assert re.search(r"^NF4: \d+ weights", report, re.MULTILINE)
    assert re.search(r"^int8: \d+ x .*what attention hands on", report, re.MULTILINE)


def test_the_mix_is_the_same_for_tencents_names(tmp_path: Path) -> None:
    state = load_file(write(tmp_path, "hunyuan"))
    theirs = {re.sub(r"_attn\.(qkv|proj)\.", r"_attn_\1.", name): tensor for name, tensor in state.items()}
    save_file(theirs, tmp_path / "tencent.safetensors")
    plan, expected = (plan_of(tmp_path / f"{name}.safetensors", "nf4_int8") for name in ("tencent", "hunyuan"))
    assert list(plan.quantize.values()).count("int8") == list(expected.quantize.values()).count("int8") > 3


# the published sizes: values of core's configuration that differ from the tiny one, weights in 4 bits and in 8, GB
# with nf4, weights in 8 bits and GB with nf4_int8
FULL_SIZE = {
    "wan_t2v": ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, 400, 0, 7.72, 120, 10.11),
    "wan22_ti2v": ({"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30}, 300, 0, 2.72, 90, 3.63),
    "hunyuan": ({"context_in_dim": 4096, "hidden_size": 3072, "num_heads": 24, "depth": 20, "depth_single_blocks": 40},
                248, 80, 8.47, 244, 11.07),
    "hunyuan_15": ({"context_in_dim": 3584, "hidden_size": 2048, "num_heads": 16, "depth": 54},
                   440, 108, 5.72, 436, 7.50),
    "ltx": ({"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096}, 480, 0, 6.96, 144, 9.31),
    "svd": ({"channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "transformer_depth_middle": 1,
             "transformer_depth_output": [1] * 9 + [0] * 3}, 209, 0, 2.13, 54, 2.22),
    "sd15": ({"channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2,
              "transformer_depth_output": [1] * 9 + [0] * 3}, 75, 0, 1.40, 27, 1.44),
}


@pytest.mark.parametrize("kind", FULL_SIZE)
def test_full_size_models_are_placed_and_planned_by_their_header(kind: str) -> None:
    from pack.nodes.loading import formats
    from pack.nodes.loading.bridge_place import find_place
    from pack.nodes.loading.codecs import CODECS
    from pack.nodes.loading.files import TensorHeader
    from pack.nodes.loading.plan import plan_layers

    values, four_bit, eight_bit, gigabytes, mixed, mixed_gigabytes = FULL_SIZE[kind]
    headers = {name: TensorHeader(name, torch.bfloat16, tuple(tensor.shape), 2 * tensor.numel())
               for name, tensor in core_model(kind, "meta", **values).state_dict().items()}
    family = formats.family_of(headers, formats.DIFFUSION_MODELS)[0]
    checkpoint = formats.Checkpoint(Path(kind), family, headers, {})
    for weights, fine, expected in (("nf4", eight_bit, gigabytes), ("nf4_int8", mixed, mixed_gigabytes)):
        plan = plan_layers(checkpoint, weights=weights, linears=find_place(checkpoint).linears)
        forms = list(plan.quantize.values())
        assert (len(forms), forms.count("int8")) == (four_bit + eight_bit, fine)
        packed = sum(CODECS[form].packed_bytes(*headers[name].shape) for name, form in plan.quantize.items())
        assert (packed + sum(headers[name].bytes for name in plan.keep)) / 1e9 == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("kind", ["hunyuan", "ltx", "sd15"])
def test_a_saved_model_loads_as_the_same_model(bridge: ModuleType, tmp_path: Path, kind: str) -> None:
    from pack.nodes.loading.bridge_save import save_model

    model, _ = bridge.load_diffusion_model(str(write(tmp_path, kind)), "nf4", min_bytes=0)
    save_model(model, tmp_path / "saved.safetensors")
    again, report = bridge.load_diffusion_model(str(tmp_path / "saved.safetensors"), "nf4", min_bytes=0)
    assert torch.equal(output(kind, again), output(kind, model)) and "NF4 already in the file: " in report
    assert ("int8 already in the file: 3 weights" in report) == (kind == "hunyuan")


@pytest.mark.parametrize("kind", ["hunyuan", "hunyuan_15", "ltx", "sd15"])
def test_a_lora_on_packed_weights_is_that_on_the_unpacked_ones(bridge: ModuleType, tmp_path: Path, kind: str) -> None:
    import comfy.model_management
    import comfy.sd

    path = write(tmp_path, kind)
    plan, generator, lora = plan_of(path, "nf4"), torch.Generator().manual_seed(3), {}
    for name, weight in load_file(path).items():
        if name in plan.quantize:
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            lora[f"{key}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.05
            lora[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], 2, generator=generator)
    plain, outputs = unpacked(path, "nf4"), []
    for model in (bridge.load_diffusion_model(str(path), "nf4", min_bytes=0)[0], plain):
        patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
        assert len(patched.patches) == len(plan.quantize)
        comfy.model_management.load_models_gpu([patched])
        outputs.append(output(kind, patched))
        patched.unpatch_model(torch.device("cpu"))
    assert relative(*outputs) < 1e-3 < relative(outputs[1], output(kind, plain))
