"""Films of ordinary checkpoints: what the model is given equals core's own nodes, and clips join."""

from __future__ import annotations

import functools

import pytest
import torch

from .latent_models import HEIGHT, WIDTH, picture, text, vae, wan

pytestmark = pytest.mark.comfy

FILMS = {"wan22_ti2v_5b": "ti2v", "wan21_i2v_14b": "i2v", "wan22_i2v_14b": "i2v", "wan21_vace": "vace",
         "wan22_svi_pro": "i2v"}


@functools.cache
def parts(kind: str):
    return wan(kind), vae(kind)


def fresh(preset: str, **options):
    from pack.nodes.memory.state import empty_memory
    from pack.nodes.sampling.presets import memory_spec

    return empty_memory(memory_spec(preset, **options))


def sample(preset: str, memory, seconds: float = 1.0, seed: int = 3, **options):
    from pack.nodes.sampling.nodes import ClipSampler

    model, decoder = parts(FILMS[preset])
    if preset in ("wan22_i2v_14b", "wan22_svi_pro"):
        options.setdefault("model_low_noise", model)
    options = {"sigmas": torch.tensor([1.0, 0.95, 0.7, 0.0]), "vae": decoder, "negative": text(2)} | options
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(model=model, memory=memory, positive=text(1), seed=seed, width=WIDTH,
                                              height=HEIGHT, clip_seconds=seconds, **options).args


@pytest.mark.parametrize("preset", FILMS)
def test_clips_join_without_a_missing_or_double_frame(preset):
    from pack.nodes.video.decode import frame_count, stream_decode

    seconds = 12 / 24 if FILMS[preset] == "ti2v" else 12 / 16
    first, after, report = sample(preset, fresh(preset), seconds, start_image=picture())
    assert report.startswith("Latent memory") and (after.latents_done, after.clips_done) == (3, 1)
    second, last, _ = sample(preset, after, seconds)
    k = after.spec.overlap_latents
    assert first["samples"].shape[2] == second["samples"].shape[2] == 3 and "context_samples" not in first
    assert second["context_samples"].shape[2] == k and (second["first_latent"], last.latents_done) == (3, 6)
    _, decoder = parts(FILMS[preset])
    with torch.inference_mode():
        frames = torch.cat(list(stream_decode(decoder.first_stage_model, second["samples"],
                                              second["context_samples"])))
    assert len(frames) == 12 == frame_count(3, k)
    whole = decoder.decode(torch.cat((second["context_samples"], second["samples"]), 2))[0]
    assert torch.allclose(frames, whole[-12:], atol=1e-4)
    assert (last.overlap.float() / 255 - whole[-len(last.overlap):]).abs().max() < 0.01
    again, _, _ = sample(preset, after, seconds)
    assert torch.equal(again["samples"], second["samples"])
    other, _, _ = sample(preset, after, seconds, seed=4)
    assert not torch.equal(other["samples"], second["samples"])


