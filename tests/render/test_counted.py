"""What Render Short's film is made from: inputs that change nothing make no clip again, and older folders stay."""

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
    choices = choose(film.owns(TEXTS), film.start(), film.seed, lambda i: [folder[i]], Again(), film.owned(TEXTS))
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


def older(film: Film) -> list[str]:
    """Its clips as they were named when every input counted."""
    return [choice.fingerprint for choice in
            choose(film.owned(TEXTS), film.start(), film.seed, lambda _: [], Again())]


def test_films_named_by_all_their_inputs_are_still_used():
    film = film_of(ROLLING, others={"cfg": "0"}, given={"cfg": "0", "negative": "n"})
    folder = older(film)
    assert used_again(film, folder) == [True] * 4
    assert not any(used_again(replace(film, given={"cfg": "0"}), folder))
    assert not any(used_again(replace(film, seed=4), folder))


@pytest.mark.parametrize(("spec", "first", "second"), [
    (ROLLING, "16eaea6ce6fa35f5b810f891", "e96937f81f11f74d4e171c9e"),
    (I2V, "caed5d8d5a4c00548f454e35", "afdecad504acdfe54817d7e9")])
def test_older_names_are_the_ones_that_were_written(spec, first, second):
    """Written down while every input counted."""
    given = {"cfg": "0", "negative": "n"}
    film = film_of(spec, others=given, given=given, first={"start_image": "a"})
    assert film.owned(TEXTS)[:2] == (first, second)
    assert (film.owns(TEXTS)[:2] == film.owned(TEXTS)[:2]) == (spec is I2V)


def test_one_clip_of_an_older_film_made_again_leaves_those_before_it():
    film = film_of(ROLLING, others={"cfg": "0"}, given={"cfg": "0", "negative": "n"})
    folder = [[text] for text in older(film)]

    def chosen(*again):
        return choose(film.owns(TEXTS), film.start(), film.seed, folder.__getitem__, Again(*again), film.owned(TEXTS))

    only = chosen("only", 2, 9)
    assert [choice.fingerprint in texts for choice, texts in zip(only, folder, strict=True)] == [1, 1, 0, 0]
    assert only[3].keeps == folder[3][0]
    folder[2].append(only[2].fingerprint)
    folder[3].append(only[3].fingerprint)
    assert chosen("only", 2, 9) == tuple(replace(choice, keeps="") for choice in only)


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
