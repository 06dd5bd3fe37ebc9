"""Names and shapes of all tensors of a Wan model and of its text encoder, by their sizes.

They are those of ComfyUI's model classes (tests/budget/test_published.py compares them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TEXT_DIM, TIME_DIM, IMAGE_DIM, PATCH = 4096, 256, 1280, (1, 2, 2)
UMT5_VOCABULARY, UMT5_LAYERS, UMT5_HEADS, UMT5_FFN, BUCKETS = 256384, 24, 64, 10240, 32


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


def wan_shapes(size: WanSize) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor."""
    dim, ffn = size.dim, size.ffn
    yield "patch_embedding.weight", (dim, size.inputs, *PATCH)
    yield "patch_embedding.bias", (dim,)
    for name, out, width in (("text_embedding.0", dim, TEXT_DIM), ("text_embedding.2", dim, dim),
                             ("time_embedding.0", dim, TIME_DIM), ("time_embedding.2", dim, dim),
                             ("time_projection.1", 6 * dim, dim)):
        yield from linear_shapes(name, out, width)
    for i in range(size.layers):
        yield from wan_block_shapes(f"blocks.{i}.", dim, ffn, size.has_image)
    yield "head.modulation", (1, 2, dim)
    yield from linear_shapes("head.head", size.outputs * PATCH[1] * PATCH[2], dim)
    if size.has_image:
        for name, width in (("img_emb.proj.0", IMAGE_DIM), ("img_emb.proj.4", dim)):
            yield from ((f"{name}.{part}", (width,)) for part in ("weight", "bias"))
        yield from linear_shapes("img_emb.proj.1", IMAGE_DIM, IMAGE_DIM)
        yield from linear_shapes("img_emb.proj.3", dim, IMAGE_DIM)


def wan_block_shapes(prefix: str, dim: int, ffn: int,
                     has_image: bool = False) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of one block; names begin with prefix."""
    yield f"{prefix}modulation", (1, 6, dim)
    for part in ("self_attn", "cross_attn"):
        extra = ("k_img", "v_img") if has_image and part == "cross_attn" else ()
        for name in ("q", "k", "v", "o", *extra):
            yield from linear_shapes(f"{prefix}{part}.{name}", dim, dim)
        for name in ("norm_q", "norm_k", *(("norm_k_img",) if extra else ())):
            yield f"{prefix}{part}.{name}.weight", (dim,)
    yield from ((f"{prefix}norm3.{name}", (dim,)) for name in ("weight", "bias"))
    yield from linear_shapes(f"{prefix}ffn.0", ffn, dim)
    yield from linear_shapes(f"{prefix}ffn.2", dim, ffn)


def linear_shapes(name: str, out: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, width)
    yield f"{name}.bias", (out,)


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
