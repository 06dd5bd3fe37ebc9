"""What a clip of an ordinary checkpoint is refused for: in a sentence, and before the VAE has encoded anything."""

from __future__ import annotations

import pytest
import torch

from .counting_films import memory_of, sample
from .latent_models import FILMS, blocks_vae, model, picture, text, vae

pytestmark = pytest.mark.comfy

TI2V, I2V, PAIR, SVI, VACE = "wan22_ti2v_5b", "wan21_i2v_14b", "wan22_i2v_14b", "wan22_svi_pro", "wan21_vace"
V2, H15, SVD = "hunyuan_i2v_v2", "hunyuan15_i2v", "svd"


def euler():
    import comfy.samplers

    return comfy.samplers.sampler_object("euler")


def hunyuan_network(preset: str):
    """The preset's VAE, its network called as core calls HunyuanVideo's: sizes alone do not tell it from Wan 2.1's."""
    made = blocks_vae(preset)
    made.first_stage_model.__class__ = type("AutoencodingEngine", (type(made.first_stage_model),), {})
    return made


def light_vae():
    """Core's own light VAE of Wan 2.2 (TAEHV), random: it decodes alone."""
    import comfy.sd
    from comfy.taesd.taehv import TAEHV

    return comfy.sd.VAE(sd=TAEHV(latent_channels=48).state_dict())


CASES = [
    (I2V, lambda: {"start_image": None}, "begins a film with a picture, but got no start image"),
    (V2, lambda: {"start_image": None}, r"HunyuanVideo I2V \(v2, replace\) begins a film with a picture"),
    (I2V, lambda: {"vae": None}, "looks at the frames themselves, but got no VAE"),
    (I2V, lambda: {"vae": vae("ti2v")}, "does not belong to Wan 2.1 I2V 14B, but got WanVAE with 48 channels at 16"),
    (TI2V, lambda: {"vae": vae("")}, "does not belong to Wan 2.2 TI2V-5B, but got WanVAE with 16 channels at 8 pixels"),
    (TI2V, lambda: {"vae": light_vae(), "start_image": None}, r"but got a VAE that can only decode \(TAEHV\)"),
    (SVD, lambda: {"vae": blocks_vae(I2V)}, "does not belong to Stable Video Diffusion XT, but got Blocks with 16"),
    (I2V, lambda: {"vae": blocks_vae(SVD)}, "but got Blocks with 4 channels at 8 pixels, for pictures"),
    (I2V, lambda: {"vae": hunyuan_network(I2V)}, "but got AutoencodingEngine with 16 channels at 8 pixels"),
    ("hunyuan_i2v", lambda: {"vae": vae("")}, "not belong to HunyuanVideo I2V .*, but got WanVAE with 16 channels"),
    (I2V, lambda: {"negative": None}, "cfg 5 needs a negative prompt"),
    (I2V, lambda: {"negative": [], "cfg": 2.0}, "cfg 2 needs a negative prompt"),
    (V2, lambda: {"cfg": 6.0}, "has its guidance built in, but got cfg 6; allowed: cfg 0 or 1. .*FluxGuidance"),
    (PAIR, lambda: {"model_low_noise": None}, "but got one model.*low noise one at model_low_noise"),
    (I2V, lambda: {"model_low_noise": model("i2v")}, "but got two models; allowed: model alone"),
    (PAIR, lambda: {"model_low_noise": model("ti2v")},
     "Wan 2.2 I2V A14B .*, but got a Wan 5B text and image to video model at model_low_noise; allowed: a Wan image to"),
    (PAIR, lambda: {"model": model("t2v"), "model_low_noise": model("i2v22")}, "a Wan text to video model at model;"),
    (TI2V, lambda: {"model": model("i2v")}, "the memory is for Wan 2.2 TI2V-5B, but got a Wan image to video model"),
    (H15, lambda: {"model": model("hunyuan_v1")}, "but got a HunyuanVideo image to video model at model"),
    (I2V, lambda: {"model": model("svd")}, "but got a Stable Video Diffusion model at model"),
    (I2V, lambda: {"model": model("control")}, r"variant with other inputs \(WAN21, 48 channels in\) at model"),
    (I2V, lambda: {"model": model("camera")}, r"variant with other inputs \(WAN21_Camera, 36 channels in\) at model"),
    (SVD, lambda: {"clip_vision": None}, "sees its picture through CLIP, but got no CLIP Vision model"),
    (I2V, lambda: {"start_image": picture(frames=5)}, "begins with one picture, but got a batch of 5 at start_image"),
    (I2V, lambda: {"sigmas": torch.tensor([])}, "do not make a clip out of noise, but got no levels at all"),
    (I2V, lambda: {"sigmas": torch.tensor([1.0])}, "do not make a clip out of noise, but got the levels 1;"),
    (I2V, lambda: {"sigmas": torch.tensor([1.0, 0.5])}, "got the levels 1, 0.5; allowed: two or more .* fall to 0"),
    (I2V, lambda: {"sigmas": torch.tensor([0.0, 1.0])}, "got the levels 0, 1;"),
    (PAIR, lambda: {"sigmas": torch.tensor([0.8, 0.4, 0.0])},
     "one model of the pair would have nothing to do, but got the levels 0.8, 0.4, 0; allowed: .* above and below 0.9"),
    (PAIR, lambda: {"sigmas": torch.tensor([1.0, 0.95, 0.0])}, "one model of the pair would have nothing to do"),
    (PAIR, lambda: {"sigmas": torch.tensor([1.0, 0.95, 0.7, 0.0]), "sampler": None},
     "uni_pc returns noise when it has a single step, but got 2 and 1 steps; .* Connect KSamplerSelect with euler"),
    (I2V, lambda: {"sigmas": torch.tensor([1.0, 0.0]), "sampler": None}, "uni_pc returns noise .*, but got 1 steps"),
]


