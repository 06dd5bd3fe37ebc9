"""High and low noise models: who samples what, noise once, a LoRA on each, packed weights; progress and Cancel."""

from __future__ import annotations

import functools

import pytest
import torch

from .counting_films import Studio, memory_of, numbered, sample
from .latent_models import HEIGHT, WIDTH, blocks_vae, model, picture, save_wan, text, vae

pytestmark = pytest.mark.comfy

PAIR = "wan22_i2v_14b"


def euler():
    import comfy.samplers

    return comfy.samplers.sampler_object("euler")


def pair_of_loras():
    """The two models of a pair: the same weights under a LoRA-like patch each."""
    found = []
    for strength in (0.5, -0.5):
        patched = model("i2v22").clone()
        patched.add_patches({"diffusion_model.head.head.weight": ("diff", (torch.full((64, 128), 0.3),))}, strength)
        found.append(patched)
    return found


def test_the_pair_equals_two_advanced_samplers_of_core():
    """KSamplerAdvanced to a step with its noise left over, and another from there without new noise: core's recipe."""
    import comfy.samplers
    from pack.nodes.sampling.bridge_latent_run import noise_at
    from pack.nodes.sampling.latent_presets import LATENT_RECIPES

    sigmas, cfg = torch.tensor([1.0, 0.95, 0.7, 0.4, 0.0]), LATENT_RECIPES[PAIR].cfg
    high, low = pair_of_loras()
    ours, _, report = sample(PAIR, memory_of(PAIR), 3, model=high, model_low_noise=low, vae=vae(""), sampler=euler(),
                             start_image=picture(), sigmas=sigmas)
    assert "2 steps with the high and 2 steps with the low noise model, cfg 3.5" in report
    from comfy_extras.nodes_wan import WanImageToVideo

    with torch.inference_mode():
        *conds, latent = WanImageToVideo.execute(text(1), text(2), vae(""), WIDTH, HEIGHT, 9, 1,
                                                 start_image=picture()).args
        noise = noise_at(3, ["0", "1", "2"], (1, 16, 1, HEIGHT // 8, WIDTH // 8), 2)
        samples = latent["samples"]
        for part, begin, end, added in ((high, 0, 2, noise), (low, 2, 4, torch.zeros_like(noise))):
            sampler = comfy.samplers.KSampler(part, 4, torch.device("cpu"), "euler", "simple")
            samples = sampler.sample(added, *conds, cfg, latent_image=samples, start_step=begin, last_step=end,
                                     force_full_denoise=end == 4, sigmas=sigmas.clone(), seed=0)
        swapped, _, _ = sample(PAIR, memory_of(PAIR), 3, model=low, model_low_noise=high, vae=vae(""), sampler=euler(),
                               start_image=picture(), sigmas=sigmas)
    assert torch.allclose(ours["samples"], samples, atol=1e-5) and samples.std() > 0.01
    assert not torch.allclose(ours["samples"], swapped["samples"], atol=1e-2)  # each LoRA counts in its own half


@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("steps", [4, 8, 40])
def test_the_boundary_is_wans_own(steps, shift):
    """generate.py of Wan 2.2: the high noise model where t >= boundary * 1000, t being 1000 sigma cut to an integer."""
    import comfy.samplers
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    shifted = ModelSamplingSD3().patch(model("i2v22"), shift)[0]
    sigmas = comfy.samplers.calculate_sigmas(shifted.get_model_object("model_sampling"), "simple", steps)
    parts = planned(sigmas)
    even = [1 - int(i * 1000 / steps) / 1000 for i in range(steps)]  # "simple" takes every so many of 1000 levels
    want = [int(1000 * shift * u / (1 + (shift - 1) * u) + 1e-9) >= 900 for u in even]
    assert [parts[0].steps, parts[1].steps] == [sum(want), steps - sum(want)]
    assert torch.equal(torch.cat((parts[0].sigmas[:-1], parts[1].sigmas)), sigmas)
    exact = planned(torch.tensor([1.0, 0.9, 0.899, 0.5, 0.0]))
    assert [part.steps for part in exact] == [2, 2]  # 0.9 itself is the high noise model's


def test_the_users_noise_levels_are_not_written_to():
    """SIGMAS are the output of another node, which ComfyUI keeps; uni_pc writes 0.001 over the last one."""
    sigmas = torch.tensor([1.0, 0.95, 0.7, 0.4, 0.0])
    options = {"vae": vae(""), "start_image": picture(), "sigmas": sigmas}
    first, again = (sample(PAIR, memory_of(PAIR), 2, **options)[0]["samples"] for _ in range(2))
    assert torch.equal(sigmas, torch.tensor([1.0, 0.95, 0.7, 0.4, 0.0])) and torch.equal(first, again)


def planned(sigmas):
    from pack.nodes.common.types import Geometry
    from pack.nodes.sampling.bridge_latent_run import plan_parts
    from pack.nodes.sampling.latent_presets import LATENT_RECIPES
    from pack.nodes.sampling.strategy import ClipRequest

    request = ClipRequest(model("i2v22"), memory_of(PAIR), text(1), Geometry(16, 4, 8), 3, 1, sigmas=sigmas,
                          sampler=euler(), model_low_noise=model("i2v22"))
    return plan_parts(request, LATENT_RECIPES[PAIR])


def test_the_recipes_own_levels_cross_the_boundary():
    """uni_pc, 40 steps, shift 5, as generate.py has them: both models sample, with two steps or more."""
    from pack.nodes.sampling.latent_presets import LATENT_RECIPES

    for preset in (PAIR, "wan22_svi_pro"):
        _, _, report = sample(preset, memory_of(preset), 2, vae=vae(""), start_image=picture(), sigmas=None)
        assert LATENT_RECIPES[preset].steps == 40
        assert "15 steps with the high and 25 steps with the low noise model" in report, report


def test_a_random_sampler_draws_anew_for_the_second_model():
    import comfy.samplers

    drawn = []

    class Drawing(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args, **kwargs):
            drawn.append((extra_args["seed"], float(noise.abs().sum())))
            return latent_image

    for _ in range(2):
        sample(PAIR, memory_of(PAIR), 2, vae=vae(""), start_image=picture(), sampler=Drawing())
    (high, noise), (low, none) = drawn[:2]
    assert high != low and noise > 0 and none == 0 and drawn[2:] == drawn[:2]


@pytest.mark.parametrize("preset", [PAIR, "wan22_ti2v_5b", "svd"])
def test_progress_runs_once_over_the_whole_clip(preset):
    import comfy.utils

    ticks, kind = [], {"svd": "svd", "wan22_ti2v_5b": "ti2v"}.get(preset, "i2v22")
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: ticks.append((value, total)))
    try:
        sample(preset, memory_of(preset), 2, vae=blocks_vae(preset) if kind == "svd" else vae(kind), sampler=euler(),
               start_image=picture())
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_previews_are_made_in_both_halves(monkeypatch):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    assert latent_preview.args is args
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    import comfy.utils

    sizes = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: sizes.append(preview[1].size))
    try:
        sample(PAIR, memory_of(PAIR), 2, vae=vae(""), start_image=picture(), sampler=euler())
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert sizes == [(WIDTH // 8, HEIGHT // 8)] * 4


@pytest.mark.parametrize("stop", [1, 3])
def test_cancel_stops_within_a_step(stop):
    """Before the next forward, also in the second model, and without a server, whose progress bar would ask too."""
    import comfy.model_management as mm
    from comfy.patcher_extension import WrappersMP

    steps, watched = [], model("i2v22").clone()

    def count(executor, *args, **kwargs):
        steps.append(0)
        answer = executor(*args, **kwargs)
        if len(steps) == stop:
            mm.interrupt_current_processing(True)
        return answer

    watched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "count", count)
    with pytest.raises(mm.InterruptProcessingException):
        sample(PAIR, memory_of(PAIR), 2, model=watched, vae=vae(""), start_image=picture(), sampler=euler())
    assert len(steps) == stop


@pytest.fixture
def rooms(monkeypatch):
    """The bytes that ComfyUI was told to keep free beside a model's weights, each time it prepared to sample."""
    import comfy.model_management as mm

    asked, load = [], mm.load_models_gpu

    def loaded(*args, **kwargs):
        if "minimum_memory_required" in kwargs:
            asked.append(kwargs["minimum_memory_required"])
        return load(*args, **kwargs)

    monkeypatch.setattr(mm, "load_models_gpu", loaded)
    return asked


FAILS: dict[str, tuple[list[int], set[int]]] = {}  # beside the MODELs: what a patch holds is part of its MODEL


def fail(name, executor, *args, **kwargs):
    made, forwards = FAILS[name]
    made.append(0)
    if len(made) in forwards:
        raise torch.cuda.OutOfMemoryError("the card is full")
    return executor(*args, **kwargs)


def failing(forwards: set[int], kind: str = "i2v22", name: str = "one"):
    """A MODEL that runs out of memory in these of its forwards, and the list of the forwards that were begun."""
    from comfy.patcher_extension import WrappersMP

    FAILS[name], patcher = ([], forwards), model(kind).clone()
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "fail", functools.partial(fail, name))
    return patcher, FAILS[name][0]


