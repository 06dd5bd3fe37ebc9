"""The routes that the graph editor's panel asks, on a real server."""

from __future__ import annotations

import json
import urllib.error

import pytest

from .films import ROOT

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def graph(server) -> dict:
    from pack.scripts.harness.workflow_api import prompt_from_workflow

    workflow = json.loads((ROOT / "workflows" / "demo_toyworld.json").read_text(encoding="utf-8"))
    return prompt_from_workflow(workflow, server.client.get("/object_info"))


@pytest.fixture(scope="module")
def gate(graph) -> str:
    return next(node_id for node_id, node in graph.items() if node["class_type"] == "VideoMemoryBudgetGate")


def test_the_plan_of_the_demo_is_told(server, graph, gate):
    shown = server.client.post("/videomemory/plan", {"prompt": graph, "node_id": gate})
    assert shown["fits"] is True, shown
    asked = graph[gate]["inputs"]
    assert (shown["width"], shown["height"]) == (asked["width"], asked["height"])
    assert shown["length"] > 0 and shown["budget"] > 0 and shown["message"]
    assert {"name", "total", "free", "desktop", "others"} == set(shown["card"])
    assert any(part["name"] == "weights" and part["bytes"] > 1e6
               for phase in shown["phases"] for part in phase["parts"])


def test_a_graph_whose_loader_is_not_known_is_no_error(server, graph, gate):
    other = json.loads(json.dumps(graph))
    other[other[gate]["inputs"]["model"][0]]["class_type"] = "SomebodysLoader"
    shown = server.client.post("/videomemory/plan", {"prompt": other, "node_id": gate})
    assert shown["fits"] is None and "SomebodysLoader" in shown["message"]


@pytest.mark.parametrize("body", [{}, {"prompt": [], "node_id": "1"}, {"prompt": {}}])
def test_what_is_no_graph_is_refused(server, body):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.client.post("/videomemory/plan", body)
    assert refused.value.code == 400
    assert json.loads(refused.value.read())["fits"] is None


def test_a_file_outside_the_memories_folder_is_not_opened(server, graph, gate):
    other = json.loads(json.dumps(graph))
    outside = server.output / "outside.safetensors"
    outside.write_bytes(b"no memory")
    other["memory"] = {"class_type": "VideoMemoryLoadMemory", "inputs": {"file": "../../outside.safetensors"}}
    other[gate]["inputs"]["memory"] = ["memory", 0]
    shown = server.client.post("/videomemory/plan", {"prompt": other, "node_id": gate})
    assert shown["fits"] is None and "needs the header of a model file" in shown["message"]


def test_the_card_is_told_alone(server):
    card = server.client.get("/videomemory/vram")["card"]
    assert 0 < card["free"] <= card["total"]


def test_a_planned_film_is_measured_and_reported(server, graph, gate):
    """Gate, Clip Sampler and Save Clip inside Render Short, then VRAM Report."""
    prompt = json.loads(json.dumps(graph))
    render = next(node_id for node_id, node in prompt.items() if node["class_type"] == "VideoMemoryRenderShort")
    schedule = next(node for node in prompt.values() if node["class_type"] == "VideoMemoryPromptSchedule")
    schedule["inputs"] |= {"film_seconds": 3.0, "clip_seconds": 1.5}
    prompt[gate]["inputs"]["clip_seconds"] = 1.5
    prompt[render]["inputs"]["run_name"] = "measured_film"
    prompt = {node_id: node for node_id, node in prompt.items() if node["class_type"] not in (
        "VideoMemoryAssembleShort", "VideoMemoryLoadRife")}
    prompt["report"] = {"class_type": "VideoMemoryVramReport", "inputs": {
        "plan": [gate, 0], "clips": [render, 0], "records": "keep"}}
    shown = server.client.run(prompt, None, server.check_alive)["outputs"]["report"]
    text = shown["text"][0]
    rows = {line.split("  ")[0].strip(): line.split() for line in text.splitlines()}
    for phase in ("sampling", "decoding"):
        assert float(rows[phase][-1]) > 0 and "GB" in text  # seconds
    assert rows["text encoding"][-1] == "0.0"  # the toy's takes less
    assert "VRAM is not measured on cpu" in text
    assert len(shown["images"]) == 1
    records = json.loads((server.base / "user" / "videomemory" / "budget.json").read_text(encoding="utf-8"))
    assert [record["phase"] for record in records["records"][-6:]] == ["text", "sampling", "decode"] * 2
