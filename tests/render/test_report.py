"""What Render Short says of a film: counts, and the time that is left."""

from __future__ import annotations

import pytest
from pack.nodes.render.choice import Again, Choice
from pack.nodes.render.report import FilmClock, duration, status

PLAIN = [Choice(str(i), 7) for i in range(8)]


def test_reused_and_generated_clips_are_counted():
    there = [True] * 5 + [False] * 3
    assert status(PLAIN, there, Again()) == "5 reused, 3 generated (clips 6 to 8)."
    assert status(PLAIN, [True] * 8, Again()) == "8 reused, 0 generated."
    assert status(PLAIN, [False] * 8, Again()) == "0 reused, 8 generated."
    assert status(PLAIN, [False, True, True, False, *[True] * 4], Again()).endswith("2 generated (clips 1 and 4).")
    assert status(PLAIN, [True] * 7 + [False], Again(), ["News."]) == "7 reused, 1 generated (clip 8). News."


def test_clips_that_were_kept_by_choice_are_named():
    choices = [*PLAIN[:5], *(Choice(str(i), 7, f"old {i}") for i in range(5, 8))]
    text = status(choices, [*[True] * 4, False, True, True, True], Again("only", 4, 11))
    assert text == ("7 reused, 1 generated (clip 5). Kept as they were, made with the memory of another take of clip "
                    "5: clips 6 to 8.")


def test_the_first_clip_is_judged_by_its_progress_and_later_ones_by_those_before():
    clock = FilmClock(8, range(8), 4, [])
    assert clock.update(0, "sample", 0.0, 100.0) == "clip 1 of 8, chunk 1 of 4"
    assert clock.update(0, "sample", 0.5, 130.0) == "clip 1 of 8, chunk 3 of 4, about 13 min left"  # 8 * 100 s - 30 s
    assert clock.update(0, "save", 0.5, 180.0) == "clip 1 of 8, decoding, about 12 min left"
    clock.finish(0, 190.0)  # 90 s
    assert clock.update(1, "sample", 0.0, 190.0) == "clip 2 of 8, chunk 1 of 4, about 10 min left"
    assert clock.update(1, "sample", 1.0, 230.0) == "clip 2 of 8, chunk 4 of 4, about 10 min left"  # 6 * 90 s + 50 s


def test_time_is_told_from_the_second_chunk_on():
    clock = FilmClock(2, [0, 1], 8, [])
    assert clock.update(0, "sample", 0.0, 0.0) == "clip 1 of 2, chunk 1 of 8"
    assert clock.update(0, "sample", 0.12, 9.0) == "clip 1 of 2, chunk 1 of 8"
    assert clock.update(0, "sample", 0.125, 9.0) == "clip 1 of 2, chunk 2 of 8, about 4 min left"  # 2 * 120 s - 9 s


def test_a_resumed_film_knows_from_the_folder_how_long_its_clips_take():
    clock = FilmClock(8, [6, 7], 1, [50.0, 70.0])
    assert clock.update(2, "save", 1.0, 0.0) == ""  # only read
    assert clock.update(6, "sample", 0.0, 10.0) == "clip 7 of 8, about 2 min left"
    clock.finish(2, 11.0)
    clock.finish(6, 40.0)
    assert clock.update(7, "sample", 0.0, 40.0) == "clip 8 of 8, about 30 s left"  # this session's clips count alone


def test_a_clip_that_takes_longer_than_the_others_never_shows_nothing():
    clock = FilmClock(2, [0, 1], 1, [10.0])
    clock.update(0, "sample", 0.0, 0.0)
    assert clock.update(0, "save", 0.5, 100.0) == "clip 1 of 2, decoding, about 11 s left"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (40, "40 s"), (89, "89 s"), (100, "2 min"),
                                               (720, "12 min"), (7200, "2.0 h")])
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text
