"""Where the caches of older memories go when RAM gets short: to temporary files, with the same bits.

ComfyUI keeps the memory after every clip of a film as long as the film is on the canvas. Their K/V rest in RAM after
each clip; the shelf counts them and, above a limit, maps those that were used longest ago from a file. Where no file
can be written they are let go of: memory.state.begin_clip then has them rebuilt from the latents, close to what they
were, not equal.
"""

from __future__ import annotations

import os
import shutil
import uuid
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..common.disk import discard
from ..common.mapped import read_mapped
from .kv_cache import BlockKV, LayerKV

RAM_SHARE = 0.25  # of the system's RAM, for K/V of all memories together
PREFIX = "videomemory_kv_"
_LEFT: set[Path] = set()  # files that could not be removed yet


class Shelf:
    """The K/V at rest in this process. Holds weak references: what no memory holds any more counts nothing."""

    def __init__(self) -> None:
        self._caches: dict[int, weakref.ref[BlockKV]] = {}  # by id, used longest ago first

    def put(self, caches: Iterable[BlockKV], limit_bytes: int, folder: str | os.PathLike[str]) -> tuple[int, int]:
        """Count these caches (memory.state.caches of the newest memory) as just used, and keep the limit.

        limit_bytes: RAM for the K/V of all memories. folder: for temporary files. Returns (bytes moved to files, bytes
        let go of); the latter are never those of `caches`, which stay in RAM where no file can be written.
        """
        _remove_left()
        newest = set()
        for kv in caches:
            self._caches.pop(id(kv), None)
            self._caches[id(kv)] = weakref.ref(kv)
            newest.add(id(kv))
        moved = gone = 0
        for kv in self._living():
            if self.ram_bytes <= limit_bytes:
                break
            size = 0 if kv.in_file else kv.nbytes
            if not size:
                continue
            if _spill(kv, Path(folder)):
                moved += size
            elif id(kv) not in newest:
                kv.let_go()
                gone += size
        return moved, gone

    @property
    def ram_bytes(self) -> int:
        """Bytes of the living caches that lie in RAM."""
        return sum(kv.nbytes for kv in self._living() if not kv.in_file)

    def reset(self) -> None:
        """Count nothing any more; the caches themselves stay as they are."""
        self._caches.clear()

    def _living(self) -> list[BlockKV]:
        living = {key: kv for key, reference in self._caches.items() if (kv := reference()) is not None}
        self._caches = {key: self._caches[key] for key in living}
        return list(living.values())


def _spill(kv: BlockKV, folder: Path) -> bool:
    """Let a cache lie in a temporary file of its own; False where there is no room for one."""
    path = folder / f"{PREFIX}{uuid.uuid4().hex}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < 2 * kv.nbytes:
            return False
        save_file({name: tensor.contiguous() for name, tensor in _tensors(kv)}, str(path))
        kv.rest_on(_mapped(kv, read_mapped(path)[0]))
    except (OSError, SafetensorError):
        return False
    finally:
        _LEFT.add(path)
        _remove_left()
    return True


def _tensors(kv: BlockKV) -> Iterable[tuple[str, torch.Tensor]]:
    for i, layer in enumerate(kv.layers):
        for side in ("k", "v"):
            for name, tensor in getattr(layer, side).tensors().items():
                yield f"{i}.{side}.{name}", tensor


def _mapped(kv: BlockKV, tensors: dict[str, torch.Tensor]) -> BlockKV:
    def side(i: int, name: str) -> object:
        packed = getattr(kv.layers[i], name)
        return replace(packed, **{field: tensors[f"{i}.{name}.{field}"] for field in packed.tensors()})

    return BlockKV(tuple(LayerKV(side(i, "k"), side(i, "v")) for i in range(len(kv.layers))))


def _remove_left() -> None:
    """Linux removes a file at once and keeps its bytes while they are mapped, Windows only when they no longer are."""
    for path in [path for path in _LEFT if discard(path)]:
        _LEFT.remove(path)
