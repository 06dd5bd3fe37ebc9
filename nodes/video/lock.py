"""One film, one process: two ComfyUI that render into one run folder would replace each other's clips.

The operating system locks the file `run.lock` inside the folder for the process that has it open, and unlocks it when
that process ends, however it ends: no lock is ever stale. The file tells people who has it. On drives without locks
(some network shares) nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ..common.errors import message

LOCK_FILE = "run.lock"
LOCKED_BYTE = 1 << 30  # far behind the text, which Windows would not let others read otherwise
POLL_S = 0.5
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # the rest means: this drive has no locks


@dataclass
class _Held:
    handle: int  # of the open lock file
    depth: int = 0
    is_kept: bool = False  # beyond the outermost `hold`, until the watcher lets go
    prompt: str = ""
    makers: dict[int, tuple[str, str]] = field(default_factory=dict)  # clip -> (node, fingerprint), of this prompt


class FolderLocks:
    """The run folders that this process writes to. One instance per process: LOCKS."""

    def __init__(self) -> None:
        self._held: dict[Path, _Held] = {}
        self._guard = threading.RLock()

    @contextlib.contextmanager
    def hold(self, folder: Path) -> Iterator[None]:
        """Keep other processes out of the folder meanwhile (made if need be); RuntimeError when one is in there."""
        held = self._take(folder)
        held.depth += 1
        try:
            yield
        finally:
            held.depth -= 1
            self._drop(folder)

    def keep(self, folder: Path, running: Callable[[], str]) -> None:
        """Keep other processes out as long as a prompt is executed; RuntimeError when one is in there.

        running: the id of the prompt that is being executed, "" when there is none (asked twice a second).
        """
        held = self._take(folder)
        if running() and not held.is_kept:
            held.is_kept = True
            threading.Thread(target=self._watch, args=(folder, running), daemon=True).start()
        self._drop(folder)

    def claim(self, folder: Path, index: int, node: str, fingerprint: str, prompt: str) -> None:
        """ValueError when another node of this prompt has claimed the clip for something else, while it is kept."""
        held = self._held.get(folder)
        if held is None:
            return
        if held.prompt != prompt:
            held.prompt, held.makers = prompt, {}
        first = held.makers.setdefault(index, (node, fingerprint))
        if first[0] != node and not (fingerprint and first[1] == fingerprint):
            raise ValueError(message(
                f"Each clip of the run {folder.name!r} has one place in the graph", f"clip {index} from the node "
                f"{node} and from the node {first[0]}", "one Save Clip or Render Short per clip and run name",
                "Give one of them another run name, or connect the clips of one Save Clip to the next."))

    def _take(self, folder: Path) -> _Held:
        with self._guard:
            held = self._held.get(folder)
            if held is not None and _is_same_file(held.handle, folder / LOCK_FILE):
                return held
            handle = _lock(folder)
            if held is not None:  # the folder was deleted and made anew
                os.close(held.handle)
                held.handle = handle
            return self._held.setdefault(folder, _Held(handle))

    def _drop(self, folder: Path) -> None:
        with self._guard:
            held = self._held.get(folder)
            if held is not None and not held.depth and not held.is_kept:
                del self._held[folder]
                os.close(held.handle)

    def _watch(self, folder: Path, running: Callable[[], str]) -> None:
        while running():
            time.sleep(POLL_S)
        with self._guard:
            self._held[folder].is_kept = False
            self._drop(folder)


LOCKS = FolderLocks()


def _lock(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock_handle(handle)
    except OSError as error:
        if error.errno in TAKEN:
            owner = _owner(handle)
            os.close(handle)
            raise RuntimeError(message(
                f"The run {folder.name!r} is written by one ComfyUI at a time", owner, "no other that renders it",
                "Choose another run name, or wait until that one is done. Nothing was changed.")) from error
    facts = {"pid": os.getpid(), "host": socket.gethostname(),
             "since": datetime.now().astimezone().isoformat(timespec="seconds")}
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(facts).encode())
    return handle


def _owner(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        facts = json.loads(os.read(handle, 4096))
        return f"another at work there (process {facts['pid']} on {facts['host']}, since {facts['since']})"
    except (ValueError, KeyError, TypeError):
        return "another at work there"


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock_handle(handle: int) -> None:
        os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_handle(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
