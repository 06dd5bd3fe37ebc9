"""Editor workflow -> API prompt: by hand-made cases, by the real server's validation, by the real editor."""

from __future__ import annotations

import json
import os
import urllib.error
from pathlib import Path

import pytest
from pack.scripts.harness.errors import CannotContinue
from pack.scripts.harness.workflow_api import prompt_from_workflow, widget_names

SAMPLER = {
    "input": {"required": {"model": ["MODEL", {}], "seed": ["INT", {"control_after_generate": True}],
                           "steps": ["INT", {"default": 20}], "mode": [["a", "b"], {}], "text": ["STRING", {}],
                           "only_link": ["FLOAT", {"forceInput": True}]},
              "optional": {"seconds": ["FLOAT", {"default": 4.0}], "new": ["COMBO", {"options": ["x", "y"]}]}},
    "input_order": {"required": ["model", "seed", "steps", "mode", "text", "only_link"],
                    "optional": ["seconds", "new"]},
}
LOADER = {"input": {"required": {}}, "input_order": {"required": []}}
INFO = {"Sampler": SAMPLER, "Loader": LOADER}


def node(id: int, type: str, inputs=(), outputs=(), values=(), mode: int = 0) -> dict:
    """inputs: (name, type, link); outputs: types."""
    return {"id": id, "type": type, "mode": mode, "widgets_values": list(values),
            "inputs": [{"name": n, "type": t, "link": link} for n, t, link in inputs],
            "outputs": [{"name": t, "type": t} for t in outputs]}


def convert(nodes: list, links: list = ()) -> dict:
    return prompt_from_workflow({"nodes": nodes, "links": [list(link) for link in links], "version": 0.4}, INFO)


VALUES = [7, "randomize", 8, "b", "hello", 2.5, "y"]


def test_values_go_to_their_widgets_when_a_seed_has_its_control():
    prompt = convert([node(1, "Loader", outputs=["MODEL"]), node(2, "Sampler", [("model", "MODEL", 5)], values=VALUES)],
                     [(5, 1, 0, 2, 0, "MODEL")])
    assert prompt["2"]["inputs"] == {"seed": 7, "steps": 8, "mode": "b", "text": "hello", "seconds": 2.5, "new": "y",
                                     "model": ["1", 0]}
    assert widget_names(SAMPLER) == ["seed", None, "steps", "mode", "text", "seconds", "new"]


def test_a_default_is_used_when_an_older_file_has_fewer_values():
    inputs = convert([node(2, "Sampler", values=VALUES[:5])])["2"]["inputs"]
    assert (inputs["seconds"], inputs["new"]) == (4.0, "x")


def test_a_link_wins_when_a_widget_was_turned_into_an_input():
    prompt = convert([node(1, "Loader", outputs=["INT"]), node(2, "Sampler", [("steps", "INT", 5)], values=VALUES)],
                     [(5, 1, 0, 2, 0, "INT")])
    assert prompt["2"]["inputs"]["steps"] == ["1", 0]


def test_a_reroute_a_primitive_and_notes_disappear():
    prompt = convert(
        [node(1, "Loader", outputs=["MODEL"]), node(3, "Reroute", [("", "*", 5)], ["MODEL"]),
         node(4, "PrimitiveNode", outputs=["INT"], values=[33, "fixed"]), node(5, "Note", values=["x"]),
         node(6, "MarkdownNote", values=["x"]),
         node(2, "Sampler", [("model", "MODEL", 6), ("steps", "INT", 7)], values=VALUES)],
        [(5, 1, 0, 3, 0, "MODEL"), (6, 3, 0, 2, 0, "MODEL"), (7, 4, 0, 2, 1, "INT")])
    assert set(prompt) == {"1", "2"}
    assert prompt["2"]["inputs"]["model"] == ["1", 0]
    assert prompt["2"]["inputs"]["steps"] == 33


