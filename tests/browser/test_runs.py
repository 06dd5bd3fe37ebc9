"""Films made from the page: values typed into the nodes, the Run button, the film that plays; and Cancel."""

from __future__ import annotations

from pathlib import Path

import pytest

from .editor import ENDED, load, press_run, type_into

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.slow]

GATE, SCHEDULE, RENDER = "VideoMemoryBudgetGate", "VideoMemoryPromptSchedule", "VideoMemoryRenderShort"
STEPS = "() => window.heard.filter(event => event.name === 'progress' && event.node.endsWith('_sample'))"
PLAYS = """async () => {
  const film = [...document.querySelectorAll('video')].at(-1);
  film.muted = true;
  await film.play();
  return [film.videoWidth, film.videoHeight, film.duration];
}"""
FPS, SIZE = 24, (640, 400)  # 128 x 80, enlarged five times


def film_of(server, heard: list[dict]) -> tuple[Path, int, tuple[int, int]]:
    """The film that Assemble Short announced: its file, and the frames and the size that PyAV decodes."""
    av = pytest.importorskip("av")
    shown = [one for event in heard if event["name"] == "executed" for one in event["output"].get("images", [])]
    (film,) = (server.output / one["subfolder"] / one["filename"] for one in shown if one["filename"].endswith(".mp4"))
    with av.open(str(film)) as video:
        sizes = [(frame.width, frame.height) for frame in video.decode(video=0)]
    assert len(set(sizes)) == 1
    return film, len(sizes), sizes[0]


def shorten(page, name: str, run_name: str) -> None:
    """The bundled workflow in two clips of 3 seconds: 21 and 24 frames, each three times at 24 frames per second."""
    load(page, name)
    assert type_into(page, SCHEDULE, "film_seconds", "6") == 6
    assert type_into(page, RENDER, "run_name", run_name) == run_name


def test_the_demo_becomes_a_film_that_plays_on_the_page(page, server):
    shorten(page, "demo_toyworld", "demo_from_the_page")
    _, frames, size = film_of(server, press_run(page))
    assert (frames, size) == (FPS // 8 * (21 + 24), SIZE)
    page.wait_for_function("() => [...document.querySelectorAll('video')].at(-1)?.readyState >= 2", timeout=30_000)
    width, height, duration = page.evaluate(PLAYS)
    assert ((width, height), round(duration * FPS)) == (SIZE, frames)
    page.wait_for_function("() => [...document.querySelectorAll('video')].at(-1).currentTime > 0.2", timeout=30_000)
    assert page.errors == []


def test_a_clip_is_made_again_from_the_page_and_the_other_one_kept(page, server):
    shorten(page, "resume_and_reroll", "reroll_from_the_page")
    first = film_of(server, press_run(page))
    page.get_by_role("button", name="Make clip 2 again").click(timeout=30_000)
    heard = press_run(page)
    second = film_of(server, heard)
    assert second[1:] == first[1:] == (FPS // 8 * (21 + 24), SIZE) and second[0] != first[0]
    assert second[0].read_bytes() != first[0].read_bytes()
    status = [text for event in heard if event["name"] == "executed" for text in event["output"].get("text", [])]
    assert any("1 reused, 1 generated" in text for text in status)
    sampled = {event["node"].rsplit(".", 1)[-1] for event in heard if event["node"].endswith("_sample")}
    assert sampled == {"clip01_sample"}
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea')].some(text => text.value.includes('1 reused, 1 generated'))")
    assert page.errors == []


def test_cancel_from_the_page_stops_within_a_step(page, server):
    shorten(page, "demo_toyworld", "cancelled_from_the_page")
    type_into(page, GATE, "width", "384")  # a step long enough to press a button in
    type_into(page, GATE, "height", "256")
    press_run(page, until=f"() => ({STEPS})().length >= 2")
    page.get_by_role("button", name="Cancel current run").click()
    before = page.evaluate(STEPS)
    page.wait_for_function(ENDED, timeout=60_000)
    page.wait_for_timeout(2000)  # nothing may go on
    ends = page.evaluate("() => window.heard.map(event => event.name).filter(name => name.startsWith('execution_'))")
    assert ends == ["execution_interrupted"]
    assert len(page.evaluate(STEPS)) - len(before) <= 1
    assert server.client.is_idle()
    assert page.errors == []
