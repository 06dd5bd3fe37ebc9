"""axe-core on our panels, filled by a run, in the dark and the light theme: no serious and no critical finding."""

from __future__ import annotations

import pytest

from .editor import bundled, press_run, use_nodes_2
from .test_memory_strip import BUILD, FILM
from .test_orbit import BUILD as BUILD_ORBIT
from .test_orbit import write_pictures

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.slow]

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright",
                                     reason="axe-playwright-python is not installed: run python scripts/test.py")
SHORT = {**FILM, "VideoMemoryPromptSchedule": {"film_seconds": 3.0, "scenes": "0-3: {hero} walks right in the forest"},
         "VideoMemoryRenderShort": {"run_name": "accessibility"}}
PANELS = {"timeline": ("VideoMemoryPromptSchedule", "li"), "budget": ("VideoMemoryBudgetGate", ".videomemory-phase"),
          "film_strip": ("VideoMemoryRenderShort", "img"), "memory_strip": ("VideoMemoryMemoryReport", "img")}
THEME = """async (name) => {
  await app.extensionManager.setting.set('Comfy.ColorPalette', name);
  // the node's body is drawn on the canvas, where axe cannot see it
  document.body.style.setProperty('--body-of-nodes', LiteGraph.NODE_DEFAULT_BGCOLOR);
}"""
# The editor's bars are hidden for axe: their see-through middle lies over the nodes.
SEEN = "div:has(.graph-canvas-panel):not(:has(#graph-canvas)) { visibility: hidden }"
SEEN_CLASSIC = SEEN + " .videomemory-panel { background: var(--body-of-nodes) }"
SHOW = """(kind) => {
  app.canvas.ds.scale = 1;
  app.canvas.centerOnNode(app.graph.nodes.find(node => node.type === kind));
  app.canvas.setDirty(true, true);
}"""
THEMES = ("light", "dark")  # the editor's own; dark is what it starts with
BAD = ("serious", "critical")


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"], scope="module")
def is_vue(request, page):
    """The renderer; it shows a short film, all panels of whose nodes have something to show."""
    use_nodes_2(page, request.param)
    page.evaluate(BUILD, [bundled("demo_toyworld"), SHORT])
    press_run(page)
    yield request.param
    use_nodes_2(page, False)


def findings(page, name: str, is_vue: bool) -> list[str]:
    """What axe finds seriously or critically wrong in that panel; it must have been able to judge colours of text."""
    style = page.add_style_tag(content=SEEN if is_vue else SEEN_CLASSIC)
    results = axe_playwright.Axe().run(page, context=f"[data-panel={name}]").response
    style.evaluate("style => style.remove()")
    assert "color-contrast" in {rule["id"] for rule in [*results["passes"], *results["violations"]]}
    return [f"{rule['id']} ({rule['impact']}): {node['html'][:120]}: {node['failureSummary']}"
            for rule in results["violations"] if rule["impact"] in BAD for node in rule["nodes"]]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PANELS)
def test_a_panel_has_no_serious_finding(page, is_vue, theme, name):
    page.evaluate(THEME, theme)
    kind, filled = PANELS[name]
    page.evaluate(SHOW, kind)
    page.locator(f"[data-panel={name}] {filled}").first.wait_for(state="visible", timeout=30_000)
    assert findings(page, name, is_vue) == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_orbit_has_no_serious_finding(page, server, is_vue, theme):
    page.evaluate(THEME, theme)
    write_pictures(server)
    page.evaluate(BUILD_ORBIT)
    press_run(page)
    page.wait_for_function("() => document.querySelector('.videomemory-orbit p').textContent.includes('points')")
    assert findings(page, "orbit", is_vue) == []
