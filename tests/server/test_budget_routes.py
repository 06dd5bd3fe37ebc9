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
    other["memory"] = {"class_type": "VideoMemoryLoadMemory", "inputs": {"file": "../../../../etc/hostname"}}
    other[gate]["inputs"]["memory"] = ["memory", 0]
    shown = server.client.post("/videomemory/plan", {"prompt": other, "node_id": gate})
    assert shown["fits"] is None and "needs the header of a model file" in shown["message"]


def test_the_card_is_told_alone(server):
    card = server.client.get("/videomemory/vram")["card"]
    assert 0 < card["free"] <= card["total"]
