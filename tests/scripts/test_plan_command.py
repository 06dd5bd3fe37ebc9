"""python scripts/plan.py as people type it: a workflow of the editor in, the plan out, nothing is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "workflows" / "demo_toyworld.json"
pytestmark = pytest.mark.comfy


def plan(*arguments: str, models: Path = ROOT / "demo" / "toyworld") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "plan.py"), "--models", str(models), *arguments],
                          capture_output=True, text=True, check=False, timeout=300)


def test_plan_of_the_demo_workflow_is_printed_for_another_card():
    done = plan("--workflow", str(DEMO), "--vram", "12")
    assert done.returncode == 0, done.stderr
    assert "a 12 GB card" in done.stdout and "nothing was given up" in done.stdout
    assert all(phase in done.stdout for phase in ("text encoding", "sampling", "decoding", "interpolation"))


def test_what_does_not_fit_ends_with_one(tmp_path):
    workflow = json.loads(DEMO.read_text(encoding="utf-8"))
    gate = next(node for node in workflow["nodes"] if node["type"] == "VideoMemoryBudgetGate")
    gate["widgets_values"][:2] = [8192, 8192]
    changed = tmp_path / "large.json"
    changed.write_text(json.dumps(workflow), encoding="utf-8")
    done = plan("--workflow", str(changed), "--vram", "2")
    assert done.returncode == 1, done.stderr
    assert "does not fit" in done.stdout


def test_the_flagship_is_planned_before_its_files_are_fetched(tmp_path):
    done = plan("--workflow", str(ROOT / "workflows" / "short_30s_720p_12gb.json"), "--ram", "32", models=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a 12 GB card" in done.stdout and "model_bf16.pt is not here yet" in done.stdout


def test_missing_models_and_files_that_are_no_workflow_end_with_two(tmp_path):
    strange = tmp_path / "strange.json"
    strange.write_text(DEMO.read_text(encoding="utf-8").replace("toyworld_dit_fp16", "somebodys"), encoding="utf-8")
    done = plan("--workflow", str(strange), models=tmp_path)
    assert done.returncode == 2 and "allowed: a file in models/" in done.stdout
    broken = tmp_path / "broken.json"
    broken.write_text("[1", encoding="utf-8")
    done = plan("--workflow", str(broken))
    assert done.returncode == 2 and "broken.json is no workflow" in done.stderr
    empty = tmp_path / "empty.json"
    empty.write_text("{}", encoding="utf-8")
    assert "has no VRAM Budget Gate" in plan("--workflow", str(empty)).stderr