@pytest.mark.parametrize(("preset", "wrong", "said"), CASES)
def test_it_is_said_before_anything_is_encoded(preset, wrong, said):
    options = {"vae": blocks_vae(preset), "start_image": picture(), "sampler": euler(), **wrong()}
    coder, encoded = options["vae"], []
    if coder is not None:
        coder = options["vae"] = _listening(coder, encoded)
    with pytest.raises(ValueError, match=said):
        sample(preset, memory_of(preset), **options)
    assert not encoded


def _listening(coder, encoded: list):
    import copy

    coder = copy.copy(coder)
    coder.encode = encoded.append
    return coder


@pytest.mark.parametrize(("preset", "spec", "latents", "said"), [
    (VACE, {}, 2, "shorter than what the next one is given of it, but got 2 latents; allowed: 3 or more"),
    (I2V, {"overlap_latents": 4}, 3, "but got 3 latents; allowed: 4 or more"),
    (I2V, {"reanchor_clips": 2}, 1, "but got 1 latents; allowed: 2 or more"),
    (I2V, {"overlap_latents": 5}, 6, "overlap does not fit this checkpoint, but got 5; allowed: 1 to 4 latents"),
    (SVI, {"overlap_latents": 1}, 4, "overlap does not fit this checkpoint, but got 1; allowed: 2 to 4 latents"),
    (V2, {"overlap_latents": 2}, 4, "overlap does not fit this checkpoint, but got 2; allowed: 1 to 1 latents"),
    (SVD, {"overlap_latents": 2}, 4, "overlap does not fit this checkpoint"),
    (I2V, {"colour_hold": 1.5}, 4, "colour hold is out of range, but got 1.5"),
])
def test_memories_that_do_not_fit_the_clip_or_the_checkpoint(preset, spec, latents, said):
    with pytest.raises(ValueError, match=said):
        sample(preset, memory_of(preset, **spec), latents, vae=blocks_vae(preset), start_image=picture())


