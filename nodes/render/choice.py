"""Which take of every clip a film uses, and what has to be made: a walk from the first clip to the last.

A take's fingerprint says what it was made from, in three parts: its own (checkpoint, plan, film seed, its text and so
on), the seed it was sampled with, and what came before it, the digest of the fingerprint of the clip before. A take of
the run folder fits where its own part is right and it follows the clip before it: then it is the clip that would come
out again. To make one clip again is to give it another seed; those behind it do not follow any more. They are made
again too, or kept by choice: then they are given the fingerprint that they would have behind the new clip.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..common.errors import message

REGENERATE = ("none", "only", "from")
DIGITS = 24


@dataclass(frozen=True)
class Again:
    """What the user wants to see made again: nothing, only clip `clip`, or all from it on; clips count from 0."""

    mode: str = "none"
    clip: int = 0
    seed: int = 0

    def includes(self, index: int) -> bool:
        """Whether this clip is to be made with the new seed."""
        return (self.mode == "only" and index == self.clip) or (self.mode == "from" and index >= self.clip)


@dataclass(frozen=True)
class Choice:
    """One clip of the film: what it is made from, its seed, and the fingerprint of a take that is kept instead."""

    fingerprint: str
    seed: int
    keeps: str = ""


def choose(owns: Sequence[str], start: str, seed: int, listed: Callable[[int], list[str]],
           again: Again) -> tuple[Choice, ...]:
    """What every clip of the film is.

    owns: digest of what each clip is made from, apart from its seed and what came before. start: digest of what the
    film begins with. seed: of clips that no take says anything of. listed: fingerprints of the takes of a clip, the
    best first.
    """
    _check(again, len(owns))
    choices, before = [], short(start)
    for index, own in enumerate(owns):
        takes = [(text, parts) for text in listed(index) if (parts := _parts(text)) and parts[0] == own]
        fitting = [parts[1] for _, parts in takes if parts[2] == before]
        keeps, chosen = "", seed
        if again.includes(index):
            chosen = again.seed
        elif fitting:
            chosen = fitting[0]
        elif again.mode == "only" and index > again.clip and takes:
            keeps, (_, chosen, _) = takes[0]
        fingerprint = f"{own}.{chosen}.{before}"
        choices.append(Choice(fingerprint, chosen, keeps))
        before = short(fingerprint)
    return tuple(choices)


def short(text: str) -> str:
    """A digest that fits into a fingerprint."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _parts(fingerprint: str) -> tuple[str, int, str] | None:
    """(own, seed, before); None for a fingerprint that is not of this making."""
    found = re.fullmatch(rf"([0-9a-f]{{{DIGITS}}})\.(\d+)\.([0-9a-f]{{{DIGITS}}})", fingerprint)
    return (found[1], int(found[2]), found[3]) if found else None


def _check(again: Again, clips: int) -> None:
    if again.mode not in REGENERATE:
        raise ValueError(message("Render Short: unknown choice of what to make again", again.mode,
                                 ", ".join(REGENERATE), "Choose another."))
    if again.mode != "none" and not 0 <= again.clip < clips:
        raise ValueError(message("Render Short: the clip to make again is not in the film", again.clip + 1,
                                 f"1 to {clips}", "Change the number of the clip; the first one is 1."))
