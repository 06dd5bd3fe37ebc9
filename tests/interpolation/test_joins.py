"""Joins of clips: a moving texture with a repeated frame, with a jump, with a cut; measured, smoothed, faded.

The texture moves by whole pixels, so that what a frame shows can be told exactly: the position that it was cut from.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.interpolation.joins import REACH, EvenJoins, Join, Span, faded, joins_of
from pack.nodes.interpolation.retime import Tally, retime
from pack.nodes.interpolation.seams import GHOSTS, Moved, Seam, describe, difference_motion, seam_score, stands_out

FPS = Fraction(8)


def at(position: float) -> torch.Tensor:
    """A frame whose every pixel says where it was taken: [4, 4, 3] float."""
    return torch.full((4, 4, 3), 0.2 + position / 1000)


def where(frame: torch.Tensor) -> float:
    return round((float(frame[0, 0, 0]) - 0.2) * 1000, 3)


class Exact:
    """An interpolator and a motion that know where frames were taken."""

    batch = 2
    ghosting = 0.0

    def __call__(self, tasks: list) -> list[torch.Tensor]:
        return [at(where(first) * (1 - t) + where(second) * t) for first, second, t in tasks]

    def motion(self, first: torch.Tensor, second: torch.Tensor) -> Moved:
        return Moved(abs(where(second) - where(first)), self.ghosting)


def film(clips: list[list[float]], smoother: Exact | None, target: Fraction = FPS,
         cuts: tuple[int, ...] = ()) -> tuple[list[float], list[Seam]]:
    frames = [at(position) for clip in clips for position in clip]
    tally = Tally()
    motion = smoother.motion if smoother else difference_motion
    path = EvenJoins(joins_of([len(clip) for clip in clips], cuts), motion, smoother, tally.seams)
    made = retime(iter(frames), len(frames), FPS, target, smoother, tally, path)
    return [where(frame) for frame in made], tally.seams


STEADY = [10.0 * i for i in range(8)]


def test_joins_know_their_clips():
    assert joins_of([5, 3, 4], cuts=[2]) == [Join(1, 5, 0, 8, False), Join(2, 8, 5, 12, True)]
    assert joins_of([5]) == []


def test_an_even_join_is_left_to_the_bit():
    clips = [STEADY, [80.0 + position for position in STEADY]]
    positions, seams = film(clips, Exact())
    assert positions == clips[0] + clips[1]
    assert seams == [Seam(1, 1.0, 1.0, "even")]


def test_a_repeated_frame_is_passed_in_less_than_a_step():
    """70 70 becomes a walk from 60 to 80 in three equal steps; everything else keeps its place and its time."""
    clips = [STEADY, [70.0 + position for position in STEADY]]
    positions, (seam,) = film(clips, Exact())
    wanted = clips[0] + clips[1]
    wanted[7:9] = [60 + 20 / 3, 60 + 40 / 3]
    assert positions == pytest.approx(wanted, abs=0.01)
    assert (seam.before, seam.what) == (0.0, "smoothed") and seam.after == pytest.approx(2 / 3, abs=0.01)


def test_a_jump_is_spread_over_its_neighbours():
    clips = [STEADY, [100.0 + position for position in STEADY]]
    positions, (seam,) = film(clips, Exact())
    steps = [behind - before for before, behind in itertools.pairwise(positions)]
    assert seam.before == 3.0 and seam.after == pytest.approx(5 / 3, abs=0.01) and seam.what == "smoothed"
    assert max(steps) == pytest.approx(50 / 3, abs=0.02) and positions[0] == 0 and positions[-1] == 170


def test_smoothed_joins_are_exact_in_time_at_another_rate():
    """At three times the rate the same walk has three times as many steps, each of two real frames and no more."""
    clips = [STEADY, [70.0 + position for position in STEADY]]
    positions, _ = film(clips, Exact(), Fraction(24))
    slow, _ = film(clips, Exact())
    assert len(positions) == 48 and positions[::3] == pytest.approx(slow, abs=0.01)
    steps = [behind - before for before, behind in itertools.pairwise(positions[:44])]
    assert min(steps) == pytest.approx(20 / 9, abs=0.01) and max(steps) == pytest.approx(10 / 3, abs=0.01)


def test_without_a_model_joins_are_measured_and_left():
    clips = [STEADY, [70.0 + position for position in STEADY]]
    positions, (seam,) = film(clips, None)
    assert positions == clips[0] + clips[1]
    assert (seam.before, seam.after, seam.what) == (0.0, 0.0, "left")


@pytest.mark.parametrize("known", [True, False])
def test_a_cut_is_left_to_the_bit(known):
    """One that is seen in the picture, and one that only the records know."""
    other = [80.0 + position if known else 700.0 + position for position in STEADY]
    positions, seams = film([STEADY, other], Exact(), cuts=(1,) if known else ())
    assert positions == STEADY + other and seams == [Seam(1, None, None, "cut")]


def test_nothing_is_made_across_a_cut_that_only_the_records_know():
    positions, _ = film([STEADY, [80.0 + position for position in STEADY]], Exact(), Fraction(16), cuts=(1,))
    assert positions[13:18] == [65.0, 70.0, 70.0, 80.0, 85.0]


@pytest.mark.parametrize("target", [FPS, Fraction(16)])
def test_frames_with_nothing_in_common_are_a_cut_though_the_colours_are_alike(monkeypatch, target):
    monkeypatch.setattr(Exact, "ghosting", GHOSTS + 1)
    positions, seams = film([STEADY, [100.0 + position for position in STEADY]], Exact(), target)
    assert seams == [Seam(1, None, None, "cut")]
    assert positions[:: int(target / FPS)] == STEADY + [100.0 + position for position in STEADY]
    assert 85.0 not in positions


def test_what_is_no_better_is_not_taken(monkeypatch):
    """A network whose frames are worse than the join: the clips' own frames stay, to the bit."""
    monkeypatch.setattr(Exact, "__call__", lambda self, tasks: [at(500.0) for _ in tasks])
    clips = [STEADY, [70.0 + position for position in STEADY]]
    positions, (seam,) = film(clips, Exact())
    assert positions == clips[0] + clips[1] and seam.what == "left"


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=7), min_size=1, max_size=6),
       st.sampled_from([FPS, Fraction(24), Fraction(5), Fraction(20)]))
