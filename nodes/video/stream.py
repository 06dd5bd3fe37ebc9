"""Clips on disk -> frames -> a new rate -> a new size, one frame at a time: memory does not grow with the film.

At any moment there are two source frames and the frames between them; while a join of two clips is looked at, ten.
Interpolation runs across the joins of clips like anywhere else, except at hard cuts, where the last frame of the old
shot is held instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image

from ..common.errors import message
from ..common.progress import Progress
from ..common.types import ClipRecord
from ..interpolation.joins import EvenJoins, faded, joins_of
from ..interpolation.retime import Interpolator, Straight, Tally, exact_fps, output_count, retime
from ..interpolation.seams import describe, difference_motion
from .encode import read_frames, to_uint8

MAX_ENLARGE = 8
SEAMS = ("off", "smooth", "crossfade")
SAY_EVERY_S = 1.0


@dataclass(frozen=True)
class FilmPlan:
    """The film that a list of clips becomes: rates, counts and size in pixels."""

    records: tuple[ClipRecord, ...]
    source_fps: Fraction
    target_fps: Fraction
    source_frames: int
    frames: int
    width: int
    height: int

    @property
    def seconds(self) -> float:
        return float(self.frames / self.target_fps)


def plan_film(records: Sequence[ClipRecord], target_fps: float, enlarge: int) -> FilmPlan:
    """Check that the clips make one film and say what comes out; target_fps 0 keeps the clips' rate.

    ValueError for no clips, clips of different size or rate, or a multiple outside 1..8; RuntimeError for a lost file.
    """
    if not records:
        raise ValueError(message("Assemble Short needs clips", "none", "one finished clip or more",
                                 "Connect the last Save Clip or Render Short."))
    if not 1 <= enlarge <= MAX_ENLARGE:
        raise ValueError(message("Assemble Short: enlarge", enlarge, f"whole numbers from 1 to {MAX_ENLARGE}",
                                 "1 keeps the size of the clips."))
    first = records[0]
    for record in records:
        if (record.width, record.height, record.fps) != (first.width, first.height, first.fps):
            raise ValueError(message(
                f"All clips of a film must be {first.width}x{first.height} at {first.fps:g} fps like its first",
                f"{record.width}x{record.height} at {record.fps:g} fps in clip {record.index}", "one size and one rate",
                "Render the clips with one plan, or assemble them apart."))
        if not (Path(record.folder) / record.video_file).is_file():
            raise RuntimeError(message(
                f"Assemble Short needs the file of clip {record.index}", f"no {record.video_file} in {record.folder}",
                "the clip as Save Clip left it", "Change the run name, or free the node cache, to render it again."))
    source_fps = exact_fps(first.fps)
    rate = exact_fps(target_fps) if target_fps else source_fps
    count = sum(record.frames for record in records)
    return FilmPlan(
        tuple(records), source_fps, rate, count, output_count(count, source_fps, rate),
        first.width * enlarge, first.height * enlarge)


def film_frames(
    plan: FilmPlan, interpolate: Interpolator | None, progress: Progress, tally: Tally, seams: str = "off"
) -> Iterator[torch.Tensor]:
    """Yield the film's frames, [height, width, 3] uint8; without `interpolate` a new rate repeats or drops frames.

    seams: one of SEAMS. "smooth" measures every join of two clips and evens out those that stutter or jump, where
    `interpolate` can; "crossfade" blends all of them but cuts; "off" leaves them as they are, unmeasured.
    """
    frames = _joined(plan, interpolate, tally, seams)
    started = said = time.monotonic()
    for frame in frames:
        progress.check_cancel()
        yield enlarge_frame(to_uint8(frame), plan.width, plan.height)
        tally.frames += 1
        progress.update(tally.frames, plan.frames)
        now = time.monotonic()
        if now - said >= SAY_EVERY_S:
            said, left = now, (now - started) / tally.frames * (plan.frames - tally.frames)
            progress.say(f"Frame {tally.frames} of {plan.frames}, {left:.0f} s left")


def _joined(plan: FilmPlan, interpolate: Interpolator | None, tally: Tally, seams: str) -> Iterator[torch.Tensor]:
    """The clips' frames at the film's rate, with their joins as chosen."""
    frames, known = clip_frames(plan.records), [record.cuts for record in plan.records]
    cuts = [clip for clip in range(1, len(known)) if known[clip] > known[clip - 1]]
    joins = joins_of([record.frames for record in plan.records], cuts)
    path = Straight(join.start for join in joins if join.is_cut)
    motion = interpolate.motion if interpolate else difference_motion
    if seams == "crossfade":
        frames = faded(frames, joins, motion, tally.seams)
    elif seams == "smooth":
        path = EvenJoins(joins, motion, interpolate, tally.seams)
    return retime(frames, plan.source_frames, plan.source_fps, plan.target_fps, interpolate, tally, path)


def clip_frames(records: Iterable[ClipRecord]) -> Iterator[torch.Tensor]:
    """Yield the frames of the clips' files in order, [H, W, 3] uint8; RuntimeError when a file has too few."""
    for record in records:
        path = Path(record.folder) / record.video_file
        count = 0
        for frame in read_frames(path):
            yield frame
            count += 1
        if count != record.frames:
            raise RuntimeError(message(
                f"The file of clip {record.index} must have {record.frames} frames", f"{count} frames in {path}",
                "the clip as Save Clip left it", "Delete the file and render the clip again."))


def enlarge_frame(frame: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """[H, W, 3] uint8 at a new size, by Lanczos: smoother than pixel blocks, sharper than bicubic."""
    if frame.shape[:2] == (height, width):
        return frame
    image = Image.fromarray(frame.numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)


def film_report(plan: FilmPlan, tally: Tally, interpolating: bool) -> str:
    """What was made, in plain words."""
    clips = f"{len(plan.records)} clip{'s' if len(plan.records) > 1 else ''}"
    made = f"{clips}, {plan.source_frames} frames at {float(plan.source_fps):g} fps"
    film = f"{tally.frames} frames at {float(plan.target_fps):g} fps, {plan.width}x{plan.height}, {plan.seconds:.1f} s"
    if plan.source_fps == plan.target_fps and not tally.interpolated:
        how = "no interpolation"
    elif interpolating:
        how = f"{tally.interpolated} frames interpolated, {tally.cuts} hard cuts left alone"
    else:
        how = "frames repeated or dropped, because no interpolation model is connected"
    return f"{made} -> {film} ({how}).{describe(tally.seams)}"
