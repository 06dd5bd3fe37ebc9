"""Finished clips compressed or without their frames: what stays, what is freed, and that a kill costs nothing."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from pack.nodes.common.progress import Progress
from pack.nodes.video import run_folder
from pack.nodes.video.encode import read_frames, write_ffv1
from pack.nodes.video.run_folder import RunFolder
from pack.nodes.video.seen import SeenFiles
from pack.nodes.video.tiers import compress_video


def moving(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """A smooth picture that moves, with a little noise: [frames, height, width, 3] uint8."""
    noise = torch.Generator().manual_seed(0)
    x = torch.arange(width)[None, None, :, None] + 2 * torch.arange(frames)[:, None, None, None]
    y = torch.arange(height)[None, :, None, None]
    picture = 128 + 90 * torch.sin(x / 9 + torch.tensor([0.0, 1.0, 2.0])) * torch.cos(y / 7)
    return (picture + torch.randn(picture.shape, generator=noise)).clamp(0, 255).byte()


def save(run: RunFolder, index: int, content: str = "a"):
    take = run.begin(index, content, f"digest of {content} {index}", "vae")
    for kind in ("latents", "memory"):
        take = run.put(take, kind, lambda path, kind=kind: path.write_text(f"{kind} of {content}") and None)
    return run.finish(run.put(take, "video", lambda path: write_ffv1(path, [moving(9)], 8)))


def frames_of(run: RunFolder, record) -> torch.Tensor:
    return torch.stack(list(read_frames(run.path / run.current(record).video_file)))


def test_compressed_clip_is_smaller_and_looks_the_same(tmp_path):
    run = RunFolder(tmp_path)
    record = save(run, 0)
    before = (tmp_path / record.video_file).stat().st_size
    freed = run.compress_videos([record])
    now = run.current(record)
    assert now.video_file == "clip_000.h264.mkv" and not (tmp_path / record.video_file).exists()
    assert freed == before - (tmp_path / now.video_file).stat().st_size > 0
    error = (frames_of(run, record).float() - moving(9).float()) / 255
    assert len(error) == now.frames == 9 and -10 * torch.log10((error**2).mean()) > 45
    assert RunFolder(tmp_path, SeenFiles()).finished(0, "a") == now
    assert run.begin(0, "a", record.digest, "vae").status == "done"  # nothing to do for Save Clip


def test_compressing_twice_changes_nothing(tmp_path):
    run = RunFolder(tmp_path)
    record = save(run, 0)
    run.compress_videos([record])
    content = (tmp_path / "clip_000.h264.mkv").read_bytes()
    assert run.compress_videos([record]) == 0 == run.compress_videos([run.current(record)])
    assert (tmp_path / "clip_000.h264.mkv").read_bytes() == content


@pytest.mark.parametrize("deadly", range(2))
@pytest.mark.parametrize("after", [False, True])
def test_kill_while_compressing_costs_nothing(tmp_path, monkeypatch, deadly, after):
    run = RunFolder(tmp_path)
    records = [save(run, index) for index in range(2)]
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) - 1 == deadly and not after:
            raise KeyboardInterrupt
        real(source, target)
        if len(calls) - 1 == deadly:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        run.compress_videos(records)
    for record in records:
        assert RunFolder(tmp_path, SeenFiles()).finished(record.index, "a")
        assert len(frames_of(run, record)) == 9
    run.compress_videos(records)
    assert sorted(path.name for path in tmp_path.glob("*.mkv")) == ["clip_000.h264.mkv", "clip_001.h264.mkv"]


def test_cancel_while_compressing_keeps_the_lossless_file(tmp_path):
    run = RunFolder(tmp_path)
    record = save(run, 0)

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.compress_videos([record], Progress(check_cancel=cancel))
    assert run.current(record) == record and not list(tmp_path.glob("*.tmp"))


def test_dropped_clip_keeps_what_it_was_made_of(tmp_path):
    run = RunFolder(tmp_path)
    record = save(run, 0)
    size = (tmp_path / record.video_file).stat().st_size
    assert run.drop_videos([record]) == size and not list(tmp_path.glob("*.mkv"))
    assert run.finished(0, "a") is None and run.is_sampled(0, "a")
    with pytest.raises(RuntimeError, match="needs the frames of clip 0.* Queue again: they are decoded from"):
        run.current(record)
    take = run.begin(0, "a", record.digest, "vae")
    assert set(take.files) == {"latents", "memory"}
    again = run.finish(run.put(take, "video", lambda path: write_ffv1(path, [moving(9)], 8)))
    assert again == record == RunFolder(tmp_path, SeenFiles()).finished(0, "a")


def test_frames_that_a_player_holds_open_are_not_called_freed(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    records = [save(run, 0), save(run, 1)]
    with monkeypatch.context() as windows:
        windows.setattr(run_folder, "discard", lambda path: False)
        assert run.compress_videos(records[:1]) == 0 == run.drop_videos(records[1:])
    left = {path.name for path in tmp_path.glob("*.mkv")}
    assert left == {"clip_000.mkv", "clip_000.h264.mkv", "clip_001.mkv"}


def test_dropped_clip_survives_a_reroll_that_is_not_finished(tmp_path):
    run = RunFolder(tmp_path)
    run.drop_videos([save(run, 0)])
    run.put(run.begin(0, "b", "other", "vae"), "latents", lambda path: path.write_text("half") and None)
    assert run.is_sampled(0, "a")


def test_replaced_and_damaged_clips_are_left_as_they_are(tmp_path):
    run = RunFolder(tmp_path)
    old, damaged = save(run, 0), save(run, 1)
    save(run, 0, "b")
    path = tmp_path / damaged.video_file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run.compress_videos([old, damaged]) == 0 == run.drop_videos([old, damaged])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_half_a_clip_is_not_compressed(tmp_path):
    write_ffv1(tmp_path / "clip.mkv", [moving(3)], 8)
    with pytest.raises(RuntimeError, match="compressed as a whole, 4 frames, but got 3 frames"):
        compress_video(tmp_path / "clip.mkv", Path(tmp_path / "out"), 4, Fraction(8))