def test_a_stray_picture_in_the_middle_of_a_scene():
    _, after, _ = sample(I2V, memory_of(I2V), vae=blocks_vae(I2V), start_image=picture())
    with pytest.raises(ValueError, match="a start image in the middle of a scene, but got a film that goes on"):
        sample(I2V, after, vae=blocks_vae(I2V), start_image=picture(1))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_of_another_size_is_cut_to_the_films_as_core_does(channels):
    import comfy.utils

    image = picture(2, width=90, height=60, channels=channels)
    _, after, report = sample(I2V, memory_of(I2V), vae=blocks_vae(I2V), start_image=image)
    assert "The start image of 90x60 was scaled to 64x32" in report
    scaled = comfy.utils.common_upscale(image[..., :3].movedim(-1, 1), 64, 32, "bilinear", "center").movedim(1, -1)
    assert (after.anchor.frame.float() / 255 - scaled[0]).abs().max() <= 0.5 / 255 + 1e-6
    _, _, report = sample(I2V, memory_of(I2V), vae=blocks_vae(I2V), start_image=picture())
    assert "scaled" not in report


def test_uni_pc_does_nothing_in_a_single_step():
    """Why it is refused. Where ComfyUI mends it, this test fails, and the refusal can go."""
    from comfy.extra_samplers.uni_pc import sample_unipc

    noise, answer = torch.randn(1, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0)), 3.0
    done = {steps: sample_unipc(lambda x, sigma: torch.full_like(x, answer), noise, levels, extra_args={}, disable=True)
            for steps, levels in ((1, torch.tensor([1.0, 0.0])), (2, torch.tensor([1.0, 0.5, 0.0])))}
    assert (done[1] - answer).abs().max() > 1 and (done[2] - answer).abs().max() < 0.01


@pytest.mark.parametrize("preset", FILMS)
def test_all_sentences_of_a_report(preset):
    """Longer than trained, cfg 1 without a negative prompt, and what an option cannot do here."""
    from pack.nodes.sampling.latent_presets import LATENT_RECIPES

    recipe = LATENT_RECIPES[preset]
    memory = memory_of(preset, reanchor_clips=3, colour_hold=0.3)
    options = {"cfg": 1.0, "negative": None, "vae": blocks_vae(preset), "sampler": euler(), "latents": 4}
    _, after, first = sample(preset, memory, start_image=picture(), **options)
    _, _, second = sample(preset, after, **options)
    assert first.startswith("Latent memory (frames given as conditions), because ")
    assert f"Clip 1: 13 frames sampled ({recipe.label}), begun with the start image" in first
    assert "Colours" not in first and "Colours held to the first clip by 0.3." in second
    assert ("Re-anchoring is of no use here" in second) == (not recipe.reanchors)
    assert ("it reads no text" in second) == (preset == SVD) and "cfg 1" in second
    long = -(-recipe.frames // 4) + 1
    assert "longer than" not in second
    _, _, report = sample(preset, memory, start_image=picture(), **{**options, "latents": long})
    assert f"That is longer than the {recipe.frames} frames it was trained on." in report
    _, _, report = sample(preset, memory, start_image=picture(), **{**options, "latents": long - 1})
    assert "longer than" not in report


def test_an_eye_that_the_model_has_not():
    from pack.nodes.sampling.latent_presets import LATENT_RECIPES

    assert LATENT_RECIPES[I2V].clip_vision == "optional"
    options = {"vae": vae(""), "start_image": picture(), "positive": text(1)}
    _, _, report = sample(I2V, memory_of(I2V), model=model("i2v22"), **options)
    assert "no eye for CLIP Vision" in report
    _, _, report = sample(I2V, memory_of(I2V), **options)
    assert "CLIP" not in report


def test_easycache_may_follow_an_ordinary_clip():
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(model("i2v"), 0.2, 0.15, 0.95, False).args[0]
    latent, _, _ = sample(I2V, memory_of(I2V), model=cached, vae=blocks_vae(I2V), start_image=picture(),
                          sampler=euler())
    assert latent["samples"].isfinite().all()
