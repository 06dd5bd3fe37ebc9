"""Random Wan diffusion models in the real key layout, for tests and benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import torch

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def write_wan(path: Path, *, dim: int = 1536, ffn: int = 8960, layers: int = 30, channels: int = 16,
              dtype: torch.dtype = torch.bfloat16) -> Path:
    """A text-to-video Wan 2.1 file with random weights, written one by one; the defaults are the 1.3B model's sizes."""
    shapes, header, end = wan_shapes(dim, ffn, layers, channels), {}, 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            weight = torch.empty(shape, dtype=dtype).normal_(0, 0.02, generator=generator)
            file.write(memoryview(weight.view(-1).view(torch.uint8).numpy()))
    return path


def wan_shapes(dim: int, ffn: int, layers: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of such a model."""
    shapes = {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,),
              **_linear("text_embedding.0", dim, 4096), **_linear("text_embedding.2", dim, dim),
              **_linear("time_embedding.0", dim, 256), **_linear("time_embedding.2", dim, dim),
              **_linear("time_projection.1", 6 * dim, dim), **_linear("head.head", 4 * channels, dim),
              "head.modulation": (1, 2, dim)}
    for block in (f"blocks.{index}" for index in range(layers)):
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for part in "qkvo":
                shapes |= _linear(f"{attention}.{part}", dim, dim)
            shapes |= {f"{attention}.norm_q.weight": (dim,), f"{attention}.norm_k.weight": (dim,)}
        shapes |= {**_linear(f"{block}.ffn.0", ffn, dim), **_linear(f"{block}.ffn.2", dim, ffn),
                   f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,), f"{block}.modulation": (1, 6, dim)}
    return shapes


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
