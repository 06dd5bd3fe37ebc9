"""The benchmark of the gate's predictions: its grid is the one that was asked for, and without a card it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import budget_accuracy

    return budget_accuracy


def test_the_grid_covers_models_sizes_lengths_windows_weights_places_and_tiles(accuracy):
    rows = accuracy.grid()
    assert len(rows) >= 60 and len(set(rows)) == len(rows)
    sampled = [row for row in rows if row.phase == "sampling"]
    assert {row.model for row in sampled} == {"1.3b", "ti2v_5b", "14b"}
    assert {row.weights for row in sampled} == {"nf4", "int8", "bf16"}
    assert {row.size for row in sampled} == {"480p", "720p", "1080p"}
    assert {row.placement for row in sampled} == {"vram", "ram"}
    assert (min(row.clip_s for row in sampled), max(row.clip_s for row in sampled)) == (1.0, 12.0)
    assert (min(row.window_s for row in sampled), max(row.window_s for row in sampled)) == (0.0, 16.0)
    assert {bool(row.tile) for row in rows if row.phase == "decode"} == {True, False}


def test_every_row_has_a_prediction(accuracy):
    for row in accuracy.grid():
        assert accuracy.cost_of(row).live_bytes > 0


def test_a_fit_writes_what_was_measured_and_where(accuracy, tmp_path):
    import json
    import shutil

    from pack.nodes.budget.coefficients import DATA

    path = tmp_path / "wan.json"
    shutil.copy(DATA / "wan.json", path)
    row = next(row for row in accuracy.grid() if row.phase == "decode" and row.model == "ti2v_5b" and not row.tile)
    parts = dict(accuracy.cost_of(row).parts)
    peak = parts["weights"] + 2 * parts["decode"]
    accuracy.fit(path, {"device": "a card", "torch": "2", "date": "today", "rows": [
        vars(row) | {"predicted": sum(parts.values()), "parts": parts, "peak": peak, "held": peak}]})
    before, after = (json.loads(file.read_text(encoding="utf-8"))["coefficients"]["wan22_decode_values"]
                     for file in (DATA / "wan.json", path))
    assert after["value"] == pytest.approx(2 * before["value"], rel=1e-6)
    assert after["how"] == "measured" and after["note"].endswith("a card, torch 2, today")


@pytest.mark.comfy
def test_without_a_card_the_envelope_is_labelled_a_prediction():
    import os

    done = subprocess.run([sys.executable, "budget_accuracy.py", "--envelope"], cwd=BENCHMARKS, capture_output=True,
                          text=True, check=False, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert "PREDICTED, not measured" in done.stdout
    assert done.stdout.count("| 1280x704 |") == 5 and done.stdout.count("| 1920x1088 |") == 1
