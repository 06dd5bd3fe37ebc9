"""PSNR, SSIM and flicker against an independent implementation and hand-made cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pack.nodes.compare.plot import MAX_VIDEO_WIDTH, draw_plot, side_by_side
from pack.nodes.compare.quality import compare, ssim, table

ORACLE = json.loads((Path(__file__).parent / "data" / "ssim_oracle.json").read_text(encoding="utf-8"))


def oracle_frames(height, width):
    """The pictures of data/make_ssim_oracle.py."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    a = torch.stack([0.5 + 0.4 * torch.sin(x / (3 + c) + y / 5) for c in range(3)], -1)
    return a, (a + 0.1 * torch.cos(x * y / 7)[..., None]).clamp(0, 1)


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: f"{case['height']}x{case['width']}")
def test_ssim_and_psnr_equal_scikit_image(case):
    a, b = oracle_frames(case["height"], case["width"])
    quality = compare(a[None], b[None])
    assert ssim(a, b) == pytest.approx(case["ssim"], abs=1e-9)
    assert quality.psnr[0] == pytest.approx(case["psnr"], abs=1e-9)


def test_identical_videos_say_so():
    video = torch.rand(3, 16, 20, 3, generator=torch.Generator().manual_seed(0))
    quality = compare(video, video.clone())
    assert quality.psnr == (math.inf,) * 3
    assert quality.ssim == pytest.approx((1.0,) * 3)
    assert "PSNR identical" in table(quality, ("a", "b")) and "worst" not in table(quality, ("a", "b"))


def test_flicker_counts_8_bit_levels_from_the_frame_before():
    steady = torch.full((4, 12, 12, 3), 0.5)
    blinking = steady.clone()
    blinking[1::2] += 2 / 255
    quality = compare(steady, blinking)
    assert quality.flicker_a[1:] == (0.0, 0.0, 0.0) and math.isnan(quality.flicker_a[0])
    assert quality.flicker_b[1:] == pytest.approx((2.0, 2.0, 2.0), abs=1e-4)
    assert "nf4 2.00 (+2.00" in table(quality, ("original", "nf4"))


def test_average_psnr_is_of_all_frames_and_the_worst_is_named():
    a = torch.zeros(2, 12, 12, 3)
    b = a.clone()
    b[1] = 0.1
    text = table(compare(a, b), ("a", "b"))
    assert "PSNR 23.01 dB" in text and "worst frame by PSNR: 1" in text and "\n0 | identical | 1.0000 | - | -" in text


@pytest.mark.parametrize("shape", [(3, 16, 20, 3), (2, 16, 24, 3)])
def test_other_lengths_and_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="differ in length or size, but got 2 frames of 20x16 and .*allowed: equal"):
        compare(torch.zeros(2, 16, 20, 3), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 16, 16, 3), (1, 10, 16, 3), (1, 16, 16, 4), (16, 16, 3)])
def test_what_is_no_video_is_refused(shape):
    with pytest.raises(ValueError, match="cannot be compared, but got a tensor of shape"):
        compare(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_plot_has_ink_for_one_frame_and_for_equal_ones(frames):
    a = torch.rand(frames, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    equal, other = (draw_plot(compare(a, b), ("a", "b")) for b in (a, a.roll(1, 1)))
    assert equal.shape == other.shape == (1, 660, 960, 3)
    assert not torch.equal(equal, other)


def test_side_by_side_keeps_the_pixels_and_shrinks_wide_pairs():
    a, b = torch.zeros(2, 16, 20, 3), torch.ones(2, 16, 20, 3)
    video = side_by_side(a, b, ("a", "b"))
    assert torch.equal(video[:, -16:, :20], a) and torch.equal(video[:, -16:, 20:], b)
    wide = side_by_side(torch.zeros(1, 704, 1280, 3), torch.ones(1, 704, 1280, 3), ("a", "b"))
    assert wide.shape[2] == MAX_VIDEO_WIDTH and wide.shape[1] % 2 == 0
