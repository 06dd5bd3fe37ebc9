"""What of a clip is done while the rest is still being made: kept on disk, so that a full card, Cancel or a kill cost
no more than the chunk in flight.

One small file per clip, named by a digest of all that the clip is made from, gone as soon as the clip is whole. A file
that cannot be read counts as none, and one that cannot be written costs a sentence, never a clip.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..common.digest import value_key
from ..common.disk import discard
from ..common.errors import message
from ..common.saved_files import ENDING, PARTIAL, WRITE_ERRORS, write_whole
from ..common.types import MemorySpec

FOLDER = "unfinished"  # inside the pack's part of ComfyUI's user folder
KEPT = 8  # files, the newest
NAME = "samples"
VERSION = 1  # of what a clip is made like: another one takes nothing up
GIVEN_UP = ("precision", "window_latents")  # of a memory, when memory runs out (budget.retreat); where it rests is free
BROKEN_S = 3600  # after that nobody is writing any more


class Unfinished:
    """The finished part of one clip.

    folder: where such files lie. made_from: all that decides what the clip is, for value_key. spec: of its memory; how
    that stores what it holds may be another after memory ran out: somebody who plans with less then goes on.
    """

    def __init__(self, folder: Path, made_from: Sequence[Any], spec: MemorySpec) -> None:
        facts = vars(replace(spec, placement=""))
        stored = {name: facts.pop(name) for name in GIVEN_UP}
        self.folder, self.key = folder, value_key([VERSION, made_from, facts], in_session=True)
        self.path = folder / f"{self.key}.{value_key(stored)[:8]}{ENDING}"
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
        facts = {"done": str(done), "words": words, "ran_out": "yes" if ran_out else "no"}
        try:
            write_whole(self.path, {NAME: self._newest[0]}, facts)
            self._sweep()
        except WRITE_ERRORS as error:
            return f"What is finished of the clip could not be kept in {self.folder} ({error})."
        return ""

    def ran_out(self, error: BaseException) -> torch.OutOfMemoryError:
        """Note that memory ran out, and nothing was left to give up; the error that says what is kept."""
        then = "Close other programs, or let VRAM Budget Gate plan with less."
        if self._newest is not None and not self.keep(*self._newest[::2], self._newest[1], ran_out=True):
            then += (f" Of the clip {self._newest[2]} are kept: queue it again in the same size and length, and it "
                     "goes on from there.")
        return torch.OutOfMemoryError(message("Clip Sampler: memory ran out, and nothing is left to give up", error,
                                              "a little more memory", then))

    def note(self) -> str:
        """What was taken up, for the node's report; "" where nothing was."""
        if not self.taken_up:
            return ""
        return f" The clip had broken off before: {self.taken_up} were kept and not sampled again."

    def forget(self) -> None:
        """The clip is whole."""
        for path in (self.path, *self._others()):
            discard(path)

    def _load(self) -> tuple[torch.Tensor | None, int, str]:
        """What was kept as (samples, done, words); (None, 0, "") where nothing was, or nothing that can be trusted."""
        for path in (self.path, *self._others()):
            found = _read(path)
            if found is not None:
                self._newest = found
                return found
        return None, 0, ""

    def _others(self) -> list[Path]:
        """Files of this clip, its memory stored another way, that broke off as memory ran out."""
        found = sorted(self.folder.glob(f"{self.key}.*{ENDING}"), key=lambda path: -path.stat().st_mtime)
        return [path for path in found if path != self.path and _facts(path).get("ran_out") == "yes"]

    def _sweep(self) -> None:
        """Only the newest files stay, and nothing of a process that was killed while it wrote."""
        found = sorted(self.folder.glob(f"*{ENDING}"), key=lambda path: -path.stat().st_mtime)
        broken = [path for path in self.folder.glob(f"*{PARTIAL}") if time.time() - path.stat().st_mtime > BROKEN_S]
        for path in (*found[KEPT:], *broken):
            discard(path)


def _facts(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError, ValueError):
        return {}


def _read(path: Path) -> tuple[torch.Tensor, int, str] | None:
    try:
        with safe_open(str(path), "pt") as file:
            facts, kept = file.metadata() or {}, file.get_tensor(NAME).clone()  # Windows replaces no mapped file
            found = kept, int(facts["done"]), facts["words"]
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    return found if kept.dtype == torch.float32 and bool(kept.isfinite().all()) else None
