"""What to give up next when memory runs out all the same, in the order of the plan's profile."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..common.types import TEMPORAL_STRIDE, MemorySpec
from .ladder import GROUP_4BIT, LADDERS

OFFLOAD_STEP = 1 / 8  # of the weights, that goes to RAM at once (ladder.OFFLOADED); the last eighth stays


@dataclass(frozen=True)
class Concession:
    """One thing less. kind: a step of the ladder. spec: of the memory from now on. words: the sentence that says so."""

    kind: str
    spec: MemorySpec
    words: str


def step_down(spec: MemorySpec, profile: str, head_dim: int, pinned: frozenset[str] = frozenset(),
              can_offload: bool = False) -> Concession | None:
    """The next concession; None where nothing is left to give up.

    Only what a film can lose in its middle: the memory's precision, its place, its window, and the model's place.
    Clip and size stay. pinned: kinds of steps that the user has forbidden. can_offload: weights can leave the device.
    """
    for kind in LADDERS[profile]:
        if kind in pinned:
            continue
        if kind == "int8" and spec.precision == "model":
            return Concession(kind, replace(spec, precision="int8"), "the memory is stored in 8 bits")
        if kind == "4bit" and spec.precision != "4bit" and head_dim % GROUP_4BIT == 0:
            return Concession(kind, replace(spec, precision="4bit"), "the memory is stored in 4 bits")
        if kind == "ram" and spec.placement == "vram":
            return Concession(kind, replace(spec, placement="ram"), "the memory rests in RAM")
        if kind == "offload" and can_offload:
            return Concession(kind, spec, "more of the model rests in RAM")
        if kind == "window" and spec.window_latents > spec.chunk_latents:
            shorter = replace(spec, window_latents=spec.window_latents - spec.chunk_latents)
            seconds = shorter.window_latents * TEMPORAL_STRIDE / spec.fps
            return Concession(kind, shorter, f"the memory's window is {seconds:.1f} s long")
    return None
