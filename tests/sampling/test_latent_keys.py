"""What a model is given for a clip equals, bit for bit, what ComfyUI's own node gives it for the same frames.

The keys are taken from the guider while Clip Sampler runs (an OUTER_SAMPLE wrapper), so that they are the ones used.
SVI 2.0 Pro has no node in core: its keys are its authors' (anchor latent, last latents, normalised zeros, a mask that
says slot 0 alone is known).
"""

from __future__ import annotations

import pytest
import torch

from .counting_films import memory_of, sample
from .latent_models import FILMS, HEIGHT, WIDTH, blocks_vae, clip_vision, model, picture, text, vae

pytestmark = pytest.mark.comfy

MOMENTS = ("first", "continued", "re-anchored", "cut", "cut to a picture", "forgotten")
NEVER_AGAIN = ("wan21_vace", "wan22_svi_pro", "hunyuan_i2v_v2", "svd")
SIZE = {"width": WIDTH, "height": HEIGHT, "batch_size": 1}


class Taken:
    """An OUTER_SAMPLE wrapper that keeps what the first sampler is asked with; a second one must be given the same."""

    conds = None

    def __call__(self, executor, noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs):
        asked = executor.class_obj.conds
        conds = [asked[name][0] for name in ("positive", "negative") if asked[name]]
        if self.conds is None:
            self.conds, self.latent, self.mask = conds, latent_image, denoise_mask
        else:
            for mine, before in zip(conds, self.conds, strict=True):
                assert_same(mine, before)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)


def decoder(preset: str):
    kind = FILMS[preset][0]
    return blocks_vae(preset) if kind.startswith("hunyuan") or kind == "svd" else vae("ti2v" if kind == "ti2v" else "")


def watched(preset: str):
    from comfy.patcher_extension import WrappersMP

    watched, taken = model(FILMS[preset][0]).clone(), Taken()
    watched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "taken", taken)
    return watched, taken


def moment(preset: str, name: str, **options):
    """(what the sampler was asked with, the frames the clip begins with, the memory before it, its length in frames)"""
    from pack.nodes.memory.state import forget

    reanchor = {"reanchor_clips": 1} if name == "re-anchored" else {}
    memory, begins = memory_of(preset, **reanchor), picture()
    options = {"vae": decoder(preset), "latents": 4, **options}
    if name != "first":
        _, memory, _ = sample(preset, memory, start_image=begins, **options)
    held = None if memory.overlap is None else memory.overlap.float() / 255
    anchor = begins if memory.anchor is None else memory.anchor.frame[None].float() / 255
    frames = {"first": begins, "forgotten": picture(1), "cut to a picture": picture(1), "cut": anchor}.get(name, held)
    if name == "re-anchored":
        frames = torch.cat((anchor, held[-4:]))
    if name == "cut" and preset in ("wan21_vace", "wan22_svi_pro"):
        frames = None
    memory = forget(memory) if name == "forgotten" else memory
    start = frames if name in ("first", "forgotten", "cut to a picture") else None
    model, taken = watched(preset)
    sample(preset, memory, model=model, start_image=start, scene_cut=name.startswith("cut"), **options)
    extra = {"first": 0, "continued": memory.spec.overlap_latents, "re-anchored": 2}.get(name, 1)
    return taken, frames, memory, 4 * (4 + extra) - 3


def assert_same(found: dict, wanted: dict) -> None:
    """Every key that core's node has put into the conditioning, and none beside them."""
    ignored = {"pooled_output", "model_conds", "cross_attn", "uuid"}
    assert set(found) - ignored == set(wanted) - ignored
    for name in set(wanted) - ignored:
        ours, theirs = (each[0] if isinstance(each, list) else each for each in (found[name], wanted[name]))
        if hasattr(theirs, "penultimate_hidden_states"):
            ours, theirs = ours.last_hidden_state, theirs.last_hidden_state
        assert torch.equal(ours, theirs) if torch.is_tensor(theirs) else ours == theirs, name


