"""Random Wan diffusion models in the real key layout, for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file


def write_wan(path: Path, *, dim: int = 1536, ffn: int = 8960, layers: int = 30, channels: int = 16,
              dtype: torch.dtype = torch.bfloat16) -> Path:
    """A text-to-video Wan 2.1 file with random weights; the defaults are the 1.3B model's sizes."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).normal_(0, 0.02, generator=generator)

    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": weight(rows, columns), f"{name}.bias": weight(rows)}

    tensors = {"patch_embedding.weight": weight(dim, channels, 1, 2, 2), "patch_embedding.bias": weight(dim),
               **linear("text_embedding.0", dim, 4096), **linear("text_embedding.2", dim, dim),
               **linear("time_embedding.0", dim, 256), **linear("time_embedding.2", dim, dim),
               **linear("time_projection.1", 6 * dim, dim), **linear("head.head", 4 * channels, dim),
               "head.modulation": weight(1, 2, dim)}
    for block in (f"blocks.{index}" for index in range(layers)):
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for part in "qkvo":
                tensors |= linear(f"{attention}.{part}", dim, dim)
            tensors |= {f"{attention}.norm_q.weight": weight(dim), f"{attention}.norm_k.weight": weight(dim)}
        tensors |= {**linear(f"{block}.ffn.0", ffn, dim), **linear(f"{block}.ffn.2", dim, ffn),
                    f"{block}.norm3.weight": weight(dim), f"{block}.norm3.bias": weight(dim),
                    f"{block}.modulation": weight(1, 6, dim)}
    save_file(tensors, path)
    return path
