"""A plan from a graph alone: links are followed to files and memories, and what cannot be known is said."""

from __future__ import annotations

import copy
import json

import pytest
from pack.nodes.budget.answer import answer_graph, answer_json, card_json
from pack.nodes.budget.graph import Unknown, gates_of, read_gate
from pack.nodes.budget.probe import GIB, Machine
from pack.nodes.budget.probe_card import CardView
from pack.nodes.sampling.presets import memory_spec

CARD = CardView("a card", 12 * GIB, 11 * GIB, GIB, 3 * GIB, GIB // 2)
MACHINE = Machine("cuda:0", False, 12 * GIB, 11 * GIB, 0, 32 * GIB, 24 * GIB, 500 * GIB, CARD)


@pytest.fixture
def graph() -> dict:
    return {
        "1": {"class_type": "VideoMemoryLoadDiffusionModel",
              "inputs": {"model_name": "toyworld_dit_fp16.safetensors", "weights": "nf4", "cache": "off"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "toyworld_vae_fp16.safetensors"}},
        "3": {"class_type": "VideoMemoryPersistentMemory", "inputs": {
            "preset": "toyworld", "window_seconds": 0.0, "sink_seconds": -1.0, "precision": "model",
            "placement": "vram"}},
        "4": {"class_type": "VideoMemoryBudgetGate", "inputs": {
            "model": ["1", 0], "vae": ["2", 0], "memory": ["3", 0], "width": 135, "height": 80, "clip_seconds": 3.0,
            "budget_gb": 0.0, "profile": "balanced"}},
    }


@pytest.fixture
def find(toyworld):
    def found(folder: str, name: str) -> str | None:
        path = toyworld / name
        return str(path) if folder in ("diffusion_models", "vae", "loras", "text_encoders") and path.is_file() else None

    return found


def test_inputs_of_a_gate_are_found_behind_its_links(graph, find):
    asked = read_gate(graph, "4", find, 2)
    assert (asked.facts.layers, asked.facts.dim, asked.facts.dtype_bytes) == (6, 256, 2)
    assert (asked.vae.kind, asked.vae.dtype_bytes) == ("wan21", 2)
    assert asked.spec == memory_spec("toyworld") and not asked.is_stored
    assert asked.values["width"] == 135
    assert gates_of(graph) == ["4"]


def test_no_weight_is_read_for_a_plan(graph, find, monkeypatch):
    from pack.nodes.loading.files import SafetensorsFile

    def refuse(self, key):
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(SafetensorsFile, "get", refuse)
    assert answer_graph(graph, "4", find, 2, MACHINE).fits


def test_plan_of_a_graph_is_the_plan_of_its_gate(graph, find):
    answer = answer_graph(graph, "4", find, 2, MACHINE)
    assert answer.fits is True
    assert (answer.plan.width, answer.plan.height, answer.plan.clip_latents) == (128, 80, 6)
    shown = answer_json(answer, MACHINE)
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["fits"], shown["width"], shown["height"], shown["length"]) == (True, 128, 80, 21)
    assert shown["budget"] == 11 * GIB and shown["concessions"] == list(answer.plan.decisions)
    assert shown["card"] == {"name": "a card", "total": 12 * GIB, "free": 11 * GIB, "desktop": GIB // 2,
                             "others": 3 * GIB}
    assert [phase["name"] for phase in shown["phases"]] == ["text", "sampling", "decode", "interpolation", "encode"]
    for phase in shown["phases"]:
        assert phase["peak"] == sum(part["bytes"] for part in phase["parts"])
    assert {part["name"] for part in shown["phases"][1]["parts"]} >= {"weights", "memory", "activations"}


def test_what_does_not_fit_says_so_and_shows_what_it_would_need(graph, find):
    graph["4"]["inputs"] |= {"width": 8192, "height": 8192, "budget_gb": 2.0}
    shown = answer_json(answer_graph(graph, "4", find, 2, MACHINE), MACHINE)
    assert shown["fits"] is False and "does not fit" in shown["message"]
    assert max(phase["peak"] for phase in shown["phases"]) > shown["budget"]
    assert shown["width"] == 0 and shown["concessions"] == []


