"""The timeline editor on Re-anchor Prompt Schedule: it reads the node's text, writes it, and agrees with the server."""

from __future__ import annotations

import pytest

from .editor import bundled

pytestmark = [pytest.mark.browser, pytest.mark.server]

MODULE = "/extensions/ComfyUI-VideoMemory/timeline/scenes.js"
TEXT = "0-3: {hero} walks in the forest\n# a note\n3: the empty cave\n1:05 - 1:10: {hero} waves"
CASES = [
    (TEXT, 70.0, 4.0, 8.0), ("0: {hero} jumps", 5.0, 4.0, 0.0), ("0-2.5: a\n2.5: {hero} b {hero}", 6.0, 1.5, 2.0),
    ("0: a\n3: b\n6: c", 4.0, 4.0, 8.0), ("0s - 3s: a\n3 s: b", 9.0, 2.0, 4.0),
    (" 0-3:  spaced   words ", 3.0, 3.0, 1.0),
    ("0: a\n4: The scene transitions. {hero} b\n12: The scene transitions. c", 20.0, 4.0, 8.0),
]
WRONG = ["", "# only a note", "1: too late", "0-3: a\n2: b", "0-3: a\n4: b", "0-3: a", "0: {villain} waves", "3-1: a",
         "0 no colon", "0:10 birds", "0-3: a\n3-3: b"]
BEYOND = [  # texts that reach beyond the film: text, the film, a longer film
    ("0-4: a\n4-8: b\n8-12: c", 6.0, 12.0), ("0-4: a\n4-10: b", 8.0, 10.0), ("0: a\n# kept\n4-8: b\n8: c", 6.0, 12.0),
    ("0-4: a\n4: b\n8-12: c", 6.0, 12.0), ("0-2.0416667: a\n2.0416667-5.9: b\n5.9-9: c\n9: d", 6.0, 12.0),
]
EDITED = f"""async ([text, filmS]) => {{  // the text after each of the edits
  const {{parseScenes, moveJoin, retell, split, remove}} = await import('{MODULE}');
  const {{scenes}} = parseScenes(text, filmS);
  return scenes.flatMap((_, index) => [
    retell(text, scenes, index, 'new words'), split(text, scenes, index, 0.5), remove(text, scenes, index),
    ...(index + 1 < scenes.length ? [-9, 0, 3, 5.5, 6, 7, 99].map(at => moveJoin(text, scenes, index, at, 0.5)) : []),
  ]).filter(edited => edited !== text);
}}"""
NODE = """async (workflow) => {
  await app.loadGraphData(workflow, true, true, 'timeline.json');
  const node = app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule');
  app.canvas.centerOnNode?.(node);
  app.canvas.selectNode?.(node);
}"""
VALUE = """() => app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule')
  .widgets.find(w => w.name === 'scenes').value"""


def set_text(page, text: str) -> None:
    page.evaluate("""(text) => { app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule')
      .widgets.find(w => w.name === 'scenes').value = text; }""", text)


@pytest.fixture
def timeline(page):
    """The demo's workflow, its schedule in view."""
    page.evaluate(NODE, bundled("demo_toyworld"))
    view = page.locator(".videomemory-timeline")
    view.wait_for(state="visible", timeout=30_000)
    return view


def test_both_languages_read_the_same_scenes(page):
    from pack.nodes.prompts.timeline import clip_prompts, parse_scenes, resolve

    for text, film_s, clip_s, reanchor_s in CASES:
        theirs = page.evaluate(f"""async ([text, state]) => {{
          const module = await import('{MODULE}');
          const read = module.parseScenes(text, state.filmS);
          return [read, read.error ? [] : module.clipPrompts(read.scenes, state)];
        }}""", [text, {"identity": "a  blue star.", "hero": "the hero", "filmS": film_s, "clipS": clip_s,
                       "reanchorS": reanchor_s}])
        ours = parse_scenes(text, film_s)
        assert [(scene["startS"], scene["endS"], scene["text"]) for scene in theirs[0]["scenes"]] == [
            tuple(scene) for scene in ours]
        clips = clip_prompts(resolve("a  blue star.", "the hero", text, reanchor_s, clip_s, film_s))
        assert [(clip["scene"], clip["anchored"], clip["text"]) for clip in theirs[1]] == [
            (clip.scene, clip.anchored, clip.text) for clip in clips]


@pytest.mark.parametrize("text", WRONG)
def test_what_the_server_refuses_is_shown_as_a_mistake(page, text):
    from pack.nodes.prompts.timeline import parse_scenes

    with pytest.raises(ValueError, match="cene"):
        parse_scenes(text, 5.0)
    read = page.evaluate(f"async (text) => (await import('{MODULE}')).parseScenes(text, 5)", text)
    assert read["error"] and bool(read["scenes"]) == ("{villain}" in text), "of an unknown name the times are known"


