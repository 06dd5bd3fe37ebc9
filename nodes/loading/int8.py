"""int8: weight-only, symmetric, one scale per output channel.

Every row is divided by its largest magnitude / 127 and rounded to whole numbers (halfway to even). Cost: 8 bits per
value and 32 per row. In a file the weight keeps its name, with `<name>.scale` and a JSON beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import quant_state
from .dequantize import unpack
from .quant_state import SOURCE_DTYPES, damaged, dtype_name

STATE_SUFFIX = ".quant_state.videomemory__int8"
VERSION = 1
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_CPU_VALUES = 1 << 18  # float32 copies of that many values stay in a CPU's cache


@dataclass(frozen=True)
class Int8Weight:
    """One weight matrix [rows, columns]. packed: int8 [rows, columns]. scale: float32 [rows].

    dtype: of the weight before it was quantised.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype = torch.float32

    KIND = "int8"
    TENSORS = ("packed", "scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the weight that it stands for."""
        return self.packed.shape[0], self.packed.shape[1]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by field name."""
        return {name: getattr(self, name) for name in self.TENSORS}

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Int8Weight:
        """The same weight with its tensors exchanged, e.g. for copies on another device."""
        return replace(self, **{name: tensors.get(name) for name in self.TENSORS})

    def to(self, device: torch.device | str) -> Int8Weight:
        return self.with_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def beginning(self) -> Int8Weight:
        """Its first row."""
        return self.with_tensors({name: tensor[:1] for name, tensor in self.tensors().items()})


def packed_bytes(rows: int, columns: int) -> int:
    """Bytes of everything that an Int8Weight of this shape holds."""
    return rows * columns + 4 * rows


def quantize(weight: torch.Tensor) -> Int8Weight:
    """Quantise [rows, columns] float32, float16 or bfloat16 on the device it lies on.

    Raises ValueError for other shapes and dtypes, and for NaN or infinity.
    """
    if weight.ndim != 2 or not weight.numel() or weight.dtype not in SOURCE_DTYPES:
        quant_state.refuse_unpackable("int8", weight, "any number of columns")
    packed = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for rows in _row_chunks(weight):
        values = weight[rows].float()
        scale[rows] = values.abs().amax(dim=1).div_(127).clamp_(min=_SMALLEST_SCALE)
        packed[rows] = (values / scale[rows, None]).round_().nan_to_num_(0.0)  # non-finite rows are refused below
    if not torch.isfinite(scale).all():
        quant_state.refuse_overflow("int8")
    return Int8Weight(packed, scale, weight.dtype)


def dequantize(weight: Int8Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16, on the device its bytes lie on."""
    return unpack(weight, dtype)


def is_stored(keys: Any, name: str) -> bool:
    """Whether the state dict (or set of keys) holds the weight `name` in int8."""
    return name + STATE_SUFFIX in keys


def to_state_dict(weight: Int8Weight, name: str) -> dict[str, torch.Tensor]:
    """The keys of a file, e.g. name = "blocks.0.ffn.0.weight": the int8 values, `.scale`, and the JSON."""
    state = {"version": VERSION, "dtype": dtype_name(weight.dtype), "shape": list(weight.shape)}
    return {name: weight.packed, f"{name}.scale": weight.scale, name + STATE_SUFFIX: quant_state.write_state(state)}


def from_state_dict(tensors: Mapping[str, torch.Tensor], name: str) -> Int8Weight:
    """The inverse of to_state_dict; raises ValueError, naming the weight, where anything does not fit together."""
    state = quant_state.read_state(tensors[name + STATE_SUFFIX], name)
    if state.get("version") != VERSION:
        raise damaged(name, f"version {state.get('version')!r} of int8", f"version {VERSION}")
    packed, scale, shape = tensors.get(name), tensors.get(f"{name}.scale"), state["shape"]
    _check_packed(packed, shape, name)
    if scale is None or scale.ndim != 1:
        raise damaged(name, "no row of scales", f"{name}.scale, float32 [{shape[0]}]")
    quant_state.check_scales(scale, shape[0], name, "scale")
    return Int8Weight(packed, scale, getattr(torch, state["dtype"]))


def read_shape(get: Callable[[str], torch.Tensor], name: str) -> tuple[int, int]:
    """(rows, columns) of a stored weight; `get` returns a tensor of the file by its key.

    Raises ValueError where the state is damaged, or the values are not those of such a matrix.
    """
    shape = quant_state.read_state(get(name + STATE_SUFFIX), name)["shape"]
    _check_packed(get(name), shape, name)
    return tuple(shape)


def _check_packed(packed: torch.Tensor | None, shape: list[int], name: str) -> None:
    if packed is None or packed.dtype != torch.int8 or list(packed.shape) != shape:
        got = "no values" if packed is None else f"{packed.dtype} of shape {list(packed.shape)}"
        raise damaged(name, got, f"int8 of shape {shape}")


def _row_chunks(values: torch.Tensor) -> Iterator[slice]:
    rows, columns = values.shape
    step = max(1, _CPU_VALUES // columns) if values.device.type == "cpu" else rows
    for start in range(0, rows, step):
        yield slice(start, start + step)
