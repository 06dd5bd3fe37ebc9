"""Clips on disk -> one film: counts, joins, cuts, size, memory, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from pack.nodes.common.progress import SILENT, Progress
from pack.nodes.common.types import ClipRecord
from pack.nodes.interpolation.retime import Tally
from pack.nodes.interpolation.seams import Moved, Seam
from pack.nodes.video import stream
from pack.nodes.video.encode import write_ffv1
from pack.nodes.video.stream import enlarge_frame, film_frames, film_report, plan_film


class Blend:
    """An interpolator whose frames lie on the line between their neighbours."""

    batch = 2

    def __call__(self, tasks: list) -> list[torch.Tensor]:
        return [(_level(first) * (1 - t) + _level(second) * t) / 255 for first, second, t in tasks]

    def motion(self, first: torch.Tensor, second: torch.Tensor) -> Moved:
        """Greys that rise evenly move evenly."""
        return Moved(float((_level(second) - _level(first)).abs().mean()))


def _level(frame: torch.Tensor) -> torch.Tensor:
    return frame.float() * (1 if frame.dtype == torch.uint8 else 255)


blend = Blend()


def grey_clips(folder: Path, *starts: int, frames: int = 4) -> tuple[ClipRecord, ...]:
    """Clips of 8x6 whose greys rise by 3 from frame to frame."""
    records = []
    for index, base in enumerate(starts):
        pixels = torch.stack([torch.full((6, 8, 3), base + 3 * i, dtype=torch.uint8) for i in range(frames)])
        write_ffv1(folder / f"clip_{index}.mkv", [pixels], 8)
        records.append(ClipRecord(index, str(folder), "", f"clip_{index}.mkv", frames, 8.0, 8, 6, ""))
    return tuple(records)


@pytest.fixture
def clips(tmp_path) -> tuple[ClipRecord, ...]:
    """Three clips of 4 frames: grey 0, 3, .. 21 through the first join, then a cut to 200 and on."""
    return grey_clips(tmp_path, 0, 12, 200)


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


def film_of(records: tuple[ClipRecord, ...], seams: str, interpolate: Blend | None = blend,
            fps: float = 0.0) -> tuple[list[int], Tally]:
    tally = Tally()
    frames = film_frames(plan_film(records, fps, 1), interpolate, SILENT, tally, seams)
    return [int(frame[0, 0, 0]) for frame in frames], tally


def test_a_stuttering_join_is_smoothed_and_the_report_says_so(tmp_path):
    """The second clip begins with the first one's last frame, and a third after a cut."""
    records = grey_clips(tmp_path, 0, 21, 150, frames=8)
    greys, tally = film_of(records, "smooth")
    plain, _ = film_of(records, "off")
    assert plain[6:10] == [18, 21, 21, 24] and greys[6:10] == [18, 20, 22, 24]
    assert greys[:7] + greys[10:] == plain[:7] + plain[10:]
    assert tally.seams == [Seam(1, 0.0, pytest.approx(0.67, abs=0.01), "smoothed"), Seam(2, None, None, "cut")]
    assert film_report(plan_film(records, 0.0, 1), tally, True).endswith(
        "(2 frames interpolated, 0 hard cuts left alone). Joins of clips (1 = as even as the motion around): "
        "0|1 0.00 -> 0.67 smoothed, 1|2 cut.")


@pytest.mark.parametrize("fps", [0.0, 24.0])
def test_off_measures_nothing_and_changes_nothing(tmp_path, fps, monkeypatch):
    records = grey_clips(tmp_path, 0, 21, frames=8)
    with_default = [int(frame[0, 0, 0]) for frame in film_frames(plan_film(records, fps, 1), blend, SILENT, Tally())]
    monkeypatch.setattr(stream, "EvenJoins", None)
    monkeypatch.setattr(stream, "faded", None)
    greys, tally = film_of(records, "off", fps=fps)
    assert greys == with_default and tally.seams == []


@pytest.mark.parametrize("seams", ["smooth", "crossfade"])
def test_a_scene_cut_that_the_memory_knows_is_left_though_it_looks_like_a_stutter(tmp_path, seams):
    first, second = grey_clips(tmp_path, 0, 21, frames=8)
    greys, tally = film_of((first, replace(second, cuts=1)), seams, fps=16.0)
    assert tally.seams == [Seam(1, None, None, "cut")]
    assert greys[12:19] == [18, 20, 21, 21, 21, 22, 24]


@pytest.mark.parametrize("seams", ["smooth", "crossfade", "off"])
def test_nothing_is_put_between_two_scenes_that_look_alike(tmp_path, seams):
    first, second = grey_clips(tmp_path, 0, 31, frames=8)
    greys, tally = film_of((first, replace(second, cuts=1)), seams, fps=16.0)
    assert greys[14:17] == [21, 21, 31] and tally.cuts == 1


def test_crossfade_blends_the_joins_but_cuts(tmp_path):
    greys, tally = film_of(grey_clips(tmp_path, 0, 30, 150, frames=8), "crossfade")
    assert greys[:4] == [0, 3, 6, 9] and greys[3:13] == sorted(greys[3:13]) and greys[12:16] == [42, 45, 48, 51]
    assert max(b - a for a, b in itertools.pairwise(greys[:16])) < 9 and greys[16:] == list(range(150, 174, 3))
    assert [(seam.what, seam.before) for seam in tally.seams] == [("faded", 3.0), ("cut", None)]


def test_without_a_model_a_bad_join_is_only_reported(tmp_path):
    greys, tally = film_of(grey_clips(tmp_path, 0, 21, frames=8), "smooth", None)
    assert greys[6:10] == [18, 21, 21, 24] and tally.seams == [Seam(1, 0.0, 0.0, "left")]


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


@pytest.mark.parametrize(("seams", "held"), [("off", 5), ("smooth", 14), ("crossfade", 20)])
def test_few_source_frames_are_held_however_long_the_film(monkeypatch, seams, held):
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
    for _ in film_frames(plan_film(records, 24.0, 2), blend, SILENT, Tally(), seams):
        most, total = max(most, len(live)), total + 1
    assert total == 1200 and most <= held


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
