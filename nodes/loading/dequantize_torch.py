"""Packed weights back to numbers with torch's own operations, on any device."""

from __future__ import annotations

from typing import Any

import torch

from .four_bit import NESTED_BLOCK_SIZE, FourBitWeight, block_slices
from .levels import level_pairs

_CPU_VALUES = 1 << 18  # float32 copies of that many values stay in a CPU's cache


def unpack(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in `dtype`; weight: a FourBitWeight or Int8Weight."""
    return _unpack_4bit(weight, dtype) if isinstance(weight, FourBitWeight) else _unpack_int8(weight, dtype)


def _unpack_4bit(weight: FourBitWeight, dtype: torch.dtype) -> torch.Tensor:
    packed, absmax, size = weight.packed.reshape(-1), plain_absmax(weight), weight.block_size
    out = torch.empty(weight.shape, dtype=dtype, device=packed.device)
    flat, pairs = out.view(-1), level_pairs(weight.quant_type, packed.device)
    for part in block_slices(flat.numel(), size, packed.device):
        codes = packed[part.start // 2:part.stop // 2].to(torch.int32)
        values = pairs.index_select(0, codes).view(torch.float32)
        width = min(size, values.numel())
        scales = absmax[part.start // size:-(-part.stop // size)]
        torch.mul(values.view(-1, width), scales[:, None], out=flat[part].view(-1, width))
    return out


def plain_absmax(weight: FourBitWeight) -> torch.Tensor:
    """One float32 per block, [blocks]."""
    if weight.nested_absmax is None:
        return weight.absmax
    values = weight.nested_map.index_select(0, weight.absmax.to(torch.int32))
    peaks = weight.nested_absmax.repeat_interleave(NESTED_BLOCK_SIZE)[:values.numel()]
    return values * peaks + weight.offset


def _unpack_int8(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.packed.device)
    step = max(1, _CPU_VALUES // columns) if weight.packed.device.type == "cpu" else rows
    for start in range(0, rows, step):
        part = slice(start, start + step)
        torch.mul(weight.packed[part], weight.scale[part, None], out=out[part])
    return out
