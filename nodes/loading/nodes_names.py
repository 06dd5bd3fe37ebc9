"""The model files that a node offers by name, whether one is there, and what tells it from its successor."""

from __future__ import annotations

import os

import folder_paths

from ..common.errors import message
from .files import INDEX, SHARD, files_of


def model_names(folder: str) -> list[str]:
    """The files of models/<folder>, and for each sharded set the list of its files, where that lies beside them."""
    names = folder_paths.get_filename_list(folder)
    lists = dict.fromkeys(f"{shard['stem']}{INDEX}" for shard in map(SHARD.fullmatch, names) if shard)
    return [*names, *(name for name in lists if folder_paths.get_full_path(folder, name))]


def check_name(node: str, folder: str, name: str | None) -> bool | str:
    """Whether the file is there; a name that comes over a link is None here and is checked when the node runs.

    Only the name is asked for: ComfyUI repeats a refusal for every input that validate_inputs takes.
    """
    names = model_names(folder)
    if name is not None and name not in names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return message(f"{node} needs a file of models/{folder}", name, shown or "nothing: the folder is empty",
                       "Put the file there and press R, or choose another one.")
    return True


def fingerprint(folder: str, name: str | None) -> tuple:
    """The file's name, and the time and size of it, or of all files of its set."""
    if name is None:  # over a link: that input's own value tells the cache
        return ()
    facts = [os.stat(part) for part in files_of(folder_paths.get_full_path_or_raise(folder, name))]
    return name, *(fact for part in facts for fact in (part.st_mtime_ns, part.st_size))