@pytest.mark.parametrize(("mode", "expected"), [(0, ["3", 0]), (4, ["1", 0]), (2, None)])
def test_a_bypassed_node_is_stepped_over_and_a_muted_one_cuts(mode, expected):
    between = node(3, "Loader", [("clip", "CLIP", None), ("model", "MODEL", 5)], ["MODEL"], mode=mode)
    prompt = convert([node(1, "Loader", outputs=["MODEL"]), between,
                      node(2, "Sampler", [("model", "MODEL", 6)], values=VALUES)],
                     [(5, 1, 0, 3, 1, "MODEL"), (6, 3, 0, 2, 0, "MODEL")])
    assert prompt["2"]["inputs"].get("model") == expected


def test_a_workflow_is_refused_when_a_node_is_unknown():
    with pytest.raises(CannotContinue, match=r"needs the node Sorcery \(id 9\)"):
        convert([node(9, "Sorcery")])


def subgraph(id: str, nodes: list, links: list, inputs: list[str]) -> dict:
    """links: (number, source, output, target, input, type); -10 and -20 are the sub-graph's own ends."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {"id": id, "name": id, "nodes": nodes, "inputs": [{"name": name} for name in inputs],
            "links": [dict(zip(names, link, strict=True)) for link in links]}


def with_subgraphs(nodes: list, links: list, *subgraphs: dict) -> dict:
    return prompt_from_workflow({"nodes": nodes, "links": [list(link) for link in links], "version": 0.4,
                                 "definitions": {"subgraphs": list(subgraphs)}}, INFO)


def sampler_inside(face_mode: int = 0, **face: object) -> dict:
    """A loader outside, a sub-graph with a sampler that takes its model and its steps from the sub-graph's face."""
    sampler = node(4, "Sampler", [("model", "MODEL", 1), ("steps", "INT", 2)], ["LATENT"], VALUES)
    sampler["inputs"][1]["widget"] = {"name": "steps"}
    inner = subgraph("box", [sampler], [(1, -10, 0, 4, 0, "MODEL"), (2, -10, 1, 4, 1, "INT"),
                                        (3, 4, 0, -20, 0, "LATENT")], ["model", "steps"])
    shown = {**node(2, "box", [("model", "MODEL", 5)], ["LATENT"], mode=face_mode), **face}
    after = node(3, "Sampler", [("model", "MODEL", 6)], values=VALUES)
    return with_subgraphs([node(1, "Loader", outputs=["MODEL"]), shown, after],
                          [(5, 1, 0, 2, 0, "MODEL"), (6, 2, 0, 3, 0, "MODEL")], inner)


def test_nodes_inside_a_subgraph_are_linked_through_its_ends():
    prompt = sampler_inside()
    assert set(prompt) == {"1", "2:4", "3"}
    assert prompt["2:4"]["inputs"]["model"] == ["1", 0] and prompt["2:4"]["inputs"]["steps"] == 8
    assert prompt["3"]["inputs"]["model"] == ["2:4", 0]


@pytest.mark.parametrize("shown", [None, [["-1", "steps"]]])
def test_a_value_on_the_face_of_a_subgraph_wins(shown):
    prompt = sampler_inside(widgets_values=[33], properties={"proxyWidgets": shown})
    assert prompt["2:4"]["inputs"]["steps"] == 33


@pytest.mark.parametrize("mode", [2, 4])
def test_nothing_inside_a_muted_or_bypassed_subgraph_runs(mode):
    prompt = sampler_inside(face_mode=mode)
    assert set(prompt) == {"1", "3"} and "model" not in prompt["3"]["inputs"]


