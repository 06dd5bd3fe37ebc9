"""Tiny random models of ComfyUI's own classes, as its detection configures them, for latent memory."""

from __future__ import annotations

import functools
import json

import torch

WIDTH, HEIGHT = 64, 32
TEXT = 4096

# preset -> (kind of model, channels of its latents, pixels per latent pixel)
FILMS = {"wan22_ti2v_5b": ("ti2v", 48, 16), "wan21_i2v_14b": ("i2v", 16, 8), "wan22_i2v_14b": ("i2v22", 16, 8),
         "wan21_vace": ("vace", 16, 8), "wan22_svi_pro": ("i2v22", 16, 8), "hunyuan_i2v": ("hunyuan_v1", 16, 8),
         "hunyuan_i2v_v2": ("hunyuan_v2", 16, 8), "hunyuan15_i2v": ("hunyuan15", 32, 16), "svd": ("svd", 4, 8)}
PAIRS = ("wan22_i2v_14b", "wan22_svi_pro")

WAN = {"image_model": "wan2.1", "dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2, "freq_dim": 32,
       "text_dim": TEXT}
WANS = {  # Wan 2.2 I2V A14B has no image embedding, so core calls it t2v with 36 channels
    "ti2v": ("WAN22_T2V", {"model_type": "t2v", "in_dim": 48, "out_dim": 48}),
    "i2v": ("WAN21_I2V", {"model_type": "i2v", "in_dim": 36, "out_dim": 16}),
    "flf2v": ("WAN21_I2V", {"model_type": "i2v", "in_dim": 36, "out_dim": 16, "flf_pos_embed_token_number": 514}),
    "i2v22": ("WAN21_T2V", {"model_type": "t2v", "in_dim": 36, "out_dim": 16}),
    "control": ("WAN21_FunControl2V", {"model_type": "i2v", "in_dim": 48, "out_dim": 16}),
    "camera": ("WAN22_Camera", {"model_type": "camera_2.2", "in_dim": 36, "out_dim": 16, "in_dim_control_adapter": 24}),
    "vace": ("WAN21_Vace", {"model_type": "vace", "in_dim": 16, "out_dim": 16, "vace_layers": 1, "vace_in_dim": 96}),
    "t2v": ("WAN21_T2V", {"model_type": "t2v", "in_dim": 16, "out_dim": 16}),
}
HUNYUAN = {"image_model": "hunyuan_video", "context_in_dim": TEXT, "hidden_size": 128, "mlp_ratio": 1.0,
           "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 256,
           "qkv_bias": True, "byt5": False, "meanflow": False, "patch_size": [1, 2, 2], "vec_in_dim": 768,
           "out_channels": 16, "use_cond_type_embedding": False, "vision_in_dim": None, "guidance_embed": False}
HUNYUANS = {
    "hunyuan_v1": ("HunyuanVideoI2V", {"in_channels": 33}),
    "hunyuan_v2": ("HunyuanVideo", {"in_channels": 16, "guidance_embed": True}),
    "hunyuan15": ("HunyuanVideo15", {"in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
                                     "use_cond_type_embedding": True, "vision_in_dim": 1152}),
}
SVD = {"image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
       "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
       "transformer_depth_middle": 1, "use_spatial_transformer": True, "use_linear_in_transformer": True,
       "context_dim": 1024, "adm_in_channels": 768, "num_classes": "sequential", "legacy": False, "num_heads": -1,
       "num_head_channels": 64, "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_factor": 0.0,
       "merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True,
       "use_temporal_attention": True, "disable_temporal_crossattention": False}


def filled(module: torch.nn.Module, scale: float = 0.05, seed: int = 1) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator) * scale
        is_gain = name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight", "gamma", "norm.scale"))
        parameter.data.copy_(value + 1 if is_gain else value)
    return module.eval()


def patched(config_class, unet: dict):
    """A MODEL of a supported_models config on the CPU in float32."""
    import comfy.model_patcher

    config = config_class({**config_class.unet_config, **unet})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    filled(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@functools.cache
def model(kind: str):
    """The MODEL of a kind in FILMS, or "flf2v", or one that is refused ("control", "camera", "t2v").

    Shared by all tests: clone it before you patch it.
    """
    from comfy import supported_models as known

    if kind in WANS:
        name, unet = WANS[kind]
        return patched(getattr(known, name), {**WAN, **unet})
    if kind in HUNYUANS:
        name, unet = HUNYUANS[kind]
        return patched(getattr(known, name), {**HUNYUAN, **unet})
    return patched(known.SVD_img2vid, SVD)


def save_wan(kind: str, path, seed: int = 1) -> None:
    """A checkpoint file of such a Wan in its original layout, which core and our loader recognise."""
    from comfy import supported_models as known
    from safetensors.torch import save_file

    name, unet = WANS[kind]
    made = patched(getattr(known, name), {**WAN, **unet, "freq_dim": 256})
    filled(made.model.diffusion_model, seed=seed)
    save_file({name: value.contiguous() for name, value in made.model.diffusion_model.state_dict().items()}, str(path))


@functools.cache
def vae(kind: str):
    """A VAE of random weights: core's own class for Wan 2.1 and, for "ti2v", for Wan 2.2."""
    from comfy.ldm.wan import vae2_2 as wan22

    made = _wan21_vae()
    if kind == "ti2v":  # core loads the Wan 2.2 VAE in its full size alone
        _exchange(made, filled(wan22.WanVAE(dim=8, dec_dim=8, z_dim=48, **_VAE_SHAPE), 0.1), 48, 16)
    return made


_VAE_SHAPE = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0,
              "temperal_downsample": [False, True, True]}


