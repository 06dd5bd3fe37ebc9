"""Quantised weights on disk: a safetensors file written while its tensors come in, and the cache made of it.

The file appears under its name only when it is whole, so a Cancel, a full disk or a crash leave nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..common.disk import discard, patiently
from ..common.errors import message
from ..common.mapped import DTYPES
from .files import SafetensorsFile, files_of

FORMAT = "1"  # of the files written here; another number makes every cache stale
CACHE_ENDING = ".videomemory"  # no ending that ComfyUI lists as a model
HEADER_BYTES = 1 << 16  # reserved for a file's metadata, beside what each tensor's entry takes
ENTRY_BYTES = 256
ABANDONED_S = 3600
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsWriter:
    """A context that writes tensors one by one and leaves the file only if nothing was raised.

    tensors: at most so many will come. The header's place is kept free and filled in last, padded with spaces, which
    the format allows. Tensors that would put the next one off its alignment (quant states, mostly) wait until the end.
    """

    def __init__(self, path: Path, tensors: int, metadata: Mapping[str, str]) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.{os.getpid()}.part")
        self._metadata, self._entries, self._end = dict(metadata), {}, 0
        self._late: list[tuple[str, torch.Tensor]] = []
        self._room = HEADER_BYTES + tensors * ENTRY_BYTES + len(json.dumps(self._metadata))
        self._room += -self._room % 8

    def __enter__(self) -> SafetensorsWriter:
        self._file = open(self.partial, "wb")
        self._file.seek(8 + self._room)
        return self

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.nbytes % 8:
            self._late.append((name, tensor))
        else:
            self._write(name, tensor)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._finish()
            self._file.close()
            if kind is None:
                patiently(os.replace, self.partial, self.path)
        finally:
            self._file.close()
            discard(self.partial)

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        flat = tensor.detach().to("cpu").contiguous()
        self._file.write(memoryview(flat.reshape(-1).view(torch.uint8).numpy()))
        start, self._end = self._end, self._end + flat.nbytes
        self._entries[name] = {"dtype": _NAMES[flat.dtype], "shape": list(flat.shape),
                               "data_offsets": [start, self._end]}

    def _finish(self) -> None:
        for name, tensor in sorted(self._late, key=lambda entry: -entry[1].dtype.itemsize):
            self._write(name, tensor)
        header = json.dumps({"__metadata__": self._metadata, **self._entries}).encode()
        if len(header) > self._room:
            raise RuntimeError(f"header of {len(header)} bytes, room for {self._room}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.flush()
        os.fsync(self._file.fileno())


def discard_abandoned(path: Path) -> None:
    """Delete what killed writers of `path` left: parts of other processes, not written to for an hour."""
    pattern = re.compile(rf"{re.escape(path.name)}\.(?!{os.getpid()}\.)\d+\.part")
    for part in path.parent.glob("*.part"):
        with contextlib.suppress(OSError):  # it is gone, or not ours to look at
            if pattern.fullmatch(part.name) and time.time() - part.stat().st_mtime > ABANDONED_S:
                discard(part)


def cache_path(source: Path, weights: str) -> Path:
    """Where the quantised form of `source` is kept: beside it, under an ending that no model list shows."""
    return source.with_name(f"{source.name}.{weights}{CACHE_ENDING}")


def cache_key(source: Path, weights: str, quantized: Mapping[str, str]) -> dict[str, str]:
    """What must be the same for a cache to be used: the source's size and time, and the form of each packed weight."""
    facts = [part.stat() for part in files_of(source)]
    return {"videomemory_format": FORMAT, "weights": weights, "source_bytes": str(sum(fact.st_size for fact in facts)),
            "source_mtime_ns": ",".join(str(fact.st_mtime_ns) for fact in facts),
            "quantized": hashlib.sha256(json.dumps(dict(quantized), sort_keys=True).encode()).hexdigest()[:32]}


def read_cache(path: Path, key: Mapping[str, str]) -> dict[str, torch.Tensor] | None:
    """The state dict of a cache, mapped; None where it is missing, not whole, or was made from something else."""
    try:
        file = SafetensorsFile(path)
    except (OSError, ValueError):
        return None
    try:
        if any(file.metadata.get(name) != value for name, value in key.items()):
            return None
        return {name: file.get(name) for name in file.headers}
    finally:
        file.close()


def refuse_without_room(path: Path, needed_bytes: int, what: str) -> None:
    """Raise ValueError unless the disk of `path` has room for so many bytes; what killed writers left goes first."""
    discard_abandoned(path)
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
        raise ValueError(message(
            f"{what} needs {needed_bytes / 1e9:.2f} GB free in '{path.parent}'", f"{free / 1e9:.2f} GB free",
            "a disk with room for the whole file", "Free some space, or do without it. Nothing was written."))
