"""NF4: 4-bit normal-float weights with doubly quantised scales, byte for byte as bitsandbytes stores them.

A weight is cut into blocks of 64 values in row-major order. Each block is divided by its largest magnitude (absmax)
and every value becomes the nearest of 16 fixed levels. The absmax values lose their mean (offset) and are quantised
once more, to 8 bits in nested blocks of 256. Cost: 4.127 bits per value.

Sources: QLoRA, arXiv 2305.14314 (levels, double quantisation); arXiv 1511.04561 (the 8-bit dynamic map); bitsandbytes
0.50's CPU back end (rounding, ties, key names).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch

from . import four_bit, quant_state
from .dequantize import unpack_4bit as dequantize  # noqa: F401  (part of what a codec offers)
from .four_bit import NESTED_BLOCK_SIZE, FourBitWeight
from .four_bit import write_weight as to_state_dict  # noqa: F401
from .levels import LEVELS, dynamic_map
from .quant_state import SOURCE_DTYPES

BLOCK_SIZE = 64
STATE_SUFFIX = four_bit.state_suffix("nf4")
_CELLS = 128  # look-up cells per unit of a scaled weight: each cell holds at most one boundary between two levels
_SMALLEST_ABSMAX = 1e-38


def packed_bytes(rows: int, columns: int) -> int:
    """Bytes of everything that a FourBitWeight of this shape holds."""
    blocks = -(-rows * columns // BLOCK_SIZE)
    return rows * columns // 2 + blocks + 4 * -(-blocks // NESTED_BLOCK_SIZE) + 4 * 256 + 4


def quantize(weight: torch.Tensor) -> FourBitWeight:
    """Quantise [rows, columns] float32, float16 or bfloat16 on the device it lies on.

    On the CPU the bytes equal bitsandbytes' quantize_4bit(nf4, blocksize=64, compress_statistics=True); a GPU may
    differ in the last bit of the mean. Raises ValueError for other shapes and dtypes, and for NaN or infinity.
    """
