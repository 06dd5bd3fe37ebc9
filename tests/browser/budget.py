"""The budget panel on VRAM Budget Gate, as its tests open it and read it."""

from __future__ import annotations

GIB = 2**30
TICK_MS = 5 * 700  # the card is looked at once in so long
GATE = "app.graph.nodes.find(n => n.type === 'VideoMemoryBudgetGate')"
OPEN = f"""async (workflow) => {{
  await app.loadGraphData(workflow, true, true, 'budget.json');
  app.canvas.ds.scale = 0.8;
  app.canvas.centerOnNode({GATE});
}}"""


def verdict(page, wanted: str, seconds: int = 30) -> str:
    page.wait_for_function(
        "(wanted) => document.querySelector('.videomemory-verdict')?.textContent.includes(wanted)",
        arg=wanted, timeout=1000 * seconds)
    return page.locator(".videomemory-verdict").inner_text()


def change(page, name: str, value: object) -> None:
    page.evaluate(f"([name, value]) => {{ {GATE}.widgets.find(w => w.name === name).value = value; }}", [name, value])
