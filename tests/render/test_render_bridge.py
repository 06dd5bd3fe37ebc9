"""Digests of what Render Short hands to every Clip Sampler: equal for what samples the same, in any session."""

from __future__ import annotations

import copy

import pytest
import torch

pytestmark = pytest.mark.comfy


def sampler(name: str, **options):
    import comfy.samplers

    return comfy.samplers.ksampler(name, options)


def conditioning(seed: int, **extra) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 8, 64, generator=generator), {"pooled_output": torch.ones(1, 4), **extra}]]


def test_equal_values_have_equal_keys_and_others_do_not():
    from pack.nodes.common.digest import value_key

    values = {
        "text": conditioning(1), "other text": conditioning(2), "strong text": conditioning(1, strength=2.0),
        "picture": torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0)), "cfg": 5.0, "other cfg": 5.5,
        "sigmas": torch.tensor([1.0, 0.5, 0.0]), "half sigmas": torch.tensor([1.0, 0.5, 0.0]).bfloat16(),
        "euler": sampler("euler"), "heun": sampler("heun"), "noisy euler": sampler("euler", s_noise=0.5), "none": None,
    }
    keys = {name: value_key(value) for name, value in values.items()}
    assert len(set(keys.values())) == len(values)
    assert {name: value_key(copy.deepcopy(value)) for name, value in values.items()} == keys


def test_one_pixel_is_another_picture():
    from pack.nodes.common.digest import value_key

    picture = torch.zeros(1, 80, 128, 3)
    before = value_key(picture)
    picture[0, 40, 60, 1] = 1 / 255
    assert value_key(picture) != before


def test_every_other_step_is_digested_as_its_copy():
    from pack.nodes.common.digest import value_key

    sigmas = torch.linspace(1, 0, 9)
    assert value_key(sigmas[::2]) == value_key(sigmas[::2].clone()) != value_key(sigmas[1::2])


def test_models_count_by_their_weights():
    from pack.nodes.common.digest import value_key

    from ..sampling.latent_models import clip_vision, model

    low, vision = model("i2v22"), clip_vision(1280)
    assert value_key(low) == value_key(low.clone()) != value_key(model("ti2v"))
    assert value_key(vision) == value_key(copy.copy(vision)) != value_key(clip_vision(1152))


def settings() -> dict[str, tuple]:
    """What a user turns a knob of, before and after: by core's own nodes."""
    import functools

    import numpy
    from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
    from comfy_extras.nodes_custom_sampler import SamplerER_SDE, SamplerSASolver
    from comfy_extras.nodes_easycache import EasyCacheNode
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG

    from ..sampling.latent_models import model

    def made(node, *values, **options):
        result = node.execute(*values, **options) if hasattr(node, "execute") else node().patch(*values, **options)
        return getattr(result, "args", result)[0]

    wan = model("i2v22")
    return {
        "shift": [made(ModelSamplingSD3, wan, shift) for shift in (3.0, 8.0, 3.0)],
        "rescale": [made(RescaleCFG, wan, by) for by in (0.1, 0.9, 0.1)],
        "cache": [made(EasyCacheNode, wan, by, 0.15, 0.95, False) for by in (0.2, 0.8, 0.2)],
        "sde": [made(SamplerER_SDE, "Reverse-time SDE", 3, eta, 1.0) for eta in (0.2, 1.0, 0.2)],
        "sa": [made(SamplerSASolver, wan, eta, 0.2, 0.8, 1.0, 3, 4, False, False) for eta in (0.1, 1.0, 0.1)],
        "upscale": [made(SamplerLCMUpscale, by, 4, "bislerp") for by in (1.0, 1.5, 1.0)],
        "partial": [functools.partial(sorted, key=key) for key in (len, str, len)],
        "array": [numpy.arange(first, first + 3) for first in (0, 1, 0)],
        "dtype": [torch.float16, torch.bfloat16, torch.float16],
        "neighbours": [[6, 67, 1.0], [66, 7, 1.0], [6, 67, 1.0]]}


@pytest.mark.parametrize("knob", ["shift", "rescale", "cache", "sde", "sa", "upscale", "partial", "array", "dtype",
                                  "neighbours"])
@pytest.mark.parametrize("in_session", [False, True])
def test_a_turned_knob_is_another_key_and_turned_back_the_old_one(knob, in_session):
    from pack.nodes.common.digest import value_key

    one, other, back = (value_key(value, in_session) for value in settings()[knob])
    assert one == back != other


