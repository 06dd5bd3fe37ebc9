"""What a file is that is no text encoder, in words for the message that refuses it."""

from __future__ import annotations

from pathlib import Path

from .families import other_kind
from .formats import DIFFUSION_MODELS, read_header, recognise

_ALL_IN_ONE = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")


def name_file(path: str | Path) -> tuple[str, str]:
    """What the file is, by its tensors' names, and what to do with it."""
    keys = read_header(path).tensors
    size = f"({len(keys)} tensors, the first named {next(iter(keys), None)!r})"
    model = recognise(path, DIFFUSION_MODELS)
    kind = other_kind(keys)
    if any(key.startswith("model.diffusion_model.") for key in keys) and any(map(_is_beside_model, keys)):
        return f"an all-in-one checkpoint {size}", "Load it with a checkpoint loader, or choose another file."
    if model is not None:
        return (f"a {model.family.title} {size}", "Load it with Load Diffusion Model (NF4), or choose another file.")
    if kind is None:
        return f"a file that is not known {size}", "Choose another file."
    if kind.title == "a text encoder":
        return (f"a text encoder in a layout that ComfyUI does not read {size}",
                "Choose the file as repackaged for ComfyUI.")
    return f"{kind.title} {size}", kind.do


def _is_beside_model(key: str) -> bool:
    return key.startswith(_ALL_IN_ONE)
