"""Clip Sampler says when it made keys and values again, and why; and which seconds the prompt brought back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.nodes.common.types import Geometry
from pack.nodes.memory.kv_cache import BlockKV, pack_layer
from pack.nodes.memory.state import begin_clip, commit, empty_memory
from pack.nodes.sampling.clip_notes import rebuilt_note, retrieved_note
from pack.nodes.sampling.presets import memory_spec

HERO, SEA = torch.eye(2)[:, None]  # prompts of one token


def cache() -> BlockKV:
    return BlockKV((pack_layer(torch.ones(1, 2, 1, 64), torch.ones(1, 2, 1, 64), "model"),))


def film(*prompts: torch.Tensor, kv: bool = True, negative: bool = False, **spec: object):
    """A toy world film, one chunk per prompt."""
    memory = empty_memory(memory_spec("toyworld", **spec))
    for prompt in prompts:
        unique = torch.cat((prompt[0], torch.tensor([memory.latents_done])))
        memory = begin_clip(memory, Geometry(4, 2, 2), "model", unique)
        memory = commit(memory, torch.zeros(4, 3, 2, 2), cache() if kv else None, cache() if negative else None, prompt)
    return memory


def note(memory, model: str = "model", prompt: str = "new", has_negative: bool = False) -> str:
    return rebuilt_note(memory, model, prompt, has_negative)


def recaching(memory):
    return replace(memory, spec=replace(memory.spec, prompt_change="recache"))


def test_nothing_is_said_where_nothing_was_rebuilt():
    assert note(film(HERO, HERO)) == note(empty_memory(memory_spec("toyworld"))) == ""
    assert note(film(HERO, negative=True), has_negative=True) == ""


def test_another_model_is_named_as_the_reason():
    assert note(film(HERO, HERO), "other") == (
        "K/V of 2 chunks were rebuilt from latents because the model, a LoRA or the quantisation differs from what "
        "made them.")


def test_a_memory_without_keys_and_values_is_named_as_the_reason():
    assert note(film(HERO, kv=False)).startswith("K/V of 1 chunk were rebuilt from latents because the memory came")
    gone = film(HERO, HERO)
    gone.blocks[0].kv.let_go()
    assert "K/V of 1 chunk" in note(gone) and "out of RAM" in note(gone)


def test_recaching_spares_the_sink_and_the_same_prompt():
    memory = recaching(film(HERO, HERO, HERO))
    assert note(memory).startswith("K/V of 2 chunks were rebuilt from latents under the new prompt (recache)")
    assert note(memory, prompt=memory.prompt_hash) == ""


def test_a_negative_prompt_that_is_new_is_named():
    assert "K/V of 2 chunks were rebuilt from latents because the negative prompt was not used" in note(
        film(HERO, HERO), has_negative=True)


def test_every_reason_has_its_own_count():
    memory = recaching(film(HERO, HERO, HERO))
    memory = replace(memory, blocks=(memory.blocks[0], replace(memory.blocks[1], kv=None), memory.blocks[2]))
    text = note(memory, has_negative=True)
    assert text.count("K/V of 1 chunk were rebuilt") == 3


def test_the_archive_counts_where_it_may_be_brought_back():
    memory = film(*[HERO] * 5, retrieved_s=1.5)
    assert len(memory.archive) == 2 and "K/V of 5 chunks" in note(memory, "other")
    spare = replace(film(*[HERO] * 3), archive=memory.archive)  # kept to recache alone
    assert "K/V of 3 chunks" in note(spare, "other")


def test_seconds_that_were_brought_back_are_named():
    memory = film(SEA, HERO, SEA, SEA, SEA, SEA, retrieved_s=1.5)
    assert retrieved_note(memory, HERO) == "Its prompt brought back 1.5 to 3.0 s of the film."
    assert retrieved_note(memory, None) == retrieved_note(film(HERO), HERO) == ""


@pytest.mark.comfy
def test_clip_sampler_reports_what_it_rebuilt(toyworld, tmp_path):
    sd = pytest.importorskip("comfy.sd")
    from pack.nodes.memory.files import load_memory, save_memory
    from pack.nodes.sampling.nodes import ClipSampler

    model = sd.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"))
    other = model.clone()
    other.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.01)
    tokens = torch.zeros(1, 512, 4096)
    tokens[:, :9] = torch.randn(1, 9, 4096, generator=torch.Generator().manual_seed(4))

    def clip(model, memory):
        with torch.inference_mode():
            return ClipSampler.EXECUTE_NORMALIZED(model=model, memory=memory, positive=[[tokens, {}]], seed=3,
                                                  width=128, height=80, clip_seconds=1.5).args

    _, after, first = clip(model, empty_memory(memory_spec("toyworld")))
    bare = load_memory(save_memory(after, tmp_path / "bare.safetensors", with_kv=False))
    assert "rebuilt" not in first and "rebuilt" not in clip(model, after)[2]
    assert "rebuilt from latents because the model, a LoRA or the quantisation differs" in clip(other, after)[2]
    assert "rebuilt from latents because the memory came without them" in clip(model, bare)[2]