@pytest.mark.parametrize(("text", "film_s", "longer_s"), BEYOND)
def test_edits_keep_what_lies_beyond_the_film(page, text, film_s, longer_s):
    from pack.nodes.prompts.timeline import parse_scenes

    edited = page.evaluate(EDITED, [text, film_s])
    assert len(edited) >= 6
    last = text.splitlines()[-1].split(":")[0].partition("-")
    beyond = [scene for scene in parse_scenes(text, longer_s) if scene.start_s >= film_s]
    for after in edited:
        assert parse_scenes(after, film_s)[-1].end_s == film_s
        scenes = parse_scenes(after, longer_s)
        assert list(scenes[len(scenes) - len(beyond):]) == beyond
        assert after.splitlines()[-1].split(":")[0].partition("-")[1:] == last[1:], "the end of the text"


def test_every_clip_is_listed_and_marked(page, timeline):
    set_text(page, "0: {hero} waves\n12: the empty cave")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-scene').length === 2")
    state = page.evaluate("""() => Object.fromEntries(app.graph.nodes
      .find(n => n.type === 'VideoMemoryPromptSchedule').widgets.map(w => [w.name, w.value]))""")
    count = -(-state["film_seconds"] // state["clip_seconds"])
    rows = timeline.locator(".videomemory-clips li")
    assert rows.count() == count
    assert state["identity"] in rows.first.inner_text()
    assert timeline.locator(".videomemory-mark").count() == timeline.locator("li.videomemory-anchored").count() > 1


def test_a_join_is_dragged_and_moved_by_keys(page, timeline):
    set_text(page, "0-10: {hero} waves\n# kept\n10: {hero} jumps")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-join').length === 1")
    join, track = timeline.locator(".videomemory-join"), timeline.locator(".videomemory-track")
    box, mark = track.bounding_box(), join.bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, mark["y"] + 8, steps=4)
    page.mouse.up()
    film = page.evaluate("""() => app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule')
      .widgets.find(w => w.name === 'film_seconds').value""")
    middle = float(page.evaluate(VALUE).splitlines()[2].split(":")[0])
    assert abs(middle - film / 2) <= 0.5
    assert page.evaluate(VALUE) == f"0-{middle:g}: {{hero}} waves\n# kept\n{middle:g}: {{hero}} jumps"
    join.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(VALUE).startswith(f"0-{middle + 0.5:g}: ")
    assert join.get_attribute("aria-valuenow") == f"{middle + 0.5:g}"
    page.wait_for_timeout(1000)  # the node is looked at again and again: the join must stay under the keys
    page.keyboard.press("ArrowRight")
    assert page.evaluate(VALUE).startswith(f"0-{middle + 1:g}: ")
    assert page.evaluate("() => document.activeElement.className") == "videomemory-join"


def test_scenes_are_split_told_and_deleted(page, timeline):
    set_text(page, "0: {hero} waves")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-scene').length === 1")
    assert timeline.get_by_role("button", name="Delete").is_disabled()
    timeline.get_by_role("button", name="Split").click()
    first, second = page.evaluate(VALUE).splitlines()
    assert first == "0: {hero} waves" and second.endswith(": {hero} waves")
    timeline.locator(".videomemory-scene").nth(1).click()
    words = timeline.get_by_role("textbox")
    words.fill("the empty cave")
    words.press("Enter")
    assert page.evaluate(VALUE).splitlines()[1] == second.replace("{hero} waves", "the empty cave")
    timeline.get_by_role("button", name="Delete").click()
    assert page.evaluate(VALUE) == "0: {hero} waves"
    assert page.errors == []


def test_the_timeline_is_stored_nowhere(page, timeline):
    from pack.nodes.prompts.nodes import PromptSchedule

    inputs = {one.id for one in PromptSchedule.define_schema().inputs}
    saved, queued = page.evaluate("""async () => {
      const node = app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule');
      return [node.serialize().widgets_values, (await app.graphToPrompt()).output[node.id].inputs];
    }""")
    assert len([value for value in saved if value is not None]) == len(inputs) == len(queued)


def test_a_loaded_copied_or_restored_node_has_its_own_timeline(page, timeline):
    set_text(page, "0: {hero} waves\n9: the empty cave\n12: {hero} jumps")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-scene').length === 3")
    page.evaluate("async () => app.loadGraphData(app.graph.serialize())")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-scene').length === 3")
    page.evaluate("""() => {
      const node = app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule');
      const copy = node.clone(); copy.pos = [node.pos[0], node.pos[1] + 900]; app.graph.add(copy);
      copy.widgets.find(w => w.name === 'scenes').value = '0: one scene';
      app.canvas.ds.scale = 0.4; app.canvas.centerOnNode(node);
    }""")
    page.wait_for_function("""() => [...document.querySelectorAll('.videomemory-timeline')]
      .map(e => e.querySelectorAll('.videomemory-scene').length).sort().join() === '1,3'""")


def test_a_value_over_a_link_is_said(page, timeline):
    page.evaluate("""() => {
      const node = app.graph.nodes.find(n => n.type === 'VideoMemoryPromptSchedule');
      const text = LiteGraph.createNode('PrimitiveStringMultiline'); app.graph.add(text);
      text.connect(0, node, node.inputs.findIndex(i => i.name === 'scenes'));
    }""")
    note = timeline.locator(".videomemory-note")
    page.wait_for_function("() => document.querySelector('.videomemory-note').textContent.includes('link')")
    assert note.inner_text() == "scenes comes over a link: the timeline cannot show it."
