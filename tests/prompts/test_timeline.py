"""Scenes in seconds to one prompt per clip: the grammar, its errors, anchors, re-cutting, and the preview."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pack.nodes.common.types import Scene
from pack.nodes.prompts.timeline import (
    SCENE_CUT_PREFIX,
    clip_prompts,
    clip_text,
    film_seconds,
    parse_scenes,
    preview,
    re_resolve,
    resolve,
)

HERO = "a blue circle hero with a green hat"
SCENES = """
# the demo
0-3: {hero} walks right in the forest
3:  {hero} walks left in the snow

6-9: {hero} waves by the sea
9: the empty cave
"""


def film(scenes: str = SCENES, reanchor_s: float = 8, clip_s: float = 3, film_s: float = 12):
    return resolve(HERO, "the hero", scenes, reanchor_s, clip_s, film_s)


def test_prompts_are_the_trained_captions_when_scenes_are_toy_world_lines():
    assert film().clip_texts == (
        "a blue circle hero with a green hat walks right in the forest",
        "the hero walks left in the snow",
        "the hero waves by the sea",
        "a blue circle hero with a green hat. the empty cave",
    )
    anchored = resolve(HERO, "the hero", "0: {hero} walks left in the snow", 0, 3, 3)
    assert anchored.clip_texts == ("a blue circle hero with a green hat walks left in the snow",)


def test_scene_spans_are_gapless_when_ends_are_left_out():
    assert parse_scenes(SCENES, 12) == (
        Scene(0, 3, "{hero} walks right in the forest"), Scene(3, 6, "{hero} walks left in the snow"),
        Scene(6, 9, "{hero} waves by the sea"), Scene(9, 12, "the empty cave"))


@pytest.mark.parametrize(("line", "scene"), [
    ("0 - 2.5 s: a", Scene(0, 2.5, "a")),
    ("0s–2.5s:a", Scene(0, 2.5, "a")),
    ("0:00-0:02.5: a", Scene(0, 2.5, "a")),
    ("0: 10 birds  fly: away", Scene(0, 2.5, "10 birds fly: away")),
    ("0:00: a", Scene(0, 2.5, "a")),
])
def test_line_is_read_when_written_in_any_of_the_forms(line, scene):
    assert parse_scenes(line, 2.5) == (scene,)


def test_minutes_are_read_when_written_as_a_clock():
    assert parse_scenes("0: a\n1:05-1:09: b", 69)[1] == Scene(65, 69, "b")


@pytest.mark.parametrize(("scenes", "parts"), [
    ("", ["at least one scene", "one scene per line"]),
    ("0-3: a\nhe walks", ["line 2", "'he walks'"[1:-1], "colon"]),
    ("3:10 birds fly", ["line 1", "3:10 birds fly", "colon"]),
    ("2: a", ["line 1", "begins at 0 s", "2 s"]),
    ("0-3: a\n# note\n\n5: b", ["line 4", "between 3 and 5 s", "Start it at 3"]),
    ("0-3: a\n2: b", ["line 2 overlaps line 1", "2 s", "Start it at 3"]),
    ("0: a\n0: b", ["line 2 overlaps line 1"]),
    ("0-3: a\n3-1: b", ["line 2", "3 s to 1 s"]),
    ("0-3: a", ["line 1 ends before the film", "3 s of a film of 12 s", "'film (seconds)' to 3"]),
    ("0: {her} walks", ["line 1", "'{her}'", "{hero}"]),
])
def test_error_names_the_line_when_scenes_are_wrong(scenes, parts):
    with pytest.raises(ValueError) as error:
        parse_scenes(scenes, 12)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(("changes", "part"), [
    ({"identity": " \n"}, "needs the identity"), ({"hero": ""}, "needs the hero"), ({"clip_s": 0}, "'clip"),
    ({"film_s": -1}, "'film"), ({"film_s": math.inf}, "'film"), ({"reanchor_s": -1}, "'re-anchor every"),
    ({"reanchor_s": math.nan}, "'re-anchor every"), ({"clip_s": 0.0001}, "too many clips"),
    ({"scenes": "0: a\n9: " + "{hero} " * 300, "hero": "x" * 50}, "prompt of clip 4 is too long, but got 15"),
])
def test_error_names_the_input_when_a_value_is_wrong(changes, part):
    values = {"identity": HERO, "hero": "the hero", "scenes": "0: a", "reanchor_s": 8, "clip_s": 3, "film_s": 12}
    with pytest.raises(ValueError, match=part):
        resolve(**{**values, **changes})


@pytest.mark.parametrize(("reanchor_s", "clip_s", "anchored"), [
    (8, 4, [0, 2, 4, 6, 8]), (8, 3, [0, 3, 6, 8]), (0, 3, [0]), (1, 3, list(range(10))), (100, 3, [0]),
    (0.3, 0.1, [0, 3, 6, 9]),
])
def test_clips_are_anchored_when_a_multiple_has_passed(reanchor_s, clip_s, anchored):
    prompts = clip_prompts(film("0: {hero} waves", reanchor_s, clip_s, 10 * clip_s))
    assert [i for i, prompt in enumerate(prompts) if prompt.anchored] == anchored


def test_identity_is_spelled_once_when_the_hero_is_named_twice():
    assert film("0: {hero} sees {hero} in a mirror").clip_texts[0] == f"{HERO} sees the hero in a mirror"


def test_identity_is_one_sentence_when_scene_has_no_placeholder():
    timeline = resolve("A tall\n  knight.", "the knight", "0: rain falls", 0, 3, 6)
    assert timeline.clip_texts == ("A tall knight. rain falls", "rain falls")


def test_a_hard_cut_stays_in_front_of_the_first_clip_of_its_scene():
    """Clip Sampler looks at the beginning of a prompt: a re-anchored clip cuts too, and a long scene only once."""
    made = resolve("a blue hero.", "the hero", "0: {hero} waits\n4: The scene transitions. {hero} waves\n"
                   "12: The scene transitions. The empty cave", 4.0, 4.0, 20.0)
    assert [clip.text.startswith(SCENE_CUT_PREFIX) for clip in clip_prompts(made)] == [False, True, False, True, False]
    assert made.clip_texts[1:4] == ("The scene transitions. a blue hero. waves", "a blue hero. waves",
                                    "The scene transitions. a blue hero. The empty cave")


def test_clip_takes_the_longest_scene_when_it_spans_several():
    timeline = film("0-5: one\n5-6: two\n6-12: three", clip_s=4)
    assert [prompt.scene for prompt in clip_prompts(timeline)] == [0, 2, 2]
    text = preview(timeline)
    assert "clip 2 spans 3 scenes" in text
    assert "the scene at 5-6 s is too short for clips of 4 s" in text


def test_clip_takes_the_earlier_scene_when_two_are_equally_long():
    assert clip_prompts(film("0-2: one\n2-12: two", clip_s=4))[0].scene == 0


def test_later_scenes_are_left_out_when_the_film_is_shorter():
    timeline = film(film_s=4)
    assert timeline.clip_count == 2
    assert film_seconds(timeline) == 4
    assert "last one runs 2 s past the end" in preview(timeline)


def test_preview_shows_every_clip_and_marks_anchors():
    lines = preview(film()).splitlines()
    assert lines[0] == "4 clips of 3 s, film of 12 s. 2 of them name the identity (marked *)."
    assert lines[2] == f"Clip   1  0-3 s  * {HERO} walks right in the forest"
    assert lines[3] == "Clip   2  3-6 s    the hero walks left in the snow"
    assert len(lines) == 6


def test_clip_text_raises_when_the_film_has_no_such_clip():
    assert clip_text(film(), 3).endswith("the empty cave")
    for index in (4, -1):
        with pytest.raises(ValueError, match=r"no such clip, but got -?\d; allowed: 0 to 3"):
            clip_text(film(), index)


def test_timeline_is_hashable_and_json_able():
    timeline = film()
    assert hash(timeline) == hash(film())
    assert json.loads(json.dumps(timeline))[5] == list(timeline.clip_texts)


@st.composite
def films(draw):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    starts = [sum(lengths[:i]) / 4 for i in range(len(lengths) + 1)]
    lines = [f"{a:g}-{b:g}: scene {i} {draw(st.sampled_from(['{hero} waves', 'rain']))}"
             for i, (a, b) in enumerate(pairwise(starts))]
    seconds = st.integers(1, 200).map(lambda n: n / 10)
    return film("\n".join(lines), draw(st.just(0.0) | seconds), draw(seconds), starts[-1])


@given(films())
def test_clips_cover_the_film_and_anchor_as_promised(timeline):
    prompts = clip_prompts(timeline)
    assert len(prompts) == timeline.clip_count
    assert prompts[-1].start_s < film_seconds(timeline) <= prompts[-1].end_s + 1e-6
    assert prompts[0].anchored
    for before, prompt in pairwise(prompts):
        r = timeline.reanchor_s
        multiples = [] if r == 0 else [k for k in range(1, 1 + math.ceil(film_seconds(timeline) / r))
                                       if before.start_s + 1e-6 < k * r <= prompt.start_s + 1e-6]
        assert prompt.anchored == bool(multiples)
    for prompt in prompts:
        scene = timeline.scenes[prompt.scene]
        assert min(scene.end_s, prompt.end_s) - max(scene.start_s, prompt.start_s) > 0
        assert (HERO in prompt.text) == prompt.anchored


@given(films(), st.integers(1, 200))
def test_re_cutting_back_gives_the_same_timeline(timeline, tenths):
    other = re_resolve(timeline, tenths / 10)
    assert other.scenes == timeline.scenes
    assert other.clip_s == tenths / 10
    assert re_resolve(other, timeline.clip_s) == timeline


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_with_a_line(text):
    try:
        scenes = parse_scenes(text, 10)
    except ValueError as error:
        assert "line" in str(error)
    else:
        assert scenes[0].start_s == 0
        assert scenes[-1].end_s == 10
