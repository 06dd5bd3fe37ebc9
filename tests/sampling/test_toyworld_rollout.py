"""The published rollout of the bundled checkpoint comes out again through the real loader, patcher and sampler."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def reference(toyworld):
    from safetensors import safe_open

    with safe_open(toyworld / "reference_rollout.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def model(toyworld):
    sd = pytest.importorskip("comfy.sd")
    return sd.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"))


@pytest.fixture(scope="module")
def prompts(toyworld, reference):
    """One conditioning per clip, from the checkpoint's own text encoder (through the pack's loader)."""
    from pack.nodes.loading.bridge_text import load_text_encoder

    clip = load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "original")[0]
    texts = json.loads(reference[1]["prompts"])
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]


def roll_out(model, prompts, reference, solver, sigmas, sink=3, noise_key=None, **spec_options):
    """Three clips of two chunks with the stored noise; normalised latents [16, 18, 10, 16]."""
    from dataclasses import replace

    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.state import empty_memory
    from pack.nodes.sampling.bridge import sample_with_memory
    from pack.nodes.sampling.presets import PRESETS, memory_spec

    tensors = reference[0]
    preset = replace(PRESETS["toyworld"], sigmas=tuple(sigmas), solver=solver)
    memory = empty_memory(replace(memory_spec("toyworld", **spec_options), sink_latents=sink))

    def noise(chunk):
        draws = [tensors["noise"][chunk]] + ([] if noise_key is None else list(tensors[noise_key][chunk]))
        remaining = iter(draws)
        return lambda: next(remaining).unsqueeze(0)

    clips = []
    with torch.inference_mode():
        for positive in prompts:
            samples, memory = sample_with_memory(model, memory, positive, preset, Geometry(16, 10, 16), 6, 0,
                                                 noise=noise)
            clips.append(model.model.process_latent_in(samples))
    return torch.cat(clips, 2)[0], memory


@pytest.mark.parametrize(("expected", "solver", "sigmas_key", "sink", "noise_key"), [
    ("latents_euler8", "euler", "sigmas_euler8", 3, None),
    ("latents_renoise4", "renoise", "sigmas_renoise4", 3, "renoise"),
    ("latents_euler8_window_only", "euler", "sigmas_euler8", 0, None),
])
def test_reference_rollout_is_reproduced(model, prompts, reference, expected, solver, sigmas_key, sink, noise_key):
    sigmas = json.loads(reference[1][sigmas_key])
    latents, _ = roll_out(model, prompts, reference, solver, sigmas, sink, noise_key)
    want = reference[0][expected]
    assert (latents - want).norm() / want.norm() < 1e-4


def test_memory_is_bounded_and_counted(model, prompts, reference):
    sigmas = json.loads(reference[1]["sigmas_renoise4"])
    _, memory = roll_out(model, prompts, reference, "renoise", sigmas, noise_key="renoise")
    assert [block.start for block in memory.blocks] == [0, 12, 15]
    assert (memory.latents_done, memory.clips_done, memory.shot) == (18, 3, 2)


@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
def test_cache_sizes_are_known_before(model, prompts, reference, precision):
    from pack.nodes.memory.kv_cache import kv_bytes
    from pack.nodes.memory.state import memory_bytes

    sigmas = json.loads(reference[1]["sigmas_renoise4"])
    _, memory = roll_out(model, prompts[:2], reference, "renoise", sigmas, noise_key="renoise", precision=precision)
    formats = [block.kv.layers[0].k.precision for block in memory.blocks]
    assert formats == (["int8", "4bit", "4bit"] if precision == "4bit" else [precision] * 3)
    assert memory_bytes(memory)[1] == sum(kv_bytes(6, 2, 128, 120, name, 4) for name in formats)


def test_kv_above_the_share_of_ram_rest_in_a_file_and_the_film_goes_on_the_same(model, prompts, reference, monkeypatch):
    from pack.nodes.sampling import bridge

    sigmas = json.loads(reference[1]["sigmas_renoise4"])
    in_ram, kept = roll_out(model, prompts[:2], reference, "renoise", sigmas, noise_key="renoise")
    assert bridge.SHELF.ram_bytes >= sum(block.kv.nbytes for block in kept.blocks)
    monkeypatch.setattr(bridge, "RAM_SHARE", 0.0)
    in_files, memory = roll_out(model, prompts[:2], reference, "renoise", sigmas, noise_key="renoise")
    assert torch.equal(in_ram, in_files)
    assert all(block.kv.in_file and not block.kv.is_gone for block in memory.blocks)
    assert bridge.SHELF.ram_bytes == 0
