"""What to give up next when memory runs out all the same, in the order of the plan's profile."""

from __future__ import annotations

from dataclasses import replace

from ..common.types import TEMPORAL_STRIDE, MemorySpec
from .ladder import GROUP_4BIT, LADDERS


def step_down(spec: MemorySpec, profile: str, head_dim: int) -> tuple[MemorySpec, str] | None:
    """The memory with one thing less, and the sentence that says so; None where nothing is left to give up.

    Only what a film can lose in its middle: the memory's precision, its place, its window. Clip and size stay.
    """
    for kind in LADDERS[profile]:
        if kind == "int8" and spec.precision == "model":
            return replace(spec, precision="int8"), "the memory is stored in 8 bits"
        if kind == "4bit" and spec.precision != "4bit" and head_dim % GROUP_4BIT == 0:
            return replace(spec, precision="4bit"), "the memory is stored in 4 bits"
        if kind == "ram" and spec.placement == "vram":
            return replace(spec, placement="ram"), "the memory rests in RAM"
        if kind == "window" and spec.window_latents > spec.chunk_latents:
            shorter = replace(spec, window_latents=spec.window_latents - spec.chunk_latents)
            seconds = shorter.window_latents * TEMPORAL_STRIDE / spec.fps
            return shorter, f"the memory's window is {seconds:.1f} s long"
    return None