@settings(max_examples=60, deadline=None)
def test_any_film_keeps_its_length_its_order_and_its_ends(steps, target):
    """Clips of any length, also single frames, with any motion: never a frame out of order, never one lost."""
    clips, position = [], 0.0
    for clip in steps:
        clips.append([position := position + step for step in clip])
    frames = [position for clip in clips for position in clip]
    plain = [where(frame) for frame in retime(iter(map(at, frames)), len(frames), FPS, target, Exact(), Tally())]
    positions, seams = film(clips, Exact(), target)
    assert len(positions) == len(plain) and len(seams) == len(clips) - 1
    assert positions == sorted(positions) and positions[0] == plain[0]
    if len(clips[-1]) > REACH:
        assert positions[-1] == plain[-1]
    for seam in seams:
        assert seam.what in ("cut", "even", "left", "smoothed")


@given(st.lists(st.floats(0, 50), min_size=1, max_size=9), st.lists(st.floats(0, 1), min_size=2, max_size=9))
@settings(deadline=None)
def test_a_span_is_passed_at_an_even_speed(steps, times):
    span = Span(3, [0.0, *itertools.accumulate(steps)])
    assert (span.first, span.last) == (3, 3 + len(steps))
    for share in sorted(times):
        place = span.place(3 + share * len(steps))
        index = min(int(place) - 3, len(steps) - 1)
        passed = span.passed[index] + (place - 3 - index) * steps[index]
        assert passed == pytest.approx(share * sum(steps), abs=1e-6)


