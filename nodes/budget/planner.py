"""What do we do about it: the first plan on a ladder of concessions that fits in every phase, or a reasoned refusal.

The rung is chosen first, then its decode tile and its interpolation batch are made as large as still fit. More VRAM
never yields a worse plan (ladder.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE, TILE_BY_CORE, MemorySpec, ModelFacts, PhaseCost, RenderPlan
from .cost_model import CONTEXT_BYTES, CORE, Job, VaeFacts, phase_costs, sampling_cost
from .ladder import PROFILES, TAKEN_UNASKED, Rung, fit_size, ladder, least_clip_latents
from .place import Place
from .probe import GIB, Budget, Machine
from .report import decisions, gb

TILES_PX = (0, 1024, 768, 512, 384, 256)  # 0 = whole frames
INTERPOLATION_BATCHES = (4, 2, 1)  # frames per RIFE call; no concession, it only costs a little time
DESKTOP_BYTES = 600 * 10**6  # what a desktop takes on a card that drives a screen (design.md, section 7)
RAM_RESERVE_BYTES = 512 * 2**20  # left to the system where VRAM is RAM (assumed)


@dataclass(frozen=True)
class Extras:
    """What else a plan depends on. may_shrink: the size may be given up, last of all. The others: as in Job.

    card: the device's name, for the plan. place: as in Job.
    """

    may_shrink: bool = False
    prompts: int = 1
    text_bytes: int = 0
    is_fused: bool = True
    learned: tuple[tuple[str, int], ...] = ()
    card: str = ""
    place: Place | None = None


@dataclass(frozen=True)
class Wish:
    """What was asked for, checked and rounded: the job, and how to give way. pinned: steps that may not be taken."""

    job: Job
    profile: str
    budget: Budget
    pinned: frozenset[str]


class NothingFits(RuntimeError):
    """The refusal in words. wish: what was asked for. phases: what the smallest plan would need."""

    def __init__(self, text: str, wish: Wish, phases: tuple[PhaseCost, ...]) -> None:
        super().__init__(text)
        self.wish, self.phases = wish, phases


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
              budget: Budget, pinned: frozenset[str] = frozenset(), extras: Extras | None = None) -> RenderPlan:
    """The best plan that fits; NothingFits (with the nearest plans that would) when none does, ValueError for values
    that make no sense.

    width, height: pixels, floored to the model's grid. clip_s: rounded to whole chunks. pinned: steps that may not be
    taken ("int8", "4bit", "ram", "offload", "window", "clip").
    """
    extras = extras or Extras()
    check_request(clip_s, profile)
    size = fit_size(facts, width, height)
    job = Job(facts, vae, *size, clip_latents_of(spec, clip_s), spec, prompts=extras.prompts,
              text_bytes=extras.text_bytes, is_fused=extras.is_fused, learned=extras.learned,
              place=extras.place)
    wish = Wish(job, profile, budget, _pinned(pinned, extras, budget))
    chosen = first_that_fits(wish)
    if chosen is None:
        from .nearest import refusal  # it plans again, with less

        raise refusal(wish)
    job = chosen.job if profile in TAKEN_UNASKED else _with_batch(chosen.job, budget)
    return RenderPlan(job.width, job.height, job.clip_latents, job.spec, job.decode_tile_px, job.interpolation_batch,
                      budget.vram_bytes, phase_costs(job),
                      decisions(wish.job, chosen.way, job, (width, height), clip_s), job.decode_parked,
                      job.offload_bytes, profile, facts, extras.card)


def check_budget_gb(budget_gb: float) -> None:
    """Raise ValueError unless it is 0 or a size."""
    if not math.isfinite(budget_gb) or budget_gb < 0:
        raise ValueError(message("VRAM Budget Gate: 'budget (GB)' is not a size", budget_gb,
                                 "0 (what is there) or more", "Enter the size of the card in GB, for example 12."))


def check_request(clip_s: float, profile: str) -> None:
    """Raise ValueError unless the seconds are positive and sane and the profile is known."""
    if not math.isfinite(clip_s) or not 0 < clip_s <= 600:
        raise ValueError(message("VRAM Budget Gate: 'clip (seconds)' is no length", clip_s,
                                 "more than 0, up to 600 seconds", "4 seconds is a good clip."))
    check_profile(profile)


def check_profile(profile: str) -> None:
    """Raise ValueError unless the profile is known."""
    if profile not in PROFILES:
        raise ValueError(message("VRAM Budget Gate: unknown profile", profile, ", ".join(PROFILES), "Choose another."))


def clip_latents_of(spec: MemorySpec, clip_s: float) -> int:
    """Latents of a clip: the nearest whole number of chunks, at least least_clip_latents."""
    chunks = math.floor(clip_s * spec.fps / TEMPORAL_STRIDE / spec.chunk_latents + 0.5)
    return max(least_clip_latents(spec), chunks * spec.chunk_latents)


def tiles_for(job: Job) -> tuple[int, ...]:
    """Decode tiles that are smaller than the frame, largest first, whole frames before them."""
    return tuple(tile for tile in TILES_PX if tile < max(job.width, job.height))


def fits(job: Job, budget: Budget) -> bool:
    """Whether every phase stays within the budget."""
    return not missing_bytes(sampling_cost(job), budget) and all(
        missing_bytes(cost, budget) == 0 for cost in phase_costs(job))


def missing_bytes(cost: PhaseCost, budget: Budget) -> int:
    """By how much a phase exceeds the budget (VRAM, RAM or disk, whichever misses most); 0 where it fits."""
    vram = cost.vram_bytes + cost.ram_bytes if budget.unified else cost.vram_bytes
    over = [vram - budget.vram_bytes, 0]
    if not budget.unified:
        over.append(cost.ram_bytes - budget.ram_bytes)
    if budget.disk_bytes is not None:
        over.append(cost.disk_bytes - budget.disk_bytes)
    return max(over)


def first_that_fits(wish: Wish) -> Rung | None:
    """The first rung that fits, with the largest tile that does; None where none does."""
    rungs, unasked = ladder(wish.job, wish.profile, wish.pinned), TAKEN_UNASKED.get(wish.profile, ())
    first = max((i for i, rung in enumerate(rungs) if set(rung.steps) <= set(unasked)), default=0)
    dead_ends: set[Job] = set()  # whose other phases do not fit, however much of the model rests in RAM
    for rung in rungs[first:]:
        on_card = replace(rung.job, offload_bytes=0)
        if on_card in dead_ends or missing_bytes(sampling_cost(rung.job), wish.budget):
            continue
        for tile, parked in decode_ways(rung.job, bool(unasked), wish.budget.unified):
            job = replace(rung.job, decode_tile_px=tile, decode_parked=parked)
            if fits(job, wish.budget):
                return replace(rung, job=job)
        dead_ends.add(on_card)
    return None


def decode_ways(job: Job, is_least: bool, unified: bool) -> list[tuple[int, bool]]:
    """(tile, whether the decoder's caches rest in RAM), the fastest first: tiles cost less time than the way to RAM.

    is_least: only what takes the least VRAM. unified: VRAM is RAM, and nothing is gained by the way to it.
    """
    if job.vae.kind == CORE:
        return [(TILE_BY_CORE, False)]
    tiles = tiles_for(job)
    if is_least:
        return [(tiles[-1], not unified)]
    return [(tile, parked) for parked in (False, True)[: 1 if unified else 2] for tile in tiles]


def _pinned(pinned: frozenset[str], extras: Extras, budget: Budget) -> frozenset[str]:
    """On a CPU nothing is gained by the way to RAM."""
    return (pinned | ({"ram", "offload"} if budget.unified else set())
            | (set() if extras.may_shrink else {"size"}))


def _with_batch(job: Job, budget: Budget) -> Job:
    jobs = (replace(job, interpolation_batch=batch) for batch in INTERPOLATION_BATCHES)
    return next((job for job in jobs if fits(job, budget)), job)