def by_core(preset: str, frames, anchor, length: int, seen=None) -> tuple[list, torch.Tensor, torch.Tensor | None]:
    """(the conditionings, the latent, its mask or None) of core's node for the preset."""
    from comfy_extras import nodes_hunyuan, nodes_wan

    kind, prompts, coder = FILMS[preset][0], (text(1), text(2)), decoder(preset)
    size = {**SIZE, "length": length}
    if kind == "ti2v":
        out = nodes_wan.Wan22ImageToVideoLatent.execute(coder, **size, start_image=frames).args[0]
        return [*prompts], out["samples"], out["noise_mask"]
    if kind == "vace":
        mask = torch.ones(length, HEIGHT, WIDTH)
        mask[: 0 if frames is None else len(frames)] = 0
        out = nodes_wan.WanVaceToVideo.execute(*prompts, coder, **size, strength=1.0, control_video=frames,
                                               control_masks=mask, reference_image=anchor).args
        return [*out[:2]], out[2]["samples"], None
    if kind in ("hunyuan_v1", "hunyuan_v2"):  # core's node takes one prompt
        name = {"hunyuan_v1": "v1 (concat)", "hunyuan_v2": "v2 (replace)"}[kind]
        out = [nodes_hunyuan.HunyuanImageToVideo.execute(prompt, coder, **size, guidance_type=name,
                                                         start_image=frames).args for prompt in prompts]
        return [out[0][0], out[1][0]], out[0][1]["samples"], out[0][1].get("noise_mask")
    node = nodes_hunyuan.HunyuanVideo15ImageToVideo if kind == "hunyuan15" else nodes_wan.WanImageToVideo
    out = node.execute(*prompts, coder, **size, start_image=frames, clip_vision_output=seen).args
    return [*out[:2]], out[2]["samples"], None


def test_the_recipes_say_who_cannot_be_re_anchored():
    from pack.nodes.sampling.latent_presets import LATENT_RECIPES

    assert {name for name, recipe in LATENT_RECIPES.items() if not recipe.reanchors} == set(NEVER_AGAIN)
    assert set(LATENT_RECIPES) == set(FILMS)


@pytest.mark.parametrize(("preset", "name"), [
    (preset, name) for preset in FILMS for name in MOMENTS
    if preset not in ("svd", "wan22_svi_pro") and (name != "re-anchored" or preset not in NEVER_AGAIN)])
def test_keys_are_those_of_cores_node(preset, name):
    taken, frames, memory, length = moment(preset, name, cfg=1.0 if preset == "hunyuan_i2v_v2" else 2.0)
    anchor = frames if memory.anchor is None else memory.anchor.frame[None].float() / 255
    eye = {"i2v": 1280, "hunyuan15": 1152}.get(FILMS[preset][0])
    with torch.inference_mode():
        seen = clip_vision(eye).encode_image(anchor) if eye else None
        conds, latent, mask = by_core(preset, frames, anchor, length, seen)
    for found, wanted in zip(taken.conds, conds, strict=True):
        assert_same(found, wanted[0][1])
    assert torch.equal(taken.latent, latent)
    assert (taken.mask is None) == (mask is None)
    if mask is not None:
        assert torch.equal(taken.mask, mask.expand_as(taken.mask))


