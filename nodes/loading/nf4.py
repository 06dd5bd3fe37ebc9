"""NF4: 4-bit normal-float weights with doubly quantised scales, byte for byte as bitsandbytes stores them.

A weight is cut into blocks of 64 values in row-major order. Each block is divided by its largest magnitude (absmax)
and every value becomes the nearest of 16 fixed levels. The absmax values lose their mean (offset) and are quantised
once more, to 8 bits in nested blocks of 256. Cost: 4.127 bits per value.

Sources: QLoRA, arXiv 2305.14314 (levels, double quantisation); arXiv 1511.04561 (the 8-bit dynamic map); bitsandbytes
0.50's CPU back end (rounding, ties, key names).
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from ..common.errors import message

log = logging.getLogger(__name__)

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256
SOURCE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])
STATE_SUFFIX = ".quant_state.bitsandbytes__nf4"
FOREIGN_SUFFIX = ".quant_state.bitsandbytes__fp4"
_CELLS = 128  # look-up cells per unit of a scaled weight: each cell holds at most one boundary between two levels
_SMALLEST_ABSMAX = 1e-38


@dataclass(frozen=True)
class NF4Weight:
    """One weight matrix [rows, columns] in NF4; columns are even.

    packed: uint8 [rows, columns / 2], two values per byte, the first in the high half. absmax: one per block, uint8
    codes into nested_map, or float32 where the file holds single quantisation (then the other three are None).
    nested_absmax: float32, one per 256 blocks. nested_map: float32 [256], ascending. offset: float32 [].
    dtype: of the weight before it was quantised.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    nested_absmax: torch.Tensor | None
    nested_map: torch.Tensor | None
    offset: torch.Tensor | None
    block_size: int = BLOCK_SIZE
    dtype: torch.dtype = torch.float32

    TENSORS = ("packed", "absmax", "nested_absmax", "nested_map", "offset")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the weight that it stands for."""
        return self.packed.shape[0], self.packed.shape[1] * 2

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by field name."""
        return {name: getattr(self, name) for name in self.TENSORS if getattr(self, name) is not None}

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> NF4Weight:
        """The same weight with its tensors exchanged, e.g. for copies on another device."""
        return replace(self, **{name: tensors.get(name) for name in self.TENSORS})

    def to(self, device: torch.device | str) -> NF4Weight:
        return self.with_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})


