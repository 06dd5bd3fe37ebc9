"""4-bit weights back to numbers by bitsandbytes' own kernel."""

from __future__ import annotations

import torch

from .four_bit import NESTED_BLOCK_SIZE, FourBitWeight


def unpack(weight: FourBitWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16."""
    import bitsandbytes.functional as functional  # optional

    nested = None
    if weight.nested_absmax is not None:
        nested = functional.QuantState(absmax=weight.nested_absmax, code=weight.nested_map,
                                       blocksize=NESTED_BLOCK_SIZE, dtype=torch.float32)
    state = functional.QuantState(absmax=weight.absmax, shape=torch.Size(weight.shape), blocksize=weight.block_size,
                                  quant_type=weight.quant_type, dtype=dtype, offset=weight.offset, state2=nested)
    return functional.dequantize_4bit(weight.packed.reshape(-1, 1), state)
