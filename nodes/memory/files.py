"""A memory as a safetensors file: written atomically, read without pickle, independent of the machine.

Tensors, for every chunk i in view (`block.<i>.`) and in the archive (`archive.<i>.`): `latents` [C, n, h, w] and,
when K/V are kept, `layer.<j>.<k|v>.<data|scale|offset|mean>`, for the negative prompt `negative.<j>...`;
`prompt.<digest>` [n, D] for every prompt; and `tail`, `overlap`, `anchor.<latents|frame|mean|std>`. Everything else is
one JSON text in the header's metadata, which also names a digest of that text and of the tensors' names, types and
shapes (not of their values, which may be gigabytes). Version 1 knew neither that digest nor the fields that came with
version 2; both are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..common.errors import message
from ..common.mapped import read_mapped
from ..common.saved_files import WRITE_ERRORS, write_whole
from ..common.types import Anchor, Geometry, MemoryBlock, MemorySpec, Preset, VideoMemory
from .files_check import check_tensors
from .kv_cache import BlockKV, LayerKV
from .kv_quant import TENSOR_FIELDS, Packed
from .state import check_spec

FORMAT = "videomemory.memory"
VERSION = 2
HEADER_BYTES = 2**22  # more than the names and types of ten thousand tensors take
_FIELDS = ("model_key", "latents_done", "clips_done", "origin", "shot", "prompt_hash", "cuts")
_BLOCK_FIELDS = ("start", "shot", "prompt_hash", "is_pinned", "cuts")
_GROUPS = {"block": "blocks", "archive": "archive"}  # prefix of the tensors -> field of the memory
_CACHES = {"layer": "kv", "negative": "negative_kv"}  # prefix of the layers -> field of the block
_ANCHOR_FIELDS = ("latents", "frame", "mean", "std")


def save_memory(memory: VideoMemory, path: str | os.PathLike[str], with_kv: bool = True) -> Path:
    """Write the memory to path (tmp file, then one rename); without K/V it is small and they are rebuilt on first use.

    Raises RuntimeError where the disk has no room for it, before anything is written, or does not take it; then nothing
    is left behind, and an older file stays.
    """
    path = Path(path)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in _tensors(memory, with_kv)}
    text = json.dumps(_header(memory, with_kv))
    metadata = {"format": FORMAT, "version": str(VERSION), "memory": text, "digest": _digest(text, tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_room(memory, path, with_kv)
        write_whole(path, tensors, metadata)
    except WRITE_ERRORS as error:
        raise RuntimeError(message(
            f"The memory {path.name} could not be written", str(error),
            f"{file_bytes(memory, with_kv) / 1e6:.1f} MB of free space in a folder that ComfyUI may write to",
            "Make room, or save it without K/V. Nothing was left behind, and an older file is as it was.")) from error
    return path


def file_bytes(memory: VideoMemory, with_kv: bool = True) -> int:
    """Bytes of all tensors that save_memory would write; the file's header comes on top."""
    return sum(tensor.nbytes for _, tensor in _tensors(memory, with_kv))


def file_version(path: str | os.PathLike[str]) -> int:
    """The version of the format of a file that load_memory has read."""
    with safe_open(str(path), framework="pt", device="cpu") as file:
        return int(file.metadata()["version"])


def rest_on_file(memory: VideoMemory, path: str | os.PathLike[str]) -> None:
    """Let the K/V of a memory lie in the file that save_memory has just written of it instead of in RAM."""
    saved = load_memory(path)
    for group in _GROUPS.values():
        for block, again in zip(getattr(memory, group), getattr(saved, group), strict=True):
            for cache in _CACHES.values():
                kv = getattr(block, cache)
                if kv is not None and not kv.is_gone:
                    kv.rest_on(getattr(again, cache))


