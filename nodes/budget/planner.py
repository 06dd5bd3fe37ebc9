"""What do we do about it: the first plan on a ladder of concessions that fits in every phase, or a reasoned refusal.

A ladder is a fixed list of plans, each giving up one thing more than the one before and costing less; it does not
depend on the budget. The first rung that fits is taken, then the decode tile is made as large as still fits. Therefore
more VRAM never climbs further down, and never concedes more steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE, MemorySpec, ModelFacts, PhaseCost, RenderPlan
from ..memory.latent_memory import frames_to_keep, latents_of
from ..sampling.presets import find_preset
from .cost_model import CONTEXT_BYTES, Job, VaeFacts, phase_costs
from .probe import GIB, Budget, Machine
from .report import decisions, gb

# The order in which a profile gives things up. Tiling the decode comes before all of them: it costs the least.
LADDERS = {
    "balanced": ("int8", "4bit", "ram", "window", "clip"),
    "quality": ("ram", "int8", "4bit", "window", "clip"),  # RAM costs time, never quality
    "speed": ("int8", "4bit", "window", "ram", "clip"),
    "minimum_vram": ("int8", "4bit", "ram", "window", "clip"),  # the first three are taken unasked
}
PROFILES = tuple(LADDERS)
TAKEN_UNASKED = {"minimum_vram": ("int8", "4bit", "ram")}
TILES_PX = (0, 1024, 768, 512, 384, 256)  # 0 = whole frames
INTERPOLATION_BATCHES = (4, 2, 1)  # frames per RIFE call; no concession, it only costs a little time
GROUP_4BIT = 64  # kv_quant.GROUP: 4-bit memories need a head size that divides by it

DESKTOP_BYTES = 600 * 10**6  # what a desktop takes on a card that drives a screen (design.md, section 7)
RAM_RESERVE_BYTES = 512 * 2**20  # left to the system where VRAM is RAM (assumed)


class NothingFits(RuntimeError):
    """The refusal in words. phases: what the smallest plan would need."""

    def __init__(self, text: str, phases: tuple[PhaseCost, ...]) -> None:
        super().__init__(text)
        self.phases = phases


@dataclass(frozen=True)
class Rung:
    """One plan of a ladder: a job, and the kinds of steps that led to it, in order."""

    job: Job
    steps: tuple[str, ...] = ()


def budget_of(machine: Machine, budget_gb: float = 0.0) -> Budget:
    """The budget of this machine (0), or of a card of budget_gb GB that drives a desktop, with this machine's RAM."""
    check_budget_gb(budget_gb)
    if budget_gb > 0:
        vram = max(0, int(budget_gb * GIB) - DESKTOP_BYTES - CONTEXT_BYTES)
        text = f"a {budget_gb:g} GB card, less {gb(DESKTOP_BYTES)} for the desktop and {gb(CONTEXT_BYTES)} for CUDA"
        if not machine.unified and machine.vram_available_bytes - machine.vram_reserved_bytes < vram:
            text += f"; this card has {gb(machine.vram_available_bytes - machine.vram_reserved_bytes)} of it"
        return Budget(vram, machine.ram_available_bytes, False, machine.disk_free_bytes, text)
    if machine.unified:
        vram = max(0, machine.ram_available_bytes - RAM_RESERVE_BYTES)
        return Budget(vram, vram, True, machine.disk_free_bytes, f"free RAM, less {gb(RAM_RESERVE_BYTES)}; no card")
    vram = max(0, machine.vram_available_bytes - machine.vram_reserved_bytes)
    text = f"free on {machine.device}, less {gb(machine.vram_reserved_bytes)} that ComfyUI reserves"
    return Budget(vram, machine.ram_available_bytes, False, machine.disk_free_bytes, text)


