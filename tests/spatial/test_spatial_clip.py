"""Spatial Clip Sampler on tiny random Wan models of ComfyUI's own classes: what they are given, and what comes back."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

from pack.nodes.spatial.cameras import path_from_text  # noqa: E402
from pack.nodes.spatial.cloud import Look, read, write  # noqa: E402
from pack.nodes.spatial.values import empty_memory  # noqa: E402
from pack.tests.sampling.latent_models import HEIGHT, WIDTH, model, picture, text, vae  # noqa: E402

LATENTS = 3
PATH = path_from_text("truck 1.2 in 1\nback", WIDTH, HEIGHT, 8.0, 60.0)
SIZES = {"vace": (16, 8), "ti2v": (48, 16)}


def place(kind, path=PATH):
    """Seen by the first camera of a path."""
    from pack.nodes.common.digest import patcher_key

    channels, stride = SIZES[kind]
    h, w = HEIGHT // stride, WIDTH // stride
    latents = torch.randn(channels, 1, h, w, generator=torch.Generator().manual_seed(5)).half().float()
    empty = empty_memory(channels, h, w, patcher_key(decoder(kind).patcher))
    return write(empty, Look(latents, torch.full((1, HEIGHT, WIDTH), 2.0), (0,)), path)


def decoder(kind):
    return vae("ti2v" if kind == "ti2v" else "")


def sample(kind, **options):
    from pack.nodes.spatial.nodes_clip import SpatialClipSampler

    given = {"model": model(kind), "vae": decoder(kind), "positive": text(1), "spatial_memory": place(kind),
             "camera_path": PATH, "seed": 3, "first_frame": 0, "latents": LATENTS, "trust": 1.0, "steps": 2, "cfg": 1.0}
    with torch.inference_mode():
        return SpatialClipSampler.EXECUTE_NORMALIZED(**{**given, **options}).args


def watched(kind):
    """(MODEL, list of what the sampler was asked with)"""
    from comfy.patcher_extension import WrappersMP

    taken, clone = [], model(kind).clone()

    def look(executor, noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs):
        taken.append((executor.class_obj.conds["positive"][0], latent_image, denoise_mask))
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "look", look)
    return clone, taken


def test_ti2v_keeps_what_is_known_and_makes_the_holes():
    latent, coverage, report, _, _ = sample("ti2v")
    reading = read(place("ti2v"), PATH, (0, 4, 8))
    assert 0 < coverage < 1 and coverage == pytest.approx(1 - float(reading.holes.float().mean()))
    made, known = latent["samples"][0], ~reading.holes
    assert torch.allclose(made[:, known], reading.latents[:, known], atol=1e-5)
    assert made[:, ~known].std() > 0.1 and torch.isfinite(made).all()
    assert "Frame 8" in report


def test_trust_below_one_lets_the_model_change_what_is_known():
    reading = read(place("ti2v"), PATH, (0, 4, 8))
    known = ~reading.holes
    distances = [(sample("ti2v", trust=trust)[0]["samples"][0] - reading.latents)[:, known].abs().mean()
                 for trust in (0.9, 0.5, 0.0)]
    assert 0.01 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("kind", ["ti2v", "vace"])
def test_the_start_image_is_the_first_latent(kind):
    clone, taken = watched(kind)
    with torch.inference_mode():
        encoded = decoder(kind).encode(picture())
    latent = sample(kind, model=clone, start_image=picture())[0]["samples"]
    cond, _, mask = taken[0]
    if kind == "ti2v":
        assert torch.allclose(latent[:, :, :1], encoded, atol=1e-5) and not mask[:, :, 0].any()
    else:
        assert torch.equal(cond["vace_frames"][0][:, :16, :1], encoded)
        assert not cond["vace_mask"][0][:, :, 0].any()


def test_vace_is_shown_the_place_where_it_is_known_and_gray_in_holes():
    from comfy_extras.nodes_wan import WanVaceToVideo

    clone, taken = watched("vace")
    latent, coverage, *_ = sample("vace", model=clone, trust=0.7)
    cond, reading = taken[0][0], read(place("vace"), PATH, (0, 4, 8))
    control, mask = cond["vace_frames"][0][0], cond["vace_mask"][0][0]
    with torch.inference_mode():
        core = WanVaceToVideo.EXECUTE_NORMALIZED(text(1), text(2), decoder("vace"), WIDTH, HEIGHT, 9, 1, 1.0).args
    nothing = core[0][0][1]["vace_frames"][0][0]  # core's, of a clip of which nothing is known
    assert control.shape == nothing.shape and mask.shape == core[0][0][1]["vace_mask"][0][0].shape
    known = ~reading.holes
    assert known.any() and not known.all()
    assert torch.equal(control[:16][:, known], reading.latents[:, known])
    assert torch.equal(control[:16][:, ~known], nothing[:16][:, ~known])
    assert torch.equal(control[16:], nothing[16:])
    assert torch.equal(mask, reading.holes.float()[None].expand(64, -1, -1, -1))
    assert cond["vace_strength"] == [0.7] and 0 < coverage < 1
    assert torch.isfinite(latent["samples"]).all() and latent["samples"].shape[2] == LATENTS


@pytest.mark.parametrize("kind", ["ti2v", "vace"])
def test_the_place_and_the_seed_change_the_clip_and_nothing_else_does(kind):
    first = sample(kind)[0]["samples"]
    assert torch.equal(first, sample(kind)[0]["samples"])
    assert not torch.allclose(first, sample(kind, seed=4)[0]["samples"], atol=1e-3)
    assert not torch.allclose(first, sample(kind, first_frame=4)[0]["samples"], atol=1e-3)


@pytest.mark.parametrize("kind", ["ti2v", "vace"])
def test_guidance_takes_the_negative_prompt(kind):
    guided = [sample(kind, cfg=5.0, negative=text(seed))[0]["samples"] for seed in (2, 9)]
    assert not torch.allclose(*guided, atol=1e-4)


def test_what_cannot_be_sampled_is_refused_before_anything_runs():
    cases = {"a wan t2v model": {"model": model("t2v")}, "a memory of 16 channels": {"spatial_memory": place("vace")},
             "needs a negative prompt": {"cfg": 0.0}, "uni_pc needs two": {"steps": 1},
             "frames 4 to 20": {"first_frame": 4, "latents": 5},
             "camera path, but got '128x64'": {"camera_path": path_from_text("hold in 2", 128, 64, 8.0, 60.0)},
             "spatial_memory, but got 'NoneType'": {"spatial_memory": None}}
    for words, options in cases.items():
        clone, taken = watched("ti2v")
        with pytest.raises(ValueError, match=words):
            sample("ti2v", **{"model": clone, **options})
        assert not taken
