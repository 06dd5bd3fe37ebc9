"""What phases really took on this card: a small JSON in the user's folder, which corrects the next prediction.

It is never sent anywhere, and can be deleted at any time (VRAM Report does it too). A file that cannot be read counts
as none, and one that cannot be written costs a sentence, never a film.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from ..common.disk import discard, patiently
from ..common.types import ModelFacts, RenderPlan

FILE = "budget.json"
KEPT = 20  # records of one phase, family and card
USED = 5  # of them, the newest, correct the next prediction
LARGEST_SHARE = 0.15  # of the prediction that a correction may be: beyond that something else was measured
VERSION = 1


@dataclass(frozen=True)
class Record:
    """One finished phase. card, family: whose. plan: plan_key of the plan that it followed.

    predicted_bytes, measured_bytes: VRAM that tensors took at the peak, without what was learned before; 0 = not
    measured (no card). predicted_ram_bytes, measured_ram_bytes: what the process grew by. seconds: of the whole phase,
    0 = it left its plan.
    units: what it made: chunks (sampling); 1 elsewhere.
    """

    card: str
    family: str
    phase: str
    plan: str
    predicted_bytes: int
    measured_bytes: int
    predicted_ram_bytes: int
    measured_ram_bytes: int
    seconds: float
    units: int


def family_of(model: ModelFacts | None) -> str:
    """What records are kept by: kind, sizes and weights of a model."""
    if model is None:
        return ""
    return (f"{model.family} {model.kind} {model.layers}x{model.dim} {8 * model.dtype_bytes} bit, "
            f"{model.weight_bytes / 2**30:.1f} GiB")


def plan_key(plan: RenderPlan) -> str:
    """A digest of what a plan's peaks depend on."""
    facts = {**asdict(plan), "phases": (), "decisions": (), "budget_bytes": 0, "profile": "", "card": "",
             "pinned": ()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_records(path: Path) -> tuple[Record, ...]:
    """All records, oldest first; none where there is no file, or none of this version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            return ()
        return tuple(Record(**record) for record in content["records"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def add_record(path: Path, record: Record) -> str:
    """Put one more record into the file, in one step; "" or why that was not possible."""
    records = _newest((*read_records(path), record))
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"version": VERSION, "records": [asdict(one) for one in records]}, indent=1),
                           encoding="utf-8")
        patiently(os.replace, partial, path)
    except OSError as error:
        discard(partial)
        return f"What was measured could not be kept in {path} ({error.strerror})."
    return ""


def clear_records(path: Path) -> int:
    """Delete the file; the number of records that it held. OSError where it cannot be deleted."""
    count = len(read_records(path))
    path.unlink(missing_ok=True)
    return count


def corrections(records: Iterable[Record], card: str, model: ModelFacts) -> tuple[tuple[str, int], ...]:
    """(phase, bytes) to add to the prediction: by how much it was too low at most in the last runs, or too high at
    least."""
    found: dict[str, list[int]] = {}
    for record in records:
        if (record.card, record.family) == (card, family_of(model)) and record.measured_bytes:
            limit = int(LARGEST_SHARE * record.predicted_bytes)
            missed = record.measured_bytes - record.predicted_bytes
            found.setdefault(record.phase, []).append(max(-limit, min(limit, missed)))
    return tuple((phase, max(missed[-USED:])) for phase, missed in found.items() if max(missed[-USED:]))


def clip_seconds(records: Iterable[Record], card: str, plan: RenderPlan) -> float:
    """What one clip of this plan took on this card, sampled and decoded; 0 where nobody knows."""
    key, taken = plan_key(plan), {"sampling": [], "decode": []}
    for record in records:
        if (record.card, record.plan) == (card, key) and record.phase in taken and record.seconds:
            taken[record.phase].append(record.seconds)
    return sum(median(seconds[-USED:]) for seconds in taken.values()) if all(taken.values()) else 0.0


def latest(records: Iterable[Record], plan: RenderPlan) -> dict[str, Record]:
    """The newest record of each phase that followed this plan."""
    key = plan_key(plan)
    return {record.phase: record for record in records if record.plan == key}


def _newest(records: Sequence[Record]) -> list[Record]:
    kept, counts = [], {}
    for record in reversed(records):
        key = record.card, record.family, record.phase
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= KEPT:
            kept.append(record)
    return kept[::-1]
