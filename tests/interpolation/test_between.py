"""Frames between frames: sizes, batches, motion, and what it all costs.

data/toy_clips.png: 5 rows of 8 frames, 128x80, rendered by the demo film's generator (sample_specs(40, 7, 4 chunks,
clip_len 2), videos 0, 2, 4, 5, 13): four before and four after the cut from clip 1 to clip 2.
"""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.nodes.interpolation.architecture import RIFE_4_26
from pack.nodes.interpolation.between import Between, FrameMaker, coarser_for, motion
from pack.nodes.interpolation.rife import Rife, interpolation_bytes
from pack.nodes.interpolation.seams import GHOSTS
from pack.nodes.interpolation.weights import BUNDLED, find_weights, load_rife
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .test_rife import ARCHITECTURES

DATA = Path(__file__).parent / "data"
WALKS_LEFT, JUMPS, WALKS_RIGHT = 0, 2, 4


@pytest.fixture(scope="module")
def rife() -> Rife:
    return load_rife(find_weights(BUNDLED, []))


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    sheet = torch.from_numpy(np.asarray(Image.open(DATA / "toy_clips.png").convert("RGB")).copy())
    return sheet.view(5, 80, 8, 128, 3).permute(0, 2, 1, 3, 4)  # [video, frame, H, W, 3] uint8


@pytest.fixture(scope="module")
def bunny() -> torch.Tensor:
    """Two frames of a film [2, 128, 256, 3] uint8, see data/make_rife_oracle.py."""
    sheet = torch.from_numpy(np.asarray(Image.open(DATA / "bunny.png").convert("RGB")).copy())
    return sheet.view(128, 2, 256, 3).permute(1, 0, 2, 3)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


@pytest.mark.parametrize(("video", "gain_db"), [(WALKS_LEFT, 5), (JUMPS, 2), (WALKS_RIGHT, 5)])
def test_beats_blend_when_the_hero_moves(rife, clips, video, gain_db):
    first, middle, last = (clips[video, i].float() / 255 for i in range(3))
    made = FrameMaker(rife).make([Between(clips[video, 0], clips[video, 2], 0.5)])[0]
    assert psnr(made, middle) > psnr((first + last) / 2, middle) + gain_db


def test_batch_of_times_and_pairs_equals_one_by_one(rife, clips):
    frames = list(clips[2])
    tasks = [Between(frames[0], frames[1], 0.2), Between(frames[0], frames[1], 0.9), Between(frames[1], frames[2], 0.5),
             Between(frames[5], frames[6], 0.4)]
    together = FrameMaker(rife).make(tasks)
    apart = torch.cat([FrameMaker(rife).make([task]) for task in tasks])
    assert (together - apart).abs().max() < 1e-4


def test_each_frame_is_encoded_once_and_forgotten(rife, clips, monkeypatch):
    frames, encoded = list(clips[2]), []
    real = rife.sources
    monkeypatch.setattr(rife, "sources", lambda image: encoded.append(1) or real(image))
    maker = FrameMaker(rife)
    for first, second in itertools.pairwise(frames[:5]):
        maker.make([Between(first, second, 0.5)])
    assert len(encoded) == 5
    gone = weakref.ref(frames[0])
    del frames, first, second
    assert gone() is None


@pytest.mark.parametrize(("height", "width"), [(80, 128), (37, 91), (64, 64), (65, 1)])
@pytest.mark.parametrize("coarser", [1, 4])
def test_any_size_keeps_its_size(rife, height, width, coarser):
    frame = torch.rand(height, width, 3)
    assert FrameMaker(rife, coarser).make([Between(frame, frame, 0.5)]).shape == (1, height, width, 3)


def test_still_picture_stays_still(rife, clips):
    made = FrameMaker(rife).make([Between(clips[1, 0], clips[1, 0], 0.5)])[0]
    assert psnr(made, clips[1, 0].float() / 255) > 30


