"""The memory strip on Memory Report: the page makes a film of the toy world, and the node shows its memory."""

from __future__ import annotations

import re

import pytest

from .editor import bundled, load, screenshot_path, type_into

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.slow]

REPORT = "app.graph.nodes.find(n => n.type === 'VideoMemoryMemoryReport')"
SCENES = ("walks right in the forest", "jumps by the sea", "walks left in the forest")
FILM = {  # by type of node; 9 s are six chunks: one in the sink, two in the window, three in the archive
    "VideoMemoryPersistentMemory": {"precision": "int8", "retrieved_seconds": 1.5},
    "VideoMemoryPromptSchedule": {"film_seconds": 9.0, "scenes": "\n".join(
        f"{3 * i}-{3 * i + 3}: {{hero}} {scene}" for i, scene in enumerate(SCENES))},
    "VideoMemoryRenderShort": {"run_name": "memory_strip"},
}
BUILD = f"""async ([workflow, film]) => {{
  await app.loadGraphData(workflow, true, true, 'memory.json');
  const find = type => app.graph.nodes.find(n => n.type === type);
  for (const [type, values] of Object.entries(film)) {{
    for (const [name, value] of Object.entries(values)) find(type).widgets.find(w => w.name === name).value = value;
  }}
  const report = LiteGraph.createNode('VideoMemoryMemoryReport');
  report.pos = [find('VideoMemoryRenderShort').pos[0] + 500, find('VideoMemoryRenderShort').pos[1]];
  app.graph.add(report);
  app.graph.remove(find('VideoMemoryAssembleShort'));
  find('VideoMemoryRenderShort').connect(1, report, 'memory');
  find('VAELoader').connect(0, report, 'vae');
  app.canvas.ds.scale = 1;
  app.canvas.centerOnNode({REPORT});
}}"""
RENDERER = "(isVue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', isVue)"
SHOWN = "(count) => document.querySelectorAll('.videomemory-chunks li').length === count"
PICTURES = """(count) => [...document.querySelectorAll('.videomemory-chunks img')]
  .filter(image => image.naturalWidth > 0).length === count"""
IN_NODES_2 = f"() => document.querySelector(`[data-node-id='${{{REPORT}.id}}'] .videomemory-chunks`)"
ROLES = ["sink", "archive", "archive", "archive", "window", "window"]


@pytest.fixture(scope="module")
def strip(page):
    """The strip after the film was made by the page's own Run."""
    page.evaluate(BUILD, [bundled("demo_toyworld"), FILM])
    view = page.locator(".videomemory-memory")
    view.wait_for(state="visible", timeout=30_000)
    assert view.locator(".videomemory-held").inner_text().startswith("Run the workflow")
    before = view.bounding_box()
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(SHOWN, arg=6, timeout=240_000)
    after = view.bounding_box()
    assert after == before, "the panel moved when it was filled"
    return view


def test_every_chunk_is_told_by_word_with_its_time_and_what_it_takes(page, strip):
    page.wait_for_function(PICTURES, arg=6, timeout=30_000)
    chunks = strip.locator("li button")
    assert chunks.locator("b").all_inner_texts() == ROLES
    times = chunks.locator("span").all_inner_texts()
    assert times == [f"{1.5 * i:.1f}–{1.5 * i + 1.5:.1f} s" for i in range(6)]
    for stored in chunks.locator("small").all_inner_texts():
        assert re.fullmatch(r"K/V int8 in (file|RAM), \d+\.\d MB", stored)
    title = strip.locator(".videomemory-held").inner_text()
    assert title.startswith("Remembered after clip 3 (9.0 s of film)") and "K/V int8 in" in title
    assert page.errors == []


def test_the_prompt_of_a_chunk_is_said_on_focus_and_on_hover(page, strip):
    chunks, told = strip.locator("li button"), strip.locator(".videomemory-told")
    chunks.first.focus()
    assert told.inner_text().startswith("sink (kept for ever), 0.0–1.5 s of the film.\nPrompt: ")
    assert SCENES[0] in told.inner_text() and "Drift: latents 0.00" in told.inner_text()
    page.keyboard.press("End")
    assert SCENES[2] in told.inner_text() and "7.5–9.0 s" in told.inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert SCENES[1] in told.inner_text() and "4.5–6.0 s" in told.inner_text()
    page.keyboard.press("Home")
    assert [button.get_attribute("tabindex") for button in chunks.all()] == ["0", *["-1"] * 5]
    chunks.nth(2).hover()
    assert SCENES[1] in told.inner_text()


def test_the_strip_is_stored_nowhere(page, strip):
    saved, queued = page.evaluate(f"""async () => [{REPORT}.serialize().widgets_values,
      (await app.graphToPrompt()).output[{REPORT}.id].inputs]""")
    assert sorted(queued) == ["memory", "vae"] and not any(saved[:1])  # the editor keeps the text behind it


def test_the_strip_is_the_same_in_nodes_2(page, strip):
    page.evaluate(RENDERER, True)
    try:
        page.wait_for_function(IN_NODES_2, timeout=30_000)
        page.wait_for_function(SHOWN, arg=6)
        panel, told = page.locator(".videomemory-memory"), page.locator(".videomemory-told")
        inner, outer = panel.bounding_box(), page.locator("[data-node-id]", has=panel).bounding_box()
        assert outer["x"] <= inner["x"] and inner["x"] + inner["width"] <= outer["x"] + outer["width"]
        assert told.bounding_box()["height"] > 30
        panel.locator("li button").last.focus()
        assert SCENES[2] in told.inner_text()
        page.screenshot(path=screenshot_path("test_memory_strip.py::in_nodes_2"))
    finally:
        page.evaluate(RENDERER, False)


def test_the_strip_fills_inside_a_subgraph(page, strip):
    page.evaluate(BUILD, [bundled("demo_toyworld"), FILM])
    page.evaluate(f"""() => {{
      const made = app.graph.convertToSubgraph(new Set([{REPORT}]));
      app.queuePrompt(0);
      app.canvas.openSubgraph(made.subgraph, made.node);
    }}""")
    try:
        page.wait_for_function(SHOWN, arg=6, timeout=240_000)
    finally:
        page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")


def test_another_workflow_shows_nothing_of_this_one(page, strip):
    page.evaluate(BUILD, [bundled("demo_toyworld"), FILM])
    page.wait_for_function(SHOWN, arg=0, timeout=30_000)
    assert page.locator(".videomemory-held").inner_text().startswith("Run the workflow")


def test_the_seconds_of_one_chunk_can_be_typed(page):
    """The editor rounds to the decimals of the step: 0.8 would be two chunks of Self-Forcing."""
    load(page, "demo_toyworld")
    for name in ("window_seconds", "sink_seconds", "pinned_seconds", "retrieved_seconds"):
        assert type_into(page, "VideoMemoryPersistentMemory", name, "0.75") == 0.75
