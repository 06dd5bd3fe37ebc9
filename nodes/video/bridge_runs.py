"""Run folders where ComfyUI's settings say, and how a node's cache learns that something else lies in them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import folder_paths

from .manifest import MANIFEST
from .places import SUBFOLDER, run_root
from .run_folder import RunFolder, open_folder
from .seen import SEEN


def open_run(run_name: str) -> RunFolder:
    """The run folder of this name."""
    return open_folder(folder_paths.get_output_directory(), _named(), run_name)


def changes(run_name: str | None) -> int:
    """How often files of the run's folder changed behind the session's back; None: its name comes over a link, and
    every folder counts."""
    if run_name is None:
        return SEEN.changes_anywhere()
    run = open_run(run_name)
    return run.seen.changes(run.path)


def saved_takes(run_name: str | None, index: int | None) -> list[tuple]:
    """What of clip `index` of a run is on disk, to tell from what was there before; None: it comes over a link, and all
    that it could mean counts."""
    found = []
    for run in _all_runs() if run_name is None else [open_run(run_name)]:
        with contextlib.suppress(ValueError, RuntimeError) if run_name is None else contextlib.nullcontext():
            found += [(run.path.name, take.index, take.take, take.digest, *sorted(take.files)) for take in run.takes()
                      if index in (None, take.index) and "latents" in take.files]
    return found


def _all_runs() -> list[RunFolder]:
    root: Path = run_root(folder_paths.get_output_directory(), _named())
    return [RunFolder(path.parent) for path in sorted(root.glob(f"*/{MANIFEST}"))]


def _named() -> list[str]:
    return folder_paths.folder_names_and_paths.get(SUBFOLDER, ([],))[0]
