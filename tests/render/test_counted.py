"""What Render Short's film is made from: inputs that change nothing make no clip again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pack.nodes.memory.state import empty_memory
from pack.nodes.render.choice import Again, choose
from pack.nodes.render.counted import FOR_ALL, counted, names
from pack.nodes.render.expansion import Film, expand
from pack.nodes.sampling.presets import custom_preset, memory_spec

from .test_expansion import FILM, PLAN, TEXTS, TIMELINE, fingerprints

MODEL = SimpleNamespace(model_options={})
GUIDED = SimpleNamespace(model_options={"disable_cfg1_optimization": True})
ROLLING, I2V, SVD, HUNYUAN = (memory_spec(name) for name in ("longlive_1", "wan21_i2v_14b", "svd", "hunyuan_i2v"))
PAIR = memory_spec("wan22_i2v_14b")


def film_of(spec, **options) -> Film:
    return replace(FILM, memory=empty_memory(spec), plan=replace(PLAN, spec=spec), **options)


def used_again(film: Film, folder: list[str]) -> list[bool]:
    """Per clip, whether the folder's take is the film's."""
    choices = choose(film.owns(TEXTS), film.start(), film.seed, lambda i: [folder[i]], Again())
    return [choice.fingerprint == text for choice, text in zip(choices, folder, strict=True)]


@pytest.mark.parametrize(("spec", "first", "counts"), [
    (ROLLING, {}, False), (ROLLING, {"start_image": "a"}, True), (I2V, {}, True), (I2V, {"start_image": "a"}, True)])
def test_the_vae_counts_where_it_encodes_something(spec, first, counts):
    film = film_of(spec, first=first)
    assert used_again(replace(film, vae_key="another"), fingerprints(film, TEXTS)) == [not counts] * 4


def test_the_vae_of_a_start_image_is_of_the_first_clip_alone():
    film = film_of(ROLLING, first={"start_image": "a"})
    one, other = film.owns(TEXTS), replace(film, vae_key="another").owns(TEXTS)
    assert [a == b for a, b in zip(one, other, strict=True)] == [False, True, True, True]


def test_the_name_of_a_recipe_does_not_count_and_its_numbers_do():
    def film(label, window=6, tested="here"):
        recipe = replace(custom_preset(label, 16, 3, 3, window), tested_with=tested)
        return film_of(memory_spec("custom", custom=recipe))

    folder = fingerprints(film("Mine"), TEXTS)
    assert fingerprints(film("My own", tested="elsewhere"), TEXTS) == folder != fingerprints(film("Mine", 9), TEXTS)


GIVEN = {"negative": "n", "model_low_noise": MODEL, "clip_vision": "c", "sampler": "s", "sigmas": "g"}


@pytest.mark.parametrize(("spec", "given", "model", "count"), [
    (ROLLING, GIVEN, MODEL, {"cfg": 0.0}),
    (ROLLING, {"cfg": 0.0, "negative": "n"}, GUIDED, {"cfg": 0.0}),
    (ROLLING, {"cfg": 1.0, "negative": "n"}, MODEL, {"cfg": 0.0}),
    (ROLLING, {"cfg": 3.0, "negative": "n"}, MODEL, {"cfg": 3.0, "negative": "n"}),
    (I2V, {}, MODEL, {"cfg": 0.0}),
    (I2V, {"cfg": 5.0, "negative": "n", "clip_vision": "c"}, MODEL, {"cfg": 0.0, "negative": "n", "clip_vision": "c"}),
    (I2V, {"cfg": 1.0, "negative": "n", "sigmas": "g"}, MODEL, {"cfg": 1.0, "sigmas": "g"}),
    (I2V, {"cfg": 1.0, "negative": "n"}, GUIDED, {"cfg": 1.0, "negative": "n"}),
    (I2V, {"cfg": 1.0, "negative": "n", "sampler": "s"}, MODEL, {"cfg": 1.0, "negative": "n", "sampler": "s"}),
    (PAIR, GIVEN, MODEL, {"cfg": 0.0, **{name: GIVEN[name] for name in GIVEN if name != "clip_vision"}}),
    (PAIR, {"cfg": 1.0, "negative": "n", "model_low_noise": GUIDED}, MODEL,
     {"cfg": 1.0, "negative": "n", "model_low_noise": GUIDED}),
    (HUNYUAN, {"cfg": 0.0, "negative": "n"}, MODEL, {"cfg": 0.0}),
    (SVD, {"cfg": 3.0, "negative": "n", "clip_vision": "c"}, MODEL, {"cfg": 3.0, "clip_vision": "c"}),
])
def test_what_changes_nothing_does_not_count(spec, given, model, count):
    assert counted(given, spec, model) == count


@pytest.mark.parametrize(("spec", "carries", "begun"), [(I2V, True, 1), (I2V, False, 4), (ROLLING, False, 1)])
def test_every_clip_of_an_ordinary_checkpoint_without_memory_begins_with_the_picture(spec, carries, begun):
    from .test_expansion import SOURCES

    every, first = names(spec, carries)
    assert {*every, *first} == {*FOR_ALL, "start_image"}
    given, graph = {"start_image": ["8", 0], "cfg": 1.0}, {}
    sources = replace(SOURCES, carry_memory=carries, **{
        kind: {name: given[name] for name in group if name in given}
        for kind, group in (("others", every), ("first", first))})

    def add(kind, id, **inputs):
        graph[id] = inputs
        return lambda slot: [id, slot]

    expand(add, sources, TIMELINE, choose(TEXTS, "", 3, lambda _: [], Again()))
    assert ["start_image" in graph[f"clip{i:02}_sample"] for i in range(4)] == [i < begun for i in range(4)]


@pytest.mark.comfy
@pytest.mark.parametrize(("preset", "carries", "counts"), [
    ("wan21_i2v_14b", True, [1, 0, 0, 0]), ("wan21_i2v_14b", False, [1, 1, 1, 1]), ("longlive_1", False, [1, 0, 0, 0])])
def test_the_picture_counts_in_every_clip_that_begins_with_it(preset, carries, counts):
    from pack.nodes.render.nodes import RenderShort

    from ..sampling.latent_models import model, vae

    patcher, coder, spec = model("i2v"), vae(""), memory_spec(preset)

    def owns(gray, **others):
        others = {"start_image": torch.full((1, 8, 8, 3), gray), **others}
        return RenderShort.film(patcher, SimpleNamespace(patcher=patcher), coder, empty_memory(spec),
                                replace(PLAN, spec=spec), 3, carries, others).owns(TEXTS)

    assert [a != b for a, b in zip(owns(0.1), owns(0.2), strict=True)] == counts
    assert owns(0.1) == owns(0.1, cfg=0.0) != owns(0.1, cfg=3.0)
