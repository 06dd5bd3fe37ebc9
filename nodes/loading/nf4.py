"""NF4: 4-bit normal-float weights with doubly quantised scales, byte for byte as bitsandbytes stores them.

A weight is cut into blocks of 64 values in row-major order. Each block is divided by its largest magnitude (absmax)
and every value becomes the nearest of 16 fixed levels. The absmax values lose their mean (offset) and are quantised
once more, to 8 bits in nested blocks of 256. Cost: 4.127 bits per value.

Sources: QLoRA, arXiv 2305.14314 (levels, double quantisation); arXiv 1511.04561 (the 8-bit dynamic map); bitsandbytes
0.50's CPU back end (rounding, ties, key names).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from . import four_bit, quant_state
from .dequantize import unpack
from .four_bit import NESTED_BLOCK_SIZE, FourBitWeight, block_slices
from .levels import LEVELS, dynamic_map
from .quant_state import SOURCE_DTYPES

BLOCK_SIZE = 64
STATE_SUFFIX = four_bit.state_suffix("nf4")
_CELLS = 128  # look-up cells per unit of a scaled weight: each cell holds at most one boundary between two levels
_SMALLEST_ABSMAX = 1e-38


def packed_bytes(rows: int, columns: int) -> int:
    """Bytes of everything that a weight of this shape holds."""
    blocks = -(-rows * columns // BLOCK_SIZE)
    return rows * columns // 2 + blocks + 4 * -(-blocks // NESTED_BLOCK_SIZE) + 4 * 256 + 4


def quantize(weight: torch.Tensor) -> FourBitWeight:
    """Quantise [rows, columns] float32, float16 or bfloat16 on the device it lies on.

    On the CPU the bytes equal bitsandbytes' quantize_4bit(nf4, blocksize=64, compress_statistics=True); a GPU may
    differ in the last bit of the mean. Raises ValueError for other shapes and dtypes, and for NaN or infinity.
    """
    if weight.ndim != 2 or not weight.numel() or weight.shape[1] % 2 or weight.dtype not in SOURCE_DTYPES:
        quant_state.refuse_unpackable("NF4", weight, "an even number of columns")
    packed, absmax = _quantize_blocks(weight.reshape(-1))
    offset = absmax.mean()
    if not (torch.isfinite(absmax).all() and torch.isfinite(offset)):
        quant_state.refuse_overflow("NF4")
    codes, nested_absmax = _quantize_absmax(absmax - offset)
    return FourBitWeight(packed.view(weight.shape[0], -1), codes, nested_absmax, dynamic_map().to(weight.device),
                         offset, BLOCK_SIZE, weight.dtype)


def dequantize(weight: FourBitWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16, on the device its bytes lie on."""
    return unpack(weight, dtype)


def is_stored(keys: Any, name: str) -> bool:
    """Whether the state dict (or set of keys) holds the weight `name` in NF4."""
    return name + STATE_SUFFIX in keys


def to_state_dict(weight: FourBitWeight, name: str) -> dict[str, torch.Tensor]:
    """bitsandbytes' key layout, e.g. name = "blocks.0.ffn.0.weight"."""
    return four_bit.write_weight(weight, name)


def from_state_dict(tensors: Mapping[str, torch.Tensor], name: str) -> FourBitWeight:
    """Read a weight from bitsandbytes' key layout; raises ValueError, naming it, where it is damaged."""
    return four_bit.read_weight(tensors, name, "nf4")


def read_shape(get: Callable[[str], torch.Tensor], name: str) -> tuple[int, int]:
    """(rows, columns) of a stored weight; `get` returns a tensor of the file by its key."""
    return four_bit.read_shape(get, name, "nf4")


def _quantize_blocks(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    packed = torch.empty(flat.numel() // 2, dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-flat.numel() // BLOCK_SIZE), dtype=torch.float32, device=flat.device)
    for part in block_slices(flat.numel(), BLOCK_SIZE, flat.device):
        values = flat[part].float()
        if values.numel() % BLOCK_SIZE:  # the last, short block: bitsandbytes divides here and multiplies elsewhere
            peaks = values.abs().amax().clamp(min=_SMALLEST_ABSMAX)
            scaled = values / peaks
        else:
            peaks = values.view(-1, BLOCK_SIZE).abs().amax(dim=1)
            scaled = (values.view(-1, BLOCK_SIZE) * (1.0 / peaks.clamp(min=_SMALLEST_ABSMAX))[:, None]).view(-1)
        absmax[part.start // BLOCK_SIZE:-(-part.stop // BLOCK_SIZE)] = peaks
        codes = _nearest_levels(scaled.nan_to_num_(0.0))  # non-finite blocks are refused by their absmax
        packed[part.start // 2:part.stop // 2] = (codes[0::2] << 4) | codes[1::2]
    return packed, absmax


def _nearest_levels(scaled: torch.Tensor) -> torch.Tensor:
    """Codes 0..15 (uint8) of values in [-1, 1]; halfway goes to the lower level.

    A value's code is the number of boundaries below it. Boundaries in lower cells are counted by `below`; the one that
    may lie in the value's own cell is compared exactly, so the short cut never rounds.
    """
    boundaries, below = _cell_tables(scaled.device)
    cells = _cell_of(scaled)
    return below.index_select(0, cells).add_(scaled > boundaries.index_select(0, cells))


def _cell_of(scaled: torch.Tensor) -> torch.Tensor:
    return torch.add(scaled, 1.0).mul_(_CELLS).to(torch.int32)


@cache
def _cell_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    midpoints = (LEVELS["nf4"][:-1] + LEVELS["nf4"][1:]) / 2
    cells = _cell_of(midpoints).long()
    boundaries = torch.full((2 * _CELLS + 1,), float("inf"))
    boundaries[cells] = midpoints
    below = torch.bucketize(torch.arange(2 * _CELLS + 1), cells).to(torch.uint8)
    return boundaries.to(device), below.to(device)


def _quantize_absmax(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit codes and float32 peaks of nested blocks; rounds through 65,536 steps as bitsandbytes does."""
    padding = -values.numel() % NESTED_BLOCK_SIZE
    blocks = torch.nn.functional.pad(values, (0, padding)).view(-1, NESTED_BLOCK_SIZE)
    peaks = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / peaks)[:, None]).nan_to_num_(-1.0).clamp_(-1.0, 1.0)  # NaN: a block of zeros, code 0
    steps = ((scaled + 1.0) * 0.5 * 65535.0 + 0.5).to(torch.int32).view(-1)
    return _dynamic_codes(values.device).index_select(0, steps)[:values.numel()], peaks


@cache
def _dynamic_codes(device: torch.device) -> torch.Tensor:
    steps = torch.arange(65536, dtype=torch.float32) / 65535 * 2 - 1
    midpoints = (dynamic_map()[:-1] + dynamic_map()[1:]) / 2
    return torch.bucketize(steps, midpoints).to(torch.uint8).to(device)
