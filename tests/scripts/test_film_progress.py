"""The progress bar and the comparison films."""

from __future__ import annotations

import io

import pytest
from pack.scripts.harness import film
from pack.scripts.harness.errors import CannotContinue
from pack.scripts.harness.status_line import StatusLine, bar_text, duration_text


def tiny_film(clips: int = 10) -> dict:
    return {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "x"}},
        "2": {"class_type": film.SCHEDULE, "inputs": {"identity": "i", "clip_seconds": 3.0, "film_seconds": 3.0 * clips,
                                                      "reanchor_seconds": 8.0}},
        "3": {"class_type": film.RENDER, "inputs": {"vae": ["1", 0], "timeline": ["2", 0], "seed": 7,
                                                    "run_name": "film", "carry_memory": True}},
        "4": {"class_type": film.ASSEMBLE, "inputs": {"clips": ["3", 0], "crf": 16}},
    }


def state(value: float, most: float, running: bool = True) -> dict:
    return {"value": value, "max": most, "state": "running" if running else "finished"}


def test_the_line_names_clip_and_chunk_when_render_short_is_at_work():
    progress = film.FilmProgress(StatusLine("Film", io.StringIO()), tiny_film())
    assert progress.line(5).endswith("loading the models")
    progress("text", {"node": "3.0.0.clip04_sample", "text": "clip 5, chunk 2 of 2"})
    done = {f"3.0.0.clip{i:02}_{stage}": state(1, 1, False) for i in range(4) for stage in ("prompt", "sample", "save")}
    progress("progress_state", {"nodes": {**done, "3.0.0.clip04_sample": state(9, 18), "1": state(1, 1, False)}})
    line = progress.line(20)
    assert "clip 5 of 10, chunk 2 of 2" in line
    share = 0.75 * (4 + 0.6 * 0.5) / 10
    assert progress.fraction() == pytest.approx(share)
    assert progress.sampled == {0, 1, 2, 3, 4}
    assert f"about {duration_text(20 / share - 20)} left" in line


def test_the_line_never_goes_back_when_old_states_come_again():
    progress = film.FilmProgress(StatusLine("Film", io.StringIO()), tiny_film(2))
    progress("progress_state", {"nodes": {"clip00_save": state(3, 6)}})
    before = progress.fraction()
    progress("progress_state", {"nodes": {"clip00_sample": state(18, 18, False), "clip00_save": state(2, 6)}})
    assert progress.fraction() == before


def test_a_comparison_is_full_when_its_clips_are_saved():
    progress = film.FilmProgress(StatusLine("Film", io.StringIO()), film.comparison(tiny_film(1), "neither"))
    progress("progress_state", {"nodes": {"clip00_save": state(1, 1, False)}})
    assert progress.fraction() == 1.0


def test_the_line_is_full_when_the_clips_are_joined():
    progress = film.FilmProgress(StatusLine("Film", io.StringIO()), tiny_film(1))
    progress("progress_state", {"nodes": {"clip00_save": state(1, 1, False)}})
    assert progress.fraction() == pytest.approx(0.75)
    progress("progress_state", {"nodes": {"4": state(360, 720)}})
    assert "joining the clips, frame 360 of 720" in progress.line(10)
    progress("progress_state", {"nodes": {"4": state(720, 720, False)}})
    assert progress.line(10).startswith("[" + "#" * 16 + "] 100%")


@pytest.mark.parametrize(("name", "carry", "reanchor"), [("memory only", True, 0.0), ("re-anchoring only", False, 8.0),
                                                         ("neither", False, 0.0)])
def test_a_comparison_changes_only_what_it_is_about(name, carry, reanchor):
    prompt = tiny_film()
    changed = film.comparison(prompt, name)
    render = changed["3"]["inputs"]
    assert (render["carry_memory"], film.schedule(changed)["reanchor_seconds"]) == (carry, reanchor)
    assert render["seed"] == 7
    assert film.run_name(changed) != film.run_name(prompt)
    assert "4" not in changed and changed["status"]["inputs"]["source"] == ["3", 2]
    assert prompt == tiny_film()


def test_the_number_of_clips_is_rounded_up():
    prompt = tiny_film()
    assert film.clip_count(prompt) == 10
    film.schedule(prompt)["film_seconds"] = 30.1
    assert film.clip_count(prompt) == 11


def test_a_workflow_is_refused_when_its_node_is_missing():
    prompt = tiny_film()
    del prompt["3"]
    with pytest.raises(CannotContinue, match="exactly one VideoMemoryRenderShort node, and it has 0"):
        film.comparison(prompt, "neither")


def test_the_film_is_found_in_the_history():
    shown = {"4": {"images": [{"filename": "short_00001_.mp4", "subfolder": "video"}], "animated": [True]}}
    assert film.film_file({"outputs": shown}, tiny_film()) == ("video", "short_00001_.mp4")
    with pytest.raises(CannotContinue, match="ended without a film"):
        film.film_file({"outputs": {}}, tiny_film())


def test_retention_counts_the_clips_after_the_first():
    def clip(body: bool, hat: bool) -> dict:
        return {"kept": {"body": body, "hat": hat, "shape": True}, "same_hero": body and hat}

    scores = {"film": {"clips": [clip(False, False), clip(True, True), clip(True, False)]}}
    assert film.retention(scores) == {"film": {"same_hero": "1 of 2", "body": 1.0, "hat": 0.5, "shape": 1.0}}


def test_a_status_line_is_quiet_when_there_is_no_terminal():
    stream = io.StringIO()
    with StatusLine("Setting up", stream) as status:
        status.show("first")
        status.show("second")
    assert stream.getvalue() == "Setting up (0 s): first\n"


def test_a_status_line_is_one_line_and_leaves_none_when_there_is_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "31")
    stream = Terminal()
    with StatusLine("Film", stream) as status:
        status.show("a line that is longer than the terminal is wide", with_time=False)
        shown = stream.getvalue()
    assert shown == "\rFilm: a line that is longer th"
    assert stream.getvalue() == shown + "\r" + " " * 30 + "\r"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3601, "60 min 01 s")])
def test_durations_are_words(seconds, text):
    assert duration_text(seconds) == text
    assert bar_text(0.5, 4) == "[##--]" and bar_text(7, 4) == "[####]"
