"""The pack in another language: titles and labels are those of locales/<language>."""

from __future__ import annotations

import json

import pytest

from .editor import READY, ROOT

pytestmark = [pytest.mark.browser, pytest.mark.server]

NODE = "VideoMemoryBudgetGate"
LOSES = "1.32.9"  # loads a language after the packs' texts and over them
SET = "(language) => app.extensionManager.setting.set('Comfy.Locale', language)"
SHOWN = """(type) => {
  const node = LiteGraph.createNode(type);
  return [node.title, Object.fromEntries(node.widgets.filter(w => w.label).map(w => [w.name, w.label]))];
}"""


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_a_node_is_named_in_the_language_of_the_editor(page, language):
    if page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__") == LOSES:
        pytest.skip(f"frontend {LOSES} shows no pack's translations; FRONTEND_PATH names a newer one")
    page.evaluate(SET, language)
    try:
        page.reload(wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=120_000)
        title, labels = page.evaluate(SHOWN, NODE)
    finally:
        page.evaluate(SET, "en")
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[NODE]
    assert title == texts["display_name"] != "VRAM Budget Gate"
    assert labels == {name: texts["inputs"][name]["name"] for name in labels} and len(labels) > 8
