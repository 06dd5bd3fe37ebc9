"""A new frame rate, exact in time: which two source frames each output frame lies between, and how far.

Everything is a Fraction: after an hour of 23.976 to 60 fps no output has drifted by a microsecond.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as data_field
from fractions import Fraction
from typing import NamedTuple, Protocol

import torch

from ..common.errors import message
from ..common.progress import Progress
from .between import Between
from .seams import Moved, Seam, is_hard_cut

NTSC = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
MAX_FPS = 1000


class Interpolator(Protocol):
    """Makes frames between frames, at best `batch` of them at once; bridge.RifeStream is the one of the nodes."""

    batch: int

    def __call__(self, tasks: Sequence[Between]) -> Sequence[torch.Tensor]:
        """One [H, W, 3] float frame in 0..1 on the CPU per task, in order."""

    def motion(self, first: torch.Tensor, second: torch.Tensor) -> Moved:
        """How the picture moves from one frame to the other."""



class Step(NamedTuple):
    """One output frame: source frame `index`, or between it and the next at the fraction t (0 <= t < 1)."""

    index: int
    t: Fraction | float


@dataclass
class Tally:
    """What a stream of frames did, counted while it runs, for the report."""

    frames: int = 0
    interpolated: int = 0
    cuts: int = 0
    seams: list[Seam] = data_field(default_factory=list)


class FrameWindow:
    """The frames of a stream by number: read as far as asked for, forgotten when told."""

    def __init__(self, frames: Iterable[torch.Tensor]) -> None:
        self._source = iter(frames)
        self._held: deque[torch.Tensor] = deque()
        self._start = 0

    def __getitem__(self, index: int) -> torch.Tensor:
        while self._start + len(self._held) <= index:
            self._held.append(next(self._source))
        return self._held[index - self._start]

    def forget_before(self, index: int) -> None:
        """Let go of all frames before `index`; reads over those that nobody asked for."""
        while self._start < index:
            if self._held:
                self._held.popleft()
            else:
                next(self._source)
            self._start += 1

    def rest(self, index: int) -> Iterator[torch.Tensor]:
        """Yield frame `index` and all after it; the window is used up then."""
        self.forget_before(index)
        while self._held:
            yield self._held.popleft()
        yield from self._source


class Straight:
    """The path of a film whose steps stay where they are. behind: frames kept before the current one. cuts: source
    frames that are known to start a shot."""

    behind = 0

    def __init__(self, cuts: Iterable[int] = ()) -> None:
        self.cuts = set(cuts)

    def __call__(self, step: Step, window: FrameWindow) -> Step:
        return step

    def starts_shot(self, index: int) -> bool:
        """True where it is known that a new shot starts at source frame `index`."""
        return index in self.cuts


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
    path: Straight | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the `count` frames at source_fps as frames at target_fps, exact in time.

    Source frames that fall on an output time pass unchanged; the others are asked of `interpolate` a batch at a time,
    or are the source frame before them where it is None. path: moves the steps, see joins.py.
    """
    path, window, batch = path or Straight(), FrameWindow(frames), interpolate.batch if interpolate else 1
    waiting: list[torch.Tensor | Between] = []  # in the order of the film
    cut = (-1, False)  # the pair looked at last, and whether a new shot starts between the two
    for step in schedule(count, source_fps, target_fps):
        index, t = path(step, window)
        window.forget_before(index - path.behind)
        entry: torch.Tensor | Between = window[index]
        if t and interpolate is not None:
            if cut[0] != index:
                cut = index, path.starts_shot(index + 1) or is_hard_cut(window[index], window[index + 1])
                tally.cuts += cut[1]
            entry = entry if cut[1] else Between(entry, window[index + 1], float(t))
        waiting.append(entry)
        tasks = sum(isinstance(entry, Between) for entry in waiting)
        if not tasks or tasks == batch or len(waiting) == 2 * batch:
            yield from _made(waiting, interpolate, tally)
            waiting.clear()
    yield from _made(waiting, interpolate, tally)


def _made(waiting: list[torch.Tensor | Between], interpolate: Interpolator, tally: Tally) -> Iterator[torch.Tensor]:
    """Yield what waits, with the frames that are still to be made; all of them are made in one call."""
    tasks = [entry for entry in waiting if isinstance(entry, Between)]
    tally.interpolated += len(tasks)
    made = iter(interpolate(tasks)) if tasks else iter(())
    for entry in waiting:
        yield next(made) if isinstance(entry, Between) else entry


def retime_images(
    images: torch.Tensor, source_fps: float, target_fps: float, interpolate: Interpolator, progress: Progress
) -> torch.Tensor:
    """A batch of images [N, H, W, 3] at another rate: [M, H, W, 3] float32 on the CPU, M as output_count says.

    A fourth channel, transparency, is left away.
    """
    if not len(images):
        raise ValueError(message("Interpolate Frames (RIFE) needs images", "none", "one image or more",
                                 "Connect a batch of images that is not empty."))
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(message("Interpolate Frames (RIFE) needs images with colours", tuple(images.shape),
                                 "[frames, height, width, 3]", "Connect IMAGE, for example from VAE Decode."))
    images = images[..., :3]
    source, target = exact_fps(source_fps), exact_fps(target_fps)
    out = torch.empty(output_count(len(images), source, target), *images.shape[1:])
    frames = retime(images.cpu(), len(images), source, target, interpolate, Tally())
    for i, frame in enumerate(frames):
        progress.check_cancel()
        out[i] = frame
        progress.update(i + 1, len(out))
    return out
