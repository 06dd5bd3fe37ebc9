"""Hard cuts against motion, on rendered demo films (data/toy_clips.png, see test_rife.py): a cut after frame 4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pack.nodes.interpolation.seams import CUT_SCORE, cut_score, is_hard_cut
from PIL import Image

SHEET = Path(__file__).parent / "data" / "toy_clips.png"


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    sheet = torch.from_numpy(np.asarray(Image.open(SHEET).convert("RGB")).copy())
    return sheet.view(5, 80, 8, 128, 3).permute(0, 2, 1, 3, 4)


def test_cuts_are_found_and_motion_is_not(clips):
    for video in clips:
        found = [is_hard_cut(video[i], video[i + 1]) for i in range(7)]
        assert found == [False, False, False, True, False, False, False]


def test_margin_on_both_sides(clips):
    cuts = [cut_score(video[3], video[4]) for video in clips]
    motion = [cut_score(video[i], video[i + 1]) for video in clips for i in (0, 1, 2, 4, 5, 6)]
    assert min(cuts) > 1.2 * CUT_SCORE
    assert max(motion) < CUT_SCORE / 3


def test_skipping_frames_is_still_motion(clips):
    assert not any(is_hard_cut(video[0], video[3]) for video in clips)


def test_a_change_of_light_is_no_cut(clips):
    frame = clips[0, 0].float() / 255
    assert not is_hard_cut(frame, frame * 0.93)


def test_a_moved_picture_is_no_cut(clips):
    frame = clips[4, 0]
    assert not is_hard_cut(frame, frame.roll(24, dims=1))


def test_bytes_and_floats_score_alike(clips):
    a, b = clips[2, 3], clips[2, 4]
    assert cut_score(a, b) == pytest.approx(cut_score(a.float() / 255, b.float() / 255), abs=1e-5)
    assert cut_score(a, a) == 0
