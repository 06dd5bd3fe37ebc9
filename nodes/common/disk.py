"""Files that somebody else may be looking at, and names that every system can write.

Linux replaces and deletes a file that is open elsewhere. Windows says that it is in use, and there a virus scanner, the
indexer, a player, or the editor that asks for the film's state opens files for moments at any time.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')  # by Windows; "a:b" would even be a hidden part of the file "a" there
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
WAITS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if os.name == "nt" else ()


def patiently(act: Callable[..., Result], *given: object, **named: object) -> Result:
    """What act(*given, **named) returns; where Windows says that a file is in use, it is tried again for 4 seconds."""
    for wait in WAITS_S:
        try:
            return act(*given, **named)
        except PermissionError:
            time.sleep(wait)
    return act(*given, **named)


def discard(path: Path) -> bool:
    """Delete a file if it is there; False where that cannot be done now. Never hides the error that led to it."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def can_be_written(name: str) -> bool:
    """Whether every system can have a file or folder of that name."""
    return not FORBIDDEN.search(name) and not is_reserved(name)


def is_reserved(name: str) -> bool:
    """Whether Windows takes a file or folder of that name for a device, as it does with CON and aux.txt."""
    return name.split(".")[0].strip().upper() in RESERVED
