"""What happens to each tensor of a checkpoint: packed on the way, packed already, or left as it is, and why."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from . import fp8
from .codecs import MIXED, is_part_of_stored, stored_form
from .families import Family
from .files import TensorHeader
from .formats import Checkpoint
from .quant_state import SOURCE_DTYPES

MIN_BYTES = 1 << 20  # smaller weights stay: together they are a percent of a real model


@dataclass(frozen=True)
class LayerPlan:
    """quantize: weights to pack, and in which form. stored: weights that the file holds packed, and in which form.

    fine: why some of quantize take another form than the rest. keep: every other tensor, with the reason. weights:
    what was asked for, one of WEIGHTS.
    """

    weights: str = "nf4"
    quantize: Mapping[str, str] = field(default_factory=dict)
    fine: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)


def plan_layers(checkpoint: Checkpoint, min_bytes: int = MIN_BYTES, weights: str = "nf4",
                linears: Container[str] | None = None) -> LayerPlan:
    """Decide for every tensor; raises ValueError for weights that cannot be unpacked.

    min_bytes: weights that take fewer bytes in 16 bits stay as they are. linears: names of the weights of linear
    layers, where they are known (else every matrix is taken for one). A file with packed weights is taken as it is:
    whoever packed them has chosen what to leave.
    """
    tensors = checkpoint.tensors
    stored = {name: form for name in tensors if (form := stored_form(tensors, name)) is not None}
    form = None if stored or weights == "original" else "nf4" if weights == MIXED else weights
    sensitive = _sensitive(checkpoint, mixed=weights == MIXED)
    quantize, keep = {}, {}
    for name, header in tensors.items():
        if name in stored or is_part_of_stored(tensors, name) or fp8.is_part(tensors, name):
            continue
        fp8.check(tensors, name, checkpoint.path.name)
        reason = _reason_to_keep(name, header, checkpoint.family, min_bytes, form)
        if reason is None and linears is not None and name not in linears:
            reason = "no linear layer"
        if reason is None:
            quantize[name] = "int8" if name in sensitive else form
        else:
            keep[name] = reason
    fine = {name: sensitive[name] for name, chosen in quantize.items() if chosen != form}
    return LayerPlan(weights, quantize, fine, stored, keep)


def _sensitive(checkpoint: Checkpoint, mixed: bool) -> dict[str, str]:
    """The tensors that take 8 bits where the rest takes 4, with the reason. mixed: the mix was asked for."""
    family, names = checkpoint.family, checkpoint.tensors
    found = {name: reason for name in names for part, reason in family.fine if part in name}
    if mixed:
        found |= {name: "what attention hands on" for name in names if re.search(family.mixed, name)}
        found |= {name: "feed-forward of the later blocks" for name in _later_half(names, family.late)}
    return found


def _later_half(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match and belong to the later half of their blocks, which their first number counts."""
    blocks = [(name, *found.groups()) for name in names
              if re.search(pattern, name) and (found := re.match(r"(.*?)(\d+)\.", name))]
    last = {kind: max(int(number) for _, same, number in blocks if same == kind) for _, kind, _ in blocks}
    return [name for name, kind, number in blocks if 2 * int(number) > last[kind]]


def _reason_to_keep(name: str, header: TensorHeader, family: Family, min_bytes: int, form: str | None) -> str | None:
    if header.dtype not in (*SOURCE_DTYPES, *fp8.DTYPES):
        return "tokenizer or other data"
    for part, reason in family.keep:
        if part in name:
            return reason
    if not name.endswith(".weight") or len(header.shape) < 2:
        return "norm, bias or modulation"
    if len(header.shape) > 2:
        return "convolution"
    if form == "nf4" and header.shape[1] % 2:
        return "odd number of columns"
    if 2 * torch.Size(header.shape).numel() < min_bytes:
        return f"smaller than {min_bytes / 1e6:.1f} MB"
    return "left by whoever packed the file" if form is None else None