def _wan21_vae():
    import comfy.sd
    from comfy.ldm.wan import vae as wan21

    return comfy.sd.VAE(sd=filled(wan21.WanVAE(dim=8, z_dim=16, **_VAE_SHAPE), 0.1).state_dict(),
                        device=torch.device("cpu"), dtype=torch.float32)


def _exchange(made, module: torch.nn.Module, channels: int, stride: int, dims: int = 3) -> None:
    """Another network in a VAE of core's."""
    import comfy.model_patcher

    made.first_stage_model = module
    made.patcher = comfy.model_patcher.ModelPatcher(module, torch.device("cpu"), torch.device("cpu"))
    made.latent_channels, made.latent_dim = channels, dims
    made.upscale_ratio = (lambda a: max(0, a * 4 - 3), stride, stride) if dims == 3 else stride
    made.downscale_ratio = (lambda a: max(0, (a + 3) // 4), stride, stride) if dims == 3 else stride
    made.memory_used_encode = made.memory_used_decode = lambda shape, dtype: 1


class Blocks(torch.nn.Module):
    """A lossless VAE for frames of one colour per latent pixel: a latent holds the colours of its four frames.

    Causal in time as all video VAEs: latent 0 holds one frame (four times), every later one its own four; with
    dims 2 one picture. encode: pixels [1, 3, n, H, W] or [n, 3, H, W] in -1..1 -> latents; decode back.
    """

    def __init__(self, channels: int, stride: int, dims: int) -> None:
        super().__init__()
        self.channels, self.stride, self.dims = channels, stride, dims
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.dims == 2:
            return self._filled_up(torch.nn.functional.avg_pool2d(pixels, self.stride))
        frames = torch.nn.functional.avg_pool3d(pixels, (1, self.stride, self.stride))
        frames = torch.cat((frames[:, :, :1].expand(-1, -1, 3, -1, -1), frames), 2)
        frames = frames[:, :, : frames.shape[2] // 4 * 4].unflatten(2, (-1, 4))  # [1, 3, N, 4, h, w]
        return self._filled_up(frames.movedim(3, 1).flatten(1, 2))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        if self.dims == 2:
            return torch.nn.functional.interpolate(latents[:, :3], scale_factor=self.stride)
        frames = latents[:, :12].unflatten(1, (4, 3)).movedim(1, 3).flatten(2, 3)[:, :, 3:]
        return torch.nn.functional.interpolate(frames, scale_factor=(1, self.stride, self.stride))

    def _filled_up(self, latents: torch.Tensor) -> torch.Tensor:
        missing = self.channels - latents.shape[1]
        return torch.cat((latents, latents.new_zeros(len(latents), missing, *latents.shape[2:])), 1)


def blocks_vae(preset: str):
    """A core VAE around Blocks, in the layout of the preset's own."""
    kind, channels, stride = FILMS[preset]
    made, dims = _wan21_vae(), 2 if kind == "svd" else 3
    _exchange(made, Blocks(channels, stride, dims), channels, stride, dims)
    return made


@functools.cache
def clip_vision(width: int):
    """A CLIP Vision model of core's class: 1280 wide for Wan, 1024 with a projection for SVD, 1152 (SigLIP)."""
    import os
    import tempfile

    import comfy.clip_vision

    config = {"hidden_act": "quick_gelu", "hidden_size": width, "image_size": 28, "intermediate_size": 32,
              "layer_norm_eps": 1e-05, "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 2,
              "patch_size": 14, "projection_dim": 1024,
              "model_type": "siglip_vision_model" if width == 1152 else "clip_vision_model"}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        made = comfy.clip_vision.ClipVisionModel(path)
    filled(made.model)
    return made


def text(seed: int, **extra) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 8, TEXT, generator=generator),
             {"pooled_output": torch.randn(1, 768, generator=generator), **extra}]]


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT, channels: int = 3, frames: int = 1):
    return torch.rand(frames, height, width, channels, generator=torch.Generator().manual_seed(seed))
