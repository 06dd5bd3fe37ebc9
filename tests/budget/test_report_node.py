"""VRAM Report: the table, the picture, and the records' end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.nodes.budget.chart import BOTTOM, COLOURS, MEASURED, TOP, Bar, draw_chart
from pack.nodes.budget.comparison import bars, comparison_table
from pack.nodes.budget.learned import FILE, Record, add_record, family_of, plan_key, read_records

from .test_learned import GIB, plan
from .test_planner import NF4_5B


def measured(phase: str, vram: int, ram: int = 0) -> dict[str, Record]:
    return {phase: Record("a card", family_of(NF4_5B), phase, plan_key(plan()), plan().phases[1].live_bytes, vram, GIB,
                          ram, 12.5, 3)}


def colour_heights(chart: torch.Tensor, colour: tuple[int, int, int]) -> int:
    """Rows of the picture, between the axes, in which so many pixels have this colour that it is a bar."""
    found = (chart[0, TOP:BOTTOM] * 255).round().int().eq(torch.tensor(colour).int()).all(-1).sum(1)
    return int((found > 20).sum())


def test_bars_are_as_high_as_their_parts():
    bar = Bar("sampling", (("weights", 3 * GIB), ("memory", 1 * GIB)), 2 * GIB)
    chart = draw_chart((bar,), 5 * GIB, "a title", "")
    assert chart.shape == (1, 620, 1000, 3) and chart.min() >= 0 and chart.max() <= 1
    full = (BOTTOM - TOP) / 1.05 / 5
    for colour, gib in ((COLOURS["weights"], 3), (COLOURS["memory"], 1), (MEASURED, 2)):
        assert colour_heights(chart, colour) == pytest.approx(gib * full, abs=4)


def test_what_was_not_measured_has_no_second_bar():
    chart = draw_chart((Bar("decoding", (("decode", GIB),)),), 2 * GIB, "", "")
    assert colour_heights(chart, MEASURED) == 0


def test_every_part_of_every_phase_has_a_colour():
    whole = replace(plan(prompts=2, learned=(("sampling", 5), ("decode", -5))))
    assert {name for cost in whole.phases for name, _ in cost.parts} <= set(COLOURS)
    draw_chart(bars(whole, {}), whole.budget_bytes, "", "")


def test_table_compares_the_measured_peak_with_what_tensors_were_predicted_to_take():
    predicted = plan().phases[1].live_bytes
    text = comparison_table(plan(), measured("sampling", int(predicted * 1.1), 2 * GIB))
    row = next(line for line in text.splitlines() if line.startswith("sampling"))
    assert "+10.0 %" in row and "2.0 GB" in row and "12.5" in row
    assert "Measured on a card" in text
    assert next(line for line in text.splitlines() if line.startswith("decoding")).split()[-1] == "-"


def test_a_plan_that_nobody_followed_and_a_cpu_say_so():
    assert "Nothing was measured with this plan yet" in comparison_table(plan(), {})
    found = measured("sampling", 0, GIB)
    assert "VRAM is not measured on a card" in comparison_table(plan(), found)
    assert bars(plan(), found)[1].measured == GIB and bars(plan(), found)[1].parts == (("RAM", GIB),)
    assert bars(plan(), {})[1].measured is None and bars(plan(), {})[1].parts == plan().phases[1].parts


@pytest.mark.comfy
def test_node_shows_the_newest_records_and_clears_them_when_asked(tmp_path, monkeypatch):
    import folder_paths
    from pack.nodes.budget.nodes_report import VramReport

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    path = tmp_path / "videomemory" / FILE
    before = VramReport.fingerprint_inputs(plan=plan())
    add_record(path, measured("sampling", 9 * GIB)["sampling"])
    assert VramReport.fingerprint_inputs(plan=plan()) != before
    chart, text = VramReport.EXECUTE_NORMALIZED(plan=plan()).args
    assert "9.0 GB" in text and chart.shape == (1, 620, 1000, 3) and len(read_records(path)) == 1
    text = VramReport.EXECUTE_NORMALIZED(plan=plan(), records="clear").args[1]
    assert "9.0 GB" in text and "1 records were deleted" in text and not path.exists()
    assert "but got 'burn'; allowed: keep, clear" in VramReport.validate_inputs("burn")
