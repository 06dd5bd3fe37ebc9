"""One line in the terminal that is rewritten in place, or now and then a plain line where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

PLAIN_INTERVAL_S = 20.0
LIVE_INTERVAL_S = 0.1


def duration_text(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `1 min 05 s`."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def bar_text(fraction: float, width: int = 16) -> str:
    """`[########----]` for a fraction of 0 to 1, ASCII because a Windows console may know nothing else."""
    filled = round(min(max(fraction, 0.0), 1.0) * width)
    return "[" + "#" * filled + "-" * (width - filled) + "]"


class StatusLine:
    """The line `<label> (<time>): <detail>`; use as a context manager, which leaves the cursor on a fresh line."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self.stream = stream if stream is not None else sys.stdout
        self.live = self.stream.isatty()
        self.started = time.monotonic()
        self.last_shown = 0.0
        self.last_detail = ""

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *failure: object) -> None:
        self.clear()

    def show(self, detail: str, with_time: bool = True) -> None:
        """Show `detail` now on a terminal; elsewhere at most every 20 seconds, and only when it says something new."""
        now = time.monotonic()
        interval = LIVE_INTERVAL_S if self.live else PLAIN_INTERVAL_S
        if (self.last_shown and now - self.last_shown < interval) or (not self.live and detail == self.last_detail):
            return
        self.last_shown, self.last_detail = now, detail
        took = f" ({duration_text(now - self.started)})" if with_time else ""
        text = f"{self.label}{took}: {detail}"
        if self.live:
            width = self._width()
            self.stream.write("\r" + text[:width].ljust(width))  # spaces: an old Windows console knows no escape codes
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Wipe the live line, so that the next print starts on an empty one."""
        if self.live and self.last_shown:
            self.stream.write("\r" + " " * self._width() + "\r")
            self.stream.flush()
            self.last_shown = 0.0

    def seconds(self) -> float:
        """Seconds since this line was made."""
        return time.monotonic() - self.started

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1
