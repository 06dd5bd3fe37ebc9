"""Clip Sampler beside plainly going on: CFG, a start image, scene cuts, recaching; and that it lets go of its K/V."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(toyworld):
    sd = pytest.importorskip("comfy.sd")
    return sd.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"))


def prompt(seed: int, tokens: int = 512, **extra):
    text = torch.zeros(1, tokens, 4096)
    text[:, :9] = torch.randn(1, 9, 4096, generator=torch.Generator().manual_seed(seed))
    return [[text, extra]]


def fresh(**options):
    from pack.nodes.memory.state import empty_memory
    from pack.nodes.sampling.presets import memory_spec

    return empty_memory(memory_spec("toyworld", **options))


def sample(model, memory, positive, **options):
    from pack.nodes.sampling.nodes import ClipSampler

    options = {"seed": 3, "width": 128, "height": 80, "clip_seconds": 1.5} | options
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(model=model, memory=memory, positive=positive, **options).args


def test_cfg_one_does_and_keeps_nothing_for_the_negative_prompt(model):
    plain, after, report = sample(model, fresh(), prompt(1))
    with_negative, same, _ = sample(model, fresh(), prompt(1), negative=prompt(2), cfg=1.0)
    assert torch.equal(plain["samples"], with_negative["samples"]) and "CFG" not in report
    assert all(block.negative_kv is None for memory in (after, same) for block in memory.blocks)


@pytest.mark.parametrize("tokens", [512, 300])  # as one batch, and one after the other
@pytest.mark.parametrize("placement", ["vram", "ram"])
def test_cfg_has_two_memories(model, tokens, placement):
    memory, plain, reports = fresh(placement=placement), fresh(), []
    for _ in range(2):
        guided, memory, report = sample(model, memory, prompt(1), negative=prompt(2, tokens), cfg=3.0)
        unguided, plain, _ = sample(model, plain, prompt(1))
        reports.append(report)
    assert all("CFG 3: every forward was made for both prompts" in report for report in reports)
    assert not torch.allclose(guided["samples"], unguided["samples"], atol=1e-2)
    kv, negative = (getattr(memory.blocks[0], name).layers[2].v.data for name in ("kv", "negative_kv"))
    assert kv.shape == negative.shape and not torch.equal(kv, negative)


def test_cfg_with_the_same_prompt_twice_is_no_cfg(model):
    (plain, first, _), (guided, again, _) = (sample(model, fresh(), prompt(1), negative=prompt(1), cfg=cfg)
                                             for cfg in (1.0, 4.0))
    assert torch.allclose(plain["samples"], guided["samples"], atol=1e-3)
    switched, _, _ = sample(model, first, prompt(1), negative=prompt(1), cfg=4.0)  # its negative K/V are made first
    going_on, _, _ = sample(model, again, prompt(1), negative=prompt(1), cfg=4.0)
    assert torch.allclose(switched["samples"], going_on["samples"], atol=1e-3)


def test_cfg_without_a_negative_prompt_is_refused(model):
    with pytest.raises(ValueError, match="CFG needs a negative prompt, but got 'none'; allowed: a cond.* or cfg 1"):
        sample(model, fresh(), prompt(1), cfg=2.0)


def without_kv(memory):
    return replace(memory, blocks=tuple(replace(block, kv=None, negative_kv=None) for block in memory.blocks))


def test_rebuilt_kv_are_the_same_bits_while_nothing_was_forgotten(model, tmp_path):
    """Each chunk is read under the prompt that it was made under, also out of a file and with another one at hand."""
    from pack.nodes.memory.files import load_memory, save_memory

    _, first, _ = sample(model, fresh(), prompt(1), clip_seconds=3.0)
    _, memory, _ = sample(model, first, prompt(2), clip_seconds=0.3)
    assert len(memory.blocks) == 3 and memory.blocks[0].prompt is memory.blocks[1].prompt
    want, _, _ = sample(model, memory, prompt(3), clip_seconds=0.3)
    bare = load_memory(save_memory(memory, tmp_path / "m.safetensors", with_kv=False))
    assert all(block.kv is None and torch.equal(block.prompt, kept.prompt)
               for block, kept in zip(bare.blocks, memory.blocks, strict=True))
    for same in (without_kv(memory), bare):
        got, _, _ = sample(model, same, prompt(3), clip_seconds=0.3)
        assert torch.equal(got["samples"], want["samples"])
    forgetful = replace(bare, blocks=tuple(replace(block, prompt=None) for block in bare.blocks))
    other, _, _ = sample(model, forgetful, prompt(3), clip_seconds=0.3)
    assert not torch.allclose(other["samples"], want["samples"], atol=1e-2)


def test_a_prompt_of_another_text_encoder_is_not_used(model):
    _, memory, _ = sample(model, fresh(), prompt(1), clip_seconds=0.3)
    blocks = tuple(replace(block, kv=None, prompt=torch.ones(3, 64)) for block in memory.blocks)
    got, _, _ = sample(model, replace(memory, blocks=blocks), prompt(2), clip_seconds=0.3)
    bare = replace(memory, blocks=tuple(replace(block, prompt=None) for block in without_kv(memory).blocks))
    want, _, _ = sample(model, bare, prompt(2), clip_seconds=0.3)
    assert torch.equal(got["samples"], want["samples"])


class OneLatentVae:
    """Not a mock of ComfyUI: the one method of a VAE that a start image needs, with a known answer."""

    def __init__(self, channels: int = 16) -> None:
        self.channels = channels

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape == (1, 80, 128, 3)
        return torch.linspace(-1, 1, self.channels).reshape(1, -1, 1, 1, 1).expand(1, -1, 1, 10, 16)


def test_a_start_image_is_the_films_first_latent(model):
    image = torch.rand(2, 60, 90, 4)
    plain, _, _ = sample(model, fresh(), prompt(1))
    started, after, report = sample(model, fresh(), prompt(1), start_image=image, vae=OneLatentVae())
    want = OneLatentVae().encode(torch.zeros(1, 80, 128, 3))
    assert torch.allclose(started["samples"][:, :, :1], want, atol=1e-5)
    assert not torch.allclose(started["samples"][:, :, 1:], plain["samples"][:, :, 1:], atol=1e-2)
    assert "held clean while its chunk was denoised" in report
    with pytest.raises(ValueError, match="belongs to the beginning of a film, but got a memory of 1 clips"):
        sample(model, after, prompt(1), start_image=image, vae=OneLatentVae())


def test_a_start_image_needs_the_models_vae(model):
    image = torch.rand(1, 80, 128, 3)
    with pytest.raises(ValueError, match="has to be encoded, but got no VAE.*Connect the VAE"):
        sample(model, fresh(), prompt(1), start_image=image)
    with pytest.raises(ValueError, match="does not belong to the model, but got a start latent of .48, 1, 10, 16"):
        sample(model, fresh(), prompt(1), start_image=image, vae=OneLatentVae(48))


@pytest.mark.parametrize("options", [{"scene_cut": True}, {"text": "The scene transitions. A beach."}])
def test_a_cut_drops_the_window_of_a_checkpoint_without_cuts(model, options):
    _, before, _ = sample(model, fresh(), prompt(1), clip_seconds=3.0)
    asked = prompt(2, videomemory_text=options.get("text", ""))
    cut, after, report = sample(model, before, asked, scene_cut="scene_cut" in options)
    only_sink = replace(before, blocks=before.blocks[:1])
    want, _, _ = sample(model, only_sink, prompt(2))
    assert torch.equal(cut["samples"], want["samples"])
    assert "only what the film began with stayed in view" in report
    assert after.cuts == 1 and [block.cuts for block in after.blocks] == [0, 1]


def test_recaching_changes_what_a_new_prompt_sees(model):
    films = []
    for change in ("keep", "recache"):
        _, before, _ = sample(model, fresh(prompt_change=change), prompt(1), clip_seconds=3.0)
        films.append((before, *sample(model, before, prompt(2))[:2]))
    (_, kept, _), (before, recached, after) = films
    assert not torch.allclose(kept["samples"], recached["samples"], atol=1e-3)
    old, new = ({block.start: block.kv.layers[2].v.data for block in memory.blocks} for memory in (before, after))
    assert torch.equal(old[0], new[0]) and not torch.equal(old[3], new[3])  # the sink keeps its own


def test_an_interrupted_clip_leaves_no_keys_behind(model):
    """Also while the exception, and with it every frame that it passed, is still held."""
    from comfy.model_management import InterruptProcessingException
    from pack.nodes.common.progress import Progress
    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.kv_cache import LayerKV
    from pack.nodes.sampling.bridge import sample_with_memory

    _, memory, _ = sample(model, fresh(), prompt(1))
    checks = []

    def interrupt():
        checks.append(0)
        if len(checks) == 12:  # in the second chunk
            raise InterruptProcessingException

    def alive():
        gc.collect()
        return sum(type(each) is LayerKV for each in gc.get_objects())

    before = alive()
    with pytest.raises(InterruptProcessingException) as held, torch.inference_mode():
        from pack.nodes.sampling.presets import PRESETS

        sample_with_memory(model, memory, prompt(1), PRESETS["toyworld"], Geometry(16, 10, 16), 6, 1,
                           Progress(check_cancel=interrupt))
    assert held.value.__traceback__ is not None and len(checks) == 12
    assert alive() == before


def test_inputs_of_latent_memory_are_named_as_unused(model):
    from .latent_models import clip_vision

    plain, _, report = sample(model, fresh(), prompt(1))
    assert "Not used" not in report
    same, _, report = sample(model, fresh(), prompt(1), model_low_noise=model, sigmas=torch.tensor([1.0, 0.0]),
                             clip_vision=clip_vision(1280))
    assert report.endswith("Not used, because they serve latent memory alone: model_low_noise, clip_vision, sigmas.")
    assert torch.equal(plain["samples"], same["samples"])