@pytest.mark.parametrize("preset", [PAIR, "wan22_ti2v_5b", "svd"])
def test_a_clip_is_the_same_when_memory_runs_out_on_the_way(preset, rooms):
    """The model's levels begin again, with more room: ComfyUI then leaves more of the weights in RAM."""
    kind = {"svd": "svd", "wan22_ti2v_5b": "ti2v"}.get(preset, "i2v22")
    coder = blocks_vae(preset) if kind == "svd" else vae(kind)
    options = {"vae": coder, "sampler": euler(), "start_image": picture()}
    patcher, _ = failing({2, 3}, kind)
    want, _, _ = sample(preset, memory_of(preset), 2, model=failing(set(), kind, "plain")[0], **options)
    rooms.clear()
    got, _, report = sample(preset, memory_of(preset), 2, model=patcher, **options)
    assert torch.equal(got["samples"], want["samples"])
    assert "Memory ran out 2x: sampled again" in report
    assert len(rooms) >= 3 and rooms[0] < rooms[1] < rooms[2]


def test_what_the_first_model_has_made_is_kept_when_the_second_is_out_of_memory(rooms):
    sigmas = torch.tensor([1.0, 0.95, 0.7, 0.4, 0.0])
    options = {"vae": vae(""), "sampler": euler(), "start_image": picture(), "sigmas": sigmas}
    high, low = failing(set(), name="high"), failing(set(), name="low")
    want, _, _ = sample(PAIR, memory_of(PAIR), 2, model=high[0], model_low_noise=low[0], **options)
    done = len(high[1])
    FAILS["low"][1].update(range(1, 100))
    with pytest.raises(torch.cuda.OutOfMemoryError, match="what its first model has made are kept"):
        sample(PAIR, memory_of(PAIR), 2, model=high[0], model_low_noise=low[0], **options)
    assert len(high[1]) == 2 * done
    FAILS["low"][1].clear()
    got, _, report = sample(PAIR, memory_of(PAIR), 2, model=high[0], model_low_noise=low[0], **options)
    assert len(high[1]) == 2 * done and torch.equal(got["samples"], want["samples"])
    assert "what its first model has made were kept and not sampled again" in report
    sample(PAIR, memory_of(PAIR), 2, model=high[0], model_low_noise=low[0], **options)
    assert len(high[1]) == 3 * done  # whole: nothing is left of it


