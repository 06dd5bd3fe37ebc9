"""The RAM that a film takes, measured in a process of its own: the same however long the film is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pack.nodes.video.codecs import CODECS
from pack.nodes.video.encode import write_ffv1

from .film_ram import CLIP_FRAMES

HERE = Path(__file__).resolve()
FRAME_MB = 160 * 96 * 3 / 1e6


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "clips"), [("h264", 20), ("h265", 10), ("av1", 10)])
def test_ram_does_not_grow_with_the_film(tmp_path, codec, clips):
    assert codec in CODECS
    ramp = torch.arange(160 * 96 * 3).view(96, 160, 3) // 7
    write_ffv1(tmp_path / "clip.mkv", ((ramp + i).to(torch.uint8) for i in range(CLIP_FRAMES)), 8)
    short, long = peak_mb(tmp_path, codec, 2), peak_mb(tmp_path, codec, clips)
    held_mb = 2 * (clips - 2) * CLIP_FRAMES * FRAME_MB  # what the additional frames would take
    assert held_mb > 140 and long - short < 0.1 * held_mb


def peak_mb(folder: Path, codec: str, clips: int) -> float:
    command = [sys.executable, str(HERE.with_name("film_ram.py")), str(HERE.parents[2]), str(folder), codec, str(clips)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frames, peak = done.stdout.split()[-2:]
    assert int(frames) == 2 * clips * CLIP_FRAMES
    return float(peak)
