"""Which files of run folders this session trusts: each was compared with its checksum once, then by size and time.

A byte that changes on the disk changes no size, so that only a checksum finds it; a film's memories may be gigabytes,
so that no checksum can be taken at every step. Files that this session has written were hashed on the way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from ..common.progress import SILENT
from .manifest import StoredFile

Stat = tuple[int, int]  # bytes, time of the last change in ns
NEVER: Stat = (-1, -1)


class SeenFiles:
    """The session's knowledge of files, by path. One instance per session: SEEN."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stat, str]] = {}  # what it looked like when it had this checksum
        self._changes: dict[Path, int] = {}  # by folder
        self._news: dict[Path, list[str]] = {}

    def is_intact(self, path: Path, stored: StoredFile, check_cancel: Callable[[], None] = SILENT.check_cancel) -> bool:
        """Whether the file is as the manifest says: size first, then the checksum unless it is known from before."""
        stat = _stat(path)
        if stat is None or stat[0] != stored.bytes:
            return False
        if self._known.get(path) != (stat, stored.sha256):
            if file_sha256(path, check_cancel) != stored.sha256:
                return False
            self._known[path] = (stat, stored.sha256)
        return True

    def wrote(self, path: Path, sha256: str) -> None:
        """The session has just written this file."""
        self._known[path] = (_stat(path) or NEVER, sha256)

    def removed(self, path: Path) -> None:
        """The session has deleted this file, or stopped caring."""
        self._known.pop(path, None)

    def missed(self, path: Path) -> None:
        """The session needs this file and it is not there: from now on its folder counts as changed."""
        self._known[path] = (NEVER, "")

    def changes(self, folder: Path) -> int:
        """How often files of this folder were found changed or gone behind the session's back.

        A node whose cache key holds this number is executed again after such a change, and looks for itself.
        """
        changed = [path for path, (stat, _) in self._known.items() if path.parent == folder and _stat(path) != stat]
        for path in changed:
            del self._known[path]
        self._changes[folder] = self._changes.get(folder, 0) + bool(changed)
        return self._changes[folder]

    def changes_anywhere(self) -> int:
        """The same of all folders together: for a node that does not know yet which folder is meant."""
        return sum(self.changes(folder) for folder in {path.parent for path in self._known} | set(self._changes))

    def tell(self, folder: Path, sentence: str) -> None:
        """Keep a sentence for the next report about this folder."""
        self._news.setdefault(folder, []).append(sentence)

    def news(self, folder: Path) -> list[str]:
        """The sentences kept for this folder, once."""
        return self._news.pop(folder, [])


SEEN = SeenFiles()


def file_sha256(path: Path, check_cancel: Callable[[], None] = SILENT.check_cancel) -> str:
    """Hex sha256 of a file, read in pieces of 1 MB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            check_cancel()
            digest.update(piece)
    return digest.hexdigest()


def _stat(path: Path) -> Stat | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