@pytest.mark.parametrize("preset", ["wan22_ti2v_5b", "svd"])
def test_samples_are_kept_when_decoding_the_frames_for_the_next_clip_runs_out_of_memory(preset, monkeypatch):
    kind = {"svd": "svd", "wan22_ti2v_5b": "ti2v"}[preset]
    coder = blocks_vae(preset) if kind == "svd" else vae(kind)
    options = {"vae": coder, "sampler": euler(), "start_image": picture()}
    patcher, made = failing(set(), kind)
    want, _, _ = sample(preset, memory_of(preset), 2, model=patcher, **options)
    done = len(made)

    def decode(_latents):
        raise torch.cuda.OutOfMemoryError("the card is full")

    with monkeypatch.context() as patch:
        patch.setattr(type(coder), "decode", lambda self, latents: decode(latents))
        with pytest.raises(torch.cuda.OutOfMemoryError, match="its samples are kept"):
            sample(preset, memory_of(preset), 2, model=patcher, **options)
    got, _, report = sample(preset, memory_of(preset), 2, model=patcher, **options)
    assert len(made) == 2 * done and torch.equal(got["samples"], want["samples"])
    assert "its samples were kept and not sampled again" in report


def test_a_plan_that_pins_the_model_to_the_card_keeps_it_there(rooms):
    from pack.nodes.common.types import RenderPlan

    memory = memory_of(PAIR)
    plan = RenderPlan(WIDTH, HEIGHT, 3, memory.spec, 0, 1, 0, (), (), pinned=("offload",))
    patcher, made = failing({1})
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sample(PAIR, memory, 2, model=patcher, vae=vae(""), start_image=picture(), sampler=euler(), plan=plan)
    assert len(made) == len(rooms) == 1


