"""int8 weights back to numbers in one pass on the GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .int8 import Int8Weight

VALUES = 1024  # per program, of one row
WARPS = 4  # then every thread reads 8 bytes and writes 8 values


def unpack(weight: Int8Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16."""
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.packed.device)
    with torch.cuda.device_of(out):
        _unpack[(rows, triton.cdiv(columns, VALUES))](weight.packed, weight.scale, out, columns, values=VALUES,
                                                      num_warps=WARPS)
    return out


@triton.jit
def _unpack(packed, scale, out, columns, values: tl.constexpr):
    """One program unpacks up to `values` values of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * values + tl.arange(0, values)
    inside = column < columns
    numbers = tl.load(packed + row * columns + column, mask=inside, other=0).to(tl.float32)
    tl.store(out + row * columns + column, (numbers * tl.load(scale + row)).to(out.dtype.element_ty), mask=inside)
