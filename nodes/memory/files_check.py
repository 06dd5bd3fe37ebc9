"""Whether what was read from a file is a memory: every tensor has the shape and the type that the others ask for.

A memory that passes can be sampled from; one that does not would fail in the middle of a clip, or worse, would not.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from ..common.types import PRECISIONS, Geometry, MemoryBlock, VideoMemory
from .kv_cache import BlockKV
from .kv_quant import GROUP, Packed


def check_tensors(memory: VideoMemory) -> None:
    """Raise ValueError, naming the part, where tensors do not fit the header or each other."""
    geometry = memory.geometry
    parts = {"tail": memory.tail, **{f"chunk {block.start}": block.latents
                                     for block in (*memory.blocks, *memory.archive)}}
    if memory.anchor is not None:
        parts["anchor"] = memory.anchor.latents
    for name, latents in parts.items():
        _check_latents(name, latents, geometry)
    for name, blocks in (("chunks", memory.blocks), ("archive", memory.archive)):
        _check_order(name, blocks, memory)
    tokens = {_check_cache(f"K/V of chunk {block.start}", kv, block.length)
              for block in (*memory.blocks, *memory.archive) for kv in (block.kv, block.negative_kv) if kv is not None}
    _require(len(tokens) <= 1, "K/V", f"{len(tokens)} different sizes", "one size for all chunks")
    _check_pictures(memory)


def _check_latents(name: str, latents: torch.Tensor | None, geometry: Geometry | None) -> None:
    if latents is None:
        return
    wanted = None if geometry is None else (geometry.channels, geometry.height, geometry.width)
    found = (latents.shape[0], *latents.shape[2:]) if latents.ndim == 4 else None
    fits = found is not None and found == wanted and latents.shape[1] > 0 and latents.dtype == torch.float32
    _require(fits, name, f"{latents.dtype} {tuple(latents.shape)}", f"float32 latents of {wanted}")


def _check_order(name: str, blocks: tuple[MemoryBlock, ...], memory: VideoMemory) -> None:
    ends = [(block.start, block.start + block.length) for block in blocks]
    ordered = all(earlier[1] <= later[0] for earlier, later in pairwise(ends))
    inside = all(memory.origin <= start and end <= memory.latents_done for start, end in ends)
    _require(ordered and inside, name, f"chunks at {[start for start, _ in ends]}",
             f"in order, between {memory.origin} and {memory.latents_done}")


def _check_cache(name: str, kv: BlockKV, latents: int) -> tuple[int, ...]:
    """(layers, tokens per latent, ...) of a cache, after all its layers were found to be alike."""
    shapes = {_check_packed(name, packed) for layer in kv.layers for packed in (layer.k, layer.v)}
    _require(len(shapes) == 1, name, f"shapes {sorted(shapes)}", "one shape for every layer")
    batch, tokens, heads, head_dim = shapes.pop()
    _require(tokens > 0 and tokens % latents == 0, name, f"{tokens} tokens", f"a multiple of its {latents} latents")
    return len(kv.layers), tokens // latents, batch, heads, head_dim


def _check_packed(name: str, packed: Packed) -> tuple[int, ...]:
    """The shape [B, S, H, D] that a packed tensor stands for, see the table in kv_quant."""
    _require(packed.precision in PRECISIONS and packed.data.ndim == 4, name,
             f"{packed.precision} {tuple(packed.data.shape)}", "[B, S, H, D]")
    batch, tokens, heads, width = packed.data.shape
    head_dim = 2 * width if packed.precision == "4bit" else width
    groups = {"model": 0, "int8": 1, "4bit": head_dim // GROUP}[packed.precision]
    scale = (batch, tokens, heads, groups) if groups else None
    wanted = {"scale": scale, "offset": scale if packed.precision == "4bit" else None}
    for field, shape in wanted.items():
        tensor = getattr(packed, field)
        found = None if tensor is None else tuple(tensor.shape)
        _require(found == shape, name, f"{field} {found}", str(shape))
    mean = None if packed.mean is None else tuple(packed.mean.shape)
    _require(mean in (None, (batch, 1, heads, head_dim)), name, f"mean {mean}", str((batch, 1, heads, head_dim)))
    return batch, tokens, heads, head_dim


def _check_pictures(memory: VideoMemory) -> None:
    pictures = {"overlap": (memory.overlap, 4)}
    if memory.anchor is not None:
        pictures["anchor's frame"] = (memory.anchor.frame, 3)
        for name in ("mean", "std"):
            value = getattr(memory.anchor, name)
            _require(value.ndim == 1 and value.shape[0] == memory.anchor.latents.shape[0], f"anchor's {name}",
                     str(tuple(value.shape)), "one value per channel")
    for name, (picture, ndim) in pictures.items():
        fits = picture is None or (picture.dtype == torch.uint8 and picture.ndim == ndim and picture.shape[-1] == 3)
        _require(fits, name, "" if picture is None else f"{picture.dtype} {tuple(picture.shape)}", "uint8 RGB pictures")


def _require(fits: bool, name: str, got: str, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{name}: {got} where {wanted} belongs")
