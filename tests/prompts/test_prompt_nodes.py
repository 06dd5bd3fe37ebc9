"""The prompt nodes inside ComfyUI: schema, refusal before anything runs, and the encoded clip."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.comfy

VALUES = {"identity": "a red star hero with a blue hat", "hero": "the hero", "scenes": "0: {hero} spins in the cave",
          "reanchor_seconds": 8.0, "clip_seconds": 3.0, "film_seconds": 30.0}


@pytest.fixture(scope="module")
def prompt_nodes():
    from pack.nodes.prompts import nodes

    return nodes


def test_schemas_are_complete(prompt_nodes):
    for node in prompt_nodes.NODES:
        node.GET_SCHEMA()
        schema = node.define_schema()
        assert all(slot.tooltip for slot in (*schema.inputs, *schema.outputs))
        assert not {slot.id for slot in schema.inputs} & {slot.id for slot in schema.outputs}


def test_defaults_are_valid_when_nothing_is_changed(prompt_nodes):
    node = prompt_nodes.PromptSchedule
    defaults = {slot.id: slot.default for slot in node.define_schema().inputs}
    assert node.validate_inputs(**defaults) is True
    timeline, count, preview = node.execute(**defaults).result
    assert count == timeline.clip_count == 8
    assert "Clip   8  28-32 s" in preview


@pytest.mark.parametrize(("name", "value", "part"), [
    ("scenes", "3: {hero} spins", "line 1"), ("identity", "", "needs the identity"),
    ("clip_seconds", 0.0, "more than 0"),
])
def test_bad_texts_are_refused_before_anything_is_loaded(prompt_nodes, name, value, part):
    assert part in prompt_nodes.PromptSchedule.validate_inputs(**{**VALUES, name: value})


def test_linked_inputs_are_left_to_the_run_when_validating(prompt_nodes):
    node = prompt_nodes.PromptSchedule
    assert node.validate_inputs(**{**VALUES, "identity": None, "film_seconds": None}) is True
    assert "line 1" in node.validate_inputs(**{**VALUES, "identity": None, "scenes": "he walks"})


def test_prompt_for_clip_refuses_an_index_outside_the_film(prompt_nodes):
    timeline = prompt_nodes.PromptSchedule.execute(**VALUES).result[0]
    with pytest.raises(ValueError, match=r"no such clip, but got 10; allowed: 0 to 9"):
        prompt_nodes.PromptForClip.execute(None, timeline, 10)
    with pytest.raises(ValueError, match="needs a text encoder"):
        prompt_nodes.PromptForClip.execute(None, timeline, 9)


def test_what_encoding_takes_is_measured_beside_a_plan(prompt_nodes, toyworld, tmp_path, monkeypatch):
    import folder_paths
    import torch
    from pack.nodes.budget.learned import read_records
    from pack.nodes.common.types import MemorySpec, PhaseCost, RenderPlan
    from pack.nodes.loading.bridge_text import load_text_encoder

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    plan = RenderPlan(96, 96, 2, MemorySpec("toyworld", 8.0, 3, 3, 6), 0, 1, 0,
                      (PhaseCost("text", 2**20, 2**20, parts=(("activations", 2**20),)),), (), card="a card")
    clip, _ = load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "original")
    timeline = prompt_nodes.PromptSchedule.execute(**VALUES).result[0]
    without, measured = (prompt_nodes.PromptForClip.execute(clip, timeline, 0, each).result for each in (None, plan))
    assert torch.equal(without[0][0][0], measured[0][0][0])
    (record,) = read_records(tmp_path / "videomemory" / "budget.json")
    assert (record.phase, record.card) == ("text", "a card") and record.seconds > 0


def test_prompt_for_clip_encodes_as_core_does(prompt_nodes, toyworld):
    import torch
    from pack.nodes.loading.bridge_text import load_text_encoder

    clip, _ = load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "original")
    timeline = prompt_nodes.PromptSchedule.execute(**VALUES).result[0]
    positive, text = prompt_nodes.PromptForClip.execute(clip, timeline, 0).result
    assert text == "a red star hero with a blue hat spins in the cave"
    expected = clip.encode_from_tokens_scheduled(clip.tokenize("a red star hero with a blue hat spins in the cave"))
    assert positive[0][0].shape == (1, 512, 4096)
    assert torch.equal(positive[0][0], expected[0][0])
    other, text = prompt_nodes.PromptForClip.execute(clip, timeline, 1).result
    assert text == "the hero spins in the cave"
    assert not torch.equal(other[0][0], expected[0][0])
