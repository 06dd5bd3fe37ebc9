"""Where run folders lie, and under which names.

Clips want a fast drive with room (hot), the finished film goes to ComfyUI's output folder (archive). Another drive for
the clips is named where people name other drives to ComfyUI, in extra_model_paths.yaml:

    videomemory:
        base_path: D:/
        videomemory: films
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..common.disk import FORBIDDEN, is_reserved
from ..common.errors import message

SUBFOLDER = "videomemory"  # of the output folder; also the key in extra_model_paths.yaml
NAME_LENGTH = 80


def run_root(output: str, named: Sequence[str]) -> Path:
    """The folder that holds all run folders: the first of those that the user has named, else one in the output folder.

    RuntimeError when the named one is not there: a drive that is not plugged in must not become a folder on another.
    """
    if not named:
        return Path(output) / SUBFOLDER
    if not Path(named[0]).is_dir():
        raise RuntimeError(message(
            "The run folders lie where extra_model_paths.yaml says (videomemory)", f"no folder {named[0]!r}",
            "a folder that exists", "Connect its drive, make the folder, or take the entry out and restart ComfyUI."))
    return Path(named[0])


def run_path(root: str | Path, run_name: str) -> Path:
    """The run folder `run_name` inside `root`; ValueError for a name that is no plain folder name on every system.

    Characters that Windows refuses become "_"; path separators, reserved device names and an empty name are refused.
    """
    name = run_name.strip().rstrip(". ")
    plain = name and not re.search(r"[/\\]", run_name) and len(name) <= NAME_LENGTH
    if not plain or is_reserved(name):
        raise ValueError(message(
            "A run needs a name for its folder", run_name,
            f"a plain folder name of 1 to {NAME_LENGTH} characters without / or \\ and not a device name such as CON",
            'Choose a name such as "my_short".'))
    return Path(root) / FORBIDDEN.sub("_", name)
