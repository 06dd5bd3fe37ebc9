"""What a checkpoint file is: its tensors (from the file's header alone) and its family.

A family is recognised by tensor names, never by the file's name. Its `keep` list says which weights stay in high
precision whatever their size, because every token passes through them once and errors there never average out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..common.errors import message
from .codecs import CODECS, is_part_of_stored, stored_form
from .files import TensorHeader, open_tensors
from .quant_state import SOURCE_DTYPES

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
            if header.dtype in SOURCE_DTYPES and not is_part_of_stored(self.tensors, name):
                bytes_by_dtype[header.dtype] += header.bytes
        return bytes_by_dtype.most_common(1)[0][0] if bytes_by_dtype else torch.bfloat16


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
        for key in list(headers):
            form = stored_form(headers, key)
            if form is not None:
                headers[key] = replace(headers[key], shape=CODECS[form].read_shape(file.get, key))
        return Header(headers, file.metadata, file.note)