def make_plan(facts: ModelFacts, vae: VaeFacts, width: int, height: int, clip_s: float, spec: MemorySpec, profile: str,
              budget: Budget, pinned: frozenset[str] = frozenset()) -> RenderPlan:
    """The best plan that fits; RuntimeError when none does, ValueError for values that make no sense.

    width, height: pixels, floored to the model's grid. clip_s: rounded to whole chunks. pinned: steps that may not be
    taken ("int8", "4bit", "ram", "window", "clip").
    """
    check_request(width, height, clip_s, profile)
    size = fit_size(facts, width, height)
    start = Job(facts, vae, *size, clip_latents_of(spec, clip_s), spec)
    rungs = ladder(start, profile, pinned | ({"ram"} if budget.unified else set()))
    chosen = _first_that_fits(rungs, profile, budget)
    if chosen is None:
        raise _refusal(rungs[-1].job, profile, pinned, budget)
    job = chosen.job if profile in TAKEN_UNASKED else _with_batch(chosen.job, budget)
    way = [(step, rungs[i].job) for i, step in enumerate(chosen.steps, 1)]
    return RenderPlan(*size, job.clip_latents, job.spec, job.decode_tile_px, job.interpolation_batch,
                      budget.vram_bytes, phase_costs(job), decisions(start, way, job, (width, height), clip_s),
                      job.decode_parked)


def check_budget_gb(budget_gb: float) -> None:
    """Raise ValueError unless it is 0 or a size."""
    if not math.isfinite(budget_gb) or budget_gb < 0:
        raise ValueError(message("VRAM Budget Gate: budget_gb is not a size", budget_gb, "0 (what is there) or more",
                                 "Enter the size of the card in GB, for example 12."))


def check_request(width: int, height: int, clip_s: float, profile: str) -> None:
    """Raise ValueError unless sizes and seconds are positive and sane and the profile is known."""
    for name, value in (("width", width), ("height", height)):
        if not 1 <= value <= 16384:
            raise ValueError(message(f"VRAM Budget Gate: {name} is no size", value, "1 to 16384 pixels",
                                     "For 720p on Wan 2.2 use 1280x704."))
    if not math.isfinite(clip_s) or not 0 < clip_s <= 600:
        raise ValueError(message("VRAM Budget Gate: clip_seconds is no length", clip_s,
                                 "more than 0, up to 600 seconds", "4 seconds is a good clip."))
    check_profile(profile)


def check_profile(profile: str) -> None:
    """Raise ValueError unless the profile is known."""
    if profile not in PROFILES:
        raise ValueError(message("VRAM Budget Gate: unknown profile", profile, ", ".join(PROFILES), "Choose another."))


def fit_size(facts: ModelFacts, width: int, height: int) -> tuple[int, int]:
    """The size floored to the model's grid; ValueError when it is smaller than one step."""
    step_w, step_h = facts.spatial_stride * facts.patch[2], facts.spatial_stride * facts.patch[1]
    if width < step_w or height < step_h:
        raise ValueError(message("VRAM Budget Gate: the size is too small for the model", f"{width}x{height} pixels",
                                 f"{step_w}x{step_h} and more, in steps of {step_w} and {step_h}",
                                 "Choose a larger one."))
    return width // step_w * step_w, height // step_h * step_h


def clip_latents_of(spec: MemorySpec, clip_s: float) -> int:
    """Latents of a clip: the nearest whole number of chunks, at least least_clip_latents."""
    chunks = math.floor(clip_s * spec.fps / TEMPORAL_STRIDE / spec.chunk_latents + 0.5)
    return max(least_clip_latents(spec), chunks * spec.chunk_latents)


def least_clip_latents(spec: MemorySpec) -> int:
    """One chunk; for a memory of frames as many latents as the next clip begins with."""
    return latents_of(frames_to_keep(spec)) if find_preset(spec).strategy == "latent" else spec.chunk_latents


def ladder(start: Job, profile: str, pinned: frozenset[str] = frozenset()) -> tuple[Rung, ...]:
    """All rungs, dearest first. Each costs no more than the one before in any phase, and less in at least one."""
    rungs = [Rung(start)]
    for kind in LADDERS[profile]:
        if kind in pinned:
            continue
        for job in _STEPS[kind](rungs[-1].job):
            if _is_cheaper(job, rungs[-1].job):
                rungs.append(Rung(job, (*rungs[-1].steps, kind)))
    return tuple(rungs)


def tiles_for(job: Job) -> tuple[int, ...]:
    """Decode tiles that are smaller than the frame, largest first, whole frames before them."""
    return tuple(tile for tile in TILES_PX if tile < max(job.width, job.height))


def fits(job: Job, budget: Budget) -> bool:
    """Whether every phase stays within the budget."""
    return all(missing_bytes(cost, budget) == 0 for cost in phase_costs(job))


