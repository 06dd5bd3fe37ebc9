"""The joins of a film's clips on its way through retime: measured, and made even where they stutter or jump.

A bad join is smoothed without adding or dropping time: over up to REACH frames on each side the film's steps are moved
so that the picture covers the same distance in every step, and RIFE makes what lies between the clips' own frames.
A repeated frame is passed in less than a step, a jump is spread over its neighbours; every frame of the film is still
made of two real frames, once. The result is measured like the join was, and taken only when it is more even. Cuts are
left alone; so is a join whose two frames have so little in common that what lies between would be a ghost of both.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .between import Between
from .retime import FrameWindow, Interpolator, Step, Straight
from .seams import GHOSTS, Motion, Seam, is_even, is_hard_cut, seam_score, stands_out, unevenness

REACH = 4  # frames on each side of a join that are looked at, and that smoothing or fading may change
BETTER = 0.8  # what is made must be less uneven by this factor, so that frames are changed only for a reason
SNAP = 1e-3  # a step this close to a real frame is that frame


@dataclass(frozen=True)
class Join:
    """Where a clip begins: clip number, its first frame, the first frame of the clip before, the end of its own
    frames (exclusive), and whether it is known to begin a new shot."""

    clip: int
    start: int
    before: int
    end: int
    is_cut: bool


def joins_of(frame_counts: Sequence[int], cuts: Iterable[int] = ()) -> list[Join]:
    """The joins of clips with so many frames each; cuts: numbers of the clips that are known to begin a new shot."""
    starts = [0, *itertools.accumulate(frame_counts)]
    return [Join(clip, starts[clip], starts[clip - 1], starts[clip + 1], clip in set(cuts))
            for clip in range(1, len(frame_counts))]


class Steps(NamedTuple):
    """How far the picture moves from each frame around a join to the next. first: the first frame's index. ghosting: at
    the join, see seams.Moved."""

    first: int
    before: list[float]
    at_join: float
    behind: list[float]
    ghosting: float

    @property
    def around(self) -> list[float]:
        return self.before + self.behind

    @property
    def all(self) -> list[float]:
        return [*self.before, self.at_join, *self.behind]


class Span(NamedTuple):
    """Frames that the film passes at an even speed. first: the first one's index. passed: how far the picture has moved
    from there to each of them."""

    first: int
    passed: list[float]

    @property
    def last(self) -> int:
        return self.first + len(self.passed) - 1

    def place(self, at: float) -> float:
        """Where, in frames, the film is at the time at which it used to be at frame `at` of this span."""
        wanted = self.passed[-1] * (at - self.first) / (len(self.passed) - 1)
        index = min(bisect.bisect_right(self.passed, wanted), len(self.passed) - 1) - 1
        step = self.passed[index + 1] - self.passed[index]
        return self.first + index + min(1.0, (wanted - self.passed[index]) / step if step else 1.0)


class EvenJoins(Straight):
    """A path for retime that measures every join as the film passes it, and evens out the bad ones.

    motion: how far things move. interpolate: None measures only. seams: what was found, appended to as the film goes.
    """

    behind = REACH + 1

    def __init__(self, joins: Sequence[Join], motion: Motion, interpolate: Interpolator | None,
                 seams: list[Seam]) -> None:
        super().__init__(join.start for join in joins if join.is_cut)
        self.ahead, self.motion, self.interpolate, self.seams = list(joins), motion, interpolate, seams
        self.span = Span(0, [0.0])  # the one smoothed last

    def __call__(self, step: Step, window: FrameWindow) -> Step:
        while self.ahead and step.index >= self._left(self.ahead[0], REACH):
            self._pass(self.ahead.pop(0), window)
        at = step.index + float(step.t)
        return _snapped(self.span.place(at)) if self.span.first < at < self.span.last else step

    def _left(self, join: Join, reach: int) -> int:
        """The last frame before the join that stays in its place."""
        return max(join.before, join.start - reach, self.span.last)

    def _pass(self, join: Join, window: FrameWindow) -> None:
        steps = None if _is_cut(join, window) else _steps(join, window, self.motion)
        if steps is None or steps.ghosting > GHOSTS:
            self.cuts.add(join.start)
            self.seams.append(Seam(join.clip, None, None, "cut"))
            return
        score = seam_score(steps.at_join, steps.around)
        is_bad = not is_even(score) and stands_out(steps.at_join, steps.before, steps.behind)
        seam = Seam(join.clip, score, score, "left" if is_bad else "even")
        if is_bad and self.interpolate is not None:
            seam = self._smoothed(join, seam, steps, window)
        self.seams.append(seam)

    def _smoothed(self, join: Join, seam: Seam, steps: Steps, window: FrameWindow) -> Seam:
        """Move the steps around the join, as few as do, unless nothing is more even than the clips are."""
        best, kept = seam, self.span
        for reach in range(2, REACH + 1):
            left, right = self._left(join, reach), min(join.end - 1, join.start - 1 + reach)
            moved = steps.all[left - steps.first : right - steps.first]
            span = Span(left, [0.0, *itertools.accumulate(moved)])
            frames = [window[left], *self._frames_inside(span, window), window[right]]
            scores = [seam_score(self.motion(*pair).distance, steps.around) for pair in itertools.pairwise(frames)]
            after = max(scores, key=unevenness)
            if unevenness(after) < BETTER * unevenness(best.after):
                best, kept = Seam(seam.clip, seam.before, after, "smoothed"), span
            if is_even(best.after):
                break
        self.span = kept
        return best

    def _frames_inside(self, span: Span, window: FrameWindow) -> list[torch.Tensor]:
        """What the film shows between the span's first and last frame, at the clips' own rate."""
        steps = [_snapped(span.place(at)) for at in range(span.first + 1, span.last)]
        made = iter(self.interpolate([Between(window[index], window[index + 1], t) for index, t in steps if t]))
        return [next(made) if t else window[index] for index, t in steps]


def measure(clip: int, before: Sequence[torch.Tensor], behind: Sequence[torch.Tensor], motion: Motion,
            is_cut: bool = False) -> Seam:
    """The join before clip `clip`, as the clips have it. before, behind: up to REACH + 1 frames on each side of it."""
    join = Join(clip, len(before), 0, len(before) + len(behind), is_cut)
    path = EvenJoins([join], motion, None, [])
    path(Step(len(before), 0.0), FrameWindow([*before, *behind]))
    return path.seams[0]


def faded(frames: Iterable[torch.Tensor], joins: Sequence[Join], motion: Motion,
          seams: list[Seam]) -> Iterator[torch.Tensor]:
    """Yield the clips' frames with the joins cross-faded: REACH frames on each side, the film's length unchanged.

    While one clip fades out and the other in, both go on at about half their speed: so there are enough frames of both,
    and neither stands still. Cuts stay cuts.
    """
    window, done = FrameWindow(frames), 0
    for join in joins:
        first = max(join.before, join.start - REACH, done)
        for index in range(done, first):
            yield window[index]
            window.forget_before(index - REACH)
        mixed = _fade(join, first, window, motion, seams)
        yield from mixed
        done = first + len(mixed)
        window.forget_before(done - REACH - 1)
    yield from window.rest(done)


def _fade(join: Join, first: int, window: FrameWindow, motion: Motion, seams: list[Seam]) -> list[torch.Tensor]:
    """The frames from `first` on that replace the clips' own; none at a cut."""
    if _is_cut(join, window):
        seams.append(Seam(join.clip, None, None, "cut"))
        return []
    last = min(join.end, join.start + REACH)
    length, mixed = last - first, []
    for n in range(length):
        old = _between(window, min(join.start - 1, first + n * (join.start - first) / length))
        new = _between(window, max(join.start, last - 1 - (length - 1 - n) * (last - join.start) / length))
        mixed.append(_mixed(old, new, (n + 1) / (length + 1)))
    steps = _steps(join, window, motion)
    shown = [window[first - 1], *mixed] if first == join.start else mixed
    pair = shown[len(shown) - (last - join.start) - 1 :][:2]  # the last frame before the join and the first behind it
    scores = (seam_score(moved, steps.around) for moved in (steps.at_join, motion(*pair).distance))
    seams.append(Seam(join.clip, *scores, "faded"))
    return mixed


def _is_cut(join: Join, window: FrameWindow) -> bool:
    """True where a new shot is known to begin, or is seen to."""
    return join.is_cut or is_hard_cut(window[join.start - 1], window[join.start])


def _steps(join: Join, window: FrameWindow, motion: Motion) -> Steps:
    first, last = max(join.before, join.start - 1 - REACH), min(join.end - 2, join.start - 1 + REACH)
    moved = [motion(window[index], window[index + 1]) for index in range(first, last + 1)]
    distances, middle = [each.distance for each in moved], join.start - 1 - first
    return Steps(first, distances[:middle], distances[middle], distances[middle + 1 :], moved[middle].ghosting)


def _between(window: FrameWindow, place: float) -> torch.Tensor:
    index, t = _snapped(place)
    return _mixed(window[index], window[index + 1], t) if t else window[index]


def _mixed(old: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
    mixed = torch.lerp(old.float(), new.float(), share)
    return mixed if old.is_floating_point() else mixed.round().to(old.dtype)


def _snapped(place: float) -> Step:
    index, t = divmod(place, 1)
    return Step(int(index) + (t > 1 - SNAP), t if SNAP <= t <= 1 - SNAP else 0.0)
