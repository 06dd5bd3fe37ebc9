"""The demo checkpoint's VAE and film as ComfyUI hands them to nodes."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def comfy_vae(toyworld):
    """The toy VAE as a ComfyUI VAE object, on the CPU in float32."""
    pytest.importorskip("comfy.ops")
    import comfy.sd
    from safetensors.torch import load_file

    return comfy.sd.VAE(sd=load_file(toyworld / "toyworld_vae_fp16.safetensors"))


@pytest.fixture(scope="session")
def random_vae():
    """Makes a small Wan VAE module with random weights: random_vae("2.1") has 4 latent channels, "2.2" has 6."""
    return _random_vae


@pytest.fixture(scope="session")
def toy_vae(toyworld) -> torch.nn.Module:
    pytest.importorskip("comfy.ops")
    from comfy.ldm.wan.vae import WanVAE
    from safetensors.torch import load_file

    weights = load_file(toyworld / "toyworld_vae_fp16.safetensors")
    model = WanVAE(dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    model.load_state_dict(weights)
    return model.float().eval()


@pytest.fixture(scope="session")
def film(toyworld) -> torch.Tensor:
    pytest.importorskip("comfy.ops")
    from comfy.latent_formats import Wan21
    from safetensors.torch import load_file

    latents = load_file(toyworld / "reference_rollout.safetensors")["latents_euler8"][None]
    return Wan21().process_out(latents)  # [1, 16, 18, 10, 16]


def _random_vae(version: str) -> torch.nn.Module:
    pytest.importorskip("comfy.ops")
    from comfy.ldm.wan import vae, vae2_2

    torch.manual_seed(0)
    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    if version == "2.1":
        model = vae.WanVAE(dim=8, z_dim=4, **shape)
    else:
        model = vae2_2.WanVAE(dim=8, dec_dim=8, z_dim=6, **shape)
    for parameter in model.parameters():  # core's layers leave their memory as it was
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()
