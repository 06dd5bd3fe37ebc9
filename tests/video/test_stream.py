"""Clips on disk -> one film: counts, joins, cuts, size, memory, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from pack.nodes.common.progress import SILENT, Progress
from pack.nodes.common.types import ClipRecord
from pack.nodes.interpolation.retime import Tally
from pack.nodes.video import stream
from pack.nodes.video.encode import write_ffv1
from pack.nodes.video.stream import enlarge_frame, film_frames, film_report, plan_film


def blend(first: torch.Tensor, second: torch.Tensor, times: list[float]) -> torch.Tensor:
    return torch.stack([(first.float() * (1 - t) + second.float() * t) / 255 for t in times])


@pytest.fixture
def clips(tmp_path) -> tuple[ClipRecord, ...]:
    """Three clips of 4 frames, 8x6: grey 0, 3, .. 21 through the first join, then a cut to 200 and on."""
    records = []
    for index, base in enumerate((0, 12, 200)):
        frames = torch.stack([torch.full((6, 8, 3), base + 3 * i, dtype=torch.uint8) for i in range(4)])
        write_ffv1(tmp_path / f"clip_{index}.mkv", [frames], 8)
        records.append(ClipRecord(index, str(tmp_path), "", f"clip_{index}.mkv", 4, 8.0, 8, 6, ""))
    return tuple(records)


def test_interpolates_across_joins_and_not_across_cuts(clips):
    plan, tally = plan_film(clips, 24.0, 1), Tally()
    film = torch.stack(list(film_frames(plan, blend, SILENT, tally)))
    greys = film[:, 0, 0, 0].tolist()
    assert len(film) == plan.frames == 36
    assert greys[:22] == list(range(22))  # the join of clips 0 and 1 is as smooth as the rest
    assert greys[22:24] == [21, 21] and greys[24:34] == list(range(200, 210))  # the cut is held
    assert greys[34:] == [209, 209]
    assert tally == Tally(frames=36, interpolated=20, cuts=1)
    assert film_report(plan, tally, True) == (
        "3 clips, 12 frames at 8 fps -> 36 frames at 24 fps, 8x6, 1.5 s (20 frames interpolated, 1 hard cuts left "
        "alone).")


def test_without_a_model_frames_are_repeated_and_the_report_says_so(clips):
    plan, tally = plan_film(clips, 16.0, 1), Tally()
    greys = [int(frame[0, 0, 0]) for frame in film_frames(plan, None, SILENT, tally)]
    assert greys[:6] == [0, 0, 3, 3, 6, 6] and len(greys) == 24
    assert "no interpolation model is connected" in film_report(plan, tally, False)


def test_zero_keeps_the_rate_of_the_clips(clips):
    plan, tally = plan_film(clips, 0.0, 1), Tally()
    assert (plan.frames, plan.target_fps, plan.seconds) == (12, Fraction(8), 1.5)
    assert len(list(film_frames(plan, blend, SILENT, tally))) == 12 and tally.interpolated == 0


def test_enlarge_multiplies_the_size_and_keeps_the_picture(clips):
    plan = plan_film(clips, 0.0, 4)
    assert (plan.width, plan.height) == (32, 24)
    frame = next(film_frames(plan, None, SILENT, Tally()))
    assert frame.shape == (24, 32, 3) and frame.dtype == torch.uint8
    edge = torch.zeros(16, 16, 3, dtype=torch.uint8)
    edge[:, 8:] = 255
    large = enlarge_frame(edge, 64, 64)
    assert torch.equal(large[:, :24], torch.zeros_like(large[:, :24])) or large[:, :24].max() < 30
    assert large[:, 40:].min() > 225 and 60 < large[0, 31:33].float().mean() < 195


def test_two_source_frames_are_held_however_long_the_film(monkeypatch):
    live, most, total = set(), 0, 0

    class Counted(torch.Tensor):
        def __del__(self):
            live.discard(id(self))

    def counted(path):
        for _ in range(4):
            frame = torch.zeros(6, 8, 3, dtype=torch.uint8).as_subclass(Counted)
            live.add(id(frame))
            yield frame

    monkeypatch.setattr(stream, "read_frames", counted)
    monkeypatch.setattr(stream.Path, "is_file", lambda self: True)
    records = [ClipRecord(i, "", "", f"{i}.mkv", 4, 8.0, 8, 6, "") for i in range(100)]
    for _ in film_frames(plan_film(records, 24.0, 2), blend, SILENT, Tally()):
        most, total = max(most, len(live)), total + 1
    assert total == 1200 and most <= 4


def test_progress_counts_every_frame_and_cancel_stops(clips):
    seen = []
    list(film_frames(plan_film(clips, 16.0, 1), None, Progress(update=lambda *step: seen.append(step)), Tally()))
    assert seen == [(i + 1, 24) for i in range(24)]

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(film_frames(plan_film(clips, 16.0, 1), None, Progress(check_cancel=cancel), Tally()))


def test_clip_with_lost_frames_is_named(clips):
    wrong = (*clips[:2], replace(clips[2], frames=5))
    with pytest.raises(RuntimeError, match="The file of clip 2 must have 5 frames, but got 4 frames"):
        list(film_frames(plan_film(wrong, 8.0, 1), None, SILENT, Tally()))


def test_films_that_make_no_sense_are_refused(clips):
    with pytest.raises(ValueError, match="Assemble Short needs clips, but got 'none'"):
        plan_film([], 24.0, 1)
    with pytest.raises(ValueError, match="enlarge, but got 9; allowed: whole numbers from 1 to 8"):
        plan_film(clips, 24.0, 9)
    with pytest.raises(ValueError, match="must be 8x6 at 8 fps like its first, but got 8x6 at 16 fps in clip 1"):
        plan_film((clips[0], replace(clips[1], fps=16.0)), 24.0, 1)
    with pytest.raises(RuntimeError, match="needs the file of clip 1, but got no gone.mkv in"):
        plan_film((clips[0], replace(clips[1], video_file="gone.mkv")), 24.0, 1)
