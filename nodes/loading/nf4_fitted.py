"""NF4 with fitted scales: the same format as nf4.py, closer to the weights by choosing each block's scale.

The largest magnitude of a block is not the scale with the smallest error: a little below it the many small values come
closer and the few large ones give in. So several scales are tried per block, the best one moves to the least-squares
scale of its levels, and the levels are chosen once more for the scale as double quantisation gives it back. Read and
unpacked by everything that reads NF4. Source of the idea: searched scales in llama.cpp's block formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from . import nf4, quant_state
from .dequantize_torch import plain_absmax
from .four_bit import FourBitWeight, block_slices
from .levels import dynamic_map, levels_on
from .nf4 import (  # noqa: F401  (what a codec offers)
    BLOCK_SIZE,
    SOURCE_DTYPES,
    STATE_SUFFIX,
    dequantize,
    from_state_dict,
    is_stored,
    packed_bytes,
    read_shape,
    to_state_dict,
)

SHARES = (0.82, 0.88, 0.94, 1.0, 1.06)  # of a block's largest magnitude: the scales that are tried


def quantize(weight: torch.Tensor) -> FourBitWeight:
    """Quantise [rows, columns] float32, float16 or bfloat16 on the device it lies on, about six times as long as nf4.

    Raises ValueError for other shapes and dtypes, and for NaN or infinity.
    """
    nf4.check_source(weight)
    flat = weight.reshape(-1)
    scales = torch.cat([_fit(blocks) for blocks in _blocks(flat)])
    offset = scales.mean()
    if not (torch.isfinite(scales).all() and torch.isfinite(offset)):
        quant_state.refuse_overflow("NF4")
    codes, nested_absmax = nf4.quantize_absmax(scales - offset)
    packed = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8, device=weight.device)
    fitted = FourBitWeight(packed, codes, nested_absmax, dynamic_map().to(weight.device), offset, BLOCK_SIZE,
                           weight.dtype)
    return replace(fitted, packed=_pack(flat, plain_absmax(fitted)).view_as(packed))


def _blocks(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    """float32 [blocks, 64], the last one filled up with zeros."""
    for part in block_slices(flat.numel(), BLOCK_SIZE, flat.device):
        values = flat[part].float()
        yield torch.nn.functional.pad(values, (0, -values.numel() % BLOCK_SIZE)).view(-1, BLOCK_SIZE)


def _fit(blocks: torch.Tensor) -> torch.Tensor:
    """The scale of every block, [blocks]."""
    peaks = blocks.abs().amax(1)
    scaled = blocks / peaks[:, None].clamp(min=nf4.SMALLEST_ABSMAX)
    best = torch.full_like(peaks, torch.inf)
    shares = torch.ones_like(peaks)
    for share in SHARES:
        levels = _nearest(scaled / share)
        errors = torch.add(scaled, levels, alpha=-share).square_().sum(1)
        fitted = (scaled * levels).sum(1) / levels.square().sum(1).clamp(min=0.01)  # a block of zeros has no levels
        is_better = errors < best
        best, shares = torch.where(is_better, errors, best), torch.where(is_better, fitted, shares)
    return peaks * shares


def _nearest(scaled: torch.Tensor) -> torch.Tensor:
    """The nearest levels, float32."""
    codes = nf4.nearest_levels(scaled.clamp_(-1.0, 1.0).view(-1).nan_to_num_(0.0))
    return levels_on("nf4", scaled.device).index_select(0, codes.to(torch.int32)).view_as(scaled)


def _pack(flat: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The bytes of all values at these scales, uint8 [n / 2]."""
    packed, start = [], 0
    for blocks in _blocks(flat):
        scaled = blocks / scales[start:start + len(blocks), None]
        codes = nf4.nearest_levels(scaled.nan_to_num_(0.0, 1.0, -1.0).clamp_(-1.0, 1.0).view(-1))
        packed.append((codes[0::2] << 4) | codes[1::2])
        start += len(blocks)
    return torch.cat(packed)[:flat.numel() // 2]
