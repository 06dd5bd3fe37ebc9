"""Who is in the film and what happens when: scenes written in seconds, resolved to one prompt per clip.

The scene list is one line per scene; blank lines and lines that start with # are left out:

    0-3: {hero} walks right in the forest
    3: {hero} waves by the sea            (lasts until the next line, the last one until the end of the film)
    1:06 - 1:09: the empty cave

`{hero}` becomes the full identity in a clip that names it (an anchored clip) and the short hero name in the others,
which leave the identity to the memory. A scene without `{hero}` gets the identity as a sentence before it, when
anchored. Clip 0 is anchored, and every clip in which a multiple of the re-anchor interval has passed since the last.

The words of a hard cut at the beginning of a scene stay the first words of its first clip, and are left out of the
scene's other clips: Clip Sampler cuts where a prompt begins with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from ..common.errors import message
from ..common.types import PromptTimeline, Scene

HERO = "{hero}"
SCENE_CUT_PREFIX = "The scene transitions. "  # LongLive 2 was trained with it
GRAMMAR = "'0-3: what happens', '3: what happens' or '1:05-1:09: what happens'"
MAX_CLIPS = 10_000  # about ten hours of film; more is a slip of the keyboard

MAX_CHARACTERS = 10_000  # of a clip's prompt; attention of a text encoder grows with the square: 30 000 ended a server

_TIME = r"(\d+:[0-5]\d(?:\.\d+)?|\d+(?:\.\d+)?)\s*s?"
_LINE = re.compile(rf"^{_TIME}\s*(?:[-–]\s*{_TIME})?\s*:(?!\d\d)\s*(\S.*)$")  # "3:10 birds" forgot its colon
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_EPSILON = 1e-6  # seconds; clip starts are multiples of a float


class _Line(NamedTuple):
    """One parsed line: end_s is None where the scene lasts until the next one."""

    number: int
    start_s: float
    end_s: float | None
    text: str


class ClipPrompt(NamedTuple):
    """What one clip shows: its span, its scene, how many scenes it touches, whether it names the identity."""

    start_s: float
    end_s: float
    scene: int
    scenes_touched: int
    anchored: bool
    text: str


def resolve(identity: str, hero: str, scenes: str, reanchor_s: float, clip_s: float, film_s: float) -> PromptTimeline:
    """Resolve texts and seconds to a PromptTimeline; raises ValueError naming the input, and the line of a scene.

    The last clip may run past the end of the film (clips have one length). Scenes that start after film_s are left out.
    """
    identity, hero = _one_line(identity), _one_line(hero)
    for name, text in (("identity", identity), ("hero", hero)):
        if not text:
            raise ValueError(message(f"Re-anchor Prompt Schedule needs the {name}", text, "a short description",
                                     "Write who the film is about, for example 'a blue circle hero with a green hat'."))
    check_seconds(reanchor_s, clip_s, film_s)
    timeline = PromptTimeline(identity, hero, parse_scenes(scenes, film_s), float(reanchor_s), float(clip_s), ())
    return _with_texts(timeline)


def re_resolve(timeline: PromptTimeline, clip_s: float) -> PromptTimeline:
    """The same film cut into clips of another length, as after a plan has changed it."""
    check_seconds(timeline.reanchor_s, clip_s, film_seconds(timeline))
    return _with_texts(timeline._replace(clip_s=float(clip_s)))


def film_seconds(timeline: PromptTimeline) -> float:
    """Length of the film: the scenes cover it without gaps."""
    return timeline.scenes[-1].end_s


def check_seconds(reanchor_s: float, clip_s: float, film_s: float) -> None:
    """Raise ValueError unless the lengths are finite, clip and film positive, and the number of clips sane."""
    for name, value, low in (("film (seconds)", film_s, "more than 0"), ("clip (seconds)", clip_s, "more than 0"),
                             ("re-anchor every (seconds)", reanchor_s, "0 or more")):
        if not math.isfinite(value) or value < 0 or (value == 0 and low == "more than 0"):
            raise ValueError(message(f"Re-anchor Prompt Schedule: '{name}' is not a length", value, f"{low} seconds",
                                     "Set it to the length you want."))
    if film_s / clip_s > MAX_CLIPS:
        raise ValueError(message("Re-anchor Prompt Schedule: too many clips", f"{film_s:g} s in clips of {clip_s:g} s",
                                 f"up to {MAX_CLIPS} clips", "Make the clips longer or the film shorter."))


def parse_scenes(text: str, film_s: float) -> tuple[Scene, ...]:
    """Read the scene list into scenes that cover 0..film_s without gap or overlap; errors name the line."""
    lines = [_parse_line(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)
             if line.strip() and not line.strip().startswith("#")]
    if not lines:
        raise ValueError(message("Re-anchor Prompt Schedule needs at least one scene", "an empty list", GRAMMAR,
                                 "Write one scene per line."))
    if lines[0].start_s > _EPSILON:
        raise ValueError(message(f"Scenes, line {lines[0].number}: the film begins at 0 s",
                                 f"a first scene at {lines[0].start_s:g} s", "a first scene at 0",
                                 "Start this line at 0 or add a scene before it."))
    for line, following in pairwise(lines):
        _check_join(line, following)
    return tuple(_cut_at_end(lines, film_s))


def clip_prompts(timeline: PromptTimeline) -> tuple[ClipPrompt, ...]:
    """What every clip shows. A clip that spans several scenes takes the one it overlaps most, the earlier of equals."""
    return tuple(_clip_prompt(timeline, i) for i in range(_clip_count(timeline)))


def clip_text(timeline: PromptTimeline, clip_index: int) -> str:
    """The resolved prompt of one clip; raises ValueError when the film has no such clip."""
    if not 0 <= clip_index < timeline.clip_count:
        raise ValueError(message("Prompt for Clip: the film has no such clip", clip_index,
                                 f"0 to {timeline.clip_count - 1} (clip 1 has the index 0)",
                                 "Lower the clip index, or make the film longer on Re-anchor Prompt Schedule."))
    return timeline.clip_texts[clip_index]


def preview(timeline: PromptTimeline, notes: Iterable[str] = ()) -> str:
    """The film as a person reads it: a line per clip, and a note for everything that was decided for them."""
    prompts = clip_prompts(timeline)
    anchors = sum(prompt.anchored for prompt in prompts)
    head = (f"{len(prompts)} clips of {timeline.clip_s:g} s, film of {film_seconds(timeline):g} s. "
            f"{anchors} of them name the identity (marked *).")
    rows = [f"Clip {i + 1:>3}  {prompt.start_s:g}-{prompt.end_s:g} s  {'*' if prompt.anchored else ' '} {prompt.text}"
            for i, prompt in enumerate(prompts)]
    notes = [*notes, *_notes(timeline, prompts)]
    return "\n".join([head, "", *rows, *([""] if notes else []), *notes])


def _parse_line(number: int, line: str) -> _Line:
    match = _LINE.match(line)
    if match is None:
        raise ValueError(message(f"Scenes, line {number}: a line needs a time, a colon and a text", line, GRAMMAR,
                                 "Start the line with its seconds, followed by ': '."))
    start, end, text = match.groups()
    start_s, end_s = _seconds(start), None if end is None else _seconds(end)
    if end_s is not None and end_s <= start_s:
        raise ValueError(message(f"Scenes, line {number}: a scene must end after it starts",
                                 f"{start_s:g} s to {end_s:g} s", "an end later than the start",
                                 "Swap or correct them."))
    for name in _PLACEHOLDER.findall(text):
        if name != HERO:
            raise ValueError(message(f"Scenes, line {number}: unknown placeholder", name, HERO,
                                     "Write {hero} where the hero is named, and other names as plain words."))
    return _Line(number, start_s, end_s, _one_line(text))


def _seconds(time: str) -> float:
    minutes, _, seconds = time.rpartition(":")
    return 60 * int(minutes or 0) + float(seconds)


def _check_join(line: _Line, following: _Line) -> None:
    """Raise ValueError unless `following` starts where `line` ends."""
    end_s = following.start_s if line.end_s is None else line.end_s
    if following.start_s <= line.start_s or following.start_s < end_s - _EPSILON:
        raise ValueError(message(f"Scenes, line {following.number} overlaps line {line.number}",
                                 f"{following.start_s:g} s after a scene of {line.start_s:g}-{end_s:g} s",
                                 "scenes in order, each starting where the one before ends",
                                 f"Start it at {max(end_s, line.start_s):g} or end line {line.number} earlier."))
    if following.start_s > end_s + _EPSILON:
        raise ValueError(message(f"Scenes, line {following.number}: nothing happens between {end_s:g} and "
                                 f"{following.start_s:g} s", f"a start at {following.start_s:g} s", "no gaps",
                                 f"Start it at {end_s:g}, or leave the end of line {line.number} out."))


def _cut_at_end(lines: list[_Line], film_s: float) -> list[Scene]:
    """Scenes up to film_s; raises ValueError when the last one ends before."""
    last = lines[-1]
    if last.end_s is not None and last.end_s < film_s - _EPSILON:
        raise ValueError(message(f"Scenes, line {last.number} ends before the film",
                                 f"{last.end_s:g} s of a film of {film_s:g} s", "scenes that cover the whole film",
                                 f"Write '{last.start_s:g}: ...' to let it last, add a scene, or set 'film (seconds)' "
                                 f"to {last.end_s:g}."))
    starts = [line.start_s for line in lines]
    ends = [*starts[1:], film_s]
    return [Scene(line.start_s, min(end_s, float(film_s)), line.text)
            for line, end_s in zip(lines, ends, strict=True) if line.start_s < film_s - _EPSILON]


def _with_texts(timeline: PromptTimeline) -> PromptTimeline:
    texts = tuple(prompt.text for prompt in clip_prompts(timeline))
    for i, text in enumerate(texts, 1):
        if len(text) > MAX_CHARACTERS:
            raise ValueError(message(f"Re-anchor Prompt Schedule: the prompt of clip {i} is too long",
                                     f"{len(text)} characters", f"up to {MAX_CHARACTERS} characters",
                                     "Shorten its scene, or the identity."))
    return timeline._replace(clip_texts=texts)


def _clip_count(timeline: PromptTimeline) -> int:
    return max(1, math.ceil(film_seconds(timeline) / timeline.clip_s - _EPSILON))


def _clip_prompt(timeline: PromptTimeline, index: int) -> ClipPrompt:
    scene, touched = _shown(timeline, index)
    begins = index == 0 or _shown(timeline, index - 1)[0] != scene
    anchored = _is_anchored(index, timeline.clip_s, timeline.reanchor_s)
    text = _prompt(timeline, timeline.scenes[scene].text, anchored, begins)
    return ClipPrompt(index * timeline.clip_s, (index + 1) * timeline.clip_s, scene, touched, anchored, text)


def _shown(timeline: PromptTimeline, index: int) -> tuple[int, int]:
    """The scene that clip `index` shows, and how many it touches."""
    start_s, end_s = index * timeline.clip_s, (index + 1) * timeline.clip_s
    overlaps = [min(end_s, scene.end_s) - max(start_s, scene.start_s) for scene in timeline.scenes]
    longest = max(overlaps)
    scene = next(i for i, overlap in enumerate(overlaps) if overlap > longest - _EPSILON)
    return scene, sum(overlap > _EPSILON for overlap in overlaps)


def _is_anchored(index: int, clip_s: float, reanchor_s: float) -> bool:
    """Whether clip `index` is the first, or a multiple of reanchor_s lies in (start of the clip before, its start]."""
    if index == 0 or reanchor_s == 0:
        return index == 0
    passed = [math.floor(i * clip_s / reanchor_s + _EPSILON) for i in (index - 1, index)]
    return passed[1] > passed[0]


def _prompt(timeline: PromptTimeline, scene: str, anchored: bool, begins: bool) -> str:
    """The scene with its hero; only the first {hero} of an anchored scene is spelled out. begins: its first clip."""
    cut = SCENE_CUT_PREFIX if begins and scene.startswith(SCENE_CUT_PREFIX) else ""
    scene = scene.removeprefix(SCENE_CUT_PREFIX)
    if anchored and HERO not in scene:
        return f"{cut}{timeline.identity.rstrip('.')}. {scene}"
    if anchored:
        scene = scene.replace(HERO, timeline.identity, 1)
    return cut + scene.replace(HERO, timeline.hero)


def _notes(timeline: PromptTimeline, prompts: tuple[ClipPrompt, ...]) -> list[str]:
    shown = {prompt.scene for prompt in prompts}
    notes = [f"Note: clip {i + 1} spans {prompt.scenes_touched} scenes; it shows the one that fills most of it."
             for i, prompt in enumerate(prompts) if prompt.scenes_touched > 1]
    notes += [f"Note: the scene at {scene.start_s:g}-{scene.end_s:g} s is too short for clips of {timeline.clip_s:g} s "
              "and is not shown." for i, scene in enumerate(timeline.scenes) if i not in shown]
    over_s = prompts[-1].end_s - film_seconds(timeline)
    if over_s > _EPSILON:
        notes.append(f"Note: clips have one length, so the last one runs {over_s:g} s past the end of the film.")
    return notes


def _one_line(text: str) -> str:
    return " ".join(text.split())
