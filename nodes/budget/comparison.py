"""Predicted against measured, phase by phase: as a table, and as bars for the chart."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.types import PhaseCost, RenderPlan
from .chart import Bar
from .learned import Record
from .report import PHASE_NAMES, gb

NOT_MEASURED = "-"


def comparison_table(plan: RenderPlan, measured: Mapping[str, Record]) -> str:
    """One line per phase; what was not measured says so."""
    lines = [f"{'phase':<14}{'predicted':>11}{'measured':>11}{'off by':>10}{'RAM, pred.':>12}{'RAM, meas.':>12}"
             f"{'seconds':>9}"]
    for cost in plan.phases:
        record = measured.get(cost.phase)
        vram = record.measured_bytes if record else 0
        off = f"{(vram - cost.live_bytes) / max(1, cost.live_bytes) * 100:+.1f} %" if vram else NOT_MEASURED
        lines.append(f"{PHASE_NAMES[cost.phase]:<14}{gb(cost.live_bytes):>11}{_cell(vram):>11}{off:>10}"
                     f"{_cell(_ram(cost, record)):>12}{_cell(record.measured_ram_bytes if record else 0):>12}"
                     f"{f'{record.seconds:.1f}' if record and record.seconds else NOT_MEASURED:>9}")
    lines += ["", "VRAM: what tensors take at the peak. RAM: by how much the process grows.", _coverage(plan, measured)]
    return "\n".join(lines)


def bars(plan: RenderPlan, measured: Mapping[str, Record]) -> tuple[Bar, ...]:
    """VRAM where it was measured or nothing was; RAM where there is no card to measure."""
    is_ram = bool(measured) and not any(record.measured_bytes for record in measured.values())
    found = []
    for cost in plan.phases:
        record = measured.get(cost.phase)
        if is_ram:
            found.append(Bar(PHASE_NAMES[cost.phase], (("RAM", _ram(cost, record)),),
                             record.measured_ram_bytes if record else None))
        else:
            found.append(Bar(PHASE_NAMES[cost.phase], cost.parts,
                             record.measured_bytes if record and record.measured_bytes else None))
    return tuple(found)


def _coverage(plan: RenderPlan, measured: Mapping[str, Record]) -> str:
    if not measured:
        return "Nothing was measured with this plan yet: run Clip Sampler, Save Clip and Assemble Short with it."
    if any(record.measured_bytes for record in measured.values()):
        return f"Measured on {plan.card or 'this machine'}; kept on this machine, and used for the next plan."
    return f"VRAM is not measured on {plan.card or 'this device'}: only RAM and seconds are."


def _ram(cost: PhaseCost, record: Record | None) -> int:
    return record.predicted_ram_bytes if record else cost.ram_bytes


def _cell(size: int) -> str:
    return gb(size) if size else NOT_MEASURED
