"""Everything that may be given up, as a fixed list of plans: the order of a profile, from all that was asked to least.

The list does not depend on the budget, and the first plan on it that fits is taken. Therefore more VRAM never climbs
further down, and the plan that came out, asked for again, comes out again.

How much of the model rests in RAM stands in the middle: what comes before it in a profile is given up first; behind it
every plan is tried with as little of the model in RAM as will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..common.errors import message
from ..common.types import MemorySpec, ModelFacts
from ..memory.latent_memory import frames_to_keep, latents_of
from ..sampling.presets import find_preset
from .cost_model import Job, sampling_cost

# The order in which a profile gives things up. Tiling the decode comes before all of them: it costs the least.
LADDERS = {
    "balanced": ("int8", "4bit", "ram", "offload", "window", "clip", "size"),
    "quality": ("ram", "offload", "int8", "4bit", "window", "clip", "size"),  # RAM costs time, never quality
    "speed": ("int8", "4bit", "window", "ram", "offload", "clip", "size"),
    "minimum_vram": ("int8", "4bit", "ram", "offload", "window", "clip", "size"),  # the first three are taken unasked
}
PROFILES = tuple(LADDERS)
TAKEN_UNASKED = {"minimum_vram": ("int8", "4bit", "ram")}
OFFLOADED = tuple(eighth / 8 for eighth in range(1, 8))  # shares of the weights; one eighth stays on the card
SIZES = tuple(percent / 100 for percent in range(95, 0, -5))  # of width and height as asked
GROUP_4BIT = 64  # kv_quant.GROUP: 4-bit memories need a head size that divides by it


@dataclass(frozen=True)
class Rung:
    """One plan of a ladder: a job, and the way to it as (kind of step, job after it)."""

    job: Job
    way: tuple[tuple[str, Job], ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(kind for kind, _ in self.way)


def ladder(start: Job, profile: str, pinned: frozenset[str] = frozenset()) -> tuple[Rung, ...]:
    """All rungs, dearest first. pinned: kinds of steps that may not be taken.

    Before the model goes to RAM every rung needs less VRAM than the one before; of those behind it, each group of one
    step does.
    """
    rungs, shares = [Rung(start)], ()
    last = rungs[0]
    for kind in LADDERS[profile]:
        if kind in pinned:
            continue
        if kind == "offload":
            shares = OFFLOADED
            rungs += _offloaded(last, shares)
            continue
        for job in _STEPS[kind](last.job):
            if _is_cheaper(job, last.job):
                last = Rung(job, (*last.way, (kind, job)))
                rungs += [last, *_offloaded(last, shares)]
    return tuple(rungs)


def fit_size(facts: ModelFacts, width: int, height: int) -> tuple[int, int]:
    """The size floored to the model's grid; ValueError when it is smaller than one step, or no size at all."""
    for name, value in (("width", width), ("height", height)):
        if not 1 <= value <= 16384:
            raise ValueError(message(f"VRAM Budget Gate: {name} is no size", value, "1 to 16384 pixels",
                                     "For 720p on Wan 2.2 use 1280x704."))
    step_w, step_h = grid_px(facts)
    if width < step_w or height < step_h:
        raise ValueError(message("VRAM Budget Gate: the size is too small for the model", f"{width}x{height} pixels",
                                 f"{step_w}x{step_h} and more, in steps of {step_w} and {step_h}",
                                 "Choose a larger one."))
    return width // step_w * step_w, height // step_h * step_h


def grid_px(facts: ModelFacts) -> tuple[int, int]:
    """The steps of width and height that the model works in."""
    return facts.spatial_stride * facts.patch[2], facts.spatial_stride * facts.patch[1]


def least_clip_latents(spec: MemorySpec) -> int:
    """One chunk; for a memory of frames as many latents as the next clip begins with."""
    return latents_of(frames_to_keep(spec)) if find_preset(spec).strategy == "latent" else spec.chunk_latents


def _offloaded(rung: Rung, shares: tuple[float, ...]) -> list[Rung]:
    weights = rung.job.facts.weight_bytes
    jobs = (replace(rung.job, offload_bytes=int(share * weights)) for share in shares)
    return [Rung(job, (*rung.way, ("offload", job))) for job in jobs]


def _precision_steps(precision: str) -> Callable[[Job], Iterator[Job]]:
    def steps(job: Job) -> Iterator[Job]:
        if precision == "int8" or job.facts.head_dim % GROUP_4BIT == 0:
            yield replace(job, spec=replace(job.spec, precision=precision))

    return steps


def _ram_steps(job: Job) -> Iterator[Job]:
    yield replace(job, spec=replace(job.spec, placement="ram"))


def _window_steps(job: Job) -> Iterator[Job]:
    """The window down to one chunk, then the places for chunks that are brought back; sink and pins hold the hero."""
    spec, chunk = job.spec, job.spec.chunk_latents
    for window in range(spec.window_latents - chunk, 0, -chunk):
        yield replace(job, spec=replace(spec, window_latents=window))
    shortest = replace(spec, window_latents=min(chunk, spec.window_latents))
    for retrieved in range(spec.retrieved_latents - chunk, -1, -chunk):
        yield replace(job, spec=replace(shortest, retrieved_latents=retrieved))


def _clip_steps(job: Job) -> Iterator[Job]:
    chunk = job.spec.chunk_latents
    for latents in range(job.clip_latents - chunk, least_clip_latents(job.spec) - 1, -chunk):
        yield replace(job, clip_latents=latents)


def _size_steps(job: Job) -> Iterator[Job]:
    for share in SIZES:
        try:
            width, height = fit_size(job.facts, int(share * job.width), int(share * job.height))
        except ValueError:
            return
        yield replace(job, width=width, height=height)


_STEPS = {"int8": _precision_steps("int8"), "4bit": _precision_steps("4bit"), "ram": _ram_steps,
          "window": _window_steps, "clip": _clip_steps, "size": _size_steps}


def _is_cheaper(job: Job, than: Job) -> bool:
    """Whether sampling needs less VRAM, or as much with less RAM; the other phases follow the size alone."""
    new, old = sampling_cost(job), sampling_cost(than)
    return (new.vram_bytes, new.ram_bytes) < (old.vram_bytes, old.ram_bytes)
