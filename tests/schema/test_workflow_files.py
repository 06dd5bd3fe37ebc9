"""The bundled workflow files against the nodes as they are now, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
CORE = {"VAELoader", "MarkdownNote"}


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_are_ours_or_core_and_say_where_they_come_from(path, node_classes):
    ours = {cls.GET_SCHEMA().node_id for cls in node_classes}
    for node in load(path)["nodes"]:
        assert node["type"] in ours | CORE
        if node["type"] != "MarkdownNote":
            assert node["properties"]["cnr_id"] == ("videomemory" if node["type"] in ours else "comfy-core")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_widget_values_fit_the_widgets(path, node_classes):
    schemas = {cls.GET_SCHEMA().node_id: cls.GET_SCHEMA() for cls in node_classes}
    for node in load(path)["nodes"]:
        if node["type"] not in schemas:
            continue
        widgets = [one for one in schemas[node["type"]].inputs if hasattr(one, "default")]
        assert len(node["widgets_values"]) == len(widgets), node["type"]
        for widget, value in zip(widgets, node["widgets_values"], strict=True):
            is_number = isinstance(widget.default, (int, float))
            assert isinstance(value, (int, float) if is_number else str), (node["type"], widget.id, value)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_missing_models_have_direct_links(path):
    for node in load(path)["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert "/resolve/" in model["url"] and model["url"].endswith(model["name"])


def test_flagship_is_the_demo_with_other_files_and_sizes():
    demo, flagship = (load(path) for path in WORKFLOWS)
    assert [node["type"] for node in demo["nodes"]] == [node["type"] for node in flagship["nodes"]]
    assert demo["links"] == flagship["links"]