def test_a_number_as_budget_plans_for_16_bits_whatever_this_machine_computes_in(graph, find):
    graph["4"]["inputs"]["budget_gb"] = 12.0
    assert read_gate(graph, "4", find, 4).facts.dtype_bytes == 2
    assert answer_graph(graph, "4", find, 4, MACHINE, vram_gb=6).budget.vram_bytes < 6 * GIB


def test_values_from_primitives_and_models_through_patches_are_followed(graph, find):
    graph["5"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 1.5}}
    graph["6"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], "shift": 5.0}}
    bare = read_gate(graph, "4", find, 2)
    graph["4"]["inputs"] |= {"clip_seconds": ["5", 0], "model": ["6", 0]}
    asked = read_gate(graph, "4", find, 2)
    assert asked.values["clip_seconds"] == 1.5 and asked.facts == bare.facts


def test_a_lora_on_the_way_is_counted(graph, find):
    bare = read_gate(graph, "4", find, 2).facts.weight_bytes
    graph["5"] = {"class_type": "VideoMemoryLoadLora", "inputs": {
        "model": ["1", 0], "lora_name": "toyworld_vae_fp16.safetensors", "strength": 1.0}}  # any tensors will do
    graph["4"]["inputs"]["model"] = ["5", 0]
    assert read_gate(graph, "4", find, 2).facts.weight_bytes - bare == 7_204_742


def test_a_recipe_and_forget_are_followed(graph, find):
    graph["5"] = {"class_type": "VideoMemoryCustomRecipe", "inputs": {
        "label": "mine", "fps": 24.0, "chunk": 4, "sink": 4, "window": 8}}
    graph["3"]["inputs"] |= {"preset": "custom", "recipe": ["5", 0]}
    graph["6"] = {"class_type": "VideoMemoryForget", "inputs": {"memory": ["3", 0]}}
    graph["4"]["inputs"]["memory"] = ["6", 0]
    spec = read_gate(graph, "4", find, 2).spec
    assert (spec.chunk_latents, spec.sink_latents, spec.window_latents, spec.fps) == (4, 4, 8, 24.0)


@pytest.mark.parametrize(("change", "part"), [
    (lambda g: g["4"]["inputs"].pop("model"), "Nothing is connected to model"),
    (lambda g: g["4"]["inputs"].pop("memory"), "Nothing is connected to memory"),
    (lambda g: g.pop("2"), "The graph has no node 2"),
    (lambda g: g["1"].update(class_type="UnetLoaderGGUF"), "comes from UnetLoaderGGUF, a loader whose files"),
    (lambda g: g["2"].update(class_type="OtherVae"), "comes from OtherVae"),
    (lambda g: g["3"].update(class_type="VideoMemorySaveClip"), "which makes it only when it runs"),
    (lambda g: g["1"]["inputs"].update(model_name="gone.safetensors"), "but got 'gone.safetensors'"),
    (lambda g: g["4"]["inputs"].update(width=["1", 1]), "which tells it only when it runs"),
    (lambda g: g["1"].update(class_type="ModelSamplingSD3", inputs={"model": ["1", 0]}), "in a circle"),
    (lambda g: g["4"].update(class_type="KSampler"), "no VRAM Budget Gate"),
    (lambda g: g["4"]["inputs"].update(width="wide"), "of another kind than its input"),
    (lambda g: g["4"]["inputs"].update(clip_seconds=0), "'clip (seconds)' is no length"),
    (lambda g: g["3"]["inputs"].update(preset="nobody"), "unknown checkpoint preset"),
    (lambda g: g["3"]["inputs"].update(window_seconds=None), "of another kind than its input"),
    (lambda g: g["1"]["inputs"].update(weights="int2"), "needs a kind of weights, but got 'int2'"),
    (lambda g: g["4"].update(inputs=[]), "The graph has no node 4"),
])
def test_what_cannot_be_said_yet_is_an_answer_and_no_error(graph, find, change, part):
    change(graph)
    answer = answer_graph(graph, "4", find, 2, MACHINE)
    assert answer.fits is None and answer.message
    assert part in answer.message
    assert answer_json(answer, MACHINE) == {"fits": None, "message": answer.message}


