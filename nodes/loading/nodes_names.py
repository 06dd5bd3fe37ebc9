"""The model files that a node offers by name, whether one is there, and what tells it from its successor."""

from __future__ import annotations

import os

import folder_paths

from ..common.errors import message


def model_names(folder: str) -> list[str]:
    """The files of models/<folder>."""
    return folder_paths.get_filename_list(folder)


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
    """The file's name, time and size."""
    if name is None:  # over a link: that input's own value tells the cache
        return ()
    facts = os.stat(folder_paths.get_full_path_or_raise(folder, name))
    return name, facts.st_mtime_ns, facts.st_size