def test_what_cannot_be_looked_into_is_equal_only_to_itself_where_that_is_asked():
    from pack.nodes.common.digest import value_key

    from ..sampling.latent_models import model

    class Somebodys:
        def __init__(self, strength):
            self.values = [strength]

    def patched(thing):
        changed = model("i2v22").clone()
        changed.model_options["transformer_options"]["theirs"] = thing
        return changed

    def counting(steps):
        return lambda: steps

    weak, strong = Somebodys(0.1), Somebodys(0.9)
    Somebodys.__module__ = "somebodys.nodes"
    assert value_key(patched(weak)) == value_key(patched(strong))
    assert value_key(patched(weak), True) == value_key(patched(weak), True) != value_key(patched(strong), True)
    assert value_key(counting([1])) == value_key(counting([2]))
    assert value_key(counting([1]), True) != value_key(counting([1]), True)
    assert value_key(counting(1)) != value_key(counting(2))


def test_what_is_equal_only_in_this_session_has_another_key_in_the_next():
    import importlib.util
    import threading

    from pack.nodes.common import digest

    from ..sampling.latent_models import model

    def next_session():
        spec = importlib.util.spec_from_file_location(digest.__name__, digest.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    changed = model("i2v22").clone()
    changed.model_options["transformer_options"]["theirs"] = threading.Event()
    one, other = next_session(), next_session()
    assert one.value_key(changed, True) == one.value_key(changed, True) != other.value_key(changed, True)
    assert one.value_key(changed) == other.value_key(changed)


def test_settings_of_a_text_encoder_count_where_they_are_set(toyworld):
    from comfy_extras.nodes_cond import T5TokenizerOptions
    from pack.nodes.common.digest import clip_key, patcher_key
    from pack.nodes.loading import bridge_text

    clip = bridge_text.load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "original")[0]
    earlier, last = clip.clone(), clip.clone()
    earlier.clip_layer(-2)
    last.clip_layer(-1)
    longer, same = (T5TokenizerOptions.execute(clip, 0, length).args[0] for length in (600, 600))
    assert clip_key(clip) == clip_key(clip.clone()) == patcher_key(clip.patcher)
    assert clip_key(longer) == clip_key(same)
    assert len({clip_key(each) for each in (clip, earlier, last, longer)}) == 4


def test_a_film_is_another_with_another_setting_of_its_text_encoder():
    from types import SimpleNamespace

    from pack.nodes.memory.state import empty_memory
    from pack.nodes.render.nodes import RenderShort

    from ..sampling.latent_models import model, vae
    from .test_expansion import PLAN

    keys = {RenderShort.film(model("i2v"), SimpleNamespace(patcher=model("i2v"), layer_idx=layer), vae(""),
                             empty_memory(PLAN.spec), PLAN, 3, True, {}).clip_key for layer in (None, -2)}
    assert len(keys) == 2


def test_keys_are_the_same_in_every_session():
    """Written down once: a key that changes makes every film again. A sampler's holds names of ComfyUI's functions."""
    from pack.nodes.common.digest import value_key

    assert value_key([[torch.arange(4.0), {"a": 1, "b": [True, None]}]]) == "d37abbee046bb9b66a930d2aea27e409"


def test_the_time_of_a_clip_comes_from_the_film_or_else_from_records(tmp_path, monkeypatch):
    from types import SimpleNamespace

    import folder_paths
    from pack.nodes.budget.learned import FILE, Record, add_record, plan_key
    from pack.nodes.common.types import MemorySpec, RenderPlan
    from pack.nodes.render.bridge import clip_times

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    plan = RenderPlan(128, 80, 6, MemorySpec("toyworld", 8.0, 3, 3, 6), 0, 4, 2**33, (), (), card="a card")
    empty, begun = (SimpleNamespace(seconds=lambda known=known: known) for known in ([], [40.0]))
    assert clip_times(empty, plan) == []
    for phase, seconds in (("sampling", 20.0), ("decode", 5.0)):
        add_record(tmp_path / "videomemory" / FILE, Record("a card", "", phase, plan_key(plan), 1, 0, 0, 0, seconds, 1))
    assert clip_times(empty, plan) == [25.0]
    assert clip_times(begun, plan) == [40.0]
