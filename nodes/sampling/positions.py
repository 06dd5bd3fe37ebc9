"""Rotary positions of remembered keys.

Inside the attention a key is turned by its (time, row, column) position. Remembered keys are stored unturned, and each
gets its position when it is read: sink, pins and window lie before the current chunk without gaps (but for those that
scene cuts open), so that positions stay small however long the film is. (ComfyUI builds positions in the model's dtype:
above 256 bfloat16 no longer tells neighbours apart.)

A rotation table is ComfyUI's own `pe`: [1, S, 1, D/2, 2, 2] float32, one 2x2 rotation per token and channel pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..common.types import MemoryBlock


def local_positions(blocks: Sequence[MemoryBlock], cuts: int, gap: int) -> tuple[tuple[int, ...], int]:
    """(position of every remembered latent, position of the chunk behind them), counted from the first block.

    cuts: scene cuts before the chunk. Every cut between a block and the chunk adds `gap` latents to their distance
    (LongLive 2, multi_shot_rope_offset).
    """
    first = min((block.cuts for block in blocks), default=cuts)
    positions: list[int] = []
    for block in blocks:
        start = len(positions) + gap * (block.cuts - first)
        positions.extend(range(start, start + block.length))
    return tuple(positions), len(positions) + gap * (cuts - first)


def runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Positions as runs without gaps: (first position, how many)."""
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and position == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((position, 1))
    return found


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """x [B, S, H, D] turned by the table [1, S, 1, D/2, 2, 2]; computed in float32, returned in x's dtype."""
    pairs = x.float().unflatten(-1, (-1, 2))  # [B, S, H, D/2, 2]
    turned = table[..., 0] * pairs[..., :1] + table[..., 1] * pairs[..., 1:]
    return turned.flatten(-2).to(x.dtype)


def unrotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The inverse of rotate: a rotation's inverse is its transpose."""
    return rotate(x, table.transpose(-1, -2))