@pytest.mark.parametrize("name", [each for each in MOMENTS if each != "re-anchored"])
def test_svi_is_given_its_anchor_and_the_last_latents(name):
    """memory.md, section 7: with overlap 2 the last latent of the clip before as it was sampled, 5 frames trimmed."""
    preset = "wan22_svi_pro"
    for overlap in (2, 4) if name == "continued" else (2,):
        memory = memory_of(preset, overlap_latents=overlap)
        options = {"vae": vae(""), "cfg": 1.0}
        clip, memory, _ = sample(preset, memory, start_image=picture(), **options)
        process_out = model("i2v22").model.process_latent_out
        with torch.inference_mode():
            start = vae("").encode(picture())
        shown = [start]
        if name == "first":
            memory = memory_of(preset)
        elif name == "forgotten":
            from pack.nodes.memory.state import forget

            memory = forget(memory)
        elif name == "continued":
            shown = [start, clip["samples"][:, :, -(overlap - 1):]]
        elif name == "cut to a picture":
            with torch.inference_mode():
                shown = [vae("").encode(picture(1))]
        image = {"first": picture(), "forgotten": picture(), "cut to a picture": picture(1)}.get(name)
        watching, taken = watched(preset)
        sample(preset, memory, model=watching, start_image=image, scene_cut=name.startswith("cut"), **options)
        found, known = taken.conds[0], torch.cat(shown, 2)
        count = 4 + {"first": 0, "continued": overlap}.get(name, 1)
        assert found["concat_latent_image"].shape[2] == count
        padding = process_out(torch.zeros(1, 16, count - known.shape[2], HEIGHT // 8, WIDTH // 8))
        assert torch.allclose(found["concat_latent_image"], torch.cat((known, padding), 2), atol=1e-5)
        assert torch.equal(found["concat_latent_image"][:, :, known.shape[2]:], padding)
        mask = torch.ones(1, 1, count, HEIGHT // 8, WIDTH // 8)
        mask[:, :, 0] = 0
        assert torch.equal(found["concat_mask"], mask)
        assert not taken.latent.any() and taken.mask is None


@pytest.mark.parametrize("name", [each for each in MOMENTS if each != "re-anchored"])
def test_svd_sees_the_last_frame_and_the_first_through_clip(name):
    from comfy_extras.nodes_video_model import SVD_img2vid_Conditioning

    taken, frames, memory, length = moment("svd", name)
    anchor = frames if memory.anchor is None else memory.anchor.frame[None].float() / 255
    with torch.inference_mode():
        core = [SVD_img2vid_Conditioning().encode(clip_vision(1024), image, blocks_vae("svd"), WIDTH, HEIGHT, length,
                                                  127, 6, 0.0) for image in (frames, anchor)]
    for i in range(2):
        assert_same(taken.conds[i], core[0][i][0][1])  # the frame that it goes on from
        assert torch.equal(taken.conds[i]["cross_attn"], core[1][i][0][0])  # who it is about
    assert torch.equal(taken.latent, core[0][2]["samples"])


def test_guidance_and_other_keys_of_the_prompt_stay():
    """HunyuanVideo's distilled guidance (FluxGuidance) rides on the conditioning; without it core takes 6."""
    watching, taken = watched("hunyuan_i2v_v2")
    sample("hunyuan_i2v_v2", memory_of("hunyuan_i2v_v2"), model=watching, vae=decoder("hunyuan_i2v_v2"),
           start_image=picture(), positive=text(1, guidance=4.5))
    assert taken.conds[0]["guidance"] == 4.5 and len(taken.conds) == 2
    assert taken.conds[0]["guiding_frame_index"] == 0 and "guidance" not in taken.conds[1]


@pytest.mark.parametrize("preset", ["wan21_i2v_14b", "hunyuan15_i2v"])
def test_without_an_eye_the_keys_are_the_same_but_for_it(preset):
    watching, taken = watched(preset)
    _, _, report = sample(preset, memory_of(preset), model=watching, vae=decoder(preset), start_image=picture(),
                          clip_vision=None)
    assert "clip_vision_output" not in taken.conds[0] and "concat_latent_image" in taken.conds[0]
    assert "No CLIP Vision model was connected" in report


def test_a_first_and_last_frame_model_is_given_the_first_alone():
    """FLF2V (its image embedding has places for two pictures) and Fun-InP take what I2V takes, with no end frame."""
    film = {}
    for kind in ("flf2v", "i2v"):
        memory, clips = memory_of("wan21_i2v_14b"), []
        for start in (picture(), None):
            clip, memory, report = sample("wan21_i2v_14b", memory, model=model(kind), vae=vae(""), start_image=start)
            clips.append(clip["samples"])
        film[kind] = torch.cat(clips, 2)
        assert "the last frame of the clip before" in report and film[kind].isfinite().all()
    assert film["flf2v"].shape == film["i2v"].shape and not torch.equal(film["flf2v"], film["i2v"])


def test_the_eye_looks_once_a_clip_and_at_the_films_first_frame():
    class Counting:
        def __init__(self, inner):
            self.inner, self.frames = inner, []

        def encode_image(self, frame):
            self.frames.append(frame)
            return self.inner.encode_image(frame)

    eye, memory = Counting(clip_vision(1280)), memory_of("wan21_i2v_14b")
    for start in (picture(), None, None):
        _, memory, _ = sample("wan21_i2v_14b", memory, start_image=start, vae=vae(""), clip_vision=eye)
    assert len(eye.frames) == 3 and torch.equal(eye.frames[1], eye.frames[2])
    assert (eye.frames[0] - eye.frames[1]).abs().max() <= 0.5 / 255 + 1e-6


def test_given_frames_stay_and_have_no_timestep():
    """TI2V-5B: what is given is clean in every call, its timestep is 0, and it comes out as it went in."""
    from comfy.patcher_extension import WrappersMP

    calls = []

    def look(executor, x, timestep, *args, **kwargs):
        calls.append((x.clone(), timestep.clone()))
        return executor(x, timestep, *args, **kwargs)

    preset, watching = "wan22_ti2v_5b", model("ti2v").clone()
    watching.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    memory = memory_of(preset, overlap_latents=2)
    clip, memory, _ = sample(preset, memory, start_image=picture(), vae=vae("ti2v"))
    calls.clear()
    clip, _, _ = sample(preset, memory, model=watching, vae=vae("ti2v"), sigmas=None)  # the recipe's: uni_pc, 50 steps
    with torch.inference_mode():
        given = vae("ti2v").encode(memory.overlap.float() / 255)
    assert torch.equal(clip["context_samples"], given) and given.shape[2] == 2
    clean = watching.model.process_latent_in(given)
    assert len(calls) >= 50
    for x, timestep in calls:
        assert torch.allclose(x[:, :, :2], clean.expand_as(x[:, :, :2]), atol=1e-5)
        assert timestep.shape[1] == 6 and not timestep[:, :2].any()
        assert (timestep[:, 2:] == timestep[:, 2:3]).all() and (timestep[:, 2] > 0).all()
    assert calls[0][1][0, 2] == pytest.approx(1000, abs=1) and calls[-1][1][0, 2] < 200
