"""What Render Short says: how many clips were used again and why, and while it works how long the film will take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from .choice import Again, Choice

SAMPLE_SHARE = 0.6  # of a clip's time, until the first one has been measured; the rest is decoding


def status(choices: Sequence[Choice], is_there: Sequence[bool], again: Again, news: Sequence[str] = ()) -> str:
    """The status output: what was used again, what was made, and what was kept that follows another clip now.

    is_there: per clip, whether the run folder held its samples and its memory before.
    """
    made = [i + 1 for i, there in enumerate(is_there) if not there]
    which = f" ({_numbers(made)})" if made and len(made) < len(choices) else ""
    parts = [f"{len(choices) - len(made)} reused, {len(made)} generated{which}."]
    kept = [i + 1 for i, choice in enumerate(choices) if choice.keeps and is_there[i]]
    if kept:
        parts.append(f"Kept as they were, made with the memory of another take of clip {again.clip + 1}: "
                     f"{_numbers(kept)}.")
    return " ".join([*parts, *news])


class FilmClock:
    """How far a film is and how long it will take, from what ComfyUI tells about its inner nodes.

    to_make: the clips that are not in the folder. chunks: per clip. seconds: what clips of this film took before.
    Times are in seconds, of a clock that only runs forward.
    """

    def __init__(self, clips: int, to_make: Sequence[int], chunks: int, seconds: Sequence[float]) -> None:
        self.clips, self.chunks = clips, chunks
        self.left, self.before, self.measured = list(to_make), list(seconds), []
        self.clip, self.doing, self.fraction, self.started = -1, "", 0.0, 0.0

    def update(self, clip: int, stage: str, share: float, now_s: float) -> str:
        """A node of stage "sample" or "save" is at 0..1; the line to show, "" for clips that are only read."""
        if clip not in self.left:
            return ""
        if clip != self.clip:
            self.clip, self.started = clip, now_s
        if stage == "sample":
            self.fraction = SAMPLE_SHARE * share
            chunk = min(self.chunks, int(share * self.chunks) + 1)
            self.doing = f", chunk {chunk} of {self.chunks}" if self.chunks > 1 else ""
        else:
            self.fraction, self.doing = SAMPLE_SHARE + (1 - SAMPLE_SHARE) * share, ", decoding"
        left = self.seconds_left(now_s)
        return f"clip {clip + 1} of {self.clips}{self.doing}" + (f", about {duration(left)} left" if left else "")

    def finish(self, clip: int, now_s: float) -> None:
        """The clip is saved."""
        if clip in self.left:
            self.left.remove(clip)
            if clip == self.clip:
                self.measured.append(now_s - self.started)

    def seconds_left(self, now_s: float) -> float:
        """Until the last clip is saved; 0 while nobody can know."""
        spent = now_s - self.started
        if self.measured or self.before:
            per_clip = mean(self.measured or self.before)
        elif self.fraction >= SAMPLE_SHARE / self.chunks:  # from the second chunk on
            per_clip = spent / self.fraction
        else:
            return 0.0
        return max(per_clip - spent, (1 - self.fraction) * per_clip * 0.5) + per_clip * (len(self.left) - 1)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _numbers(clips: Sequence[int]) -> str:
    """ "clip 3", "clips 3, 4 and 7", "clips 3 to 6"."""
    if len(clips) == 1:
        return f"clip {clips[0]}"
    if len(clips) > 2 and clips[-1] - clips[0] == len(clips) - 1:
        return f"clips {clips[0]} to {clips[-1]}"
    return f"clips {', '.join(map(str, clips[:-1]))} and {clips[-1]}"
