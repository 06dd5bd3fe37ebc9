"""Files of tiny random weights in the real key layout of every family, made of ComfyUI's own model classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WAN = {"image_model": "wan2.1", "dim": 128, "ffn_dim": 192, "num_heads": 1, "num_layers": 2, "freq_dim": 256,
       "text_dim": 4096, "out_dim": 16}
HUNYUAN = {"image_model": "hunyuan_video", "context_in_dim": 96, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
           "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 256, "qkv_bias": True,
           "byt5": False, "meanflow": False, "patch_size": [1, 2, 2], "vec_in_dim": 768, "in_channels": 16,
           "out_channels": 16, "use_cond_type_embedding": False, "vision_in_dim": None, "guidance_embed": True}
UNET = {"image_size": 32, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True, "legacy": False,
        "channel_mult": [1]}  # core knows both UNets by their 320 channels, and SVD by its eight blocks

# kind -> (name of core's configuration, its values)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan_t2v": ("WAN21_T2V", {**WAN, "model_type": "t2v", "in_dim": 16}),
    "wan_i2v": ("WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}),
    "wan22_i2v": ("WAN21_T2V", {**WAN, "model_type": "t2v", "in_dim": 36}),  # either half of the 14B pair
    "wan22_ti2v": ("WAN22_T2V", {**WAN, "model_type": "t2v", "in_dim": 48, "out_dim": 48}),
    "wan_vace": ("WAN21_Vace", {**WAN, "model_type": "vace", "in_dim": 16, "vace_layers": 1, "vace_in_dim": 96}),
    "wan_camera": ("WAN22_Camera", {**WAN, "model_type": "camera_2.2", "in_dim": 36, "in_dim_control_adapter": 24}),
    "wan_s2v": ("WAN22_S2V", {**WAN, "model_type": "s2v", "in_dim": 16}),
    "wan_animate": ("WAN22_Animate", {**WAN, "model_type": "animate", "in_dim": 36, "num_layers": 5}),
    "hunyuan": ("HunyuanVideo", HUNYUAN),
    "hunyuan_15": ("HunyuanVideo15", {
        **HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None, "byt5": True,
        "use_cond_type_embedding": True, "vision_in_dim": 1152, "guidance_embed": False, "depth_single_blocks": 0}),
    "ltx": ("LTXV", {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 6, "cross_attention_dim": 192}),
    "sd15": ("SD15", {**UNET, "in_channels": 4, "num_res_blocks": [1], "transformer_depth": [1],
                      "transformer_depth_output": [1, 1], "transformer_depth_middle": 1, "context_dim": 768,
                      "use_linear_in_transformer": False,
                      "adm_in_channels": None, "use_temporal_attention": False, "use_temporal_resblock": False}),
    "svd": ("SVD_img2vid", {
        **UNET, "in_channels": 8, "num_res_blocks": [8], "transformer_depth": [1] * 6 + [0] * 2,
        "transformer_depth_output": [0] * 9, "transformer_depth_middle": -1, "context_dim": 1024,
        "use_linear_in_transformer": True, "adm_in_channels": 768, "num_classes": "sequential", "num_heads": -1,
        "num_head_channels": 64, "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_factor": 0.0,
        "merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True,
        "use_temporal_attention": True, "disable_temporal_crossattention": False}),
}


def core_model(kind: str, device: str = "cpu", **changed: Any) -> torch.nn.Module:
    """Core's diffusion model of that kind in float32, its weights not yet set. changed: values of its configuration."""
    from comfy import ops, supported_models

    name, values = MODELS[kind]
    known = getattr(supported_models, name)
    config = known({**known.unet_config, **values, **changed})
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = ops.manual_cast
    return config.get_model({}, "", device=torch.device(device)).diffusion_model.eval()


def random_state(kind: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """The tensors of a file of that kind, by core's names."""
    generator, state = torch.Generator().manual_seed(7), {}
    for name, tensor in core_model(kind, "meta").state_dict().items():
        value = torch.randn(tensor.shape, generator=generator) * 0.04
        is_gain = tensor.ndim == 1 and ("norm" in name or "layers.0" in name) and not name.endswith("bias")
        state[name] = (value + 1 if is_gain else value).to(dtype)
    return state


def write(folder: Path, kind: str, prefix: str = "", dtype: torch.dtype = torch.bfloat16,
          metadata: dict[str, str] | None = None) -> Path:
    path = folder / f"{kind}.safetensors"
    save_file({prefix + name: tensor for name, tensor in random_state(kind, dtype).items()}, path, metadata)
    return path


@torch.no_grad()
def output(kind: str, model: Any) -> torch.Tensor:
    """One forward of a MODEL's network in float32 on fixed noise, with every input of the kind."""
    return model.model.diffusion_model(**inputs(kind))


def inputs(kind: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(11)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    name, values = MODELS[kind]
    time = torch.tensor([700.0])
    if name.startswith("WAN"):
        channels = values["in_dim"]
        given = {"x": noise(1, channels, 3, 4, 4), "timestep": time, "context": noise(1, 8, 4096)}
        more = {"wan_i2v": {"clip_fea": noise(1, 257, 1280)},
                "wan_vace": {"vace_context": noise(1, 1, 96, 3, 4, 4), "vace_strength": [1.0]},
                "wan_camera": {"camera_conditions": noise(1, 24, 3, 32, 32)},
                "wan_s2v": {"audio_embed": noise(1, 25, 1024, 12), "reference_latent": noise(1, 16, 1, 4, 4)},
                "wan_animate": {"clip_fea": noise(1, 257, 1280), "pose_latents": noise(1, 16, 2, 4, 4),
                                "face_pixel_values": noise(1, 3, 1, 512, 512)}}
        return given | more.get(kind, {})
    if name == "HunyuanVideo":
        return {"x": noise(1, 16, 2, 4, 4), "timestep": time, "context": noise(1, 8, 96), "y": noise(1, 768),
                "guidance": torch.tensor([6.0])}
    if name == "HunyuanVideo15":
        return {"x": noise(1, 65, 2, 4, 4), "timestep": time, "context": noise(1, 8, 96),
                "txt_byt5": noise(1, 5, 1472), "clip_fea": noise(1, 10, 1152)}
    if name == "LTXV":
        return {"x": noise(1, 128, 2, 4, 4), "timestep": time, "context": noise(1, 8, 4096), "attention_mask": None}
    if name == "SVD_img2vid":
        return {"x": noise(2, 8, 8, 8), "timesteps": torch.tensor([1.5, 1.5]), "context": noise(2, 1, 1024),
                "y": noise(2, 768), "num_video_frames": 2}
    return {"x": noise(2, 4, 8, 8), "timesteps": torch.tensor([500.0, 500.0]), "context": noise(2, 8, 768)}