def missing_bytes(cost: PhaseCost, budget: Budget) -> int:
    """By how much a phase exceeds the budget (VRAM, RAM or disk, whichever misses most); 0 where it fits."""
    vram = cost.vram_bytes + cost.ram_bytes if budget.unified else cost.vram_bytes
    over = [vram - budget.vram_bytes, 0]
    if not budget.unified:
        over.append(cost.ram_bytes - budget.ram_bytes)
    if budget.disk_bytes is not None:
        over.append(cost.disk_bytes - budget.disk_bytes)
    return max(over)


def _first_that_fits(rungs: tuple[Rung, ...], profile: str, budget: Budget) -> Rung | None:
    unasked = TAKEN_UNASKED.get(profile, ())
    first = max((i for i, rung in enumerate(rungs) if set(rung.steps) <= set(unasked)), default=0)
    for rung in rungs[first:]:
        for tile, parked in _decode_ways(rung.job, bool(unasked), budget.unified):
            job = replace(rung.job, decode_tile_px=tile, decode_parked=parked)
            if fits(job, budget):
                return replace(rung, job=job)
    return None


def _decode_ways(job: Job, is_least: bool, unified: bool) -> list[tuple[int, bool]]:
    """(tile, whether the decoder's caches rest in RAM), the fastest first: tiles cost less time than the way to RAM.

    is_least: only what takes the least VRAM. unified: VRAM is RAM, and nothing is gained by the way to it.
    """
    tiles = tiles_for(job)
    if is_least:
        return [(tiles[-1], not unified)]
    return [(tile, parked) for parked in (False, True)[: 1 if unified else 2] for tile in tiles]


def _with_batch(job: Job, budget: Budget) -> Job:
    jobs = (replace(job, interpolation_batch=batch) for batch in INTERPOLATION_BATCHES)
    return next((job for job in jobs if fits(job, budget)), job)


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


_STEPS = {"int8": _precision_steps("int8"), "4bit": _precision_steps("4bit"), "ram": _ram_steps,
          "window": _window_steps, "clip": _clip_steps}


def _is_cheaper(job: Job, than: Job) -> bool:
    pairs = [(new, old) for a, b in zip(phase_costs(job), phase_costs(than), strict=True)
             for new, old in ((a.vram_bytes, b.vram_bytes), (a.ram_bytes, b.ram_bytes), (a.disk_bytes, b.disk_bytes))]
    return all(new <= old for new, old in pairs) and any(new < old for new, old in pairs)


def _refusal(smallest: Job, profile: str, pinned: frozenset[str], budget: Budget) -> NothingFits:
    """Why nothing fits: the phase that misses most at the end of the ladder, and a size that would fit."""
    tile, parked = _decode_ways(smallest, True, budget.unified)[0]
    smallest = replace(smallest, decode_tile_px=tile, decode_parked=parked)
    worst = max(phase_costs(smallest), key=lambda cost: missing_bytes(cost, budget))
    needs = [f"{gb(size)} of {kind}" for kind, size in
             (("VRAM", worst.vram_bytes), ("RAM", worst.ram_bytes), ("disk", worst.disk_bytes)) if size]
    room = f"{gb(budget.vram_bytes)} ({budget.text})"
    if not budget.unified:
        room += f" and {gb(budget.ram_bytes)} of free RAM"
    if budget.disk_bytes is not None:
        room += f", {gb(budget.disk_bytes)} of free disk"
    return NothingFits(message(
        f"VRAM Budget Gate: {smallest.width}x{smallest.height} does not fit, whatever is given up",
        f"{' and '.join(needs)} in the {worst.phase} phase, {gb(missing_bytes(worst, budget))} too much",
        f"up to {room}",
        _advice(smallest, profile, pinned, budget)), phase_costs(smallest))


def _advice(smallest: Job, profile: str, pinned: frozenset[str], budget: Budget) -> str:
    facts = smallest.facts
    for percent in range(95, 15, -5):
        try:
            size = fit_size(facts, smallest.width * percent // 100, smallest.height * percent // 100)
        except ValueError:
            break
        job = replace(smallest, width=size[0], height=size[1])
        if _first_that_fits(ladder(job, profile, pinned), profile, budget) is not None:
            return f"{size[0]}x{size[1]} would fit."
    return (f"No smaller size helps: the weights alone are {gb(facts.weight_bytes)}. Load NF4 weights, close other "
            "programs or use a larger card.")
