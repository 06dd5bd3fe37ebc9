"""The nodes themselves, executed on the real patcher with the bundled checkpoint."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(toyworld):
    sd = pytest.importorskip("comfy.sd")
    return sd.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"))


@pytest.fixture(scope="module")
def positive():
    tokens = torch.zeros(1, 512, 4096)
    tokens[:, :9] = torch.randn(1, 9, 4096, generator=torch.Generator().manual_seed(4))
    return [[tokens, {}]]


def sample(model, memory, positive, seed=3, **options):
    from pack.nodes.sampling.nodes import ClipSampler

    options = {"width": 128, "height": 80, "clip_seconds": 1.5} | options
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(model=model, memory=memory, positive=positive, seed=seed, **options).args


def fresh(**options):
    from pack.nodes.memory.nodes import PersistentMemory

    defaults = {"preset": "toyworld", "window_seconds": 0.0, "sink_seconds": -1.0, "precision": "model",
                "placement": "vram"}
    return PersistentMemory.EXECUTE_NORMALIZED(**{**defaults, **options}).args[0]


def test_clip_is_deterministic_and_the_input_memory_untouched(model, positive):
    memory = fresh()
    first, after, report = sample(model, memory, positive)
    again, _, _ = sample(model, memory, positive)
    assert torch.equal(first["samples"], again["samples"])
    assert first["samples"].shape == (1, 16, 3, 10, 16)
    assert memory.blocks == () and after.latents_done == 3
    assert "rolling K/V memory" in report and "8 steps" in report


def test_branches_equal_separate_runs(model, positive):
    _, after, _ = sample(model, fresh(), positive)
    left, _, _ = sample(model, after, positive, seed=1)
    right, _, _ = sample(model, after, positive, seed=2)
    left_again, _, _ = sample(model, after, positive, seed=1)
    assert torch.equal(left["samples"], left_again["samples"])
    assert not torch.equal(left["samples"], right["samples"])


def test_later_clips_carry_their_decoding_context(model, positive):
    first, after, _ = sample(model, fresh(), positive)
    second, _, _ = sample(model, after, positive)
    assert "context_samples" not in first and first["first_latent"] == 0
    assert second["first_latent"] == 3
    assert torch.allclose(second["context_samples"], first["samples"], atol=1e-5)


def test_placement_in_ram_is_bit_equal(model, positive):
    results = []
    for placement in ("vram", "ram"):
        _, after, _ = sample(model, fresh(placement=placement, precision="int8"), positive)
        results.append(sample(model, after, positive)[0]["samples"])
    assert torch.equal(*results)


def test_saved_memory_continues_bit_equal(model, positive, tmp_path):
    from pack.nodes.memory.files import load_memory, save_memory

    _, after, _ = sample(model, fresh(precision="4bit"), positive)
    loaded = load_memory(save_memory(after, tmp_path / "hero.safetensors"))
    want, got = (sample(model, memory, positive)[0]["samples"] for memory in (after, loaded))
    assert torch.equal(want, got)


def test_memory_rebuilt_from_latents_stays_close(model, positive):
    from dataclasses import replace

    _, after, _ = sample(model, fresh(), positive)
    bare = replace(after, blocks=tuple(replace(block, kv=None) for block in after.blocks))
    want, got = (sample(model, memory, positive)[0]["samples"] for memory in (after, bare))
    assert torch.allclose(want, got, atol=1e-3)  # same model, same prompt, nothing evicted: the same cache again


def test_another_lora_is_another_model(model):
    from pack.nodes.common.compat import patcher_key

    patched = model.clone()
    patched.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.5)
    weaker = model.clone()
    weaker.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.25)
    keys = {patcher_key(model), patcher_key(patched), patcher_key(weaker)}
    assert len(keys) == 3 and patcher_key(model.clone()) == patcher_key(model)


def test_size_that_does_not_fit_is_refused(model, positive):
    with pytest.raises(ValueError, match="size does not fit the model, but got .?130x80.*steps of 16"):
        sample(model, fresh(), positive, width=130)


def test_other_models_are_refused():
    from types import SimpleNamespace

    from pack.nodes.common.compat import model_facts

    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="need a Wan-family diffusion model, but got 'Linear'"):
        model_facts(other)


def test_persistent_memory_checks_its_choices():
    from pack.nodes.memory.nodes import PersistentMemory

    assert PersistentMemory.validate_inputs("toyworld", "int8", "ram") is True
    assert "allowed: model, int8, 4bit" in PersistentMemory.validate_inputs("toyworld", "int3", "ram")
    assert "longlive_2" in PersistentMemory.validate_inputs("sora", "int8", "ram")
