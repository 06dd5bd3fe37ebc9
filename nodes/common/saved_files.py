"""Values that people save and load by name in ComfyUI's output folder: names, places, and a write that is all or none.

Folders are given, so that nothing here needs ComfyUI.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .disk import can_be_written, discard, patiently
from .errors import message

ENDING, PARTIAL = ".safetensors", ".partial"
WRITE_ERRORS = (OSError, SafetensorError)  # of write_whole


def check_prefix(node: str, prefix: str | None, example: str) -> bool | str:
    """True, or why a file cannot be named so; a prefix that comes over a link is None here. For validate_inputs."""
    parts = ["linked"] if prefix is None else prefix.replace("\\", "/").split("/")
    if all(_can_name(part) for part in parts):
        return True
    return message(f"{node} needs a name for its file", repr(prefix)[:80],
                   "a name, or folder/name, of up to 100 characters each, without .. and < > : \" | ? *",
                   f"Choose a name such as {example}.")


def _can_name(part: str) -> bool:
    return bool(part.strip()) and part != ".." and len(part) <= 100 and can_be_written(part)


def saved_names(folder: str | os.PathLike[str]) -> list[str]:
    """The files below a folder; saving makes sub-folders of a prefix such as heroes/anna."""
    folder = Path(folder)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{ENDING}"))


def check_saved(node: str, folder: str | os.PathLike[str], file: str | None, what: str) -> bool | str:
    """True, or why a file cannot be loaded; a name that comes over a link is None here. For validate_inputs."""
    try:
        return file is None or bool(saved_path(node, folder, file, what))
    except ValueError as error:
        return str(error)


def saved_path(node: str, folder: str | os.PathLike[str], file: str, what: str) -> str:
    """Where a saved file lies; ValueError for anything that is not in the list of its folder."""
    known = saved_names(folder)
    if file not in known:
        raise ValueError(message(f"{node}: no such file", file, ", ".join(known) or "nothing is saved yet",
                                 f"Save a {what} first, or press R to refresh the list."))
    return os.path.join(folder, *file.split("/"))


def stamp(path: str | os.PathLike[str]) -> str:
    """Tells a file from its successor under the same name. For fingerprint_inputs."""
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def write_whole(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file beside its name, then rename it; raises one of WRITE_ERRORS with nothing left behind and
    an older file as it was."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), str(partial), metadata=dict(metadata))
        patiently(os.replace, partial, path)
    finally:
        discard(partial)
