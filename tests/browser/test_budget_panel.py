"""The budget panel on VRAM Budget Gate: the server's plan before anything is queued, again when the graph changes."""

from __future__ import annotations

import pytest

from .budget import GATE, OPEN, change, verdict
from .editor import bundled

pytestmark = [pytest.mark.browser, pytest.mark.server]


def test_the_demo_fits_and_says_so(page, server, panel):
    assert "128 x 80" in verdict(page, "Fits")
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    gate = next(node_id for node_id, node in graph.items() if node["class_type"] == "VideoMemoryBudgetGate")
    plan = server.client.post("/videomemory/plan", {"prompt": graph, "node_id": gate})
    rows = panel.locator(".videomemory-phase")
    assert [row.locator("span").first.inner_text() for row in rows.all()] == [one["name"] for one in plan["phases"]]
    assert panel.locator("li").all_inner_texts() == plan["concessions"]
    assert "free now" in panel.locator(".videomemory-card").inner_text()
    assert page.errors == []


def test_another_size_is_another_plan(page, panel):
    verdict(page, "128 x 80")
    change(page, "width", 256)
    assert "256 x 80" in verdict(page, "256 x 80")


def test_the_graph_is_turned_into_a_prompt_only_after_a_change(page, card, panel):
    """graphToPrompt takes milliseconds on a large graph: not at every look."""
    verdict(page, "128 x 80")
    page.wait_for_timeout(2_000)
    page.evaluate("""() => { window.turned = 0; const { graphToPrompt } = app;
      app.graphToPrompt = function (...rest) { window.turned += 1; return graphToPrompt.apply(this, rest); }; }""")
    page.wait_for_timeout(3_000)
    assert page.evaluate("() => window.turned") == 0
    change(page, "width", 192)
    verdict(page, "192 x 80")
    assert page.evaluate("() => window.turned") == 1


SIGNATURE = """async () => (await import('/extensions/ComfyUI-VideoMemory/budget/changes.js'))
  .signatureOf(app.rootGraph ?? app.graph)"""
CHANGES = {
    "value": f"() => {{ {GATE}.widgets.find(w => w.name === 'height').value = 96; }}",
    "mode": f"() => {{ {GATE}.mode = 4; }}",
    "link": f"() => {GATE}.disconnectInput('model')",
    "node": "() => app.graph.remove(app.graph.nodes.find(n => n.type === 'VideoMemoryAssembleShort'))",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_kind_of_change_is_seen(page, panel, name):
    before = page.evaluate(SIGNATURE)
    page.evaluate(f"() => {{ {GATE}.pos = [1, 2]; }}")
    assert page.evaluate(SIGNATURE) == before, "a place is no change"
    page.evaluate(CHANGES[name])
    assert page.evaluate(SIGNATURE) != before


def test_a_change_inside_a_subgraph_is_seen(page):
    page.evaluate(OPEN, bundled("demo_toyworld"))
    page.evaluate("""() => {
      const node = app.graph.nodes.find(n => n.type === 'VideoMemoryLoadRife');
      window.inside = app.graph.convertToSubgraph(new Set([node])).subgraph.nodes[0];
    }""")
    before = page.evaluate(SIGNATURE)
    page.evaluate("() => { window.inside.mode = 4; }")
    assert page.evaluate(SIGNATURE) != before


def test_a_widget_of_another_pack_without_a_name_stops_no_plan(page, panel):
    verdict(page, "128 x 80")
    page.evaluate(f"""() => {{
      const widget = {{hidden: true, type: 'other', y: 0, options: {{}}, serializeValue: () => 0, value: 1}};
      {GATE}.getInputNode(0).widgets.push(widget);
    }}""")
    change(page, "width", 224)
    assert "224 x 80" in verdict(page, "224 x 80")
    assert page.errors == []


def test_a_circular_value_is_no_error_and_hides_no_other_change(page, panel):
    """In a graph of plain objects: frontend 1.58.1 cannot save a real one with such a value itself."""
    same, other = page.evaluate("""async () => {
      const { signatureOf } = await import('/extensions/ComfyUI-VideoMemory/budget/changes.js');
      const circle = {};
      circle.self = circle;
      const graph = {nodes: [{id: 1, widgets: [{name: 'a', value: circle}, {name: 'b', value: 1}]}], links: new Map()};
      const before = signatureOf(graph), again = signatureOf(graph);
      graph.nodes[0].widgets[1].value = 2;
      return [before === again, before !== signatureOf(graph)];
    }""")
    assert same and other


def test_what_does_not_fit_is_told_with_what_would(page, panel):
    verdict(page, "Fits")
    change(page, "budget_gb", 0.3)
    assert verdict(page, "Does not fit") == "Does not fit"
    assert panel.locator("li").count() > 0


def test_a_model_that_is_missing_is_a_sentence(page, panel):
    verdict(page, "Fits")
    page.evaluate(f"() => {GATE}.disconnectInput('model')")
    verdict(page, "Cannot be said yet")
    assert panel.locator("li").first.inner_text()


def test_the_panel_is_stored_nowhere(page, panel):
    saved, queued = page.evaluate(f"""async () => [{GATE}.serialize().widgets_values,
      (await app.graphToPrompt()).output[{GATE}.id].inputs]""")
    assert "budget" not in queued
    assert len([value for value in saved if value is not None]) == len(
        [name for name in queued if not isinstance(queued[name], list)])
