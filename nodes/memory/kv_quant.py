"""Storage formats for remembered keys and values: as they are, 8 bits, 4 bits.

A packed tensor stands for x [B, S, H, D] (batch, tokens, heads, head_dim). Keys are stored without their rotary
position, so a channel's mean over the tokens of a block is a property of the layer; taking it out first leaves small
residuals, which is where 4 bits are won or lost (KIVI, arXiv 2402.02750: key outliers sit in fixed channels).

    format  data                          scale              offset             bytes per value at D = 128
    model   [B,S,H,D] as it came          -                  -                  2 (bf16) or 4 (fp32)
    int8    [B,S,H,D] int8                [B,S,H,1] fp16     -                  1.0156
    4bit    [B,S,H,D/2] uint8, 2 a byte   [B,S,H,D/64] fp16  [B,S,H,D/64] fp16  0.5625

`mean` [B,1,H,D] fp16 is present where the channel mean was taken out (keys in int8 and 4bit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..common.errors import message
from ..common.types import PRECISIONS

GROUP = 64  # values that share a 4-bit scale and offset
TENSOR_FIELDS = ("data", "scale", "offset", "mean")


@dataclass(frozen=True)
class Packed:
    """One stored tensor; see the table in the module's docstring for the shapes of its fields."""

    precision: str
    data: torch.Tensor
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    mean: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in TENSOR_FIELDS if getattr(self, name) is not None}

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Packed:
        """The same packed tensor with `function` applied to every inner tensor (to move or pin it)."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


def pack(x: torch.Tensor, precision: str, centre: bool = False) -> Packed:
    """Store x [B, S, H, D] in the given precision; centre takes out every channel's mean over the tokens first.

    "model" keeps a contiguous copy in x's dtype. Raises ValueError for an unknown precision or, in 4bit, a head_dim
    that is no multiple of 64.
    """
    if precision == "model":
        return Packed("model", x.contiguous().clone())
    if precision not in PRECISIONS:
        raise ValueError(message("The memory's precision is unknown", precision, ", ".join(PRECISIONS),
                                 "Choose one of them on Persistent Memory."))
    mean = x.float().mean(1, keepdim=True).half() if centre else None
    residual = x.float() - mean.float() if centre else x.float()
    packed = _pack_int8(residual) if precision == "int8" else _pack_4bit(residual)
    return replace(packed, mean=mean)


def unpack(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The stored tensor again, [B, S, H, D] in dtype, on the device where it lies."""
    if packed.precision == "model":
        return packed.data.to(dtype)
    x = _unpack_int8(packed) if packed.precision == "int8" else _unpack_4bit(packed)
    if packed.mean is not None:
        x = x + packed.mean.float()
    return x.to(dtype)


def packed_bytes(batch: int, tokens: int, heads: int, head_dim: int, precision: str, dtype_bytes: int,
                 centre: bool = False) -> int:
    """Bytes that `pack` will allocate for [batch, tokens, heads, head_dim]; equal to Packed.nbytes."""
    values = batch * tokens * heads * head_dim
    if precision == "model":
        return values * dtype_bytes
    mean = 2 * batch * heads * head_dim if centre else 0
    if precision == "int8":
        return values + 2 * values // head_dim + mean
    return values // 2 + 4 * values // GROUP + mean


def _pack_int8(x: torch.Tensor) -> Packed:
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=2**-24).half()
    data = (x / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return Packed("int8", data, scale)


def _unpack_int8(packed: Packed) -> torch.Tensor:
    return packed.data.float() * packed.scale.float()


def _pack_4bit(x: torch.Tensor) -> Packed:
    if x.shape[-1] % GROUP:
        raise ValueError(message(f"4-bit memory needs a head size that is a multiple of {GROUP}", x.shape[-1],
                                 "64, 128, ...", "Choose int8 for this model on Persistent Memory."))
    groups = x.unflatten(-1, (-1, GROUP))  # [B, S, H, D/64, 64]
    low = groups.amin(-1)
    offset = low.half()
    scale = ((groups.amax(-1) - offset.float()) / 15).clamp(min=2**-24).half()
    codes = ((groups - offset.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round().clamp(0, 15)
    codes = codes.to(torch.uint8).flatten(-2)  # [B, S, H, D]
    return Packed("4bit", codes[..., 0::2] | (codes[..., 1::2] << 4), scale, offset)


def _unpack_4bit(packed: Packed) -> torch.Tensor:
    codes = torch.stack((packed.data & 15, packed.data >> 4), -1).flatten(-2)  # [B, S, H, D]
    groups = codes.unflatten(-1, (-1, GROUP)).float()
    return (groups * packed.scale.float().unsqueeze(-1) + packed.offset.float().unsqueeze(-1)).flatten(-2)
