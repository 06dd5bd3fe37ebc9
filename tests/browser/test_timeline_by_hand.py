"""The timeline under a real mouse and keyboard, in either renderer: nothing that is pressed or focused goes away."""

from __future__ import annotations

import pytest

from .editor import bundled, use_nodes_2
from .test_timeline import NODE, VALUE, set_text

pytestmark = [pytest.mark.browser, pytest.mark.server]


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"])
def three_scenes(page, request):
    """A timeline of three scenes, in either renderer; the first one is chosen and its words have the focus."""
    use_nodes_2(page, request.param)
    page.evaluate(NODE, bundled("demo_toyworld"))
    view = page.locator(".videomemory-timeline")
    view.wait_for(state="visible", timeout=30_000)
    set_text(page, "0: one\n10: two\n20: three")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-scene').length === 3")
    press(page, view.locator(".videomemory-scene").first)
    press(page, view.get_by_role("textbox"))
    page.keyboard.press("Control+a")
    yield view
    assert page.errors == []


def press(page, locator) -> None:
    """The mouse on its middle, held as long as a hand holds it."""
    box = locator.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.wait_for_timeout(80)
    page.mouse.up()


def chosen(view) -> list[str]:
    """The label of the chosen block, and the words in the line."""
    return [*view.locator(".videomemory-scene[aria-pressed=true]").all_inner_texts(),
            view.get_by_role("textbox").input_value()]


def focused(page) -> str:
    return page.evaluate("() => document.activeElement.className || document.activeElement.tagName")


def test_words_are_written_by_a_press_on_another_scene(page, three_scenes):
    page.keyboard.type("one more")
    press(page, three_scenes.locator(".videomemory-scene").nth(1))
    assert page.evaluate(VALUE) == "0: one more\n10: two\n20: three"
    assert chosen(three_scenes) == ["two", "two"] and focused(page) == "videomemory-scene"
    press(page, three_scenes.get_by_role("textbox"))
    page.keyboard.type(" and four")
    press(page, three_scenes.get_by_role("button", name="Split"))
    assert page.evaluate(VALUE) == "0: one more\n10: two and four\n15: two and four\n20: three"


def test_words_are_written_by_a_drag_of_a_join(page, three_scenes):
    page.keyboard.type("one more")
    for width in (20, 0, 20):  # a drag that has ended must not write again
        box = three_scenes.locator(".videomemory-join").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + width, y, steps=3)
        page.mouse.up()
    press(page, three_scenes.locator(".videomemory-scene").nth(2))
    first, second, _ = page.evaluate(VALUE).splitlines()
    assert first == "0: one more" and float(second.partition(":")[0]) > 12
    assert chosen(three_scenes) == ["three", "three"]


def test_shift_tab_goes_from_the_words_to_the_joins(page, three_scenes):
    page.keyboard.type("one more")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(VALUE).startswith("0: one more\n")
    assert focused(page) == "videomemory-join"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(VALUE) == "0: one more\n10.5: two\n19.5: three"
    assert focused(page) == "videomemory-join"


def test_a_mistake_in_the_words_is_corrected_where_it_was_made(page, three_scenes):
    words, note = three_scenes.get_by_role("textbox"), three_scenes.locator(".videomemory-note")
    page.keyboard.type("{villain} waves")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert "{villain}" in note.inner_text() == note.get_attribute("title")
    assert words.is_enabled() and focused(page) == "INPUT"
    page.keyboard.press("Control+a")
    page.keyboard.type("{villain} jumps")
    press(page, three_scenes.locator(".videomemory-scene").nth(1))
    assert chosen(three_scenes) == ["two", "two"] and "{villain}" in note.inner_text()
    press(page, three_scenes.locator(".videomemory-scene").first)
    press(page, words)
    page.keyboard.press("Control+a")
    page.keyboard.type("{hero} jumps")
    page.keyboard.press("Enter")
    assert page.evaluate(VALUE) == "0: {hero} jumps\n10: two\n20: three" and note.inner_text() == ""


def test_who_writes_is_not_interrupted_by_a_broken_list(page, three_scenes):
    page.keyboard.type("one more")
    set_text(page, "a line without its seconds")
    page.wait_for_function("() => document.querySelectorAll('.videomemory-scene').length === 0")
    page.keyboard.type("!")
    words = three_scenes.get_by_role("textbox")
    assert words.is_enabled() and words.input_value() == "one more!" and focused(page) == "INPUT"
    page.keyboard.press("Tab")
    assert page.evaluate(VALUE) == "a line without its seconds" and words.is_disabled()


def test_deleting_the_last_but_one_keeps_the_focus(page, three_scenes):
    delete = three_scenes.get_by_role("button", name="Delete")
    delete.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert delete.is_disabled() and chosen(three_scenes) == ["three", "three"]
    assert focused(page) == "videomemory-scene"


def test_a_long_mistake_is_read_on_two_lines_and_nothing_jumps(page, three_scenes):
    note, clips = three_scenes.locator(".videomemory-note"), three_scenes.locator(".videomemory-clips")
    before = note.bounding_box(), clips.bounding_box()
    set_text(page, "0: one\nten: two")
    page.wait_for_function("() => document.querySelector('.videomemory-note').textContent !== ''")
    assert (note.bounding_box(), clips.bounding_box()) == before
    page.evaluate("() => { document.querySelector('.videomemory-timeline').style.maxWidth = '300px'; }")
    assert note.evaluate("e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight"), "it is cut off"
    assert "'3: the hero waves'" in note.get_attribute("title")