def test_memory_that_never_suffices_is_an_error_after_four_attempts(rooms):
    patcher, made = failing(set(range(1, 100)))
    with pytest.raises(torch.cuda.OutOfMemoryError, match="nothing is left to give up"):
        sample(PAIR, memory_of(PAIR), 2, model=patcher, vae=vae(""), start_image=picture(), sampler=euler())
    assert len(made) == len(rooms) == 4


def test_a_plan_asks_for_the_room_that_it_counted_on(rooms):
    from pack.nodes.common.types import PhaseCost, RenderPlan

    memory = memory_of(PAIR)
    sample(PAIR, memory, 2, vae=vae(""), start_image=picture(), sampler=euler())
    plain = rooms.pop(0)
    rooms.clear()
    cost = PhaseCost("sampling", 3 * 2**30, parts=(("weights", 2**30), ("activations", 2 * 2**30)))
    plan = RenderPlan(WIDTH, HEIGHT, 2, memory.spec, 0, 1, 0, (cost,), ())
    sample(PAIR, memory, 2, vae=vae(""), start_image=picture(), sampler=euler(), plan=plan)
    assert plain < 2**31 <= rooms[0]


def test_packed_weights_sample_both_halves(tmp_path):
    """Models of Load Diffusion Model (NF4): a pair of QuantPatchers equals a pair with the same unpacked weights."""
    from pack.nodes.loading.bridge import QuantPatcher, load_diffusion_model

    made = []
    for seed, name in ((1, "high"), (2, "low")):
        save_wan("i2v22", tmp_path / f"{name}.safetensors", seed)
        made.append([load_diffusion_model(str(tmp_path / f"{name}.safetensors"), weights, min_bytes=0)[0]
                     for weights in ("nf4", "original")])
    (high, high_plain), (low, low_plain) = made
    assert isinstance(high, QuantPatcher) and isinstance(low, QuantPatcher)
    options = {"vae": vae(""), "start_image": picture(), "sampler": euler()}
    packed, after, _ = sample(PAIR, memory_of(PAIR), 2, model=high, model_low_noise=low, **options)
    again, _, _ = sample(PAIR, memory_of(PAIR), 2, model=high, model_low_noise=low, **options)
    plain, _, _ = sample(PAIR, memory_of(PAIR), 2, model=high_plain, model_low_noise=low_plain, **options)
    assert torch.equal(packed["samples"], again["samples"])
    error = (packed["samples"] - plain["samples"]).norm() / plain["samples"].norm()
    assert 0 < error < 0.3
    following, _, _ = sample(PAIR, after, 2, model=high, model_low_noise=low, vae=vae(""), sampler=euler())
    assert following["samples"].isfinite().all()


def test_a_counted_film_of_the_pair_asks_each_model():
    """The noise of the clip is in what the first model sees, and in what it leaves to the second, once."""
    studio = Studio(PAIR)
    latent, _, _ = studio.clip(memory_of(PAIR), start_image=numbered(0))
    assert len(studio.counter.seen) == 4 and latent["samples"].isfinite().all()
