"""A weight in one of bitsandbytes' 4-bit formats, and its key layout in a file.

The values lie in blocks in row-major order, each with a scale (absmax), every value as the code of one of 16 levels.
Where the absmax values are quantised too (double quantisation) they have lost their mean (offset) and are 8-bit codes
in nested blocks of 256. Files come from strangers: whatever is computed with is checked first (quant_state.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import quant_state
from .levels import LEVELS, dynamic_map
from .quant_state import damaged, dtype_name

NESTED_BLOCK_SIZE = 256
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class FourBitWeight:
    """One weight matrix [rows, columns] in 4 bits; columns are even.

    packed: uint8 [rows, columns / 2], two values per byte, the first in the high half. absmax: one per block, uint8
    codes into nested_map, or float32 where the file holds single quantisation (then the other three are None).
    nested_absmax: float32, one per 256 blocks. nested_map: float32 [256], ascending. offset: float32 [].
    quant_type: a key of LEVELS. dtype: of the weight before it was quantised.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    nested_absmax: torch.Tensor | None
    nested_map: torch.Tensor | None
    offset: torch.Tensor | None
    block_size: int
    dtype: torch.dtype
    quant_type: str = "nf4"

    KIND = "4-bit"
    TENSORS = ("packed", "absmax", "nested_absmax", "nested_map", "offset")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the weight that it stands for."""
        return self.packed.shape[0], self.packed.shape[1] * 2

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by field name."""
        return {name: getattr(self, name) for name in self.TENSORS if getattr(self, name) is not None}

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> FourBitWeight:
        """The same weight with its tensors exchanged, e.g. for copies on another device."""
        return replace(self, **{name: tensors.get(name) for name in self.TENSORS})

    def to(self, device: torch.device | str) -> FourBitWeight:
        return self.with_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def beginning(self) -> FourBitWeight:
        """Its first values, as a weight of one row: up to two nested blocks of 256."""
        values = min(2 * self.packed.numel(), 2 * NESTED_BLOCK_SIZE * self.block_size)
        blocks = -(-values // self.block_size)
        parts = {"packed": self.packed.reshape(-1)[:values // 2].view(1, -1), "absmax": self.absmax[:blocks]}
        if self.nested_absmax is not None:
            parts["nested_absmax"] = self.nested_absmax[:-(-blocks // NESTED_BLOCK_SIZE)]
        return self.with_tensors({**self.tensors(), **parts})


def block_slices(values: int, block_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of whole blocks that fit a CPU's cache (or 100 MB of a GPU), then the last, short block."""
    step = 1 << (18 if device.type == "cpu" else 23)
    whole = values - values % block_size
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole))
    if whole < values:
        yield slice(whole, values)


def state_suffix(quant_type: str) -> str:
    """The end of the key under which bitsandbytes keeps the JSON of a weight."""
    return f".quant_state.bitsandbytes__{quant_type}"


def write_weight(weight: FourBitWeight, name: str) -> dict[str, torch.Tensor]:
    """bitsandbytes' key layout, e.g. name = "blocks.0.ffn.0.weight".

    The packed bytes keep their rows, [rows, columns / 2] instead of bitsandbytes' [n / 2, 1], because ComfyUI reads a
    model's sizes from the rows of its weights.
    """
    state: dict[str, Any] = {"quant_type": weight.quant_type, "blocksize": weight.block_size,
                             "dtype": dtype_name(weight.dtype), "shape": list(weight.shape)}
    tensors = {name: weight.packed, f"{name}.absmax": weight.absmax,
               f"{name}.quant_map": LEVELS[weight.quant_type].clone()}
    if weight.offset is not None:
        state |= {"nested_blocksize": NESTED_BLOCK_SIZE, "nested_dtype": "float32",
                  "nested_offset": weight.offset.item()}
        tensors |= {f"{name}.nested_absmax": weight.nested_absmax,
                    f"{name}.nested_quant_map": weight.nested_map.clone()}  # files may not hold shared tensors
    tensors[name + state_suffix(weight.quant_type)] = quant_state.write_state(state)
    return tensors


def read_weight(tensors: Mapping[str, torch.Tensor], name: str, quant_type: str) -> FourBitWeight:
    """Read a weight from bitsandbytes' key layout, ours or anybody's.

    Raises ValueError, naming the weight, where anything is missing or does not fit together.
    """
    state = _read_state(tensors[name + state_suffix(quant_type)], name, quant_type)
    (rows, columns), block_size = state["shape"], state["blocksize"]
    packed = _packed_bytes(tensors.get(name), (rows, columns), name)
    _check_table(tensors, name, "quant_map", LEVELS[quant_type])
    blocks = -(-rows * columns // block_size)
    nested = f"{name}.nested_absmax" in tensors or "nested_offset" in state
    absmax = _row(tensors, name, "absmax", torch.uint8 if nested else torch.float32, blocks)
    if not nested:
        quant_state.check_scales(absmax, blocks, name, "absmax")
    return FourBitWeight(packed.reshape(rows, -1), absmax, *_nested(tensors, state, name, blocks if nested else 0),
                         block_size, getattr(torch, state["dtype"]), quant_type)


def read_shape(get: Callable[[str], torch.Tensor], name: str, quant_type: str) -> tuple[int, int]:
    """(rows, columns) of a stored weight; `get` returns a tensor of the file by its key.

    Raises ValueError where the state is damaged, or the packed bytes are not those of such a matrix.
    """
    shape = tuple(_read_state(get(name + state_suffix(quant_type)), name, quant_type)["shape"])
    _packed_bytes(get(name), shape, name)
    return shape


def _read_state(tensor: torch.Tensor, name: str, quant_type: str) -> dict[str, Any]:
    state = quant_state.read_state(tensor, name)
    for field, allowed in (("quant_type", (quant_type,)), ("blocksize", BLOCK_SIZES)):
        value = state.get(field)
        if type(value) is not type(allowed[0]) or value not in allowed:
            raise damaged(name, f"the {field} {value!r}", ", ".join(map(str, allowed)))
    return state


def _packed_bytes(packed: torch.Tensor | None, shape: tuple[int, int], name: str) -> torch.Tensor:
    rows, columns = shape
    if packed is None or packed.dtype != torch.uint8 or columns % 2 or packed.numel() * 2 != rows * columns:
        got = "no bytes" if packed is None else f"{packed.dtype} of shape {list(packed.shape)}"
        raise damaged(name, f"{got} for a weight of shape [{rows}, {columns}]",
                      "uint8, half a byte per value, an even number of columns")
    return packed


def _nested(tensors: Mapping[str, torch.Tensor], state: dict[str, Any], name: str, blocks: int
            ) -> tuple[torch.Tensor | None, ...]:
    """(nested_absmax, nested_map, offset), or three None where there are no blocks of double quantisation."""
    if not blocks:
        return None, None, None
    for field, allowed in (("nested_blocksize", NESTED_BLOCK_SIZE), ("nested_dtype", "float32")):
        if state.get(field) != allowed:
            raise damaged(name, f"the {field} {state.get(field)!r}", f"{allowed}")
    offset = state.get("nested_offset")
    if type(offset) not in (int, float) or not 0 <= offset <= _LARGEST:
        raise damaged(name, f"the nested_offset {offset!r}", "a finite number, 0 or more")
    count = -(-blocks // NESTED_BLOCK_SIZE)
    peaks = _row(tensors, name, "nested_absmax", torch.float32, count)
    quant_state.check_scales(peaks, count, name, "nested_absmax")
    quant_state.check_scales(peaks + float(offset), count, name, "nested_absmax + nested_offset")  # may overflow
    table = _check_table(tensors, name, "nested_quant_map", dynamic_map())
    return peaks, table, torch.tensor(float(offset), dtype=torch.float32)


def _row(tensors: Mapping[str, torch.Tensor], name: str, field: str, dtype: torch.dtype, count: int) -> torch.Tensor:
    row = tensors.get(f"{name}.{field}")
    if row is None or row.dtype != dtype or list(row.shape) != [count]:
        got = "none" if row is None else f"{row.dtype} of shape {list(row.shape)}"
        raise damaged(name, f"{field}: {got}", f"{dtype_name(dtype)} of shape [{count}]")
    return row


def _check_table(tensors: Mapping[str, torch.Tensor], name: str, field: str, table: torch.Tensor) -> torch.Tensor:
    found = _row(tensors, name, field, torch.float32, table.numel())
    if not torch.allclose(found, table.to(found.device), rtol=0, atol=1e-6):
        raise damaged(name, f"{field}: another table of values", "bitsandbytes' own")
    return found