def test_a_subgraph_in_a_subgraph_is_resolved_and_one_in_itself_is_refused():
    inner = subgraph("inner", [node(7, "Loader", outputs=["MODEL"])], [(1, 7, 0, -20, 0, "MODEL")], [])
    outer = subgraph("outer", [node(5, "inner", outputs=["MODEL"])], [(1, 5, 0, -20, 0, "MODEL")], [])
    nodes = [node(2, "outer", outputs=["MODEL"]), node(3, "Sampler", [("model", "MODEL", 1)], values=VALUES)]
    prompt = with_subgraphs(nodes, [(1, 2, 0, 3, 0, "MODEL")], inner, outer)
    assert set(prompt) == {"2:5:7", "3"} and prompt["3"]["inputs"]["model"] == ["2:5:7", 0]
    with pytest.raises(CannotContinue, match="outer contains itself"):
        with_subgraphs(nodes, [(1, 2, 0, 3, 0, "MODEL")], subgraph("outer", [node(5, "outer")], [], []))


def core_templates(object_info: dict) -> dict[str, dict]:
    """ComfyUI's own templates (one folder per installed template package) whose nodes this server has."""
    import importlib.util

    templates = {}
    for package in ("core", "media_image", "media_video", "media_other"):
        spec = importlib.util.find_spec(f"comfyui_workflow_templates_{package}")
        for path in sorted(Path(spec.origin).parent.rglob("*.json")) if spec else ():
            workflow = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(workflow, dict) or "nodes" not in workflow:
                continue
            inner = (workflow.get("definitions") or {}).get("subgraphs") or []
            kinds = {n["type"] for graph in (workflow, *inner) for n in graph["nodes"]} - {
                "Note", "MarkdownNote", "Reroute", "PrimitiveNode", *(graph["id"] for graph in inner)}
            if kinds <= set(object_info):
                templates[path.stem] = workflow
    return templates


@pytest.mark.server
def test_the_server_misses_only_files_when_it_is_given_the_core_templates(server):
    """A value in the wrong place would be a wrong type, a number out of range, or a choice that is no file name."""
    object_info = server.client.get("/object_info")
    templates = core_templates(object_info)
    assert len(templates) > 60
    for name, workflow in templates.items():
        prompt = prompt_from_workflow(workflow, object_info)
        try:
            server.client.post("/prompt", {"prompt": prompt})
            server.client.interrupt()
        except urllib.error.HTTPError as refused:
            found = json.loads(refused.read())["node_errors"].values()
            errors = [error for node_errors in found for error in node_errors["errors"]]
            for error in errors:
                assert error["type"] in ("value_not_in_list", "custom_validation_failed"), (name, error)
                assert "." in str(error["extra_info"].get("received_value", ".")), (name, error)


@pytest.mark.browser
@pytest.mark.server
def test_the_prompt_equals_the_editors_when_it_is_given_the_core_templates(server):
    """The editor's own graphToPrompt is the truth; every third template, to keep the test short."""
    playwright = pytest.importorskip("playwright.sync_api")
    object_info = server.client.get("/object_info")
    templates = dict(list(core_templates(object_info).items())[::3])
    server.client.post("/settings", {"Comfy.TutorialCompleted": True})
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=os.environ.get("CHROMIUM_PATH", "/usr/bin/chromium"),
                                         args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}")
        page.wait_for_function("() => !!(window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler)",
                               timeout=120_000)
        for name, workflow in templates.items():
            editors = page.evaluate("""async workflow => {
                await app.loadGraphData(workflow, true, true, null, {showMissingModelsDialog: false});
                return (await app.graphToPrompt()).output;
            }""", workflow)
            ours = prompt_from_workflow(workflow, object_info)
            assert {id: node["class_type"] for id, node in ours.items()} == {
                id: node["class_type"] for id, node in editors.items()}, name
            for id, node_ in editors.items():
                known = widget_names(object_info[node_["class_type"]])
                shown = {key: value for key, value in node_["inputs"].items()
                         if key in known or isinstance(value, list)}  # not the editor's own players and buttons
                assert ours[id]["inputs"] == shown, (name, id, node_["class_type"])
        browser.close()
