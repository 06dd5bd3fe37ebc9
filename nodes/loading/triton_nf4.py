"""4-bit weights back to numbers in one pass on the GPU: packed bytes and nested scales in, finished weights out.

The floor of the work is half a byte read and one weight written per value; nothing in between reaches the GPU's memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .four_bit import NESTED_BLOCK_SIZE, FourBitWeight
from .levels import levels_on

VALUES = 2048  # per program
WARPS = 8  # then every thread reads 4 bytes and writes 8 values: 16 bytes in a row where they have 16 bits


def unpack(weight: FourBitWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16."""
    out = torch.empty(weight.shape, dtype=dtype, device=weight.packed.device)
    nested = weight.nested_absmax is not None
    unused = weight.absmax
    with torch.cuda.device_of(out):
        _unpack[(triton.cdiv(out.numel(), VALUES),)](
            weight.packed, weight.absmax, weight.nested_absmax if nested else unused,
            weight.nested_map if nested else unused, weight.offset if nested else unused,
            levels_on(weight.quant_type, out.device), out, out.numel(), block_size=weight.block_size,
            nested_block_size=NESTED_BLOCK_SIZE, is_nested=nested, values=VALUES, num_warps=WARPS,
            enable_fp_fusion=False)  # absmax x peak + offset is rounded twice, as everywhere else
    return out


@triton.jit
def _unpack(packed, absmax, nested_absmax, nested_map, offset, levels, out, count, block_size: tl.constexpr,
            nested_block_size: tl.constexpr, is_nested: tl.constexpr, values: tl.constexpr):
    """One program unpacks `values` values, as rows that lie in one block each; count: of the whole weight."""
    width: tl.constexpr = min(block_size, values)
    rows: tl.constexpr = values // width
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)  # [rows]
    block = row * width // block_size
    inside = row * width < count
    if is_nested:
        code = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        peak = tl.load(nested_absmax + block // nested_block_size, mask=inside, other=0.0)
        scale = tl.load(nested_map + code) * peak + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=inside, other=0.0)
    byte = row[:, None] * (width // 2) + tl.arange(0, width // 2)[None, :]  # [rows, width / 2]
    codes = tl.load(packed + byte, mask=byte < count // 2, other=0).to(tl.int32)
    high = (tl.load(levels + (codes >> 4)) * scale[:, None]).to(out.dtype.element_ty)
    low = (tl.load(levels + (codes & 15)) * scale[:, None]).to(out.dtype.element_ty)
    value = row[:, None] * width + tl.arange(0, width)[None, :]  # [rows, width]
    tl.store(out + value, tl.interleave(high, low), mask=value < count)
