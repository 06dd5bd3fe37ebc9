"""Tiny random models of ComfyUI's own classes, for latent memory."""

from __future__ import annotations

import torch

WIDTH, HEIGHT = 64, 32
TEXT = 4096


def filled(module: torch.nn.Module, scale: float = 0.05) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator) * scale
        is_gain = name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight", "gamma"))
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


def wan(kind: str):
    from comfy import supported_models as known

    small = {"image_model": "wan2.1", "dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2, "freq_dim": 32,
             "text_dim": TEXT}
    if kind == "ti2v":
        return patched(known.WAN22_T2V, {**small, "model_type": "t2v", "in_dim": 48, "out_dim": 48})
    if kind == "i2v":
        return patched(known.WAN21_I2V, {**small, "model_type": "i2v", "in_dim": 36, "out_dim": 16})
    return patched(known.WAN21_Vace, {**small, "model_type": "vace", "in_dim": 16, "out_dim": 16, "vace_layers": 1,
                                      "vace_in_dim": 96})


def vae(kind: str):
    """A VAE of random weights: the toy world's shape for Wan 2.1, core's own class for Wan 2.2."""
    import comfy.model_patcher
    import comfy.sd
    from comfy.ldm.wan import vae as wan21
    from comfy.ldm.wan import vae2_2 as wan22

    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0,
             "temperal_downsample": [False, True, True]}
    made = comfy.sd.VAE(sd=filled(wan21.WanVAE(dim=8, z_dim=16, **shape), 0.1).state_dict(),
                        device=torch.device("cpu"), dtype=torch.float32)
    if kind == "ti2v":  # core loads the Wan 2.2 VAE in its full size alone
        made.first_stage_model = filled(wan22.WanVAE(dim=8, dec_dim=8, z_dim=48, **shape), 0.1)
        made.patcher = comfy.model_patcher.ModelPatcher(made.first_stage_model, *[torch.device("cpu")] * 2)
        made.latent_channels = 48
        made.upscale_ratio = (lambda a: max(0, a * 4 - 3), 16, 16)
        made.downscale_ratio = (lambda a: max(0, (a + 3) // 4), 16, 16)
    return made


def text(seed: int) -> list:
    return [[torch.randn(1, 8, TEXT, generator=torch.Generator().manual_seed(seed)), {}]]


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))
