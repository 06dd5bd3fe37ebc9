"""Safetensors files whose tensors stay in the file, mapped so that they can only be read.

The library's own reader maps a file so that it could be written to. Windows counts all of such a map against RAM and
page file, read or not, and ends the process where that runs out (safetensors issues 528 and 693); Linux refuses it for
a file larger than its RAM. A map that can only be read costs neither.
"""

from __future__ import annotations

import json
import mmap
import os
import warnings

import torch
from safetensors import safe_open

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U8": torch.uint8, "I8": torch.int8,
          "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool}


def read_mapped(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file by name, and its metadata; SafetensorError for a file that is not whole, OSError.

    A tensor takes RAM only while it is read, and keeps the map alive. Writing to it in place ends the process.
    """
    entries, start, metadata = read_header(path)
    if not any(entry["data_offsets"][1] > entry["data_offsets"][0] for entry in entries.values()):
        return {name: _empty(entry) for name, entry in entries.items()}, metadata
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return {name: _tensor(view, start, entry) for name, entry in entries.items()}, metadata


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, dict], int, dict[str, str]]:
    """({tensor: {dtype, shape, data_offsets}} by name, where its data begins, metadata).

    Raises SafetensorError for a file that is not whole, OSError.
    """
    with safe_open(str(path), framework="numpy"):
        pass  # it compares the header with the file's size
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    metadata = entries.pop("__metadata__", None) or {}
    return dict(sorted(entries.items())), 8 + size, metadata


def _tensor(view: mmap.mmap, start: int, entry: dict) -> torch.Tensor:
    begin, end = entry["data_offsets"]
    if begin == end:
        return _empty(entry)
    dtype = DTYPES[entry["dtype"]]
    flat = torch.frombuffer(view, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
    return flat.reshape(entry["shape"])


def _empty(entry: dict) -> torch.Tensor:
    return torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
