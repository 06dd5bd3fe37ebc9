"""Runs a Python program as `python child.py PARENT_PID PROGRAM ARGS...` and ends it when that parent is gone.

Whatever ends the parent (an exception, a closed terminal, kill -9), no server stays behind.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time

POLL_S = 0.5
WINDOWS_SYNCHRONIZE = 0x00100000
WINDOWS_INFINITE = 0xFFFFFFFF


def wait_for_end(parent: int) -> None:
    """Block until the process `parent` has ended."""
    if sys.platform == "win32":
        import ctypes

        # The parent seen by os.getppid() may be the venv's launcher, and stays the same after it ended.
        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(WINDOWS_SYNCHRONIZE, False, parent)
        if handle:
            kernel.WaitForSingleObject(handle, WINDOWS_INFINITE)
    else:
        while os.getppid() == parent:
            time.sleep(POLL_S)


def _end_with(parent: int) -> None:
    wait_for_end(parent)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = sys.argv[2:]
    place = os.path.dirname(os.path.abspath(sys.argv[0]))
    sys.path[:0 if sys.flags.isolated else 1] = [place]  # an isolated Python has no place of the script in front
    runpy.run_path(sys.argv[0], run_name="__main__")
