"""The bundled workflow files against the nodes as they are now, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.comfy

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
CORE = {"VAELoader", "CLIPVisionLoader", "LoadImage", "CLIPTextEncode", "PreviewAny", "PreviewImage", "SaveVideo",
        "ImageScale", "VAEDecodeTiled"}
NOTE = "MarkdownNote"  # the editor's own
GROUPS = ["1. Load", "2. Plan", "3. Write", "4. Render", "5. Finish"]
WITH_THE_PACK = ("toyworld_", "rife_v4.26")
PUBLISHED = {
    "demo_toyworld", "resume_and_reroll", "compare_quantization", "short_30s_720p_12gb",
    "short_30s_720p_12gb_unrolled", "short_30s_i2v_character_12gb", "short_30s_wan22_ti2v_latent_memory_12gb",
    "short_30s_wan21_1.3b_causal_8gb", "clip_14b_i2v_12gb", "short_1080p_16gb", "short_30s_24gb_long_memory",
    "world_walk_720p_12gb"}


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def all_nodes(saved: dict) -> list[dict]:
    """The nodes of the file and of its subgraphs, without those that only show a subgraph."""
    subgraphs = saved.get("definitions", {}).get("subgraphs", [])
    kinds = {subgraph["id"] for subgraph in subgraphs}
    return [node for graph in (saved, *subgraphs) for node in graph["nodes"] if node["type"] not in kinds]


def each_workflow(test):
    return pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)(test)


def test_all_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} == PUBLISHED


@each_workflow
def test_nodes_are_ours_or_core_and_say_where_they_come_from(path, node_classes):
    ours = {cls.GET_SCHEMA().node_id for cls in node_classes}
    for node in all_nodes(load(path)):
        assert node["type"] in ours | CORE | {NOTE}
        if node["type"] != NOTE:
            assert node["properties"]["cnr_id"] == ("videomemory" if node["type"] in ours else "comfy-core")


@each_workflow
def test_widget_values_fit_the_widgets(path, node_classes):
    schemas = {cls.GET_SCHEMA().node_id: cls.GET_SCHEMA() for cls in node_classes}
    for node in all_nodes(load(path)):
        if node["type"] not in schemas:
            continue
        widgets = []
        for one in schemas[node["type"]].inputs:
            after = getattr(one, "control_after_generate", None)
            widgets += [one] * hasattr(one, "default") + [SimpleNamespace(id="then", default="fixed")] * bool(after)
        assert len(node["widgets_values"]) == len(widgets), node["type"]
        for widget, value in zip(widgets, node["widgets_values"], strict=True):
            is_number = isinstance(widget.default, (int, float))
            assert isinstance(value, (int, float) if is_number else str), (node["type"], widget.id, value)


@each_workflow
def test_every_model_file_has_a_direct_link_or_comes_with_the_pack(path):
    for node in load(path)["nodes"]:
        models = node["properties"].get("models", [])
        for model in models:
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/")
            assert "/resolve/" in model["url"] and model["url"].endswith(f"/{model['name']}")
        linked = {model["name"] for model in models}
        files = [value for value in node["widgets_values"] if str(value).endswith((".safetensors", ".pt"))]
        assert all(value in linked or value.startswith(WITH_THE_PACK) for value in files), node["type"]


@each_workflow
def test_groups_are_in_reading_order_each_with_a_note(path):
    saved = load(path)
    assert [group["title"] for group in saved["groups"]] == GROUPS
    for group in saved["groups"]:
        notes = [node for node in saved["nodes"] if node["type"] == NOTE and is_inside(node, group)]
        assert len(notes) == 1 and len(notes[0]["widgets_values"][0]) > 15
    assert all(sum(is_inside(node, group) for group in saved["groups"]) == 1 for node in saved["nodes"])


def is_inside(node: dict, group: dict) -> bool:
    (x, y), (width, height), (left, top, wide, high) = node["pos"], node["size"], group["bounding"]
    return left <= x and x + width <= left + wide and top <= y and y + height <= top + high


@each_workflow
def test_no_node_lies_on_another(path):
    saved = load(path)
    for graph in (saved, *saved.get("definitions", {}).get("subgraphs", [])):
        assert_apart(graph["nodes"])


def assert_apart(nodes: list[dict]) -> None:
    for i, one in enumerate(nodes):
        for other in nodes[i + 1:]:
            apart = [one["pos"][axis] + one["size"][axis] <= other["pos"][axis]
                     or other["pos"][axis] + other["size"][axis] <= one["pos"][axis] for axis in (0, 1)]
            assert any(apart), (one["type"], other["type"])


def test_the_memory_goes_from_each_unrolled_clip_to_the_next():
    saved = load(next(path for path in WORKFLOWS if path.stem == "short_30s_720p_12gb_unrolled"))
    nodes, links = ({one["id"]: one for one in saved["nodes"]}, {link[0]: link for link in saved["links"]})
    kinds = [subgraph["id"] for subgraph in saved["definitions"]["subgraphs"]]
    clips = [next(one for one in nodes.values() if one["type"] == kind) for kind in kinds]
    assert [clip["title"] for clip in clips] == [f"Clip {number}" for number in range(1, 9)]
    sources = [nodes[links[socket_of(clip, "memory")][1]] for clip in clips]
    assert sources[0]["type"] == "VideoMemoryBudgetGate" and sources[1:] == clips[:-1]


def test_inside_an_unrolled_clip_the_memory_goes_through_sampler_and_save():
    saved = load(next(path for path in WORKFLOWS if path.stem == "short_30s_720p_12gb_unrolled"))
    for number, inside in enumerate(saved["definitions"]["subgraphs"]):
        links = {link["id"]: link for link in inside["links"]}
        prompt, sampler, save = inside["nodes"]
        assert prompt["widgets_values"][0] == number
        entry, between = links[socket_of(sampler, "memory")], links[socket_of(save, "memory")]
        assert entry["origin_id"] == -10 and inside["inputs"][entry["origin_slot"]]["name"] == "memory"
        assert between["origin_id"] == sampler["id"]
        ends = {inside["outputs"][link["target_slot"]]["name"]: link["origin_id"] for link in links.values()
                if link["target_id"] == -20}
        assert ends["memory"] == save["id"]


def test_numbers_are_unique_in_a_file_with_subgraphs():
    for path in WORKFLOWS:
        saved = load(path)
        graphs = (saved, *saved.get("definitions", {}).get("subgraphs", []))
        numbers = [node["id"] for graph in graphs for node in graph["nodes"]]
        assert len(numbers) == len(set(numbers)) and max(numbers) == saved["last_node_id"]


def socket_of(node: dict, name: str) -> int:
    """The link at an input."""
    return next(slot["link"] for slot in node["inputs"] if slot["name"] == name)
