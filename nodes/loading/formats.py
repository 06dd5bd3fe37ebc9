"""What a checkpoint file is: its tensors, from the file's header alone, and its family, from their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from ..common.errors import message
from . import fp8
from .codecs import CODECS, is_part_of_stored, stored_form
from .diffusers_names import comfy_names, ltx_positions
from .families import DIFFUSION_MODELS, LTX, Family, other_kind
from .files import TensorHeader, is_safetensors, is_sharded, open_tensors
from .quant_state import SOURCE_DTYPES

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "model.", "")
QUANTIZATION = "_quantization_metadata"  # of fp8 files: says nothing of what the weights have become here


@dataclass(frozen=True)
class Header:
    """What a file says before its weights are read: tensors by key, its metadata, and the report's note about it."""

    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]
    note: str


@dataclass(frozen=True)
class Checkpoint:
    """A recognised file. tensors: by ComfyUI's names, without the prefix. note: how it is wrapped, for the report.

    is_plain: ComfyUI would read it from the path alone. is_renamed: the file has diffusers' names.
    """

    path: Path
    family: Family
    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]
    note: str = ""
    is_plain: bool = True
    is_renamed: bool = False

    def without(self, names: Collection[str]) -> Checkpoint:
        """The file as if it had not these tensors."""
        return replace(self, tensors={name: header for name, header in self.tensors.items() if name not in names})

    @property
    def bytes(self) -> int:
        return sum(header.bytes for header in self.tensors.values())

    @cached_property
    def dtype(self) -> torch.dtype:
        """The float dtype that holds most bytes: what the model was saved in; 16 bits for models saved in fp8."""
        bytes_by_dtype: Counter[torch.dtype] = Counter()
        for name, header in self.tensors.items():
            if header.dtype in SOURCE_DTYPES and not is_part_of_stored(self.tensors, name):
                bytes_by_dtype[header.dtype] += header.bytes
        if self.fp8:
            del bytes_by_dtype[torch.float32]
        return bytes_by_dtype.most_common(1)[0][0] if bytes_by_dtype else torch.bfloat16


    @cached_property
    def fp8(self) -> frozenset[str]:
        """The names of the tensors in fp8."""
        return frozenset(name for name, header in self.tensors.items()
                         if header.dtype in fp8.DTYPES and name != fp8.MARKER)

    @property
    def parameters(self) -> int:
        """Numbers in the model, packed weights counted unpacked."""
        return sum(torch.Size(header.shape).numel() for name, header in self.tensors.items()
                   if not is_part_of_stored(self.tensors, name))


def read_checkpoint(path: str | Path, families: tuple[Family, ...]) -> Checkpoint:
    """Read the header of a file and recognise it; raises ValueError for anything else."""
    checkpoint = recognise(path, families)
    if checkpoint is not None:
        return checkpoint
    headers = read_header(path).tensors
    if families is DIFFUSION_MODELS:
        refuse_other_kind(path, headers)
    other = ", or set weights to 'original' to load it as ComfyUI would" if families is DIFFUSION_MODELS else ""
    looked_for = "; ".join(f"{family.title} ({', '.join(family.markers)})" for family in families)
    raise ValueError(message(
        f"'{Path(path).name}' must be a checkpoint that this node knows",
        f"a file with {len(headers)} tensors, the first named {next(iter(headers), None)!r}",
        f"{looked_for}, with or without one of the prefixes {', '.join(filter(None, PREFIXES))}",
        f"Choose another file{other}."))


def refuse_other_kind(path: str | Path, names: Iterable[str]) -> None:
    """Raise ValueError for a file that is known to be no diffusion model, saying what it is and how to load it."""
    kind = other_kind(names)
    if kind is not None:
        raise ValueError(message(
            f"'{Path(path).name}' must be a diffusion model", f"a file that is {kind.title}",
            ", ".join(family.title for family in DIFFUSION_MODELS), kind.do))


def recognise(path: str | Path, families: tuple[Family, ...]) -> Checkpoint | None:
    """The file as one of `families`, or None; raises ValueError for files that cannot be read."""
    header, note = read_header(path), ""
    headers, found = header.tensors, family_of(header.tensors, families)
    if found is None and families is DIFFUSION_MODELS:
        headers, note = comfy_names(headers) or headers, "names: diffusers', put into ComfyUI's"
        found = family_of(headers, families)
    if found is None:
        return None
    family, prefix = found
    named = {key.removeprefix(prefix): tensor for key, tensor in headers.items() if key.startswith(prefix)}
    tensors = {name: tensor for name, tensor in named.items() if not name.startswith(family.ignore)}
    metadata = {key: value for key, value in header.metadata.items() if key != QUANTIZATION}
    if note and family is LTX:
        more, line = ltx_positions(Path(path), tensors)
        metadata, note = metadata | more, f"{note}; {line}"
    return Checkpoint(Path(path), family, tensors, metadata, "; ".join(filter(None, (header.note, note))),
                      is_safetensors(path) and not is_sharded(path) and not note, is_renamed=bool(note))


def family_of(headers: dict[str, TensorHeader], families: tuple[Family, ...]) -> tuple[Family, str] | None:
    """The family of a file and the prefix that its names have there; None for anything else."""
    return next(((family, prefix) for family in families for prefix in PREFIXES
                 if _is_family(headers, family, prefix)), None)


def _is_family(headers: dict[str, TensorHeader], family: Family, prefix: str) -> bool:
    return (all(prefix + marker in headers for marker in family.markers)
            and not any(prefix + name in headers for name in family.absent)
            and all(headers[prefix + name].shape[-1:] == (columns,) for name, columns in family.columns.items()))


def read_header(path: str | Path) -> Header:
    """Names, dtypes and shapes of a file's tensors, packed weights with the shape they stand for; reads no weights."""
    with open_tensors(path) as file:
        headers = dict(file.headers)
        for key in list(headers):
            form = stored_form(headers, key)
            if form is not None:
                headers[key] = replace(headers[key], shape=CODECS[form].read_shape(file.get, key))
        return Header(headers, file.metadata, file.note)
