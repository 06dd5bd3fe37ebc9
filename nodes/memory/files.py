"""A memory as a safetensors file: written atomically, read without pickle, independent of the machine.

Tensors: `block.<i>.latents` [C, n, h, w]; `tail`; and, when K/V are kept,
`block.<i>.layer.<j>.<k|v>.<data|scale|offset|mean>`. Everything else is one JSON text in the header's metadata.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..common.errors import message
from ..common.types import Geometry, MemoryBlock, MemorySpec, VideoMemory
from .kv_cache import BlockKV, LayerKV
from .kv_quant import TENSOR_FIELDS, Packed

FORMAT = "videomemory.memory"
VERSION = 1
_FIELDS = ("model_key", "latents_done", "clips_done", "origin", "shot", "prompt_hash")


def save_memory(memory: VideoMemory, path: str | os.PathLike[str], with_kv: bool = True) -> Path:
    """Write the memory to path (tmp file, then one rename); without K/V it is small and is rebuilt on first use."""
    path = Path(path)
    tensors = {} if memory.tail is None else {"tail": memory.tail}
    for i, block in enumerate(memory.blocks):
        tensors[f"block.{i}.latents"] = block.latents
        if with_kv and block.kv is not None:
            tensors.update(_kv_tensors(f"block.{i}.layer.", block.kv))
    header = {
        "spec": asdict(memory.spec),
        "geometry": None if memory.geometry is None else asdict(memory.geometry),
        "blocks": [_block_header(block, with_kv) for block in memory.blocks],
        **{name: getattr(memory, name) for name in _FIELDS},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}, str(partial),
                  metadata={"format": FORMAT, "version": str(VERSION), "memory": json.dumps(header)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def rest_on_file(memory: VideoMemory, path: str | os.PathLike[str]) -> None:
    """Let the K/V of a memory lie in the file that save_memory has just written of it instead of in RAM."""
    for block, saved in zip(memory.blocks, load_memory(path).blocks, strict=True):
        if block.kv is not None and not block.kv.is_gone:
            block.kv.rest_on(saved.kv)


def load_memory(path: str | os.PathLike[str]) -> VideoMemory:
    """Read a memory that save_memory wrote; raises ValueError for any other file and for a newer format.

    Its tensors lie in the mapped file and take RAM only while they are used.
    """
    path = Path(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            _check_format(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no __iter__)
    except (SafetensorError, FileNotFoundError, OSError) as error:
        raise ValueError(message(f"Load Memory cannot read {path.name}", str(error), "a file written by Save Memory",
                                 "Choose another file, or save the memory again.")) from error
    try:
        return _read_memory(json.loads(metadata["memory"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(message(f"Load Memory cannot read {path.name}", f"a damaged header ({error!r})",
                                 "a file written by Save Memory", "Choose another file.")) from error


def _read_memory(header: dict, tensors: dict[str, torch.Tensor]) -> VideoMemory:
    blocks = tuple(_read_block(i, head, tensors) for i, head in enumerate(header["blocks"]))
    return VideoMemory(
        spec=MemorySpec(**header["spec"]),
        geometry=Geometry(**header["geometry"]) if header["geometry"] else None,
        blocks=blocks,
        tail=tensors.get("tail"),
        **{name: header[name] for name in _FIELDS},
    )


def _check_format(metadata: dict[str, str], path: Path) -> None:
    found = (metadata.get("format"), metadata.get("version"))
    if found != (FORMAT, str(VERSION)):
        raise ValueError(message(f"Load Memory cannot use {path.name}", f"format {found[0]!r}, version {found[1]!r}",
                                 f"{FORMAT} version {VERSION}",
                                 "Choose a file that this version of Save Memory wrote."))


def _kv_tensors(prefix: str, kv: BlockKV) -> dict[str, torch.Tensor]:
    return {f"{prefix}{j}.{side}.{name}": tensor
            for j, layer in enumerate(kv.layers)
            for side in ("k", "v")
            for name, tensor in getattr(layer, side).tensors().items()}


def _block_header(block: MemoryBlock, with_kv: bool) -> dict[str, object]:
    kept = with_kv and block.kv is not None and not block.kv.is_gone
    return {"start": block.start, "shot": block.shot, "layers": len(block.kv.layers) if kept else 0,
            "precision": block.kv.layers[0].k.precision if kept else ""}


def _read_block(i: int, head: dict, tensors: dict[str, torch.Tensor]) -> MemoryBlock:
    def packed(j: int, side: str) -> Packed:
        prefix = f"block.{i}.layer.{j}.{side}."
        return Packed(head["precision"], **{n: tensors[prefix + n] for n in TENSOR_FIELDS if prefix + n in tensors})

    layers = tuple(LayerKV(packed(j, "k"), packed(j, "v")) for j in range(head["layers"]))
    return MemoryBlock(head["start"], tensors[f"block.{i}.latents"], head["shot"], BlockKV(layers) if layers else None)
