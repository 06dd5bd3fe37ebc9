"""The same of models that are not Wan, and of the VAEs that ComfyUI decodes in tiles of its own choice.

Of these models only sizes are read: their forwards were traced as a whole (data/<family>.json).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..common.errors import message
from ..common.types import ModelFacts
from ..loading.families import HUNYUAN, HUNYUAN_15, SVD, Family
from ..loading.files import TensorHeader
from .coefficients import coefficients
from .cost_model import CORE, VaeFacts

SMALLEST_TILE_PX, SMALLEST_TILE_LATENTS = 256, 8  # of VAEs that ComfyUI decodes, as video.bridge_decode falls back to
SVD_CHANNELS, HUNYUAN_I2V_INPUTS = 4, 33
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True)
class CoreVae:
    """How a VAE is known. marker: a name in its file. inputs: channels of that tensor's second dimension, 0 = any."""

    family: str
    marker: str
    inputs: int
    stride: int
    latents: int  # of the smallest tile


CORE_VAES = (CoreVae("svd", "decoder.mid.block_1.mix_factor", 0, 8, 1),
             CoreVae("hunyuan15", "decoder.conv_in.conv.weight", 32, 16, SMALLEST_TILE_LATENTS),
             CoreVae("hunyuan", "decoder.conv_in.conv.weight", 16, 8, SMALLEST_TILE_LATENTS))


def other_model_facts(family: Family, tensors: Mapping[str, TensorHeader], weight_bytes: int,
                      compute_bytes: int) -> ModelFacts:
    """The facts of a HunyuanVideo, a HunyuanVideo 1.5 or a Stable Video Diffusion; ValueError for any other model."""
    if family is SVD:
        return ModelFacts("svd", 0, 0, 0, 0, (1, 1, 1), SVD_CHANNELS, 8, weight_bytes, compute_bytes, "i2v")
    if family not in (HUNYUAN, HUNYUAN_15):
        raise ValueError(message("VRAM Budget Gate cannot say what this model needs", family.title,
                                 "Wan, HunyuanVideo and Stable Video Diffusion",
                                 "Leave the gate out: connect Persistent Memory to Clip Sampler."))
    inputs, *patch = tensors["img_in.proj.weight"].shape[1:]
    channels = tensors["final_layer.linear.weight"].shape[0] // math.prod(patch)
    name, stride = ("hunyuan15", 16) if family is HUNYUAN_15 else ("hunyuan", 8)
    kind = "i2v" if name == "hunyuan15" or inputs == HUNYUAN_I2V_INPUTS else "t2v"
    return ModelFacts(name, 0, 0, 0, 0, tuple(patch), channels, stride, weight_bytes, compute_bytes, kind)


def core_vae_facts(tensors: Mapping[str, TensorHeader], prefix: str, compute_bytes: int) -> VaeFacts | None:
    """The facts of a VAE whose tensors begin with prefix, if it is one of CORE_VAES."""
    known = next((vae for vae in CORE_VAES if _is(vae, tensors.get(prefix + vae.marker))), None)
    if known is None:
        return None
    values = sum(torch.Size(header.shape).numel() for name, header in tensors.items()
                 if name.startswith(tuple(prefix + part for part in VAE_PARTS)))
    side = max(8, SMALLEST_TILE_PX // known.stride)
    tile = coefficients(known.family)["core_decode_values"] * known.latents * side**2
    return VaeFacts(CORE, 0, known.stride, values * compute_bytes, compute_bytes, int(tile * compute_bytes))


def _is(vae: CoreVae, header: TensorHeader | None) -> bool:
    return header is not None and vae.inputs in (0, (*header.shape, 0)[1])
