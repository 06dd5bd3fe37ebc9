"""Why nothing fits, and the three nearest plans that would: what is missing is said before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE
from .cost_model import Job, phase_costs
from .ladder import LADDERS, SIZES, Rung, fit_size, ladder
from .planner import NothingFits, Wish, decode_ways, first_that_fits, missing_bytes
from .report import gb

NEAREST = 3
NF4_SHARE = 0.28  # of 16-bit weights that remain in NF4, embeddings and norms included (a 5B model: 10.0 to 2.8 GB)
MAKES_LENGTH = frozenset({"window", "clip"})


def refusal(wish: Wish) -> NothingFits:
    """The phase that misses most when everything is given up, what is there, and the nearest plans that fit."""
    smallest = ladder(wish.job, wish.profile, wish.pinned)[-1].job
    tile, parked = decode_ways(smallest, True, wish.budget.unified)[0]
    phases = phase_costs(replace(smallest, decode_tile_px=tile, decode_parked=parked))
    worst = max(phases, key=lambda cost: missing_bytes(cost, wish.budget))
    needs = [f"{gb(size)} of {kind}" for kind, size in
             (("VRAM", worst.vram_bytes), ("RAM", worst.ram_bytes), ("disk", worst.disk_bytes)) if size]
    return NothingFits(message(
        f"VRAM Budget Gate: {wish.job.width}x{wish.job.height} does not fit, whatever is given up",
        f"{' and '.join(needs)} in the {worst.phase} phase, {gb(missing_bytes(worst, wish.budget))} too much",
        f"up to {_room(wish)}", _advice(wish)), wish, phases)


def nearest_plans(wish: Wish) -> list[str]:
    """Up to three plans that fit, the nearest to what was asked first, each in words; no size twice, but the asked."""
    found: dict[object, tuple[int, str]] = {}
    for words, rung in _candidates(wish):
        if rung is not None:
            size = rung.job.width, rung.job.height
            key = words if size == (wish.job.width, wish.job.height) else size
            found.setdefault(key, (size[0] * size[1], f"{words}: {_in_words(rung.job, rung.steps)}"))
        if len(found) == NEAREST:
            break
    return [text for _, text in sorted(found.values(), key=lambda plan: -plan[0])]


def _candidates(wish: Wish) -> Iterator[tuple[str, Rung | None]]:
    """(what would be changed, the plan that then fits or None), by how little is changed."""
    held = wish.pinned & set(LADDERS[wish.profile]) - {"size"}
    if held and not wish.budget.unified:
        yield "without what was pinned", first_that_fits(replace(wish, pinned=wish.pinned - held))
    facts = wish.job.facts
    if facts.weight_bytes > 4 * facts.layers * facts.dim**2 * facts.dtype_bytes:  # more than its attention in NF4
        smaller = replace(facts, weight_bytes=int(NF4_SHARE * facts.weight_bytes))
        yield "with NF4 weights", first_that_fits(replace(wish, job=replace(wish.job, facts=smaller)))
    yield "smaller", _largest(wish, wish.pinned)
    yield "smaller, with the memory and the clip as asked", _largest(wish, wish.pinned | MAKES_LENGTH)
    everything = frozenset(LADDERS[wish.profile])
    yield "smaller, with nothing given up", _largest(wish, everything)
    for rung in _smaller(wish, wish.pinned):
        yield "smaller still", rung


def _largest(wish: Wish, pinned: frozenset[str]) -> Rung | None:
    """The plan of the largest size that fits."""
    return next(_smaller(wish, pinned), None)


def _smaller(wish: Wish, pinned: frozenset[str]) -> Iterator[Rung]:
    """Plans of smaller sizes that fit, the largest first."""
    for share in SIZES:
        try:
            width, height = fit_size(wish.job.facts, int(share * wish.job.width), int(share * wish.job.height))
        except ValueError:
            return
        rung = first_that_fits(replace(wish, job=replace(wish.job, width=width, height=height), pinned=pinned))
        if rung is not None:
            yield rung


def _in_words(job: Job, steps: tuple[str, ...]) -> str:
    seconds = job.clip_latents * TEMPORAL_STRIDE / job.spec.fps
    given_up = [text for kind, text in (
        ("int8", "memory in 8 bits"), ("4bit", "memory in 4 bits"), ("ram", "memory in RAM"),
        ("offload", f"{gb(job.offload_bytes)} of the model in RAM"), ("window", "a shorter memory")) if kind in steps]
    given_up = [text for text in given_up if not (text == "memory in 8 bits" and "4bit" in steps)]
    tile = f"decoded in tiles of {job.decode_tile_px} px" if job.decode_tile_px > 0 else ""
    return ", ".join([f"{job.width}x{job.height}", f"clips of {seconds:.2g} s", *given_up, *filter(None, [tile])])


def _room(wish: Wish) -> str:
    budget = wish.budget
    room = f"{gb(budget.vram_bytes)} ({budget.text})"
    if not budget.unified:
        room += f" and {gb(budget.ram_bytes)} of free RAM"
    if budget.disk_bytes is not None:
        room += f", {gb(budget.disk_bytes)} of free disk"
    return room


def _advice(wish: Wish) -> str:
    plans = nearest_plans(wish)
    if plans:
        listed = "".join(f" {i}) {plan}." for i, plan in enumerate(plans, 1))
        return f"What would fit:{listed}"
    return (f"No smaller size helps: the weights alone are {gb(wish.job.facts.weight_bytes)}. Load NF4 weights, close "
            "other programs or use a larger card.")