def test_coarser_flow_still_makes_the_frame(rife, bunny):
    fine, coarse = (FrameMaker(rife, coarser).make([Between(*bunny, 0.5)])[0] for coarser in (1, 2))
    blend = bunny.float().mean(0) / 255
    assert 28 < psnr(fine, coarse) < 60 and psnr(fine, coarse) > psnr(fine, blend) + 4


@pytest.mark.parametrize(("scale", "width", "height", "coarser"), [
    ("auto", 1280, 720, 1), ("auto", 2560, 1440, 1), ("auto", 2160, 3840, 2), ("auto", 7680, 4320, 4),
    ("full", 7680, 4320, 1), ("half", 64, 64, 2), ("quarter", 64, 64, 4)])
def test_flow_scale_follows_the_size_unless_told(scale, width, height, coarser):
    assert coarser_for(scale, width, height) == coarser


@pytest.mark.parametrize("shift", [2, 5, 16])
def test_motion_is_the_shift_in_pixels(rife, bunny, shift):
    moved = motion(rife, bunny[0, :, :-shift], bunny[0, :, shift:])
    assert moved.distance == pytest.approx(shift, rel=0.05) and moved.ghosting < GHOSTS / 4


def test_motion_of_a_large_frame_is_in_its_own_pixels(rife, bunny):
    large = torch.nn.functional.interpolate(bunny[:1].permute(0, 3, 1, 2) / 255, size=(640, 1280), mode="bilinear")
    frame = large[0].permute(1, 2, 0)
    assert motion(rife, frame[:, :-12], frame[:, 12:]).distance == pytest.approx(12, rel=0.05)


def test_a_repeated_frame_does_not_move(rife, bunny, clips):
    assert all(motion(rife, frame, frame).distance < 0.05 for frame in (bunny[0], clips[2, 0]))


@pytest.mark.parametrize("video", [WALKS_LEFT, JUMPS])
def test_two_shots_would_make_ghosts(rife, clips, video):
    assert motion(rife, clips[video, 3], clips[video, 4]).ghosting > 2 * GHOSTS
    assert motion(rife, clips[video, 0], clips[video, 3]).ghosting < GHOSTS / 4


def test_half_precision_stays_close(clips):
    if not torch.cuda.is_available():
        pytest.skip("float16 convolutions need a GPU")
    task = [Between(clips[0, 0], clips[0, 2], 0.5)]
    a, b = (FrameMaker(load_rife(find_weights(BUNDLED, []), dtype).cuda()).make(task)
            for dtype in (torch.float32, torch.float16))
    assert psnr(a, b) > 45


def test_cost_grows_with_pixels_frames_and_precision():
    one = interpolation_bytes(1280, 704, 1, 2)
    assert interpolation_bytes(1280, 704, 3, 4) == 6 * one
    assert interpolation_bytes(1281, 704, 1, 2) > one


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("version", ["4_6", "4_7", "4_17", "4_26", "4_26_heavy"])
def test_cost_covers_what_is_allocated(version, frames, dtype):
    """Traced on tensors without data: never more than predicted, and the prediction is no guess far above it."""
    architecture = ARCHITECTURES.get(version, RIFE_4_26)
    with torch.device("meta"):
        model = Rife(architecture).to(dtype)
    stream = [torch.empty(384, 640, 3, device="meta", dtype=torch.uint8) for _ in range(frames + 1)]
    tasks = [Between(first, second, 0.5) for first, second in itertools.pairwise(stream)]
    with LiveBytes([*model.parameters(), *stream]) as live:
        FrameMaker(model).make(tasks)
    predicted = interpolation_bytes(640, 384, frames, dtype.itemsize, architecture)
    assert 0.75 * predicted < live.peak <= predicted


class LiveBytes(TorchDispatchMode):
    """Follows the storages of all tensors made inside, except `known`; `peak` is the most that lived at once."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.kept = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}
        self.seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, out)
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self.kept and key not in self.seen:
            self.live += size
            self.seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        return tensor

    def _drop(self, key: int, size: int) -> None:
        self.live -= size
        del self.seen[key]
