"""What a model and a VAE cost, read from the headers of their files: nothing is loaded, no ComfyUI is needed.

The same facts as compat.model_facts and bridge.vae_facts read from loaded modules (tests/budget/test_headers.py
compares both on real files).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import torch

from ..common.errors import message
from ..common.types import ModelFacts
from ..loading.codecs import CODECS, WEIGHTS, is_part_of_stored
from ..loading.families import DIFFUSION_MODELS, WAN
from ..loading.files import TensorHeader
from ..loading.formats import Checkpoint, read_checkpoint, read_header
from ..loading.plan import plan_layers
from ..loading.text_formats import read_text_encoder
from .cost_model import VaeFacts
from .headers_other import core_vae_facts, other_model_facts

HEAD_DIM, WAN_PATCH = 128, (1, 2, 2)  # of every Wan
WAN22_CHANNELS = 48
BLOCK = re.compile(r"blocks\.(\d+)\.self_attn\.q\.weight")
VAE_PREFIXES = ("", "first_stage_model.", "vae.")
VAE_MARKER, WAN22_MARKER = "decoder.middle.0.residual.0.gamma", "decoder.upsamples.0.upsamples.0.residual.2.weight"
STRIDES = {"wan21": 8, "wan22": 16}
LEVELS_BYTES = 4 * 1000  # the table of noise levels that ComfyUI keeps with every flow model


def read_model_facts(path: str | Path, weights: str, compute_bytes: int, cast_bytes: int = 0) -> ModelFacts:
    """The facts of a diffusion model's file, loaded with `weights` (one of codecs.WEIGHTS).

    compute_bytes: per value, of the dtype it computes in. cast_bytes: per value, where a loader casts all weights (fp8:
    1); 0 = to the compute dtype, files in fp8 stay so when they are loaded as they are. ValueError for models that
    cannot be predicted.
    """
    if weights not in WEIGHTS:
        raise ValueError(message("The loader needs a kind of weights", weights, ", ".join(WEIGHTS),
                                 "Choose one of these."))
    return model_facts_of(read_checkpoint(path, DIFFUSION_MODELS), weights, compute_bytes, cast_bytes)


def model_facts_of(checkpoint: Checkpoint, weights: str, compute_bytes: int, cast_bytes: int = 0) -> ModelFacts:
    """The same of a file whose header was read."""
    tensors, total = checkpoint.tensors, weight_bytes(checkpoint, weights, compute_bytes, cast_bytes)
    if checkpoint.family is not WAN:
        return other_model_facts(checkpoint.family, tensors, total, compute_bytes)
    dim, inputs = tensors["patch_embedding.weight"].shape[:2]
    outputs = tensors["head.head.weight"].shape[0] // math.prod(WAN_PATCH)
    layers = sum(BLOCK.fullmatch(name) is not None for name in tensors)
    return ModelFacts("wan", layers, dim // HEAD_DIM, HEAD_DIM, tensors["blocks.0.ffn.0.weight"].shape[0], WAN_PATCH,
                      outputs, 16 if outputs == WAN22_CHANNELS else 8, total, compute_bytes,
                      _kind(tensors, inputs, outputs))


def weight_bytes(checkpoint: Checkpoint, weights: str, compute_bytes: int, cast_bytes: int = 0) -> int:
    """Bytes of the weights once they are loaded: packed ones with their scales, tensor by tensor."""
    plan, tensors, total = plan_layers(checkpoint, weights=weights), checkpoint.tensors, LEVELS_BYTES
    for name, header in tensors.items():
        if name in plan.quantize:
            total += CODECS[plan.quantize[name]].packed_bytes(*header.shape)
        elif name in plan.stored or is_part_of_stored(tensors, name):
            total += header.bytes
        elif name in plan.keep and header.dtype.is_floating_point:  # a tokenizer is no weight
            stays_fp8 = name in checkpoint.fp8 and weights == "original"
            total += torch.Size(header.shape).numel() * (cast_bytes or (1 if stays_fp8 else compute_bytes))
    return total


def text_encoder_bytes(path: str | Path, weights: str, compute_bytes: int) -> int:
    """Bytes of a text encoder's weights once they are loaded; ValueError for anything but a known one."""
    return weight_bytes(read_text_encoder(path).checkpoint, weights, compute_bytes)


def lora_bytes(path: str | Path, compute_bytes: int) -> int:
    """What a LoRA takes on the device beside packed weights."""
    return sum(torch.Size(header.shape).numel() * compute_bytes for header in read_header(path).tensors.values())


def read_vae_facts(path: str | Path, compute_bytes: int) -> VaeFacts:
    """The facts of a video VAE's file, or of the VAE in an all-in-one file; ValueError for one that is not known."""
    tensors = read_header(path).tensors
    prefix = next((prefix for prefix in VAE_PREFIXES if prefix + VAE_MARKER in tensors), None)
    if prefix is None:
        found = filter(None, (core_vae_facts(tensors, prefix, compute_bytes) for prefix in VAE_PREFIXES))
        return next(found, None) or _unknown_vae(path)
    kind = "wan22" if prefix + WAN22_MARKER in tensors else "wan21"
    own = [header for name, header in tensors.items() if name.startswith((f"{prefix}encoder.", f"{prefix}decoder.",
                                                                          f"{prefix}conv1.", f"{prefix}conv2."))]
    return VaeFacts(kind, tensors[f"{prefix}encoder.conv1.weight"].shape[0], STRIDES[kind],
                    _values(own) * compute_bytes, compute_bytes)


def _unknown_vae(path: str | Path) -> NoReturn:
    raise ValueError(message("VRAM Budget Gate cannot predict this VAE", f"the file {Path(path).name}",
                             "the VAEs of Wan, HunyuanVideo and Stable Video Diffusion",
                             "Load the VAE that belongs to the checkpoint."))


def _kind(tensors: Mapping[str, TensorHeader], inputs: int, outputs: int) -> str:
    if any(name.startswith("vace_blocks.") for name in tensors):
        return "vace"
    if outputs == WAN22_CHANNELS:
        return "ti2v"
    return "i2v" if inputs > outputs else "t2v"


def _values(headers: Iterable[TensorHeader]) -> int:
    return sum(torch.Size(header.shape).numel() for header in headers)
