"""Rotary positions of remembered keys.

Inside the attention a key is turned by its (time, row, column) position. Remembered keys are stored unturned, and each
gets its position when it is read: sink and window lie without gaps before the current chunk, so that positions stay
small however long the film is. (ComfyUI builds positions in the model's dtype: above 256 bfloat16 no longer tells
neighbours apart.)

A rotation table is ComfyUI's own `pe`: [1, S, 1, D/2, 2, 2] float32, one 2x2 rotation per token and channel pair.
"""

from __future__ import annotations

import torch


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """x [B, S, H, D] turned by the table [1, S, 1, D/2, 2, 2]; computed in float32, returned in x's dtype."""
    pairs = x.float().unflatten(-1, (-1, 2))  # [B, S, H, D/2, 2]
    turned = table[..., 0] * pairs[..., :1] + table[..., 1] * pairs[..., 1:]
    return turned.flatten(-2).to(x.dtype)


def unrotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The inverse of rotate: a rotation's inverse is its transpose."""
    return rotate(x, table.transpose(-1, -2))