def packed_bytes(rows: int, columns: int) -> int:
    """Bytes of everything that an NF4Weight of this shape holds."""
    blocks = -(-rows * columns // BLOCK_SIZE)
    return rows * columns // 2 + blocks + 4 * -(-blocks // NESTED_BLOCK_SIZE) + 4 * 256 + 4


def quantize(weight: torch.Tensor) -> NF4Weight:
    """Quantise [rows, columns] float32, float16 or bfloat16 on the device it lies on.

    On the CPU the bytes equal bitsandbytes' quantize_4bit(nf4, blocksize=64, compress_statistics=True); a GPU may
    differ in the last bit of the mean. Raises ValueError for other shapes and dtypes, and for NaN or infinity.
    """
    if weight.ndim != 2 or weight.shape[1] % 2 or weight.dtype not in SOURCE_DTYPES:
        raise ValueError(message(
            "NF4 quantisation needs a matrix", f"{weight.dtype} of shape {list(weight.shape)}",
            "float32, float16 or bfloat16, two dimensions, an even number of columns", "Keep this tensor as it is."))
    packed, absmax = _quantize_blocks(weight.reshape(-1))
    if not torch.isfinite(absmax).all():
        raise ValueError(message(
            "NF4 quantisation needs finite weights", "a weight with NaN or infinity in it", "finite numbers",
            "The file is damaged or was saved after an overflow: download it again."))
    offset = absmax.mean()
    codes, nested_absmax = _quantize_absmax(absmax - offset)
    return NF4Weight(packed.view(weight.shape[0], -1), codes, nested_absmax, dynamic_map().to(weight.device), offset,
                     dtype=weight.dtype)


def dequantize(weight: NF4Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] in float32, float16 or bfloat16, on the device its bytes lie on.

    Products are taken in float32 and rounded once. On CUDA bitsandbytes' kernel does it where it can be imported; the
    result is the same.
    """
    functional = _bitsandbytes() if weight.packed.is_cuda else None
    return _dequantize_by_kernel(weight, dtype, functional) if functional else _dequantize_by_table(weight, dtype)


def is_stored(keys: Any, name: str) -> bool:
    """Whether the state dict (or set of keys) holds the weight `name` in NF4."""
    return name + STATE_SUFFIX in keys


def to_state_dict(weight: NF4Weight, name: str) -> dict[str, torch.Tensor]:
    """bitsandbytes' key layout, e.g. name = "blocks.0.ffn.0.weight".

    The packed bytes keep their rows, [rows, columns / 2] instead of bitsandbytes' [n / 2, 1], because ComfyUI reads a
    model's sizes from the rows of its weights.
    """
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": weight.block_size, "dtype": _dtype_name(weight.dtype),
                             "shape": list(weight.shape)}
    tensors = {name: weight.packed, f"{name}.absmax": weight.absmax, f"{name}.quant_map": LEVELS.clone()}
    if weight.offset is not None:
        state |= {"nested_blocksize": NESTED_BLOCK_SIZE, "nested_dtype": "float32",
                  "nested_offset": weight.offset.item()}
        tensors |= {f"{name}.nested_absmax": weight.nested_absmax,
                    f"{name}.nested_quant_map": weight.nested_map.clone()}  # files may not hold shared tensors
    tensors[name + STATE_SUFFIX] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def from_state_dict(tensors: Mapping[str, torch.Tensor], name: str) -> NF4Weight:
    """Read a weight from bitsandbytes' key layout, ours or anybody's; raises ValueError for other level tables."""
    state = read_state(tensors[name + STATE_SUFFIX])
    nested = f"{name}.nested_absmax" in tensors
    if not torch.allclose(tensors[f"{name}.quant_map"].cpu().float(), LEVELS, atol=1e-6):
        raise ValueError(message(
            f"{name} must use the NF4 levels", "another level table", "bitsandbytes' nf4",
            "Quantise the original file again."))
    return NF4Weight(
        packed=tensors[name].reshape(state["shape"][0], -1),
        absmax=tensors[f"{name}.absmax"],
        nested_absmax=tensors[f"{name}.nested_absmax"] if nested else None,
        nested_map=tensors[f"{name}.nested_quant_map"] if nested else None,
        offset=torch.tensor(state["nested_offset"], dtype=torch.float32) if nested else None,
        block_size=state["blocksize"], dtype=getattr(torch, state["dtype"]))


def read_state(tensor: torch.Tensor) -> dict[str, Any]:
    """The JSON that bitsandbytes packs into a uint8 tensor: quant_type, blocksize, dtype, shape, nested_*."""
    return json.loads(bytes(tensor.cpu().tolist()))


@cache
def dynamic_map() -> torch.Tensor:
    """The signed 8-bit dynamic map, [256] ascending: seven decades, each with twice the values of the one below."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2**decade + 1)
        magnitudes = 10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += magnitudes.tolist() + (-magnitudes).tolist()
    return torch.tensor(sorted(values))


def _quantize_blocks(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    packed = torch.empty(flat.numel() // 2, dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-flat.numel() // BLOCK_SIZE), dtype=torch.float32, device=flat.device)
    for part in _chunks(flat.numel(), BLOCK_SIZE, flat.device):
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
    midpoints = (LEVELS[:-1] + LEVELS[1:]) / 2
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


def _dequantize_by_table(weight: NF4Weight, dtype: torch.dtype) -> torch.Tensor:
    packed, absmax, size = weight.packed.reshape(-1), _plain_absmax(weight), weight.block_size
    out = torch.empty(weight.shape, dtype=dtype, device=packed.device)
    flat, pairs = out.view(-1), _level_pairs(packed.device)
    for part in _chunks(flat.numel(), size, packed.device):
        codes = packed[part.start // 2:part.stop // 2].to(torch.int32)
        values = pairs.index_select(0, codes).view(torch.float32)
        width = min(size, values.numel())
        scales = absmax[part.start // size:-(-part.stop // size)]
        torch.mul(values.view(-1, width), scales[:, None], out=flat[part].view(-1, width))
    return out


def _plain_absmax(weight: NF4Weight) -> torch.Tensor:
    if weight.nested_absmax is None:
        return weight.absmax.float()
    values = weight.nested_map.index_select(0, weight.absmax.to(torch.int32))
    peaks = weight.nested_absmax.repeat_interleave(NESTED_BLOCK_SIZE)[:values.numel()]
    return values * peaks + weight.offset


@cache
def _level_pairs(device: torch.device) -> torch.Tensor:
    """[256] int64: for every byte its two levels as float32, so that one look-up fetches both."""
    byte = torch.arange(256)
    return torch.stack((LEVELS[byte >> 4], LEVELS[byte & 15]), dim=1).view(torch.int64).view(-1).to(device)


def _chunks(values: int, block_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of whole blocks that fit a CPU cache (or 1 GB of a GPU), then the last, short block."""
    step = 1 << (18 if device.type == "cpu" else 26)
    whole = values - values % block_size
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole))
    if whole < values:
        yield slice(whole, values)


def _dequantize_by_kernel(weight: NF4Weight, dtype: torch.dtype, functional: Any) -> torch.Tensor:
    nested = None
    if weight.nested_absmax is not None:
        nested = functional.QuantState(absmax=weight.nested_absmax, code=weight.nested_map,
                                       blocksize=NESTED_BLOCK_SIZE, dtype=torch.float32)
    state = functional.QuantState(absmax=weight.absmax, shape=torch.Size(weight.shape), blocksize=weight.block_size,
                                  quant_type="nf4", dtype=dtype, offset=weight.offset, state2=nested)
    return functional.dequantize_4bit(weight.packed.reshape(-1, 1), state)


@cache
def _bitsandbytes() -> Any | None:
    """bitsandbytes.functional, or None where it is missing or cannot load its library."""
    try:
        return importlib.import_module("bitsandbytes.functional")
    except (ImportError, OSError, RuntimeError) as error:
        log.info("VideoMemory: bitsandbytes is not usable (%s); NF4 weights are unpacked with torch", error)
        return None


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
