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
TOY = {  # what makes the toy world of a workflow for LongLive
    "VideoMemoryLoadDiffusionModel": {"model_name": "toyworld_dit_fp16.safetensors", "weights": "original"},
    "VideoMemoryLoadTextEncoder": {"text_encoder_name": "toyworld_te_fp16.safetensors", "weights": "original"},
    "VAELoader": {"vae_name": "toyworld_vae_fp16.safetensors"},
    "VideoMemoryPersistentMemory": {"preset": "toyworld", "precision": "model"},
    "VideoMemoryBudgetGate": {"width": 128, "height": 80, "clip_seconds": 3, "budget_gb": 0},
    "VideoMemoryPromptSchedule": {"identity": "a red square hero with a green hat", "hero": "the hero",
                                  "scenes": "0-3: {hero} walks right in the forest\n3-6: {hero} waves in the snow",
                                  "clip_seconds": 3, "film_seconds": 6},
    "VideoMemoryAssembleShort": {"enlarge": 5},
}
TWO_CLIPS = """(values) => {
  const find = test => app.graph.nodes.find(test);
  for (const [type, widgets] of Object.entries(values)) for (const [name, value] of Object.entries(widgets)) {
    find(node => node.type === type).widgets.find(widget => widget.name === name).value = value;
  }
  const number = node => Number(/^Clip (\\d)$/.exec(node.title)?.[1] ?? 0);
  for (const node of [...app.graph.nodes]) if (number(node) > 2) app.graph.remove(node);
  const [last, film, report] = [node => node.title === 'Clip 2', node => node.type === 'VideoMemoryAssembleShort',
                                node => node.type === 'VideoMemoryMemoryReport'].map(find);
  last.connect(0, film, 'clips');
  last.connect(1, report, 'memory');
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


def test_clips_in_subgraphs_hand_on_their_memory_and_become_a_film(page, server):
    load(page, "short_30s_720p_12gb_unrolled")
    page.evaluate(TWO_CLIPS, TOY)
    heard = press_run(page)
    assert film_of(server, heard)[1:] == (FPS // 8 * (21 + 24), SIZE)
    page.wait_for_function("""() => document.querySelector('.videomemory-held').textContent
      .startsWith('Remembered after clip 2 (6.0 s of film)')""", timeout=30_000)
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