def test_a_node_that_is_not_there_is_unknown(graph, find):
    with pytest.raises(Unknown, match="The graph has no node 9"):
        read_gate(copy.deepcopy(graph), "9", find, 2)


def test_the_device_stands_for_a_card_that_cannot_be_seen():
    machine = Machine("cpu", True, 24 * GIB, 20 * GIB, 0, 24 * GIB, 20 * GIB)
    assert card_json(machine) == {"name": "cpu", "total": 24 * GIB, "free": 20 * GIB, "desktop": 0, "others": 0}


@pytest.mark.parametrize(("name", "steps"), [
    ("keep_precision", {"int8", "4bit"}), ("keep_placement", {"ram"}), ("keep_window", {"window"}),
    ("keep_clip", {"clip"}), ("keep_on_card", {"offload"})])
def test_what_the_gate_shall_keep_is_pinned(graph, find, name, steps, monkeypatch):
    from pack.nodes.budget import answer as module

    seen, make_plan = [], module.make_plan

    def spied(*args):
        seen.append(args[8])
        return make_plan(*args)

    monkeypatch.setattr(module, "make_plan", spied)
    graph["4"]["inputs"][name] = True
    assert answer_graph(graph, "4", find, 2, MACHINE).fits
    assert seen == [steps]


def test_cfg_and_leave_to_shrink_reach_the_plan(graph, find):
    def memory(cfg: float) -> int:
        graph["4"]["inputs"]["cfg"] = cfg
        return dict(answer_graph(graph, "4", find, 2, MACHINE).plan.phases[1].parts)["memory"]

    assert memory(3.0) == 2 * memory(1.0) == 2 * memory(0.0)
    graph["4"]["inputs"] |= {"width": 8192, "height": 8192, "budget_gb": 4.0}
    assert answer_graph(graph, "4", find, 2, MACHINE).fits is False
    graph["4"]["inputs"]["may_shrink"] = True
    assert answer_graph(graph, "4", find, 2, MACHINE).plan.width < 8192


def test_records_of_this_card_correct_the_answer(graph, find):
    from dataclasses import replace

    from pack.nodes.budget.learned import Record, family_of

    before = answer_graph(graph, "4", find, 2, MACHINE)
    facts = before.asked.facts
    record = Record("cuda:0", family_of(facts), "sampling", "", 100 * 2**20, 110 * 2**20, 0, 0, 1.0, 1)
    after = answer_graph(graph, "4", find, 2, MACHINE, records=(record, replace(record, card="another")))
    assert after.plan.phases[1].vram_bytes - before.plan.phases[1].vram_bytes == 10 * 2**20


def test_a_connected_text_encoder_is_counted_through_loras(graph, find):
    from safetensors import safe_open

    name = "toyworld_te_fp16.safetensors"
    graph["5"] = {"class_type": "VideoMemoryLoadTextEncoder", "inputs": {
        "text_encoder_name": name, "weights": "original", "second_name": "none"}}
    graph["6"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["5", 0], "stop_at_clip_layer": -1}}
    assert read_gate(graph, "4", find, 2).text_bytes == 0
    graph["4"]["inputs"]["clip"] = ["6", 0]
    found = read_gate(graph, "4", find, 2).text_bytes
    with safe_open(find("text_encoders", name), "pt") as file:
        values = sum(file.get_tensor(key).numel() for key in file.keys()  # noqa: SIM118
                     if file.get_tensor(key).is_floating_point())
    assert found == pytest.approx(2 * values, rel=0.01)
    assert answer_graph(graph, "4", find, 2, MACHINE).plan.phases[0].ram_bytes == found
    graph["5"]["class_type"] = "SomebodysEncoder"
    assert read_gate(graph, "4", find, 2).text_bytes == 0
