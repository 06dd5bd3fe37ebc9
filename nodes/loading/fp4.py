"""FP4 weights of bitsandbytes files: read and kept as they are, never made, because NF4 is closer at the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import four_bit
from .dequantize import unpack
from .four_bit import FourBitWeight

STATE_SUFFIX = four_bit.state_suffix("fp4")


def dequantize(weight: FourBitWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16, on the device its bytes lie on."""
    return unpack(weight, dtype)


def is_stored(keys: Any, name: str) -> bool:
    """Whether the state dict (or set of keys) holds the weight `name` in FP4."""
    return name + STATE_SUFFIX in keys


def to_state_dict(weight: FourBitWeight, name: str) -> dict[str, torch.Tensor]:
    """bitsandbytes' key layout, for a model that was loaded in FP4 and is saved again."""
    return four_bit.write_weight(weight, name)


def from_state_dict(tensors: Mapping[str, torch.Tensor], name: str) -> FourBitWeight:
    """Read a weight from bitsandbytes' key layout; raises ValueError, naming it, where it is damaged."""
    return four_bit.read_weight(tensors, name, "fp4")


def read_shape(get: Callable[[str], torch.Tensor], name: str) -> tuple[int, int]:
    """(rows, columns) of a stored weight; `get` returns a tensor of the file by its key."""
    return four_bit.read_shape(get, name, "fp4")
