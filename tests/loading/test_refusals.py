"""Files that are no diffusion model, or not whole: refused by what they are, whatever weights are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from .tiny_models import random_state, write

pytestmark = pytest.mark.comfy
WEIGHTS = ("nf4", "int8", "original")


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


def names_of(module: torch.nn.Module, prefix: str = "") -> list[str]:
    return [prefix + name for name in module.state_dict()]


def text_encoder(which: str) -> list[str]:
    from comfy import clip_model, ops
    from comfy.text_encoders import llama, t5

    meta = {"dtype": torch.float32, "device": "meta", "operations": ops.manual_cast}
    if which == "clip":
        return names_of(clip_model.CLIPTextModel({
            "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8,
            "hidden_act": "quick_gelu", "eos_token_id": 1, "max_position_embeddings": 7, "vocab_size": 9}, **meta))
    if which == "llama":
        return names_of(llama.Llama2({"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}, **meta))
    return names_of(t5.T5({"d_model": 8, "num_layers": 1, "d_ff": 8, "d_kv": 4, "num_heads": 2, "is_gated_act": True,
                           "dense_act_fn": "gelu_pytorch_tanh", "model_type": "t5", "vocab_size": 9}, **meta))


def vae(which: str) -> list[str]:
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.wan.vae import WanVAE

    if which == "wan":
        return names_of(WanVAE(dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, attn_scales=[],
                               temperal_downsample=[True], dropout=0.0))
    if which == "ltx":
        return names_of(VideoVAE(version=0))
    return names_of(AutoencoderKL(embed_dim=4, ddconfig={
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
        "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}))


def image_encoder() -> list[str]:
    from comfy import clip_model, ops

    return names_of(clip_model.CLIPVisionModelProjection({
        "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "image_size": 28,
        "hidden_act": "quick_gelu", "num_channels": 3, "patch_size": 14, "projection_dim": 8,
        "model_type": "clip_vision_model"}, torch.float32, "meta",
        ops.manual_cast))


def controlnet() -> list[str]:
    from comfy.cldm.cldm import ControlNet

    return names_of(ControlNet(image_size=8, in_channels=4, model_channels=32, hint_channels=3, num_res_blocks=[1],
                               transformer_depth=[0], channel_mult=[1], num_heads=1, transformer_depth_middle=-1,
                               use_spatial_transformer=True, context_dim=8, device="meta"), "control_model.")


# who -> (its tensors' names, what the refusal calls it, where it says to put it)
OTHERS: dict[str, tuple[Callable[[], list[str]], str, str]] = {
    "CLIP-L": (lambda: text_encoder("clip"), "a text encoder", r"Load Text Encoder \(NF4\)"),
    "CLIP-L in an encoder file": (lambda: [f"text_model.{name}" for name in (
        "encoder.layers.0.mlp.fc1.weight", "embeddings.token_embedding.weight")], "a text encoder", "text_encoders"),
    "T5": (lambda: text_encoder("t5"), "a text encoder", "models/text_encoders"),
    "Llama": (lambda: text_encoder("llama"), "a text encoder", "models/text_encoders"),
    "UMT5 as Wan published it": (lambda: ["token_embedding.weight", "blocks.0.norm1.weight",
                                          "blocks.0.pos_embedding.embedding.weight"], "a text encoder", "text_encod"),
    "Wan VAE": (lambda: vae("wan"), "a VAE", "models/vae"),
    "LTX VAE": (lambda: vae("ltx"), "a VAE", "models/vae"),
    "SD VAE": (lambda: vae("sd"), "a VAE", "models/vae"),
    "image encoder": (image_encoder, "an image encoder", "models/clip_vision"),
    "ControlNet": (controlnet, "a ControlNet", "models/controlnet"),
    "motion module": (lambda: ["down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"],
                      "an AnimateDiff motion module", "AnimateDiff"),
    "LoRA of ComfyUI": (lambda: ["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "a LoRA", "models/loras"),
    "LoRA of Kohya": (lambda: ["lora_unet_blocks_0_self_attn_q.lora_down.weight"], "a LoRA", "models/loras"),
    "LoRA of LongLive": (lambda: ["base_model.model.blocks.0.self_attn.q.lora_B.weight"], "a LoRA", "models/loras"),
    "LoKr": (lambda: ["blocks.0.self_attn.q.lokr_w1"], "a LoRA", "models/loras"),
}


@pytest.mark.parametrize("who", OTHERS)
def test_other_files_are_refused_by_name_of_what_they_are(bridge: ModuleType, tmp_path: Path, who: str) -> None:
    names, title, where = OTHERS[who]
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names()}, path)
    for weights in WEIGHTS:
        with pytest.raises(ValueError, match=rf"'file.safetensors' must be a diffusion model, but got a file that is "
                                             rf"{title}; allowed: Wan diffusion model, .*{where}"):
            bridge.load_diffusion_model(str(path), weights)


def test_unknown_files_are_refused_with_what_was_looked_for(bridge: ModuleType, tmp_path: Path) -> None:
    save_file({"double_blocks.0.img_mod.lin.weight": torch.zeros(2, 2)}, tmp_path / "flux.safetensors")
    with pytest.raises(ValueError, match=r"'flux.safetensors' must be a checkpoint that this node knows, but got a "
                                         r"file with 1 tensors.*HunyuanVideo diffusion model \(txt_in.*set weights to"):
        bridge.load_diffusion_model(str(tmp_path / "flux.safetensors"), "nf4")


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    if how == "empty":
        data = b""
    elif how == "only the length of a header":
        data = data[:8]
    elif how == "cut in the middle":
        data = data[:len(data) // 2]
    elif how == "one byte short":
        data = data[:-1]
    elif how == "header longer than the file":
        data = (1 << 40).to_bytes(8, "little") + data[8:]
    else:
        entry = header["head.head.weight"]
        if how == "shape of other bytes":
            entry["shape"][0] += 1
        else:  # another dtype of other bytes
            entry["dtype"] = "F32"
        changed = json.dumps(header).encode()
        data = len(changed).to_bytes(8, "little") + changed + data[8 + size:]
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "only the length of a header", "cut in the middle", "one byte short",
                                 "header longer than the file", "shape of other bytes", "dtype of other bytes"])
def test_damaged_files_are_refused(bridge: ModuleType, tmp_path: Path, how: str) -> None:
    path = write(tmp_path, "wan_t2v")
    damaged(path, how)
    for weights in WEIGHTS:
        with pytest.raises(ValueError, match=r"'wan_t2v.safetensors' must be a whole safetensors file.*Download it"):
            bridge.load_diffusion_model(str(path), weights, cache=True)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", ["wan_t2v", "hunyuan", "ltx", "sd15"])
def test_files_without_a_tensor_are_refused_before_reading(bridge: ModuleType, tmp_path: Path, kind: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(kind)
    read: list[str] = []
    monkeypatch.setattr(bridge, "read_weights", lambda *_: read.append("read"))
    for part in ("norm", ".bias", "mlp", "ffn", "ff.net"):
        name = next((name for name in reversed(state) if part in name), None)
        if name is None:
            continue
        save_file({key: tensor for key, tensor in state.items() if key != name}, tmp_path / "cut.safetensors")
        with pytest.raises(ValueError, match=rf"cut.safetensors' must hold a whole .* got a file without {name};"):
            bridge.load_diffusion_model(str(tmp_path / "cut.safetensors"), "nf4", min_bytes=0)
    assert not read


def test_shapes_that_do_not_agree_are_refused_before_reading(bridge: ModuleType, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state("wan_t2v") | {"blocks.1.cross_attn.k.weight": torch.zeros(128, 96)}
    save_file(state, tmp_path / "odd.safetensors")
    monkeypatch.setattr(bridge, "read_weights", None)
    with pytest.raises(ValueError, match=r"odd.safetensors' must hold a Wan diffusion model whose shapes agree, but "
                                         r"got blocks.1.cross_attn.k.weight of shape \[128, 96\]; allowed: \[128, 1"):
        bridge.load_diffusion_model(str(tmp_path / "odd.safetensors"), "int8", min_bytes=0)


def test_packed_weights_outside_of_linear_layers_are_refused(bridge: ModuleType, tmp_path: Path) -> None:
    from pack.nodes.loading import int8

    name, path = "trainable_cond_mask.weight", write(tmp_path, "wan_s2v")
    state = load_file(path)
    save_file(state | int8.to_state_dict(int8.quantize(state[name]), name), path)
    with pytest.raises(ValueError, match=rf"must have packed weights in linear layers only, but got the packed weight "
                                         rf"{name}"):
        bridge.load_diffusion_model(str(path), "int8")
