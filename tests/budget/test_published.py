"""Models that are not on the disk: their tensors are those of ComfyUI's own modules of the published sizes."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.budget.answer import answer_graph, answer_json
from pack.nodes.budget.published import (
    I2V_14B_21,
    I2V_14B_22,
    T2V_14B,
    WAN_1_3B,
    WAN_5B,
    published_model,
    published_text_encoder,
    published_vae,
)
from pack.nodes.budget.shapes import umt5_shapes, wan_shapes

from .test_graph import MACHINE


@pytest.mark.comfy
@pytest.mark.parametrize("size", [WAN_1_3B, WAN_5B, T2V_14B, I2V_14B_21, I2V_14B_22], ids=lambda size: size.title)
def test_tensors_of_a_model_are_those_of_comfyuis_module(size):
    import comfy.ldm.wan.model as wan
    import comfy.ops

    module = wan.WanModel(model_type="i2v" if size.has_image else "t2v", dim=size.dim, ffn_dim=size.ffn,
                          num_heads=size.dim // 128, num_layers=size.layers, in_dim=size.inputs, out_dim=size.outputs,
                          device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
    assert dict(wan_shapes(size)) == {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.comfy
def test_tensors_of_umt5_are_those_of_comfyuis_module():
    import json
    from pathlib import Path

    import comfy.ops
    import comfy.text_encoders.wan as wan
    from comfy.text_encoders.t5 import T5

    config = json.loads((Path(wan.__file__).parent / "umt5_config_xxl.json").read_text(encoding="utf-8"))
    module = T5(config, torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    assert dict(umt5_shapes()) == {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["wan_2.1_vae.safetensors", "wan2.2_vae.safetensors"])
def test_facts_of_a_vae_are_those_of_comfyuis(name):
    import comfy.sd
    from comfy.ldm.wan import vae as wan21
    from comfy.ldm.wan import vae2_2 as wan22
    from pack.nodes.budget.bridge import vae_facts

    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0,
             "temperal_downsample": [False, True, True]}
    with torch.device("meta"):
        state = (wan21.WanVAE(dim=96, z_dim=16, **shape) if "2.1" in name
                 else wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, **shape)).state_dict()
        loaded = comfy.sd.VAE(sd=dict(state), device=torch.device("meta"), dtype=torch.float16)
    assert published_vae(name, 2) == vae_facts(loaded)


@pytest.mark.parametrize(("name", "title"), [
    ("model_bf16.pt", "Wan 2.2 TI2V 5B"), ("wan2.2_ti2v_5B_fp16.safetensors", "Wan 2.2 TI2V 5B"),
    ("self_forcing_dmd.pt", "Wan 2.1 T2V 1.3B"), ("Wan/wan2.1_t2v_1.3B_bf16.safetensors", "Wan 2.1 T2V 1.3B"),
    ("wan2.1_i2v_480p_14B_fp16.safetensors", "Wan 2.1 I2V 14B"), ("Wan2_2-I2V-A14B-HIGH_bf16.safetensors",
                                                                   "Wan 2.2 I2V 14B"),
    ("sub\\wan2.2_t2v_low_noise_14B_fp16.safetensors", "Wan T2V 14B"),
    ("wan2.2_ti2v_5B_fp8_scaled.safetensors", None), ("wan2.1_vace_14B_fp16.safetensors", None),
    ("my_model.safetensors", None), ("Wan2.2-TI2V-5B-Q4_K.gguf", None), ("Wan2_1-T2V-14B-bnb-4bit.safetensors", None),
    ("Wan2.1-T2V-14B-e4m3fn.safetensors", None), ("wan2.1_t2v_14B_8bit.safetensors", None),
    ("Wan2.2-TI2V-5B-AWQ.safetensors", None), ("Wan21_AccVid_I2V_480P_14B_rank32.safetensors", None),
    ("Wan2.2-Lightning_T2V-A14B-4steps-rank64_HIGH.safetensors", None), ("wan2.1_phantom_t2v_14B.safetensors", None),
    ("Wan21_T2V_14B_lightx2v_cfg_step_distill_rank32.safetensors", None), ("self_forcing_14b.pt", None),
    ("Wan21_Uni3C_controlnet_I2V_14B.safetensors", None), ("mirage_wan22_ti2v_5b_branch.safetensors", None),
    ("self_forcing_vae.pt", None), ("Wan2_1-MultiTalk_T2V-14B.safetensors", None),
])
def test_a_file_is_known_by_its_name_alone_where_that_says_enough(name, title):
    found = published_model(name)
    assert (found and found[1]) == title


def test_what_is_packed_or_unknown_is_not_guessed():
    assert published_vae("vae.safetensors", 2) is published_vae("Wan2.1_VAE_upscale2x_real_v1.safetensors", 2) is None
    assert published_text_encoder("umt5_xxl_fp8_e4m3fn_scaled.safetensors") is None
    assert published_text_encoder("umt5_xxl_fp16.safetensors").bytes / 1e9 == pytest.approx(11.4, abs=0.1)


def test_a_film_is_planned_before_its_files_are_fetched():
    graph = {
        "1": {"class_type": "VideoMemoryLoadDiffusionModel",
              "inputs": {"model_name": "model_bf16.pt", "weights": "nf4_int8", "cache": "keep"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "wan2.2_vae.safetensors"}},
        "3": {"class_type": "VideoMemoryPersistentMemory", "inputs": {"preset": "longlive_2", "window_seconds": 4.0}},
        "5": {"class_type": "VideoMemoryLoadTextEncoder", "inputs": {
            "text_encoder_name": "umt5_xxl_fp16.safetensors", "second_name": "none", "weights": "nf4"}},
        "4": {"class_type": "VideoMemoryBudgetGate", "inputs": {
            "model": ["1", 0], "vae": ["2", 0], "memory": ["3", 0], "clip": ["5", 0], "width": 1280, "height": 704,
            "clip_seconds": 4.0, "budget_gb": 12.0}}}
    answer = answer_graph(graph, "4", lambda _folder, _name: None, 2, MACHINE)
    shown = answer_json(answer, MACHINE)
    assert shown["fits"] is True and answer.plan.model.kind == "ti2v"
    assert answer.plan.model.weight_bytes / 1e9 == pytest.approx(3.63, abs=0.01)  # tests/loading/test_families.py
    assert "model_bf16.pt is not here yet: planned with the sizes of Wan 2.2 TI2V 5B, as published." in shown["message"]
    assert shown["message"].count("is not here yet") == 3
    graph["1"]["inputs"]["model_name"] = "somebodys.safetensors"
    assert "needs the header of a model file, but got 'somebodys" in answer_graph(
        graph, "4", lambda _folder, _name: None, 2, MACHINE).message
