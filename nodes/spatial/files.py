"""A spatial memory as a safetensors file: written atomically, read without pickle, checked before it is used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..common.errors import message
from ..common.saved_files import WRITE_ERRORS, write_whole
from .values import SpatialMemory

FORMAT = "videomemory.spatial"
VERSION = 1
_TENSORS = {"points": torch.float32, "features": torch.float16, "frames": torch.int32, "confidence": torch.float16}


def save_spatial(memory: SpatialMemory, path: str | os.PathLike[str]) -> Path:
    """Write the memory (tmp file, then one rename); RuntimeError where the disk does not take it, nothing is left."""
    path = Path(path)
    head = {"height": memory.height, "width": memory.width, "vae_key": memory.vae_key, "voxel": memory.voxel}
    metadata = {"format": FORMAT, "version": str(VERSION), "memory": json.dumps(head)}
    try:
        write_whole(path, {name: getattr(memory, name).contiguous() for name in _TENSORS}, metadata)
    except WRITE_ERRORS as error:
        raise RuntimeError(message(
            f"The spatial memory {path.name} could not be written", str(error),
            f"{memory.nbytes / 1e6:.1f} MB of free space in a folder that ComfyUI may write to",
            "Make room. Nothing was left behind, and an older file is as it was.")) from error
    return path


def load_spatial(path: str | os.PathLike[str]) -> SpatialMemory:
    """Read a memory that save_spatial wrote; all of it, or a ValueError that says what is wrong with the file."""
    path = Path(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
                raise ValueError(f"format {metadata.get('format')!r}, version {metadata.get('version')!r} is not "
                                 f"{FORMAT} version {VERSION}")
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        head = json.loads(metadata["memory"])
        memory = SpatialMemory(**tensors, height=head["height"], width=head["width"], vae_key=head["vae_key"],
                               voxel=head["voxel"])
        _check(memory)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(message(f"Load Spatial Memory cannot read {path.name}", f"a damaged file ({error})",
                                 "a file written by Save Spatial Memory, unchanged",
                                 "Choose another file, or save the memory again.")) from error
    return memory


def _check(memory: SpatialMemory) -> None:
    count = memory.points.shape[0]
    shapes = {"points": (count, 3), "features": (count, memory.features.shape[-1]), "frames": (count,),
              "confidence": (count,)}
    for name, dtype in _TENSORS.items():
        tensor = getattr(memory, name)
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != dtype:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} where {dtype} {shapes[name]} belongs")
    for name in ("points", "features", "confidence"):
        if not bool(torch.isfinite(getattr(memory, name)).all()):
            raise ValueError(f"{name}: NaN or infinity")
    for name, kind in (("height", int), ("width", int), ("vae_key", str), ("voxel", float)):
        if not isinstance(getattr(memory, name), kind):
            raise ValueError(f"{name}: {getattr(memory, name)!r} where {kind.__name__} belongs")
    if min(memory.height, memory.width) < 1 or not memory.voxel >= 0:
        raise ValueError(f"grid {memory.width}x{memory.height}, cells of {memory.voxel}")
