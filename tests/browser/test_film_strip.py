"""The film strip on Render Short: pictures of the clips on disk, and the button that asks for one again."""

from __future__ import annotations

import re

import pytest
import torch

from .editor import bundled

pytestmark = [pytest.mark.browser, pytest.mark.server]

RENDER = "app.graph.nodes.find(n => n.type === 'VideoMemoryRenderShort')"
OPEN = f"""async ([workflow, name]) => {{
  await app.loadGraphData(workflow, true, true, 'strip.json');
  {RENDER}.widgets.find(w => w.name === 'run_name').value = name;
  app.canvas.ds.scale = 0.8;
  app.canvas.centerOnNode({RENDER});
}}"""


SAYS = "(words) => document.querySelector('.videomemory-film p').textContent === words"


def write_run(server, name: str, clips: int) -> None:
    """Clips of one colour each, as Save Clip leaves them; the last one has no frames yet."""
    from pack.nodes.video.encode import write_ffv1
    from pack.nodes.video.run_folder import RunFolder

    run = RunFolder(server.output / "videomemory" / name)
    for index in range(clips):
        take = run.begin(index, f"made from {index}", f"digest {index}", note=f"scene {index + 1}")
        take = run.put(take, "latents", lambda path: path.write_bytes(b"latents"))
        if index < clips - 1:
            take = run.put(take, "memory", lambda path: path.write_bytes(b"memory"))
            frames = torch.zeros(12, 64, 96, 3, dtype=torch.uint8)
            frames[..., index % 3] = 200
            take = run.put(take, "video", lambda path, frames=frames: write_ffv1(path, iter(frames), 16))
            run.finish(take, 2.5)


@pytest.fixture
def strip(page, server):
    if not (server.output / "videomemory" / "strip_test").exists():
        write_run(server, "strip_test", 4)
    page.evaluate(OPEN, [bundled("demo_toyworld"), "strip_test"])
    page.wait_for_function("() => document.querySelectorAll('.videomemory-strip li').length === 4", timeout=30_000)
    return page.locator(".videomemory-film")


def test_every_clip_on_disk_is_shown(page, strip):
    page.wait_for_function("""() => [...document.querySelectorAll('.videomemory-strip img')]
      .filter(image => image.naturalWidth > 0).length === 3""")
    colors = page.evaluate("""() => [...document.querySelectorAll('.videomemory-strip img')].map(image => {
      const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
      const context = canvas.getContext('2d'); context.drawImage(image, 0, 0, 1, 1);
      return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    })""")
    assert [color.index(max(color)) for color in colors] == [0, 1, 2]
    assert strip.locator("img").first.get_attribute("alt") == "Clip 1: scene 1"
    assert strip.locator(".videomemory-blank").all_inner_texts() == ["latents"]
    assert strip.locator("p").inner_text() == "3 of 4 clips on disk are finished, 2.5 s each."
    assert page.errors == []


def test_every_clip_says_how_it_goes_with_the_others(page, server, strip):
    page.wait_for_function("() => document.querySelectorAll('.videomemory-strip li')[2]?.innerText.includes('drift')")
    scores = server.client.get("/videomemory/scores?name=strip_test")["scores"]
    assert [one["index"] for one in scores] == [0, 1, 2]  # the last clip has no frames
    assert [one["join"] and one["join"]["word"] for one in scores] == [None, "hard cut", "hard cut"]
    assert [one["drift"] and one["drift"]["word"] for one in scores] == [None, "strong", "strong"]
    rows = strip.locator("li")
    assert [text.strip() for text in rows.first.locator("small").all_inner_texts()] == ["", ""]
    for row, one in zip(rows.all()[1:3], scores[1:], strict=True):
        assert row.locator("small").all_inner_texts() == [
            f"join: hard cut {one['join']['value']:.2f}", f"drift: strong {one['drift']['value']:.1f}"]
        assert one["drift"]["note"] in row.locator("small").last.get_attribute("title")


def test_scores_that_were_not_answered_are_asked_again(page, server, strip):
    asked = []

    def answer(route):
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=500, body="no")
        else:
            route.continue_()

    page.route("**/videomemory/scores*", answer)
    try:
        page.evaluate(OPEN, [bundled("demo_toyworld"), "strip_test"])
        page.wait_for_function(
            "() => document.querySelectorAll('.videomemory-strip li')[2]?.innerText.includes('drift')", timeout=30_000)
        page.wait_for_timeout(4_500)
        assert len(asked) == 2, "asked again after an answer"
    finally:
        page.unroute("**/videomemory/scores*")


