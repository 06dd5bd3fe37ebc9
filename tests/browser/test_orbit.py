"""The orbit view on Spatial Memory Report: a place is lifted by the page's own Run, then turned by keys and pointer."""

from __future__ import annotations

import base64
import re

import pytest

from .editor import screenshot_path

pytestmark = [pytest.mark.browser, pytest.mark.server]

WIDTH, HEIGHT = 320, 192
POINTS = (WIDTH // 8) * (HEIGHT // 8)
REPORT = "app.graph.nodes.find(n => n.type === 'VideoMemorySpatialReport')"
BUILD = f"""() => {{
  app.graph.clear();
  const add = (type, values = {{}}, x = 0, y = 0) => {{
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
    return node;
  }};
  const vae = add('VAELoader', {{vae_name: 'toyworld_vae_fp16.safetensors'}});
  const path = add('VideoMemoryCameraPath', {{moves: 'hold in 1', width: {WIDTH}, height: {HEIGHT}}}, 0, 150);
  const image = add('LoadImage', {{image: 'room.png'}}, 0, 500);
  const depth = add('LoadImage', {{image: 'depth.png'}}, 0, 900);
  const lift = add('VideoMemoryLiftSpatial', {{depth_kind: 'inverse', near: 2, far: 8}}, 450, 0);
  const report = add('VideoMemorySpatialReport', {{}}, 900, 0);
  path.connect(0, lift, 'camera_path');
  vae.connect(0, lift, 'vae');
  depth.connect(0, lift, 'depth');
  image.connect(0, lift, 'image');
  lift.connect(0, report, 'spatial_memory');
  app.canvas.ds.scale = 1;
  app.canvas.centerOnNode(report);
}}"""
PICTURE = """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
  const canvas = document.querySelector('.videomemory-cloud');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let text = '';  // a list of so many numbers takes the browser's driver minutes on a busy machine
  for (let at = 0; at < data.length; at += 8192) text += String.fromCharCode(...data.subarray(at, at + 8192));
  done(btoa(text));
})))"""
RENDERER = "(isVue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', isVue)"
IN_NODES_2 = f"() => document.querySelector(`[data-node-id='${{{REPORT}.id}}'] .videomemory-cloud`)"
THEME = "(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
COLOURS = """() => { const style = getComputedStyle(document.querySelector('.videomemory-cloud'));
  return [style.backgroundColor, style.color]; }"""


def write_pictures(server) -> None:
    """A room of coloured squares, and its depth: nearer to the right, white = near."""
    from PIL import Image

    room = Image.new("RGB", (WIDTH, HEIGHT))
    room.putdata([(x * 255 // WIDTH, 255 * ((x // 40 + y // 24) % 2), y * 255 // HEIGHT)
                  for y in range(HEIGHT) for x in range(WIDTH)])
    room.save(server.base / "input" / "room.png")
    depth = Image.new("RGB", (WIDTH, HEIGHT))
    depth.putdata([(x * 255 // WIDTH,) * 3 for _ in range(HEIGHT) for x in range(WIDTH)])
    depth.save(server.base / "input" / "depth.png")


@pytest.fixture(scope="module")
def orbit(page, server):
    write_pictures(server)
    page.evaluate(BUILD)
    view = page.locator(".videomemory-orbit")
    view.wait_for(state="visible", timeout=30_000)
    assert view.locator("p").inner_text().startswith("Run the workflow")
    assert all(button.is_disabled() for button in view.locator("button").all())
    before = view.bounding_box()
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function("() => document.querySelector('.videomemory-orbit p').textContent.includes('points')",
                           timeout=120_000)
    assert view.bounding_box() == before, "the panel moved when it was filled"
    return view


@pytest.fixture
def picture(page, orbit):
    """() -> the canvas' pixels as bytes, RGBA; every test begins at the front."""
    orbit.get_by_role("button", name="front").click()
    return lambda: base64.b64decode(page.evaluate(PICTURE))


def drawn(pixels: bytes) -> int:
    return sum(alpha > 0 for alpha in pixels[3::4])


def test_the_points_of_the_place_are_drawn(page, orbit, picture):
    pixels = picture()
    assert orbit.locator("p").inner_text() == f"{POINTS} points, turned 0°, tilted 0°, 1.0x."
    colours = {tuple(pixels[at:at + 3]) for at in range(0, len(pixels), 4) if pixels[at + 3]}
    assert len(colours) > 20 and drawn(pixels) > 5 * POINTS
    assert page.errors == []


def test_keys_turn_it_and_home_goes_back(page, orbit, picture):
    first, canvas = picture(), orbit.locator("canvas")
    canvas.focus()
    for key, words in (("ArrowRight", "turned 10°, tilted 0°"), ("ArrowDown", "turned 10°, tilted 10°"),
                       ("+", "tilted 10°, 1.3x"), ("-", "tilted 10°, 1.0x"), ("ArrowLeft", "turned 0°, tilted 10°"),
                       ("ArrowUp", "turned 0°, tilted 0°")):
        before = picture()
        page.keyboard.press(key)
        assert words in orbit.locator("p").inner_text()
        assert picture() != before, key
    assert picture() == first
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Home")
    assert picture() == first
    label = canvas.get_attribute("aria-label")
    assert label.startswith(f"{POINTS} points") and "Arrow keys turn it" in label


def test_the_pointer_turns_it_and_the_wheel_comes_nearer(page, orbit, picture):
    first, scale = picture(), page.evaluate("() => app.canvas.ds.scale")
    box = orbit.locator("canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] + 20, steps=4)
    page.mouse.up()
    assert "turned 20°, tilted 10°" in orbit.locator("p").inner_text()
    page.mouse.move(middle[0] + 80, middle[1])
    assert "turned 20°, tilted 10°" in orbit.locator("p").inner_text(), "it turns without a button"
    page.mouse.wheel(0, -250)
    page.wait_for_function("() => document.querySelector('.videomemory-orbit p').textContent.includes('1.6x')")
    assert picture() != first
    assert page.evaluate("() => app.canvas.ds.scale") == scale, "the canvas behind has zoomed"


def test_buttons_bring_it_nearer_and_move_it_away(page, orbit, picture):
    first = picture()
    for name, zoom in (("nearer", "1.3x"), ("farther", "1.0x"), ("farther", "0.8x")):
        orbit.get_by_role("button", name=name).click()
        assert orbit.locator("p").inner_text().endswith(f"tilted 0°, {zoom}.")
    assert picture() != first
    assert orbit.locator("[aria-pressed=true]").all_inner_texts() == ["front"]


def test_one_finger_turns_it_and_a_pinch_does_not(page, orbit, picture):
    box = orbit.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers = page.context.new_cdp_session(page)
    view = page.evaluate("() => [app.canvas.ds.scale, [...app.canvas.ds.offset]]")

    def touch(kind, *places):
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [
            {"x": x + right, "y": y, "id": id} for id, right in enumerate(places)]})

    touch("touchStart", 0)
    touch("touchMove", 20)
    touch("touchMove", 40)
    touch("touchEnd")
    words = orbit.locator("p").inner_text()
    assert "turned 0°" not in words
    touch("touchStart", -10)
    touch("touchStart", -10, 10)
    for apart in (20, 40, 60):
        touch("touchMove", -apart, 2 * apart)
    touch("touchEnd")
    page.evaluate("([scale, offset]) => Object.assign(app.canvas.ds, {scale, offset})", view)  # the editor zoomed
    page.evaluate("() => app.canvas.setDirty(true, true)")
    assert orbit.locator("p").inner_text() == words


def test_from_above_and_from_the_right_other_things_are_seen(page, orbit, picture):
    seen = {"front": picture()}
    for side in ("right", "above"):
        button = orbit.get_by_role("button", name=side)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        seen[side] = picture()
    assert seen["front"] != seen["right"] != seen["above"]
    assert drawn(seen["above"]) < drawn(seen["front"]) / 2, "from above the picture is a line"


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_it_can_be_seen_in_both_themes(page, orbit, picture, theme):
    page.evaluate(THEME, theme)
    try:
        page.wait_for_timeout(500)
        background, text = ([int(part) for part in re.findall(r"\d+", colour)[:3]]
                            for colour in page.evaluate(COLOURS))
        assert abs(sum(background) - sum(text)) > 3 * 80
        assert (sum(background) > 3 * 128) == (theme == "light")
        orbit.get_by_role("button", name="right").click()
        page.screenshot(path=screenshot_path(f"test_orbit.py::in_{theme}"))
    finally:
        page.evaluate(THEME, "dark")


def test_nothing_of_it_is_stored(page, orbit):
    saved, queued = page.evaluate(f"""async () => [{REPORT}.serialize().widgets_values,
      (await app.graphToPrompt()).output[{REPORT}.id].inputs]""")
    assert sorted(queued) == ["spatial_memory"] and not any((saved or [])[:1])


def test_it_is_the_same_in_nodes_2(page, orbit):
    page.evaluate(RENDERER, True)
    try:
        page.wait_for_function(IN_NODES_2, timeout=30_000)
        page.wait_for_function("() => document.querySelector('.videomemory-orbit p').textContent.includes('points')")
        panel = page.locator(".videomemory-orbit")
        inner, outer = panel.bounding_box(), page.locator("[data-node-id]", has=panel).bounding_box()
        assert outer["x"] <= inner["x"] and inner["x"] + inner["width"] <= outer["x"] + outer["width"]
        assert panel.locator("canvas").bounding_box()["height"] > 150
        panel.locator("canvas").focus()
        page.keyboard.press("ArrowRight")
        assert "turned 10°" in panel.locator("p").inner_text() or "turned 100°" in panel.locator("p").inner_text()
        assert drawn(base64.b64decode(page.evaluate(PICTURE))) > 1000
        page.screenshot(path=screenshot_path("test_orbit.py::in_nodes_2"))
    finally:
        page.evaluate(RENDERER, False)
