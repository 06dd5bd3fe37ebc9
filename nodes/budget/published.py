"""Files that somebody does not have yet: the tensors that they hold, by the sizes that their publishers name.

So that a workflow tells whether it fits before ten gigabytes are fetched. Names and shapes are those of ComfyUI's
model classes (tests/budget/test_published.py compares them). Sizes: github.com/Wan-Video/Wan2.1 and Wan2.2
(wan/configs), huggingface.co/google/umt5-xxl (config.json).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..loading.families import WAN
from ..loading.files import TensorHeader
from ..loading.formats import Checkpoint
from ..loading.text_formats import UMT5
from .cost_model import VaeFacts

TEXT_DIM, TIME_DIM, IMAGE_DIM, PATCH = 4096, 256, 1280, (1, 2, 2)
SIXTEEN_BITS = torch.bfloat16


@dataclass(frozen=True)
class WanSize:
    """One of Wan's models. title: for people. inputs, outputs: channels. has_image: a place for CLIP Vision."""

    title: str
    dim: int
    ffn: int
    layers: int
    inputs: int = 16
    outputs: int = 16
    has_image: bool = False


WAN_1_3B = WanSize("Wan 2.1 T2V 1.3B", 1536, 8960, 30)
WAN_5B = WanSize("Wan 2.2 TI2V 5B", 3072, 14336, 30, 48, 48)
T2V_14B = WanSize("Wan T2V 14B", 5120, 13824, 40)
I2V_14B_21 = WanSize("Wan 2.1 I2V 14B", 5120, 13824, 40, 36, has_image=True)
I2V_14B_22 = WanSize("Wan 2.2 I2V 14B", 5120, 13824, 40, 36)

# Found in a file's name, without regard to case; the first that fits. Files in 8 or 4 bits hold other tensors.
PACKED = re.compile(r"fp8|nf4|int8|int4|fp4|q\d|gguf|scaled|vace|lora|fun|camera|s2v|animate", re.IGNORECASE)
MODELS = (
    (r"^self_forcing_|^longlive_base\.|^causal_forcing\.|wan.?2.?1.*t2v.*1[._]3b", WAN_1_3B),
    (r"^model_bf16\.pt$|wan.?2.?2.*ti2v.*5b|longlive.?2.*5b", WAN_5B),
    (r"wan.?2.?1.*i2v.*14b", I2V_14B_21), (r"wan.?2.?2.*i2v.*14b", I2V_14B_22), (r"wan.?2.?[12].*t2v.*14b", T2V_14B))
# kind, base channels of the decoder, pixels per latent pixel, values of all weights
VAES = ((r"wan.?2.?2.?vae", "wan22", 160, 16, 704_688_668), (r"wan.?2.?1.?vae", "wan21", 96, 8, 126_892_531))
TEXT_ENCODERS = r"umt5.?xxl"
UMT5_VOCABULARY, UMT5_LAYERS, UMT5_HEADS, UMT5_FFN, BUCKETS = 256384, 24, 64, 10240, 32


def published_model(name: str) -> tuple[Checkpoint, str] | None:
    """(the tensors of a diffusion model's file of this name, the model's name); None where nobody knows."""
    size = next((size for pattern, size in MODELS if _is(pattern, name)), None)
    return None if size is None else (_checkpoint(name, WAN, wan_shapes(size)), size.title)


def published_vae(name: str, compute_bytes: int) -> VaeFacts | None:
    """The facts of a VAE's file of this name, or None."""
    return next((VaeFacts(kind, dim, stride, values * compute_bytes, compute_bytes)
                 for pattern, kind, dim, stride, values in VAES if _is(pattern, name)), None)


def published_text_encoder(name: str) -> Checkpoint | None:
    """The tensors of a text encoder's file of this name, or None."""
    return _checkpoint(name, UMT5, umt5_shapes()) if _is(TEXT_ENCODERS, name) else None


def wan_shapes(size: WanSize) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor."""
    dim, ffn = size.dim, size.ffn
    yield "patch_embedding.weight", (dim, size.inputs, *PATCH)
    yield "patch_embedding.bias", (dim,)
    for name, out, width in (("text_embedding.0", dim, TEXT_DIM), ("text_embedding.2", dim, dim),
                             ("time_embedding.0", dim, TIME_DIM), ("time_embedding.2", dim, dim),
                             ("time_projection.1", 6 * dim, dim)):
        yield from _linear(name, out, width)
    for i in range(size.layers):
        yield f"blocks.{i}.modulation", (1, 6, dim)
        for part in ("self_attn", "cross_attn"):
            extra = ("k_img", "v_img") if size.has_image and part == "cross_attn" else ()
            for name in ("q", "k", "v", "o", *extra):
                yield from _linear(f"blocks.{i}.{part}.{name}", dim, dim)
            for name in ("norm_q", "norm_k", *(("norm_k_img",) if extra else ())):
                yield f"blocks.{i}.{part}.{name}.weight", (dim,)
        yield from ((f"blocks.{i}.norm3.{name}", (dim,)) for name in ("weight", "bias"))
        yield from _linear(f"blocks.{i}.ffn.0", ffn, dim)
        yield from _linear(f"blocks.{i}.ffn.2", dim, ffn)
    yield "head.modulation", (1, 2, dim)
    yield from _linear("head.head", size.outputs * PATCH[1] * PATCH[2], dim)
    if size.has_image:
        for name, width in (("img_emb.proj.0", IMAGE_DIM), ("img_emb.proj.4", dim)):
            yield from ((f"{name}.{part}", (width,)) for part in ("weight", "bias"))
        yield from _linear("img_emb.proj.1", IMAGE_DIM, IMAGE_DIM)
        yield from _linear("img_emb.proj.3", dim, IMAGE_DIM)


def umt5_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of UMT5-XXL's encoder."""
    yield "shared.weight", (UMT5_VOCABULARY, TEXT_DIM)
    for i in range(UMT5_LAYERS):
        attention, forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        yield from ((f"{attention}.SelfAttention.{name}.weight", (TEXT_DIM, TEXT_DIM)) for name in "qkvo")
        yield f"{attention}.SelfAttention.relative_attention_bias.weight", (BUCKETS, UMT5_HEADS)
        yield from ((f"{forward}.DenseReluDense.{name}.weight", (UMT5_FFN, TEXT_DIM)) for name in ("wi_0", "wi_1"))
        yield f"{forward}.DenseReluDense.wo.weight", (TEXT_DIM, UMT5_FFN)
        yield from ((f"{part}.layer_norm.weight", (TEXT_DIM,)) for part in (attention, forward))
    yield "encoder.final_layer_norm.weight", (TEXT_DIM,)


def _is(pattern: str, name: str) -> bool:
    file = Path(name.replace("\\", "/")).name
    return bool(re.search(pattern, file, re.IGNORECASE)) and not PACKED.search(file)


def _linear(name: str, out: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, width)
    yield f"{name}.bias", (out,)


def _checkpoint(name: str, family: object, shapes: Iterator[tuple[str, tuple[int, ...]]]) -> Checkpoint:
    headers = {key: TensorHeader(key, SIXTEEN_BITS, shape, torch.Size(shape).numel() * SIXTEEN_BITS.itemsize)
               for key, shape in shapes}
    return Checkpoint(Path(name), family, headers, {})
