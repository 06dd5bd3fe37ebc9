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


def each_workflow(test):
    return pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)(test)


def test_all_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} == PUBLISHED


@each_workflow
def test_nodes_are_ours_or_core_and_say_where_they_come_from(path, node_classes):
    ours = {cls.GET_SCHEMA().node_id for cls in node_classes}
    for node in load(path)["nodes"]:
        assert node["type"] in ours | CORE | {NOTE}
        if node["type"] != NOTE:
            assert node["properties"]["cnr_id"] == ("videomemory" if node["type"] in ours else "comfy-core")


@each_workflow
def test_widget_values_fit_the_widgets(path, node_classes):
    schemas = {cls.GET_SCHEMA().node_id: cls.GET_SCHEMA() for cls in node_classes}
    for node in load(path)["nodes"]:
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
    nodes = load(path)["nodes"]
    for i, one in enumerate(nodes):
        for other in nodes[i + 1:]:
            apart = [one["pos"][axis] + one["size"][axis] <= other["pos"][axis]
                     or other["pos"][axis] + other["size"][axis] <= one["pos"][axis] for axis in (0, 1)]
            assert any(apart), (one["type"], other["type"])


def test_the_memory_goes_from_each_unrolled_clip_to_the_next():
    saved = load(next(path for path in WORKFLOWS if path.stem == "short_30s_720p_12gb_unrolled"))
    nodes, links = ({one["id"]: one for one in saved["nodes"]}, {link[0]: link for link in saved["links"]})
    samplers = [one for one in nodes.values() if one["type"] == "VideoMemoryClipSampler"]
    comes_from = []
    for sampler in samplers:
        link = next(slot["link"] for slot in sampler["inputs"] if slot["name"] == "memory")
        comes_from.append(nodes[links[link][1]])
    assert [one["type"] for one in comes_from] == ["VideoMemoryBudgetGate", *["VideoMemorySaveClip"] * 7]
    for before, save in zip(samplers, comes_from[1:], strict=False):
        link = next(slot["link"] for slot in save["inputs"] if slot["name"] == "memory")
        assert links[link][1] == before["id"]


def test_the_place_and_the_hero_go_from_the_first_walk_to_the_second():
    """With Update switched on the place takes what clip 1 showed; bypassed, it goes by as it was lifted."""
    saved = load(next(path for path in WORKFLOWS if path.stem == "world_walk_720p_12gb"))
    nodes, links = ({one["id"]: one for one in saved["nodes"]}, {link[0]: link for link in saved["links"]})

    def source(node, name):
        return nodes[links[next(slot["link"] for slot in node["inputs"] if slot["name"] == name)][1]]

    walks = [one for one in nodes.values() if one["type"] == "VideoMemorySpatialClipSampler"]
    assert [source(one, "spatial_memory")["type"] for one in walks] == ["VideoMemoryLiftSpatial",
                                                                        "VideoMemoryUpdateSpatial"]
    assert [source(one, "video_memory")["type"] for one in walks] == ["VideoMemoryBudgetGate", "VideoMemorySaveClip"]
    update = source(walks[1], "spatial_memory")
    assert update["mode"] == 4 and source(update, "latent") == walks[0] == source(update, "first_frame")
    assert source(update, "spatial_memory") == source(walks[0], "spatial_memory")
    assert source(source(walks[1], "video_memory"), "memory") == walks[0]


def test_the_walk_stays_on_its_camera_path():
    from pack.nodes.spatial.cameras import path_from_text

    saved = load(next(path for path in WORKFLOWS if path.stem == "world_walk_720p_12gb"))
    walks = [one["widgets_values"] for one in saved["nodes"] if one["type"] == "VideoMemorySpatialClipSampler"]
    moves, width, height, fps, *_ = next(one for one in saved["nodes"] if one["type"] == "VideoMemoryCameraPath")[
        "widgets_values"]
    frames = len(path_from_text(moves, width, height, fps, 60.0))
    (_, _, first, latents, *_), (_, _, then, again, *_) = walks
    assert (first, then) == (0, 4 * (latents - 1)) and then + 4 * (again - 1) == frames - 1
