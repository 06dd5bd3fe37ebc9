"""The schedule of a new frame rate, exact for any rates, and what stands at each of its times."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.common.progress import SILENT, Progress
from pack.nodes.interpolation.retime import Step, Tally, exact_fps, output_count, retime, retime_images, schedule

RATES = st.fractions(min_value=1, max_value=120, max_denominator=1001)


def ramp(count: int) -> torch.Tensor:
    """Frames whose every pixel is their number / 100: blends can be read off."""
    return (torch.arange(count).float() / 100).view(-1, 1, 1, 1).expand(-1, 4, 4, 3)


class Blend:
    """An interpolator whose frames lie on the line between their neighbours; calls: how many it was asked for."""

    def __init__(self, batch: int = 1) -> None:
        self.batch, self.calls = batch, []

    def __call__(self, tasks: list) -> list[torch.Tensor]:
        self.calls.append(len(tasks))
        return [first * (1 - t) + second * t for first, second, t in tasks]


@given(st.integers(1, 200), RATES, RATES)
@settings(max_examples=200, deadline=None)
def test_every_output_lies_exactly_at_its_time(frames, source, target):
    steps = list(schedule(frames, source, target))
    assert len(steps) == output_count(frames, source, target)
    assert Fraction(len(steps) - 1) / target < frames / source <= Fraction(len(steps)) / target
    for output, (index, t) in enumerate(steps):
        assert 0 <= index < frames and 0 <= t < 1
        shown, wanted = (index + t) / source, output / target
        assert shown == wanted or (index == frames - 1 and t == 0 and shown <= wanted)
    assert steps == sorted(steps)


def test_same_rate_passes_every_frame():
    assert list(schedule(5, Fraction(8), Fraction(8))) == [Step(i, Fraction(0)) for i in range(5)]


def test_eight_to_twentyfour_makes_two_between_each():
    steps = list(schedule(3, Fraction(8), Fraction(24)))
    assert [step.index for step in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [step.t for step in steps[:3]] == [0, Fraction(1, 3), Fraction(2, 3)]
    assert all(step.t == 0 for step in steps[6:])


@pytest.mark.parametrize(("fps", "wanted"), [
    (24, Fraction(24)), (23.976, Fraction(24000, 1001)), (29.97, Fraction(30000, 1001)), (12.5, Fraction(25, 2)),
    (Fraction(24000, 1001), Fraction(24000, 1001)), (float(Fraction(24000, 1001)), Fraction(24000, 1001)),
])
def test_typed_rates_are_meant_exactly(fps, wanted):
    assert exact_fps(fps) == wanted


@pytest.mark.parametrize("fps", [0, -1, 1001, float("nan")])
def test_impossible_rates_are_refused(fps):
    with pytest.raises(ValueError, match=r"needs a frame rate, but got .*; allowed: more than 0 and at most 1000"):
        exact_fps(fps)


@given(st.integers(1, 30), RATES, RATES, st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_interpolated_values_lie_on_the_line(frames, source, target, batch):
    tally = Tally()
    made = list(retime(iter(ramp(frames)), frames, source, target, Blend(batch), tally))
    assert len(made) == output_count(frames, source, target)
    for output, frame in enumerate(made):
        wanted = min(float(output * source / target), frames - 1) / 100
        assert abs(float(frame[0, 0, 0]) - wanted) < 1e-5
    assert tally.cuts == 0


def test_last_frame_before_a_cut_is_held_when_a_new_shot_starts():
    dark, light = torch.zeros(2, 8, 8, 3), torch.ones(2, 8, 8, 3)
    tally = Tally()
    made = torch.stack(list(retime(torch.cat((dark, light)), 4, Fraction(8), Fraction(24), Blend(), tally)))
    assert tally == Tally(interpolated=4, cuts=1)
    assert torch.equal(made[:, 0, 0, 0], torch.tensor([0.0] * 6 + [1.0] * 6))


def test_frames_are_repeated_when_no_model_is_given():
    made = list(retime(ramp(3), 3, Fraction(8), Fraction(16), None, Tally()))
    assert [round(float(frame[0, 0, 0]) * 100) for frame in made] == [0, 0, 1, 1, 2, 2]


def test_frames_are_dropped_when_the_rate_falls():
    made = list(retime(ramp(6), 6, Fraction(24), Fraction(8), Blend(), Tally()))
    assert [round(float(frame[0, 0, 0]) * 100) for frame in made] == [0, 3]


@pytest.mark.parametrize(("source", "target", "batch"), [(8, 24, 4), (8, 24, 5), (16, 24, 4), (24, 60, 4), (8, 16, 4)])
def test_frames_of_several_pairs_are_asked_for_together(source, target, batch):
    """RIFE makes `batch` frames in one forward, also where there is only one between two source frames."""
    blend = Blend(batch)
    list(retime(iter(ramp(40)), 40, Fraction(source), Fraction(target), blend, Tally()))
    assert set(blend.calls[:-1]) == {batch} and 0 < blend.calls[-1] <= batch


def test_a_wider_batch_changes_nothing_but_the_calls():
    films = [list(retime(iter(ramp(20)), 20, Fraction(10), Fraction(24), Blend(batch), Tally())) for batch in (1, 4)]
    assert all(torch.equal(one, four) for one, four in zip(*films, strict=True))


@pytest.mark.parametrize(("source", "target", "batch"), [(8, 24, 1), (8, 24, 4), (24, 8, 1), (24, 24, 4), (16, 24, 4)])
def test_source_frames_of_one_batch_are_held_however_long_the_film(monkeypatch, source, target, batch):
    live, most = set(), 0

    class Counted:
        shape = (4, 4, 3)

        def __init__(self, number):
            self.number = number
            live.add(number)

        def __del__(self):
            live.discard(self.number)

    class Maker(Blend):
        def __call__(self, tasks):
            return [0.0] * len(tasks)

    monkeypatch.setattr("pack.nodes.interpolation.retime.is_hard_cut", lambda first, second: False)
    for _ in retime((Counted(i) for i in range(500)), 500, Fraction(source), Fraction(target), Maker(batch), Tally()):
        most = max(most, len(live))
    assert most <= 2 + 2 * batch


def test_batch_of_images_is_retimed_and_counted():
    seen = []
    images = retime_images(ramp(5), 8, 24, Blend(), Progress(update=lambda done, total: seen.append((done, total))))
    assert images.shape == (15, 4, 4, 3) and seen[-1] == (15, 15)
    assert torch.allclose(images[:13, 0, 0, 0], torch.arange(13) / 300)


def test_cancel_passes_through():
    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retime_images(ramp(5), 8, 24, Blend(), Progress(check_cancel=cancel))
    assert retime_images(ramp(1), 8, 8, Blend(), SILENT).shape[0] == 1
