"""A phase at work: what it really takes, beside what was predicted, kept for the next prediction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.types import PhaseCost, RenderPlan
from .learned import FILE, Record, add_record, family_of, plan_key
from .report import PHASE_NAMES, gb

POLL_S = 0.05
TOLERANCE, TOLERATED_BYTES = 0.05, 200 * 2**20  # what a prediction may be off without a word


class Watch:
    """What a phase made and took. units, follows_plan: set by whoever does the work; of what did not follow the plan to
    its end only a peak above the prediction is kept. sentence: for the node's report, afterwards."""

    def __init__(self) -> None:
        self.units, self.follows_plan, self.sentence = 1, True, ""


@contextmanager
def watched(plan: RenderPlan | None, phases: str | tuple[str, ...], device: torch.device, folder: Path,
            others: Callable[[], int] = lambda: 0, room: Callable[[], int] | None = None) -> Iterator[Watch]:
    """Measure what happens inside: one phase, or several at once. Without a plan, nothing is measured; after an error
    but for full memory, nothing is kept.

    others: bytes of VRAM that other models take. room: bytes that can be had, asked at the beginning: other programs
    may have come since the plan was made. folder: where the records lie.
    """
    watch, names = Watch(), (phases,) if isinstance(phases, str) else phases
    costs = [] if plan is None else [cost for cost in plan.phases if cost.phase in names]
    if not costs:
        yield watch
        return
    is_card = device.type == "cuda"
    late = crowded(costs[0], room()) if room is not None and is_card else ""
    if is_card:
        torch.cuda.reset_peak_memory_stats(device)
    before, started = others() if is_card else 0, time.monotonic()

    def kept(seconds: float) -> str:
        """Models moved away in a phase that left its plan may lie in the peak: then it took at least so much."""
        beside = others() if watch.follows_plan else max(before, others())
        peak = max(0, torch.cuda.max_memory_allocated(device) - beside) if is_card else 0
        return _keep(plan, costs, watch, _Measured(peak, ram.grown_bytes, seconds), folder, is_card)

    try:
        with _RamPeak() as ram:
            yield watch
    except torch.OutOfMemoryError:
        watch.follows_plan = False
        kept(0.0)
        raise
    watch.sentence = " ".join(filter(None, (late, kept(time.monotonic() - started))))


@dataclass(frozen=True)
class _Measured:
    vram_bytes: int
    ram_bytes: int
    seconds: float


def _keep(plan: RenderPlan, costs: list[PhaseCost], watch: Watch, measured: _Measured, folder: Path,
          is_card: bool) -> str:
    """Put what was measured into the records; what to say about it.

    Of phases that work at once those with a part on the card get its peak, the last one RAM. Of what left its plan only
    a peak above the prediction is kept, and no time.
    """
    said = []
    for cost in costs:
        predicted, is_last = unlearned_bytes(cost), cost is costs[-1]
        vram = measured.vram_bytes if predicted else 0
        if not watch.follows_plan and vram <= predicted:
            continue
        ram = (sum(_expected_ram(one, is_card) for one in costs), measured.ram_bytes) if is_last else (0, 0)
        record = Record(plan.card, family_of(plan.model), cost.phase, plan_key(plan), predicted,
                        vram, *ram, measured.seconds if watch.follows_plan else 0.0, watch.units)
        said += [in_words(record), add_record(folder / FILE, record)]
    return " ".join(filter(None, said))


def crowded(cost: PhaseCost, room_bytes: int) -> str:
    """What to say where less can be had now than the plan counts on; "" where it is enough."""
    if room_bytes >= cost.vram_bytes:
        return ""
    return (f"Since the plan was made the card has filled up: {PHASE_NAMES[cost.phase]} was planned with "
            f"{gb(cost.vram_bytes)}, and {gb(room_bytes)} could be had. Run the gate again with budget 0, or close "
            "what has come.")


def unlearned_bytes(cost: PhaseCost) -> int:
    """What the formulas alone say that tensors take."""
    return cost.live_bytes - dict(cost.parts).get("learned", 0)


def in_words(record: Record) -> str:
    """Nothing while the prediction was good enough; else what was predicted and what was measured."""
    missed = record.measured_bytes - record.predicted_bytes
    if not record.measured_bytes or abs(missed) <= max(TOLERANCE * record.measured_bytes, TOLERATED_BYTES):
        return ""
    return (f"{PHASE_NAMES[record.phase].capitalize()} took {gb(record.measured_bytes)} of VRAM, "
            f"{gb(record.predicted_bytes)} were predicted: the next plan on this card counts with that.")


def _expected_ram(cost: PhaseCost, is_card: bool) -> int:
    """What the process should grow by: without a card also by what would lie on one, but for the weights."""
    return cost.ram_bytes + (0 if is_card else cost.live_bytes - dict(cost.parts).get("weights", 0))


class _RamPeak:
    """By how much the process grows while it lasts, looked at 20 times a second."""

    def __enter__(self) -> _RamPeak:
        import psutil

        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()
        self._note()

    @property
    def grown_bytes(self) -> int:
        return self._peak - self._before

    def _look(self) -> None:
        while not self._done.wait(POLL_S):
            self._note()

    def _note(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)