def test_while_a_film_is_made_the_time_that_is_left_is_shown(page, strip):
    page.evaluate(f"""() => {{
      const find = type => app.graph.nodes.find(n => n.type === type);
      const set = (type, name, value) => {{ find(type).widgets.find(w => w.name === name).value = value; }};
      set('VideoMemoryPromptSchedule', 'film_seconds', 6);
      set('VideoMemoryPromptSchedule', 'scenes', '0-6: {{hero}} waves in the snow');
      set('VideoMemoryRenderShort', 'run_name', 'strip_made');
      app.graph.remove(find('VideoMemoryAssembleShort'));
      const shown = LiteGraph.createNode('PreviewAny');
      app.graph.add(shown);
      {RENDER}.connect(2, shown, 0);
      window.progressSeen = [];
      new MutationObserver(() => progressSeen.push(document.querySelector('.videomemory-progress').textContent))
        .observe(document.querySelector('.videomemory-progress'), {{childList: true}});
      app.queuePrompt(0);
    }}""")
    page.wait_for_function("() => window.progressSeen.length > 1 && window.progressSeen.at(-1) === ''", timeout=240_000)
    seen = page.evaluate("() => window.progressSeen")
    assert any("clip 1 of 2" in line and "left" not in line for line in seen), "nobody knows before the first chunk"
    assert re.search(r"clip 2 of 2, .*, about \d+ s left", "\n".join(seen))
    page.wait_for_function("() => document.querySelectorAll('.videomemory-strip li')[1]?.innerText.includes('drift')",
                           timeout=30_000)
    join, drift = strip.locator("li").nth(1).locator("small").all_inner_texts()
    assert join.startswith("join: smooth ") and drift.startswith("drift: none ")
    assert page.errors == []


def test_again_sets_the_nodes_own_inputs(page, strip):
    strip.get_by_role("button", name="Make clip 2 again").click()
    values = page.evaluate(f"""() => Object.fromEntries({RENDER}.widgets.map(w => [w.name, w.value]))""")
    assert (values["regenerate"], values["regenerate_clip"]) == ("only", 2) and values["regenerate_seed"] > 0
    page.wait_for_function("() => document.querySelector('.videomemory-film p').textContent.includes('only 2')")


def test_a_button_keeps_the_focus_when_the_strip_is_told_anew(page, strip):
    button = strip.get_by_role("button", name="Make clip 3 again")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.videomemory-film p').textContent.includes('only 3')")
    assert page.evaluate("() => document.activeElement.ariaLabel") == "Make clip 3 again"


def test_a_server_that_does_not_answer_takes_no_clip_away(page, strip):
    page.route("**/videomemory/run*", lambda route: route.abort())
    try:
        page.wait_for_function(SAYS, arg="The server does not answer.")
        assert strip.locator("li").count() == 4 and strip.locator("img").count() == 3
    finally:
        page.unroute("**/videomemory/run*")
    page.wait_for_function(SAYS, arg="3 of 4 clips on disk are finished, 2.5 s each.")


def test_a_run_that_cannot_be_read_is_told_with_the_servers_own_sentence(page, strip):
    page.evaluate(f"() => {{ {RENDER}.widgets.find(w => w.name === 'run_name').value = 'CON'; }}")
    page.wait_for_function("() => document.querySelector('.videomemory-film p').textContent.includes('device name')")
    assert strip.locator("li").count() == 0


def test_what_comes_over_a_link_is_not_guessed(page, strip):
    page.evaluate(f"""() => {{
      const number = LiteGraph.createNode('PrimitiveInt'), name = LiteGraph.createNode('PrimitiveString');
      for (const node of [number, name]) app.graph.add(node);
      window.link = (node, input) => node.connect(0, {RENDER}, {RENDER}.inputs.findIndex(one => one.name === input));
      window.sources = {{number, name}};
      link(number, 'regenerate_clip');
    }}""")
    again = strip.get_by_role("button", name="Make clip 2 again")
    page.wait_for_function("() => document.querySelector('.videomemory-strip button').disabled")
    assert again.is_disabled() and "over a link" in again.get_attribute("title")
    page.evaluate("() => { link(sources.name, 'run_name'); }")
    page.wait_for_function(SAYS, arg="The run name comes over a link: the strip cannot show the film.")
    assert strip.locator("li").count() == 0


def test_the_progress_of_a_film_that_another_page_makes_is_not_shown(page, strip):
    said = page.evaluate(f"""() => {{
      const tell = (event, detail) => app.api.dispatchCustomEvent(event, detail);
      const line = () => document.querySelector('.videomemory-progress').textContent;
      const progress = () => tell('progress_text', {{nodeId: String({RENDER}.id), text: 'clip 1 of 8'}});
      const seen = [];
      for (const step of [progress, () => tell('execution_start', {{}}), progress,
                          () => tell('execution_success', {{}}), progress]) {{ step(); seen.push(line()); }}
      return seen;
    }}""")
    assert said == ["", "", "clip 1 of 8", "", ""]


def test_another_name_is_another_film(page, strip):
    page.evaluate(f"() => {{ {RENDER}.widgets.find(w => w.name === 'run_name').value = 'nothing here'; }}")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-strip li').length === 0")
    assert strip.locator("p").inner_text() == "No clip of this run is on disk yet."


@pytest.mark.parametrize("query", ["name=..%2F..", "name=", "name=strip_test&clip=99", "name=strip_test&clip=x"])
def test_other_files_are_not_served(server, strip, query):
    import urllib.error

    with pytest.raises(urllib.error.HTTPError) as refused:
        server.client.get(f"/videomemory/frame?{query}")
    assert refused.value.code == 404