def load_memory(path: str | os.PathLike[str]) -> VideoMemory:
    """Read a memory that save_memory wrote, of this format or an older one; all of it, or a ValueError.

    Its K/V lie in the mapped file, where nobody can change them, and take RAM only while they are used.
    """
    path = Path(path)
    try:
        mapped, metadata = read_mapped(path)
        version = _known_version(metadata, path)
        tensors = {name: tensor if _is_kv(name) else tensor.clone() for name, tensor in mapped.items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(message(f"Load Memory cannot read {path.name}", str(error), "a file written by Save Memory",
                                 "Choose another file, or save the memory again.")) from error
    try:
        if version > 1 and metadata["digest"] != _digest(metadata["memory"], tensors):
            raise ValueError("it is not as it was written")
        memory = _read_memory(json.loads(metadata["memory"]), tensors)
        check_tensors(memory)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(message(f"Load Memory cannot read {path.name}", f"a damaged header ({error})",
                                 "a file written by Save Memory, unchanged",
                                 "Choose another file, or save the memory again.")) from error
    return memory


def _is_kv(name: str) -> bool:
    group, _, rest = name.partition(".")
    return group in _GROUPS and rest.partition(".")[2].partition(".")[0] in _CACHES


def _require_room(memory: VideoMemory, path: Path, with_kv: bool) -> None:
    free, needed = shutil.disk_usage(path.parent).free, file_bytes(memory, with_kv) + HEADER_BYTES
    if free < needed:
        smaller = f", or save it without K/V: {file_bytes(memory, with_kv=False) / 1e6:.1f} MB" if with_kv else ""
        raise RuntimeError(message(
            f"The memory {path.name} has no room on its disk", f"{free / 1e6:.1f} MB free",
            f"{needed / 1e6:.1f} MB or more",
            f"Make room{smaller}. Nothing was written."))


def _known_version(metadata: dict[str, str], path: Path) -> int:
    """The version of the format; ValueError for what is no memory and for what a newer version of the pack wrote."""
    found = metadata.get("version", "")
    is_ours = metadata.get("format") == FORMAT and found.isdecimal() and int(found) > 0
    if is_ours and int(found) <= VERSION:
        return int(found)
    got = f"a memory of format version {found}" if is_ours else f"format {metadata.get('format')!r}, version {found!r}"
    do = ("Update VideoMemory: a newer one wrote this file." if is_ours
          else "Choose a file that Save Memory wrote.")
    raise ValueError(message(f"Load Memory cannot use {path.name}", got, f"{FORMAT} version 1 to {VERSION}", do))


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    listed = [f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}" for name in sorted(tensors)]
    return hashlib.sha256("\n".join((text, *listed)).encode()).hexdigest()


def _header(memory: VideoMemory, with_kv: bool) -> dict[str, object]:
    groups = {group: [_block_header(block, with_kv) for block in getattr(memory, group)] for group in _GROUPS.values()}
    return {
        "spec": asdict(memory.spec),
        "geometry": None if memory.geometry is None else asdict(memory.geometry),
        **groups,
        "texts": {one.prompt_hash: one.text for one in (memory, *memory.blocks, *memory.archive) if one.text},
        **{name: getattr(memory, name) for name in _FIELDS},
    }


def _block_header(block: MemoryBlock, with_kv: bool) -> dict[str, object]:
    head = {name: getattr(block, name) for name in _BLOCK_FIELDS}
    for prefix, kv in _kept(block, with_kv):
        head[prefix] = {"layers": len(kv.layers), "precision": kv.layers[0].k.precision}
    return head


def _kept(block: MemoryBlock, with_kv: bool) -> Iterator[tuple[str, BlockKV]]:
    """(prefix, cache) of the caches of a block that go into the file."""
    for prefix, cache in _CACHES.items():
        kv = getattr(block, cache)
        if with_kv and kv is not None and not kv.is_gone:
            yield prefix, kv


def _tensors(memory: VideoMemory, with_kv: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything that goes into the file; none share a buffer."""
    buffers: set[int] = set()
    for name, tensor in _small_tensors(memory):
        if tensor is not None:
            buffer = tensor.untyped_storage()
            shares = buffer.nbytes() != tensor.nbytes or buffer.data_ptr() in buffers
            buffers.add(buffer.data_ptr())
            yield name, tensor.clone() if shares else tensor
    for prefix, group in _GROUPS.items():
        for i, block in enumerate(getattr(memory, group)):
            for layers, kv in _kept(block, with_kv):
                for j, layer in enumerate(kv.layers):
                    for side in ("k", "v"):
                        for name, tensor in getattr(layer, side).tensors().items():
                            yield f"{prefix}.{i}.{layers}.{j}.{side}.{name}", tensor


def _small_tensors(memory: VideoMemory) -> Iterator[tuple[str, torch.Tensor | None]]:
    yield "tail", memory.tail
    yield "overlap", memory.overlap
    if memory.anchor is not None:
        for name in _ANCHOR_FIELDS:
            yield f"anchor.{name}", getattr(memory.anchor, name)
    for prefix, group in _GROUPS.items():
        for i, block in enumerate(getattr(memory, group)):
            yield f"{prefix}.{i}.latents", block.latents
    yield from {f"prompt.{block.prompt_hash}": block.prompt for block in (*memory.blocks, *memory.archive)}.items()


def _read_memory(header: dict, tensors: dict[str, torch.Tensor]) -> VideoMemory:
    """The memory of a header; what an older version did not know keeps its default."""
    spec, texts = _read_spec(header["spec"]), dict(header.get("texts", {}))
    groups = {group: tuple(_read_block(f"{prefix}.{i}.", head, tensors, texts)
                           for i, head in enumerate(header.get(group, ()))) for prefix, group in _GROUPS.items()}
    has_anchor = f"anchor.{_ANCHOR_FIELDS[0]}" in tensors
    return VideoMemory(
        spec=spec,
        geometry=Geometry(**header["geometry"]) if header["geometry"] else None,
        tail=tensors.get("tail"),
        overlap=tensors.get("overlap"),
        anchor=Anchor(**{name: tensors[f"anchor.{name}"] for name in _ANCHOR_FIELDS}) if has_anchor else None,
        text=texts.get(header.get("prompt_hash", ""), ""),
        **groups,
        **{name: header[name] for name in _FIELDS if name in header},
    )


def _read_spec(header: dict) -> MemorySpec:
    recipe = header.get("custom")
    custom = Preset(**{**recipe, "sigmas": tuple(recipe["sigmas"])}) if recipe else None
    spec = MemorySpec(**{**header, "custom": custom})
    check_spec(spec)
    return spec


def _read_block(prefix: str, head: dict, tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> MemoryBlock:
    if head.get("layers"):  # version 1
        head = {**head, "layer": {"layers": head["layers"], "precision": head["precision"]}}
    caches = {cache: _read_kv(f"{prefix}{layers}.", head[layers], tensors)
              for layers, cache in _CACHES.items() if layers in head}
    known = {name: head[name] for name in _BLOCK_FIELDS if name in head}
    prompt_hash = head.get("prompt_hash", "")
    return MemoryBlock(latents=tensors[f"{prefix}latents"], prompt=tensors.get(f"prompt.{prompt_hash}"),
                       text=texts.get(prompt_hash, ""), **known, **caches)


def _read_kv(prefix: str, head: dict, tensors: dict[str, torch.Tensor]) -> BlockKV:
    def packed(j: int, side: str) -> Packed:
        found = {name: tensors.get(f"{prefix}{j}.{side}.{name}") for name in TENSOR_FIELDS}
        if found["data"] is None:
            raise KeyError(f"{prefix}{j}.{side}.data is missing")
        return Packed(head["precision"], **found)

    return BlockKV(tuple(LayerKV(packed(j, "k"), packed(j, "v")) for j in range(head["layers"])), in_file=True)
