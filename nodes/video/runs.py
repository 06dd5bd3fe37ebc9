"""How a node's cache learns that something else lies in run folders than when the node ran last.

output, named: ComfyUI's output folder, and the user's own places for run folders (places.run_root).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from .manifest import MANIFEST
from .places import run_root
from .run_folder import RunFolder, open_folder
from .seen import SEEN


def changes(output: str, named: Sequence[str], run_name: str | None) -> int:
    """How often files of the run's folder changed behind the session's back; None: its name comes over a link, and
    every folder counts."""
    if run_name is None:
        return SEEN.changes_anywhere()
    run = open_folder(output, named, run_name)
    return run.seen.changes(run.path)


def saved_takes(output: str, named: Sequence[str], run_name: str | None, index: int | None) -> list[tuple]:
    """What of clip `index` of a run is on disk, to tell from what was there before; None: it comes over a link, and all
    that it could mean counts."""
    found = []
    for run in _all_runs(output, named) if run_name is None else [open_folder(output, named, run_name)]:
        with contextlib.suppress(ValueError, RuntimeError) if run_name is None else contextlib.nullcontext():
            found += [(run.path.name, take.index, take.take, take.digest, *sorted(take.files)) for take in run.takes()
                      if index in (None, take.index) and "latents" in take.files]
    return found


def _all_runs(output: str, named: Sequence[str]) -> list[RunFolder]:
    return [RunFolder(path.parent) for path in sorted(run_root(output, named).glob(f"*/{MANIFEST}"))]
