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

from ..common.errors import message

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
        self.taken_up = ""  # what of the clip was there before, in words
        self._newest: tuple[torch.Tensor, int, str] | None = None

    def chunks(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        """The clip's first latents, [1, C, n, h, w] float32; None where none were kept. shape: of the whole clip."""
        kept, _, words = self._load()
        if kept is None or kept.ndim != 5 or kept.shape[2] > shape[2]:
            return None
        if (*kept.shape[:2], *kept.shape[3:]) != (*shape[:2], *shape[3:]):
            return None
        self.taken_up = words
        return kept

    def parts(self, shape: tuple[int, ...]) -> tuple[int, torch.Tensor | None]:
        """How many of the models that sample the clip one after the other are done, and what they left, float32 of this
        shape; (0, None) where nothing was kept."""
        kept, done, words = self._load()
        if kept is None or kept.shape != shape:
            return 0, None
        self.taken_up = words
        return done, kept

    def keep(self, samples: torch.Tensor, words: str, done: int = 0, ran_out: bool = False) -> str:
        """Put this in place of what was kept before; "" or why that was not possible.

        words: what it is, for people. done: models that are done. ran_out: the clip broke off as memory ran out.
        """
        self._newest = samples.detach().to("cpu", torch.float32).contiguous(), done, words
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        facts = {"way": self.way, "done": str(done), "words": words, "ran_out": "yes" if ran_out else "no"}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({NAME: self._newest[0]}, str(partial), metadata=facts)
            os.replace(partial, self.path)
            self._sweep()
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            return f"What is finished of the clip could not be kept in {self.path.parent} ({error})."
        return ""

    def ran_out(self, error: BaseException) -> torch.OutOfMemoryError:
        """Note that memory ran out, and nothing was left to give up; the error that says what is kept."""
        then = "Close other programs, or let VRAM Budget Gate plan with less."
        if self._newest is not None and not self.keep(*self._newest[::2], self._newest[1], ran_out=True):
            then += f" Of the clip {self._newest[2]} are kept: queue again, and it goes on from there."
        return torch.OutOfMemoryError(message("Clip Sampler: memory ran out, and nothing is left to give up", error,
                                              "a little more memory", then))

    def note(self) -> str:
        """What was taken up, for the node's report; "" where nothing was."""
        if not self.taken_up:
            return ""
        return f" The clip had broken off before: {self.taken_up} were kept and not sampled again."

    def forget(self) -> None:
        """The clip is whole."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _load(self) -> tuple[torch.Tensor | None, int, str]:
        """What was kept as (samples, done, words); (None, 0, "") for what was made another way or cannot be trusted."""
        nothing = None, 0, ""
        try:
            with safe_open(str(self.path), "pt") as file:
                facts, kept = file.metadata() or {}, file.get_tensor(NAME).clone()  # Windows replaces no mapped file
                found = kept, int(facts["done"]), facts["words"]
                is_ours = facts["way"] == self.way or facts["ran_out"] == "yes"
        except (OSError, SafetensorError, ValueError, KeyError):
            return nothing
        if not is_ours or kept.dtype != torch.float32 or not bool(kept.isfinite().all()):
            return nothing
        self._newest = found
        return found

    def _sweep(self) -> None:
        """Only the newest files stay."""
        found = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        for path in found[KEPT:]:
            with contextlib.suppress(OSError):
                path.unlink()