def test_few_frames_are_held_at_any_join(monkeypatch):
    live, most = set(), 0

    class Counted(torch.Tensor):
        def __del__(self):
            live.discard(id(self))

    def frames():
        for i in range(400):
            frame = at(10.0 * i - 10.0 * (i // 20)).as_subclass(Counted)
            live.add(id(frame))
            yield frame

    path = EvenJoins(joins_of([20] * 20), Exact().motion, Exact(), seams := [])
    for _ in retime(frames(), 400, FPS, FPS, Exact(), Tally(), path):
        most = max(most, len(live))
    assert {seam.what for seam in seams} == {"smoothed"} and most <= 2 * REACH + 6


def test_a_fade_blends_both_sides_and_keeps_the_length():
    clips = [[0.0] * 8, [45.0] * 8]
    seams: list[Seam] = []
    made = [where(frame) for frame in faded((at(p) for clip in clips for p in clip), joins_of([8, 8]), Exact().motion,
                                            seams)]
    assert made == pytest.approx([0.0] * 4 + [5.0 * i for i in range(1, 9)] + [45.0] * 4, abs=0.01)
    assert [(seam.before, seam.after, seam.what) for seam in seams] == [(450.0, pytest.approx(50.0, abs=0.01), "faded")]


def test_nothing_stands_still_in_a_fade():
    """Two clips of the same motion: the film goes on at half speed through the fade, and never stops."""
    clips, seams = [STEADY, [80.0 + position for position in STEADY]], []
    made = [where(frame) for frame in faded((at(p) for clip in clips for p in clip), joins_of([8, 8]), Exact().motion,
                                            seams)]
    steps = [behind - before for before, behind in itertools.pairwise(made)]
    assert len(made) == 16 and made[:4] == STEADY[:4] and made[12:] == clips[1][4:]
    assert min(steps) > 5 and seams[0].after > 0.8


@pytest.mark.parametrize("lengths", [[8, 8], [1, 1, 1], [3, 2, 9], [1, 12, 1]])
def test_fades_of_any_clips_keep_every_frame(lengths):
    frames, seams = [at(10.0 * i) for i in range(sum(lengths))], []
    made = list(faded(iter(frames), joins_of(lengths), Exact().motion, seams))
    assert len(made) == len(frames) and [seam.clip for seam in seams] == list(range(1, len(lengths)))
    assert where(made[0]) <= 10 and where(made[-1]) >= 10 * len(frames) - 20


def test_a_fade_is_for_joins_with_little_in_common_too(monkeypatch):
    monkeypatch.setattr(Exact, "ghosting", GHOSTS + 1)
    seams: list[Seam] = []
    list(faded((at(p) for p in [*STEADY, *(80.0 + p for p in STEADY)]), joins_of([8, 8]), Exact().motion, seams))
    assert seams[0].what == "faded"


def test_a_cut_is_not_faded():
    clips = [STEADY, [700.0 + position for position in STEADY]]
    seams: list[Seam] = []
    made = faded((at(p) for clip in clips for p in clip), joins_of([8, 8]), Exact().motion, seams)
    assert [where(frame) for frame in made] == clips[0] + clips[1] and seams[0].what == "cut"


def test_bytes_stay_bytes_in_a_fade():
    frames = [torch.full((4, 4, 3), value, dtype=torch.uint8) for value in [100] * 6 + [109] * 6]
    made = list(faded(iter(frames), joins_of([6, 6]), difference_motion, []))
    assert all(frame.dtype == torch.uint8 for frame in made)
    assert [int(frame[0, 0, 0]) for frame in made] == [100, 100, *range(101, 109), 109, 109]


@pytest.mark.parametrize(("at_join", "around", "score"), [
    (5.0, [5.0, 5.0, 5.0], 1.0), (0.0, [5.0, 5.0], 0.0), (15.0, [5.0, 5.0, 50.0], 3.0), (0.02, [0.03, 0.01], 1.0),
    (1.0, [0.0, 0.0], 10.0), (7.0, [], 1.0)])
def test_seam_score_is_the_motion_there_over_the_motion_around(at_join, around, score):
    assert seam_score(at_join, around) == pytest.approx(score)


@pytest.mark.parametrize(("at_join", "before", "behind", "bad"), [
    (0.0, [5.0, 5.0], [5.0, 5.0], True), (15.0, [5.0, 5.0], [5.0, 5.0], True), (4.0, [5.0, 5.0], [5.0], False),
    (0.8, [2.4, 1.8, 0.6], [2.5, 1.7, 0.5], False),  # the top of a jump: slow before the join already
    (12.0, [2.0, 4.0, 7.0], [16.0, 18.0], False),  # speeding up
    (0.01, [5.0, 5.0], [0.02, 5.0], True),  # two repeated frames
    (0.0, [], [], False), (0.02, [0.01], [0.03], False)])
def test_a_join_stands_out_from_the_steps_next_to_it(at_join, before, behind, bad):
    assert stands_out(at_join, before, behind) is bad


def test_a_hero_at_the_top_of_a_jump_is_left_to_the_bit():
    heights = [0.0, 40.0, 70.0, 90.0, 97.0, 100.0]
    clips = [heights, [104.0, 112.0, 134.0, 166.0, 208.0, 258.0]]
    positions, (seam,) = film(clips, Exact())
    assert positions == clips[0] + clips[1] and seam.before < 0.3 and seam.what == "even"


def test_joins_are_described_in_one_line():
    seams = [Seam(1, 0.04, 0.75, "smoothed"), Seam(2, None, None, "cut"), Seam(3, 1.1, 1.1, "even"),
             Seam(4, 3.0, 3.0, "left")]
    assert describe(seams) == (" Joins of clips (1 = as even as the motion around): 0|1 0.04 -> 0.75 smoothed, "
                               "1|2 cut, 2|3 1.10, 3|4 3.00 left as it is.")
    assert describe([]) == ""
