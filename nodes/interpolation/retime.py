"""A new frame rate, exact in time: which two source frames each output frame lies between, and how far.

Everything is a Fraction: after an hour of 23.976 to 60 fps no output has drifted by a microsecond.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch

from ..common.errors import message
from ..common.progress import Progress
from .seams import is_hard_cut

Interpolator = Callable[[torch.Tensor, torch.Tensor, Sequence[float]], torch.Tensor]
"""interpolate(first [H, W, 3], second [H, W, 3], times 0..1) -> [len(times), H, W, 3] float 0..1 on the CPU."""

NTSC = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
MAX_FPS = 1000


class Step(NamedTuple):
    """One output frame: source frame `index`, or between it and the next at the fraction t (0 <= t < 1)."""

    index: int
    t: Fraction


@dataclass
class Tally:
    """What a stream of frames did, counted while it runs, for the report."""

    frames: int = 0
    interpolated: int = 0
    cuts: int = 0


def exact_fps(fps: float | Fraction) -> Fraction:
    """The frame rate that is meant: 23.976 is 24000/1001, 12.5 is 25/2; ValueError outside 0 < fps <= MAX_FPS."""
    if not 0 < fps <= MAX_FPS:
        raise ValueError(message("A video needs a frame rate", fps, f"more than 0 and at most {MAX_FPS} per second",
                                 "Type frames per second, such as 24."))
    nearest = min(NTSC, key=lambda rate: abs(rate - fps))
    return nearest if abs(nearest - fps) < 0.001 else Fraction(fps).limit_denominator(1001)


def output_count(frames: int, source_fps: Fraction, target_fps: Fraction) -> int:
    """Frames at target_fps that last as long as `frames` frames at source_fps, to the next whole frame."""
    return -(-frames * target_fps // source_fps)


def schedule(frames: int, source_fps: Fraction, target_fps: Fraction) -> Iterator[Step]:
    """Yield where each output frame lies among `frames` source frames, in order.

    Output j is shown at j / target_fps, source i at i / source_fps. Behind the last source frame there is nothing to
    interpolate with: it is held (t = 0) until its time is over.
    """
    for output in range(output_count(frames, source_fps, target_fps)):
        index, t = divmod(output * source_fps / target_fps, 1)
        yield Step(int(index), t) if index < frames - 1 else Step(frames - 1, Fraction(0))


def retime(
    frames: Iterable[torch.Tensor],
    count: int,
    source_fps: Fraction,
    target_fps: Fraction,
    interpolate: Interpolator | None,
    tally: Tally,
) -> Iterator[torch.Tensor]:
    """Yield the `count` frames at source_fps as frames at target_fps, exact in time.

    Source frames that fall on an output time pass unchanged. interpolate(first, second, times) -> [n, H, W, 3].
    """
    source = iter(frames)
    position, current, following = 0, next(source), next(source, None)
    for index, steps in itertools.groupby(schedule(count, source_fps, target_fps), key=lambda step: step.index):
        while position < index:
            position, current, following = position + 1, following, next(source, None)
        times = [float(step.t) for step in steps]
        if times[0] == 0:
            yield current
            times = times[1:]
        if following is None or interpolate is None or not times:
            yield from itertools.repeat(current, len(times))
        elif is_hard_cut(current, following):
            tally.cuts += 1
            yield from itertools.repeat(current, len(times))
        else:
            tally.interpolated += len(times)
            yield from interpolate(current, following, times)


def retime_images(
    images: torch.Tensor, source_fps: float, target_fps: float, interpolate: Interpolator, progress: Progress
) -> torch.Tensor:
    """A batch of images [N, H, W, 3] at another rate: [M, H, W, 3] float32 on the CPU, M as output_count says."""
    if not len(images):
        raise ValueError(message("Interpolate Frames (RIFE) needs images", "none", "one image or more",
                                 "Connect a batch of images that is not empty."))
    source, target = exact_fps(source_fps), exact_fps(target_fps)
    out = torch.empty(output_count(len(images), source, target), *images.shape[1:])
    frames = retime(images.cpu(), len(images), source, target, interpolate, Tally())
    for i, frame in enumerate(frames):
        progress.check_cancel()
        out[i] = frame
        progress.update(i + 1, len(out))
    return out
