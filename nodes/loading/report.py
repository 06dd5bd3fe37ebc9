"""What a loader tells about a file: what was packed, what stayed and why, and the sizes before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .codecs import CODECS, TITLES
from .files import files_of
from .formats import Checkpoint
from .plan import LayerPlan


def describe_load(checkpoint: Checkpoint, plan: LayerPlan, loaded_bytes: int) -> str:
    """The node's report of a file whose weights the pack has read."""
    lines = [f"{checkpoint.path.name}: {checkpoint.family.title}, {megabytes(checkpoint.bytes)} in the file, "
             f"{megabytes(loaded_bytes)} loaded"]
    if checkpoint.note:
        lines.append(checkpoint.note)
    for form, count in Counter(plan.quantize.values()).most_common():
        headers = [checkpoint.tensors[name] for name, chosen in plan.quantize.items() if chosen == form]
        packed = sum(CODECS[form].packed_bytes(*header.shape) for header in headers)
        before = sum(header.bytes for header in headers)
        reasons = dict.fromkeys(plan.fine[name] for name, chosen in plan.quantize.items()
                                if chosen == form and name in plan.fine)
        what = f"x {' and '.join(reasons)}" if reasons else "weights"
        lines.append(f"{TITLES[form]}: {count} {what}, {megabytes(before)} -> {megabytes(packed)}")
    for form, count in Counter(plan.stored.values()).most_common():
        lines.append(f"{TITLES[form]} already in the file: {count} weights"
                     + ("" if plan.weights in (form, "original") else ", taken as they are"))
    if not plan.quantize and not plan.stored:
        lines.append(f"{TITLES[plan.weights]}: no weight, the model stays in high precision")
    for reason, count in Counter(plan.keep.values()).most_common():
        size = sum(checkpoint.tensors[name].bytes for name, why in plan.keep.items() if why == reason)
        lines.append(f"as stored: {count} x {reason}, {megabytes(size)}")
    return "\n".join(lines)


def describe_unused(names: Sequence[str]) -> str:
    """The report's line about tensors that were left in the file, or ""."""
    return f"not used, ComfyUI has no place for it: {len(names)} tensors, first {names[0]}" if names else ""


def describe_original(path: Path, loaded_bytes: int, note: str = "") -> str:
    """The node's report for a file whose weights ComfyUI took as they are; note: how the file was wrapped."""
    size = sum(part.stat().st_size for part in files_of(path))
    line = (f"{path.name}: loaded as it is through ComfyUI, {megabytes(size)} in the file, "
            f"{megabytes(loaded_bytes)} loaded")
    return f"{line}\n{note}" if note else line


def megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
