"""What of a clip is done while the rest is still being made: kept on disk, so that a full card, Cancel or a kill cost
no more than the chunk in flight.

One small file per clip, named by a digest of all that the clip is made from, gone as soon as the clip is whole. A file
that cannot be read counts as none, and one that cannot be written costs a sentence, never a clip.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FOLDER = "unfinished"  # inside the pack's part of ComfyUI's user folder
KEPT = 8  # files, the newest
NAME = "samples"


class Unfinished:
    """The finished part of one clip.

    folder: where such files lie. key: digest of what the clip is made from. way: digest of how the memory is stored
    while it is made, which may be another one after memory ran out: somebody who plans with less then goes on.
    """

    def __init__(self, folder: Path, key: str, way: str) -> None:
        self.path, self.way = folder / f"{key}.safetensors", way
        self._newest: torch.Tensor | None = None
        self._taken_up = 0

    def load(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        """What was kept, float32; None where there is nothing, or nothing of this shape (its length may be shorter).

        shape: [1, C, n, h, w] of the whole clip.
        """
        try:
            with safe_open(str(self.path), "pt") as file:
                facts, found = file.metadata() or {}, file.get_tensor(NAME)
        except (OSError, SafetensorError, ValueError):
            return None
        if facts.get("way") != self.way and facts.get("ran_out") != "yes":
            return None
        fits = found.dtype == torch.float32 and found.ndim == len(shape) and found.shape[2] <= shape[2]
        is_same = fits and (*found.shape[:2], *found.shape[3:]) == (*shape[:2], *shape[3:])
        if not is_same or not bool(found.isfinite().all()):
            return None
        self._newest, self._taken_up = found, int(found.shape[2])
        return found

    def keep(self, samples: torch.Tensor, ran_out: bool = False) -> str:
        """Put this in place of what was kept before; "" or why that was not possible.

        ran_out: the clip broke off because memory ran out.
        """
        self._newest = samples.detach().to("cpu", torch.float32).contiguous()
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        facts = {"way": self.way, "ran_out": "yes" if ran_out else "no"}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({NAME: self._newest}, str(partial), metadata=facts)
            os.replace(partial, self.path)
            self._sweep()
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            return f"What is finished of the clip could not be kept in {self.path.parent} ({error})."
        return ""

    def broke_off(self) -> int:
        """Note that memory ran out; returns how many latents are kept."""
        if self._newest is None or self.keep(self._newest, ran_out=True):
            return 0
        return int(self._newest.shape[2])

    def note(self) -> str:
        """What was taken up, for the node's report; "" where nothing was."""
        if not self._taken_up:
            return ""
        return (f" The clip had broken off before: its first {self._taken_up} latents were kept and not sampled "
                "again.")

    def forget(self) -> None:
        """The clip is whole."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Only the newest files stay."""
        found = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        for path in found[KEPT:]:
            with contextlib.suppress(OSError):
                path.unlink()
