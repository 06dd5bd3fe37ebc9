"""The demo checkpoint's VAE and film as ComfyUI hands them to nodes."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def comfy_vae(toyworld):
    """The toy VAE as a ComfyUI VAE object, on the CPU in float32."""
    pytest.importorskip("comfy.ops")
    import comfy.sd
    from safetensors.torch import load_file

    return comfy.sd.VAE(sd=load_file(toyworld / "toyworld_vae_fp16.safetensors"))
