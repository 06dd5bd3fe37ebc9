"""What a checkpoint file is: its tensors (from the file's header alone), its family, and what NF4 may touch.

A family is recognised by tensor names, never by the file's name. Its `keep` list says which weights stay in high
precision whatever their size, because every token passes through them once and errors there never average out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..common.errors import message
from . import nf4
from .files import TensorHeader, open_tensors

MIN_BYTES = 1 << 20  # smaller weights stay: together they are a percent of a real model
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    markers: the names that prove it. keep: (part of a name, reason) for weights that are never quantised. ignore:
    beginnings of names that ComfyUI's model class has no place for.
    """

    title: str
    markers: tuple[str, ...]
    keep: tuple[tuple[str, str], ...]
    ignore: tuple[str, ...] = ()


WAN = Family(
    "Wan diffusion model", ("head.modulation", "patch_embedding.weight", "blocks.0.self_attn.q.weight"),
    (("embedding", "embedding"), ("img_emb", "embedding"), ("time_projection", "time modulation"),
     ("head.", "output head")))
DIFFUSION_MODELS = (WAN,)


@dataclass(frozen=True)
class Header:
    """What a file says before its weights are read: tensors by key, its metadata, and the report's note about it."""

    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]
    note: str


@dataclass(frozen=True)
class Checkpoint:
    """A recognised file. tensors: by name without the file's prefix. note: how it is wrapped, for the report."""

    path: Path
    family: Family
    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]
    note: str = ""

    @property
    def bytes(self) -> int:
        return sum(header.bytes for header in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The float dtype that holds most bytes: what the model was saved in."""
        bytes_by_dtype: Counter[torch.dtype] = Counter()
        for name, header in self.tensors.items():
            if header.dtype in nf4.SOURCE_DTYPES and not _belongs_to_stored(name, self.tensors):
                bytes_by_dtype[header.dtype] += header.bytes
        return bytes_by_dtype.most_common(1)[0][0] if bytes_by_dtype else torch.bfloat16


@dataclass(frozen=True)
class LayerPlan:
    """What happens to each tensor: weights to quantise, weights that are NF4 already, and the rest with the reason."""

    quantize: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    keep: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | Path, families: tuple[Family, ...]) -> Checkpoint:
    """Read the header of a file and recognise it; raises ValueError for anything else."""
    checkpoint = recognise(path, families)
    if checkpoint is not None:
        return checkpoint
    headers = read_header(path).tensors
    other = ", or set weights to 'original' to load it as ComfyUI would" if families is DIFFUSION_MODELS else ""
    looked_for = "; ".join(f"{family.title} ({', '.join(family.markers)})" for family in families)
    raise ValueError(message(
        f"'{Path(path).name}' must be a checkpoint that this node knows",
        f"a file with {len(headers)} tensors, the first named {next(iter(headers), None)!r}",
        f"{looked_for}, with or without one of the prefixes {', '.join(filter(None, PREFIXES))}",
        f"Choose another file{other}."))


def recognise(path: str | Path, families: tuple[Family, ...]) -> Checkpoint | None:
    """The file as one of `families`, or None; raises ValueError for files that cannot be read."""
    header = read_header(path)
    headers = header.tensors
    for family in families:
        for prefix in PREFIXES:
            if all(prefix + marker in headers for marker in family.markers):
                named = {key.removeprefix(prefix): header for key, header in headers.items() if key.startswith(prefix)}
                tensors = {name: header for name, header in named.items() if not name.startswith(family.ignore)}
                return Checkpoint(Path(path), family, tensors, header.metadata, header.note)
    return None


def read_header(path: str | Path) -> Header:
    """Names, dtypes and shapes of a file's tensors, packed weights with the shape they stand for; reads no weights."""
    with open_tensors(path) as file:
        headers = dict(file.headers)
        for key in [key for key in headers if nf4.is_stored(headers, key)]:
            shape = nf4.read_state(file.get(key + nf4.STATE_SUFFIX))["shape"]
            headers[key] = TensorHeader(key, torch.uint8, tuple(shape), headers[key].bytes)
        return Header(headers, file.metadata, file.note)


def plan_layers(checkpoint: Checkpoint, min_bytes: int = MIN_BYTES) -> LayerPlan:
    """Decide for every tensor whether it becomes NF4; raises ValueError for 8-bit and fp4 sources.

    min_bytes: weights that take fewer bytes in the file stay as they are.
    """
    quantize, stored, keep = [], [], {}
    for name, header in checkpoint.tensors.items():
        if nf4.is_stored(checkpoint.tensors, name):
            stored.append(name)
        elif not _belongs_to_stored(name, checkpoint.tensors):
            _refuse_foreign(name, header, checkpoint)
            reason = _reason_to_keep(name, header, checkpoint.family, min_bytes)
            if reason is None:
                quantize.append(name)
            else:
                keep[name] = reason
    return LayerPlan(tuple(quantize), tuple(stored), keep)


def describe_load(checkpoint: Checkpoint, plan: LayerPlan, loaded_bytes: int) -> str:
    """The node's report: what became NF4, what stayed and why, and the sizes before and after."""
    nf4_names = plan.quantize + plan.stored
    before = sum(checkpoint.tensors[name].bytes for name in plan.quantize)
    after = sum(nf4.packed_bytes(*checkpoint.tensors[name].shape) for name in plan.quantize)
    lines = [f"{checkpoint.path.name}: {checkpoint.family.title}, {_megabytes(checkpoint.bytes)} in the file, "
             f"{_megabytes(loaded_bytes)} loaded"]
    if checkpoint.note:
        lines.append(checkpoint.note)
    if plan.quantize:
        lines.append(f"NF4: {len(plan.quantize)} weights, {_megabytes(before)} -> {_megabytes(after)}")
    if plan.stored:
        lines.append(f"NF4 already in the file: {len(plan.stored)} weights")
    if not nf4_names:
        lines.append("NF4: no weight, the model stays in high precision")
    for reason, count in Counter(plan.keep.values()).most_common():
        size = sum(checkpoint.tensors[name].bytes for name, why in plan.keep.items() if why == reason)
        lines.append(f"as stored: {count} x {reason}, {_megabytes(size)}")
    return "\n".join(lines)


def describe_original(path: Path, loaded_bytes: int, note: str = "") -> str:
    """The node's report for a file whose weights ComfyUI took as they are; note: how the file was wrapped."""
    line = (f"{path.name}: loaded as it is through ComfyUI, {_megabytes(path.stat().st_size)} in the file, "
            f"{_megabytes(loaded_bytes)} loaded")
    return f"{line}\n{note}" if note else line


def _belongs_to_stored(name: str, tensors: Mapping[str, TensorHeader]) -> bool:
    weight, found, _ = name.rpartition(".weight.")
    return bool(found) and nf4.is_stored(tensors, weight + ".weight")


def _refuse_foreign(name: str, header: TensorHeader, checkpoint: Checkpoint) -> None:
    if header.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) or name.endswith(nf4.FOREIGN_SUFFIX):
        raise ValueError(message(
            f"NF4 needs '{checkpoint.path.name}' in 16 or 32 bits",
            f"{name} in {'fp4' if name.endswith(nf4.FOREIGN_SUFFIX) else str(header.dtype).removeprefix('torch.')}",
            "fp32, fp16, bf16, or bitsandbytes NF4",
            "Take the fp16 or bf16 file, or set weights to 'original'."))


def _reason_to_keep(name: str, header: TensorHeader, family: Family, min_bytes: int) -> str | None:
    if header.dtype not in nf4.SOURCE_DTYPES:
        return "tokenizer or other data"
    for part, reason in family.keep:
        if part in name:
            return reason
    if not name.endswith(".weight") or len(header.shape) != 2:
        return "norm, bias or modulation"
    if header.shape[1] % 2:
        return "odd number of columns"
    if header.bytes < min_bytes:
        return f"smaller than {_megabytes(min_bytes)}"
    return None


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
