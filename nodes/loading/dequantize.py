"""Packed weights back to numbers: one way in, and behind it the fastest back end that works on the device.

Every back end takes products in float32 and rounds once, so all give the same bits. One is taken only after it has
unpacked the beginning of a real weight exactly as plain torch does: Triton without a compiler, or a bitsandbytes built
for another CUDA, fail there and not in the middle of a film.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch

from . import dequantize_torch

log = logging.getLogger(__name__)

CUDA_BACK_ENDS = {  # by kind of weight: modules with unpack(weight, dtype), best first; plain torch comes after them
    "4-bit": ("triton_nf4", "dequantize_bitsandbytes"),
    "int8": ("triton_int8",),
}
_chosen: dict[tuple[str, str], Callable[[Any, torch.dtype], torch.Tensor]] = {}


def unpack(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16, on the device its bytes lie on.

    weight: a FourBitWeight or Int8Weight.
    """
    key = weight.KIND, weight.packed.device.type
    if key not in _chosen:
        name, _chosen[key] = choose(weight, CUDA_BACK_ENDS[weight.KIND] if weight.packed.is_cuda else ())
        log.info("VideoMemory: %s weights on %s are unpacked by %s", *key, name)
    return _chosen[key](weight, dtype)


def choose(weight: Any, modules: tuple[str, ...]) -> tuple[str, Callable[[Any, torch.dtype], torch.Tensor]]:
    """The name and the function of the first module that unpacks the beginning of `weight` as plain torch does."""
    piece = weight.beginning()
    expected = dequantize_torch.unpack(piece, torch.bfloat16)
    for name in modules:
        try:
            function = importlib.import_module(f".{name}", __package__).unpack
            got = function(piece, torch.bfloat16)
        except Exception as error:  # a compiler or a driver can fail in any way
            log.info("VideoMemory: %s is not usable (%s: %s)", name, type(error).__name__, str(error)[:200])
            continue
        if torch.equal(got, expected):
            return name, function
        log.warning("VideoMemory: %s is not used: it gives other numbers than torch", name)
    return "torch", dequantize_torch.unpack