def given(frames: torch.Tensor | None, kind: str, latents: int = 5):
    from pack.nodes.common.types import Geometry
    from pack.nodes.sampling.latent_strategy import Given

    model, decoder = parts(kind)
    stride, channels = (16, 48) if kind == "ti2v" else (8, 16)
    return Given(Geometry(channels, HEIGHT // stride, WIDTH // stride), latents, WIDTH, HEIGHT, frames, picture(9),
                 None, None, decoder.encode, model.model.process_latent_out)


def same(ours: dict, theirs: list) -> bool:
    found = theirs[0][1]
    flat = {name: value[0] if isinstance(value, list) else value for name, value in ours.items()}
    want = {name: value[0] if isinstance(value, list) else value for name, value in found.items() if name in ours}
    return set(want) == set(flat) and all(
        torch.allclose(flat[n], want[n], atol=1e-6) if torch.is_tensor(want[n]) else flat[n] == want[n] for n in want)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_keys_equal_those_of_core_nodes(frames):
    from comfy_extras import nodes_hunyuan, nodes_wan
    from pack.nodes.sampling.latent_strategy import FAMILIES

    shown = torch.cat([picture(i) for i in range(frames)])
    size = {"width": WIDTH, "height": HEIGHT, "length": 17, "batch_size": 1}
    with torch.inference_mode():
        decoder = parts("i2v")[1]
        keys = FAMILIES["i2v"](given(shown, "i2v"))
        core = nodes_wan.WanImageToVideo.execute(text(1), text(2), decoder, **size, start_image=shown).args
        assert same(keys.values, core[0]) and same(keys.values, core[1])
        assert torch.equal(keys.samples, core[2]["samples"])

        keys = FAMILIES["ti2v"](given(shown, "ti2v"))
        core = nodes_wan.Wan22ImageToVideoLatent.execute(parts("ti2v")[1], **size, start_image=shown).args[0]
        assert torch.equal(keys.noise_mask, core["noise_mask"]) and torch.allclose(keys.samples, core["samples"])

        keys = FAMILIES["vace"](given(shown, "vace"))
        mask = torch.ones(17, HEIGHT, WIDTH)
        mask[:frames] = 0
        core = nodes_wan.WanVaceToVideo.execute(
            text(1), text(2), parts("vace")[1], **size, strength=1.0, control_video=shown, control_masks=mask,
            reference_image=picture(9)).args
        assert same(keys.appended, core[0]) and keys.samples.shape == core[2]["samples"].shape and keys.lead == core[3]

        for family, name in (("frames", "v1 (concat)"), ("hunyuan_v2", "v2 (replace)")):
            keys = FAMILIES[family](given(shown, "i2v"))
            core = nodes_hunyuan.HunyuanImageToVideo.execute(text(1), decoder, **size, guidance_type=name,
                                                             start_image=shown).args
            assert same(keys.values, core[0]) and torch.equal(keys.samples, core[1]["samples"])
            assert (keys.noise_mask is None) == ("noise_mask" not in core[1])


def test_the_pair_equals_two_advanced_samplers_of_core():
    """High noise model to the boundary, low noise model from there; the same noise, so the same latents."""
    import comfy.samplers
    from pack.nodes.sampling.bridge_latent import noise_at
    from pack.nodes.sampling.latent_presets import LATENT_RECIPES
    from pack.nodes.sampling.latent_strategy import FAMILIES

    sigmas, shape = torch.tensor([1.0, 0.95, 0.7, 0.0]), (1, 16, 1, HEIGHT // 8, WIDTH // 8)
    model = parts("i2v")[0]
    other = model.clone()
    other.add_patches({"diffusion_model.head.head.weight": ("diff", (torch.full((64, 128), 0.5),))}, 1.0)
    ours, _, _ = sample("wan22_i2v_14b", fresh("wan22_i2v_14b"), 12 / 16, start_image=picture(), model_low_noise=other,
                        sampler=comfy.samplers.sampler_object("euler"), sigmas=sigmas)
    with torch.inference_mode():
        keys = FAMILIES["i2v"](given(picture(), "i2v", 3))
        conds = [[[t[0][0], dict(keys.values)]] for t in (text(1), text(2))]
        noise, samples = noise_at(3, ["0", "1", "2"], shape, 2), keys.samples
        for part, levels in ((model, sigmas[:3]), (other, sigmas[2:])):
            samples = comfy.samplers.sample(part, noise, *conds, LATENT_RECIPES["wan22_i2v_14b"].cfg,
                                            torch.device("cpu"), comfy.samplers.sampler_object("euler"), levels,
                                            latent_image=samples, seed=0)
            noise = torch.zeros_like(noise)
    assert torch.allclose(ours["samples"], samples, atol=1e-5) and samples.std() > 0.01


def test_colour_hold_off_is_bit_equal_and_on_is_not():
    _, after, report = sample("wan21_i2v_14b", fresh("wan21_i2v_14b", colour_hold=0.0), 0.75, start_image=picture())
    assert "Colours free." in report and after.spec.colour_hold == 0
    free, _, _ = sample("wan21_i2v_14b", after, 0.75)
    from dataclasses import replace

    gentle = replace(after, spec=replace(after.spec, colour_hold=0.3))
    held, _, _ = sample("wan21_i2v_14b", gentle, 0.75)
    assert not torch.equal(free["samples"], held["samples"])
    assert torch.allclose(free["context_samples"], held["context_samples"], atol=1e-5)


@pytest.mark.parametrize(("preset", "options", "said"), [
    ("wan21_i2v_14b", {"start_image": None}, "begins a film with a picture, but got no start image"),
    ("wan21_i2v_14b", {"vae": None}, "looks at the frames themselves, but got no VAE"),
    ("wan21_i2v_14b", {"negative": None}, "cfg 5 needs a negative prompt"),
    ("wan22_i2v_14b", {"model_low_noise": None}, "but got one model.*low noise one at model_low_noise"),
])
def test_what_is_missing_is_named(preset, options, said):
    with pytest.raises(ValueError, match=said):
        sample(preset, fresh(preset), 0.75, **{"start_image": picture()} | options)


def test_a_cut_a_new_anchor_and_a_stray_image():
    spec = fresh("wan21_i2v_14b", reanchor_clips=1)
    _, after, _ = sample("wan21_i2v_14b", spec, 0.75, start_image=picture())
    again, _, report = sample("wan21_i2v_14b", after, 0.75)
    assert "led by the film's first frame again; 5 of them trimmed" in report
    assert (again["samples"].shape[2], again["context_samples"].shape[2]) == (3, 2)
    cut, _, report = sample("wan21_i2v_14b", after, 0.75, scene_cut=True)
    assert "1 frames from the film's first frame; 1 of them trimmed" in report and cut["samples"].shape[2] == 3
    with pytest.raises(ValueError, match="a start image in the middle of a scene, but got a film that goes on"):
        sample("wan21_i2v_14b", after, 0.75, start_image=picture(1))


def test_a_vae_that_core_decodes_gives_the_same_new_frames(monkeypatch):
    from pack.nodes.common.progress import SILENT
    from pack.nodes.video import bridge

    _, after, _ = sample("wan21_i2v_14b", fresh("wan21_i2v_14b", overlap_latents=2), 0.75, start_image=picture())
    clip, _, _ = sample("wan21_i2v_14b", after, 0.75)
    found = []
    for traits in (bridge.wan_decoder_traits, lambda _module: None):
        monkeypatch.setattr(bridge, "wan_decoder_traits", traits)
        with torch.inference_mode():
            found.append(torch.cat(list(bridge.decode_frames(parts("i2v")[1], clip["samples"], clip["context_samples"],
                                                             0, SILENT))))
    assert len(found[0]) == 12 and torch.allclose(*found, atol=1e-4)


def test_forget_lets_go_of_the_anchor_too():
    from pack.nodes.memory.state import forget

    _, after, _ = sample("wan22_ti2v_5b", fresh("wan22_ti2v_5b"), 0.5)
    clip, _, report = sample("wan22_ti2v_5b", forget(after), 0.5)
    assert "begun with text alone" in report and clip["context_samples"].shape[2] == 1 and clip["first_latent"] == 3
