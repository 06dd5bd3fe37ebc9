"""The planner: monotone, within budget, plain about what it gave up; and design.md's envelope for a 12 GB card."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pack.nodes.budget import planner
from pack.nodes.budget.cost_model import Job, VaeFacts, decode_cost, phase_costs
from pack.nodes.budget.ladder import LADDERS, PROFILES, fit_size, ladder
from pack.nodes.budget.planner import (
    TILES_PX,
    Extras,
    NothingFits,
    budget_of,
    clip_latents_of,
    fits,
    make_plan,
)
from pack.nodes.budget.probe import Budget, Machine
from pack.nodes.budget.report import decisions
from pack.nodes.common.types import MemorySpec, ModelFacts
from pack.nodes.memory.state import empty_memory
from pack.nodes.sampling.presets import memory_spec

GIB = 2**30
WAN22_VAE = VaeFacts("wan22", 160, 16, int(1.3126 * GIB), 2)
NF4_5B = ModelFacts("wan", 30, 24, 128, 14336, (1, 2, 2), 48, 16, int(3.0e9), 2)
TOY = ModelFacts("wan", 6, 2, 128, 960, (1, 2, 2), 16, 8, 31_000_000, 4)
TOY_VAE = VaeFacts("wan21", 16, 8, 14_000_000, 4)
CARD_12 = Machine("cuda:0", False, 12 * GIB, 12 * GIB, 0, 32 * GIB, 24 * GIB, 500 * GIB)
KINDS = ("8 bits", "4 bits", "kept in RAM", "window shortened", "Clips shortened", "in tiles")


def spec_5b(window_s: float = 4, precision: str = "model", placement: str = "vram") -> MemorySpec:
    return MemorySpec("longlive_2", 24.0, 8, 8, math.ceil(window_s * 6 / 8) * 8, precision, placement)


def card(gib: float, ram_gib: float = 64) -> Budget:
    return Budget(int(gib * GIB), int(ram_gib * GIB), False, None, "a test card")


def plan_5b(budget: Budget, size=(1280, 720), clip_s=4.0, window_s=4.0, profile="balanced", pinned=frozenset()):
    return make_plan(NF4_5B, WAN22_VAE, *size, clip_s, spec_5b(window_s), profile, budget, pinned)


# design.md, section 8: NF4 weights of 3.0 GB on a 12 GB card that drives a desktop.
ENVELOPE = [
    # clip, size, window, what may be given up
    (4, (832, 480), 4, ()),
    (4, (1280, 720), 4, ("precision",)),
    (8, (1280, 720), 4, ("precision",)),
    (8, (1280, 720), 8, ("precision", "placement")),
    (12, (1280, 720), 8, ("precision", "placement")),
    (4, (1280, 720), 16, ("precision", "placement")),
    (4, (1920, 1080), 4, ("precision", "placement", "tile")),
]


@pytest.mark.parametrize(("clip_s", "size", "window_s", "allowed"), ENVELOPE)
def test_row_of_the_envelope_fits_when_planned_for_12_gb(clip_s, size, window_s, allowed):
    budget = budget_of(CARD_12, 12.0)
    plan = plan_5b(budget, size, clip_s, window_s)
    asked = spec_5b(window_s)
    given_up = {name for name, was, now in (
        ("precision", asked.precision, plan.spec.precision), ("placement", asked.placement, plan.spec.placement),
        ("window", asked.window_latents, plan.spec.window_latents), ("tile", 0, plan.decode_tile_px),
        ("clip", clip_latents_of(asked, clip_s), plan.clip_latents)) if was != now}
    assert given_up <= set(allowed)
    assert max(cost.vram_bytes for cost in plan.phases) <= budget.vram_bytes < 11.1 * GIB


@pytest.mark.parametrize(("clip_s", "size", "window_s"), [row[:3] for row in ENVELOPE])
def test_at_the_least_three_gigabytes_are_left_in_every_row(clip_s, size, window_s):
    budget = budget_of(CARD_12, 12.0)
    plan = plan_5b(budget, size, clip_s, window_s, "minimum_vram")
    assert budget.vram_bytes - max(cost.vram_bytes for cost in plan.phases) >= 3 * GIB
    assert plan.spec.window_latents == spec_5b(window_s).window_latents
    assert plan.clip_latents == clip_latents_of(spec_5b(window_s), clip_s)


def test_cost_does_not_grow_with_the_clip_when_the_window_is_the_same():
    budget = budget_of(CARD_12, 12.0)
    short, long = (max(c.vram_bytes for c in plan_5b(budget, clip_s=s).phases) for s in (4, 8))
    assert long - short < 100 * 2**20


ASKED = [(832, 480), (1280, 704), (1920, 1080)]
PINS = st.frozensets(st.sampled_from(["int8", "4bit", "ram", "offload", "window", "clip"]), max_size=3)


def given_up(plan, asked: MemorySpec, latents: int, size) -> tuple:
    """What a plan gave up, the dearest thing first, in the order of its profile; smaller is better."""
    levels = ("model", "int8", "4bit")
    lost = {"precision": levels.index(plan.spec.precision), "ram": plan.spec.placement != asked.placement,
            "offload": plan.weights_in_ram_bytes, "window": asked.window_latents - plan.spec.window_latents,
            "clip": latents - plan.clip_latents, "size": size[0] * size[1] - plan.width * plan.height}
    order = ["precision" if kind == "4bit" else kind for kind in LADDERS[plan.profile] if kind != "int8"]
    return tuple(lost[kind] for kind in reversed(order))


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 60), st.floats(0, 30), st.sampled_from(PROFILES), st.sampled_from(ASKED),
       st.sampled_from([0.5, 4, 12]), st.sampled_from([1, 4, 16]), st.floats(2, 64), PINS, st.booleans())
def test_more_vram_never_yields_a_worse_plan(gib, extra, profile, size, clip_s, window_s, ram_gib, pinned, shrink):
    asked = spec_5b(window_s)
    try:
        small = plan_of(asked, card(gib, ram_gib), clip_s, profile, pinned=pinned, size=size, may_shrink=shrink)
    except NothingFits:
        assume(False)
    large = plan_of(asked, card(gib + extra, ram_gib), clip_s, profile, pinned=pinned, size=size, may_shrink=shrink)
    latents = clip_latents_of(asked, clip_s)
    assert given_up(large, asked, latents, size) <= given_up(small, asked, latents, size)
    assert large.spec.window_latents >= small.spec.window_latents
    assert large.clip_latents >= small.clip_latents
    if given_up(large, asked, latents, size) == given_up(small, asked, latents, size):
        assert (large.decode_tile_px or 10**6) >= (small.decode_tile_px or 10**6) or small.decode_caches_in_ram


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 40), st.sampled_from(PROFILES), st.sampled_from(ASKED), st.sampled_from([0.5, 4, 12]),
       st.sampled_from([1, 4, 16]), st.floats(2, 64), st.booleans())
def test_the_plan_that_came_out_comes_out_again(gib, profile, size, clip_s, window_s, ram_gib, shrink):
    budget = card(gib, ram_gib)
    try:
        once = plan_of(spec_5b(window_s), budget, clip_s, profile, size=size, may_shrink=shrink)
    except NothingFits:
        assume(False)
    again = plan_of(once.spec, budget, once.clip_s, profile, size=(once.width, once.height), may_shrink=shrink)
    assert replace(again, decisions=()) == replace(once, decisions=())


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 40), st.sampled_from(PROFILES), st.sampled_from(ASKED), PINS)
def test_what_was_pinned_is_kept(gib, profile, size, pinned):
    asked = spec_5b(8)
    try:
        plan = plan_of(asked, card(gib), 8.0, profile, pinned=pinned, size=size)
    except NothingFits:
        return
    assert (plan.width, plan.height) == fit_size(NF4_5B, *size)
    assert "ram" not in pinned or plan.spec.placement == "vram"
    assert "window" not in pinned or plan.spec.window_latents == asked.window_latents
    assert "clip" not in pinned or plan.clip_latents == clip_latents_of(asked, 8.0)
    assert "offload" not in pinned or plan.weights_in_ram_bytes == 0
    assert not {"int8", "4bit"} <= pinned or plan.spec.precision == "model"


def test_the_size_is_given_up_last_and_only_where_that_is_allowed():
    plan = plan_of(spec_5b(), card(3.0), size=(1920, 1088), may_shrink=True)
    assert plan.width < 1920 and plan.width % 32 == plan.height % 32 == 0
    assert any(sentence.startswith("Size lowered from 1920x1088 to") for sentence in plan.decisions)
    with pytest.raises(NothingFits):
        plan_of(spec_5b(), card(3.0), size=(1920, 1088))


def test_the_model_goes_to_ram_by_as_little_as_will_do():
    plan = plan_of(spec_5b(), card(4.0))
    eighths = plan.weights_in_ram_bytes / NF4_5B.weight_bytes * 8
    assert 1 <= round(eighths) <= 7 and eighths == pytest.approx(round(eighths), abs=1e-6)
    less = Job(NF4_5B, WAN22_VAE, 1280, 704, plan.clip_latents, plan.spec, plan.decode_tile_px, 1,
               plan.decode_caches_in_ram, int((round(eighths) - 1) / 8 * NF4_5B.weight_bytes))
    assert not fits(less, card(4.0))
    assert any(" of the model rest in RAM: saves" in sentence for sentence in plan.decisions)


def test_cfg_an_encoder_and_what_was_learned_reach_the_plan():
    plain, cfg = plan_of(spec_5b(), card(60)), plan_of(spec_5b(), card(60), prompts=2)
    assert dict(cfg.phases[1].parts)["memory"] == 2 * dict(plain.phases[1].parts)["memory"]
    other = plan_of(spec_5b(), card(60), text_bytes=GIB, learned=(("decode", 2**20),), card="a card")
    assert other.phases[0].ram_bytes == GIB and other.card == "a card" and other.model == NF4_5B
    assert other.phases[2].vram_bytes - plain.phases[2].vram_bytes == 2**20


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 60), st.sampled_from(PROFILES), st.integers(64, 2500), st.integers(64, 2500), st.floats(0.1, 30),
       st.floats(0.1, 20), st.booleans(), st.booleans())
def test_plan_is_within_budget_and_on_the_grid_or_refused(gib, profile, width, height, clip_s, window_s, unified,
                                                          shrink):
    budget = Budget(int(gib * GIB), int(gib * GIB), unified, None, "test")
    try:
        plan = plan_of(spec_5b(window_s), budget, clip_s, profile, size=(width, height), may_shrink=shrink)
    except RuntimeError as error:
        assert "does not fit" in str(error)
        assert "too much" in str(error)
        return
    for cost in plan.phases:
        purse = cost.vram_bytes + (cost.ram_bytes if unified else 0)
        assert purse <= budget.vram_bytes
        assert unified or cost.ram_bytes <= budget.ram_bytes
    assert plan.width % 32 == plan.height % 32 == 0
    assert 0 <= width - plan.width < 32 or shrink
    assert plan.clip_latents % 8 == plan.spec.window_latents % 8 == plan.spec.sink_latents % 8 == 0
    assert plan.clip_latents >= 8
    assert plan.decode_tile_px in TILES_PX
    if unified:
        assert plan.spec.placement == "vram"


@given(st.sampled_from(PROFILES), st.sampled_from([1, 4, 16]), st.sampled_from([1.0, 12.0]))
@settings(max_examples=20, deadline=None)
def test_every_rung_costs_no_more_than_the_one_before(profile, window_s, clip_s):
    plan = plan_5b(card(500), clip_s=clip_s, window_s=window_s)
    start = Job(NF4_5B, WAN22_VAE, plan.width, plan.height, plan.clip_latents, spec_5b(window_s))
    rungs = ladder(start, profile, frozenset({"offload"}))
    assert len(rungs) > 3
    for before, after in pairwise(rungs):
        for old, new in zip(phase_costs(before.job), phase_costs(after.job), strict=True):
            assert new.vram_bytes <= old.vram_bytes
            assert new.ram_bytes <= old.ram_bytes


def test_nothing_is_given_up_when_everything_fits():
    plan = plan_5b(card(60), size=(1280, 704))
    assert plan.decisions == ("Everything fits as asked: nothing was given up.",)
    assert plan.spec == spec_5b()
    assert (plan.decode_tile_px, plan.interpolation_batch, plan.clip_latents) == (0, 4, 24)


@pytest.mark.parametrize(("profile", "spec"), [
    ("balanced", ("4bit", "vram", 24)), ("quality", ("model", "ram", 24)), ("speed", ("4bit", "vram", 24)),
    ("minimum_vram", ("4bit", "ram", 24)),
])
def test_profiles_give_up_different_things_when_short_of_vram(profile, spec):
    plan = plan_5b(card(9.0), profile=profile)
    assert (plan.spec.precision, plan.spec.placement, plan.spec.window_latents) == spec


def test_caches_of_the_decoder_go_to_ram_only_where_the_smallest_tile_is_not_enough():
    job = Job(NF4_5B, WAN22_VAE, 1280, 704, 24, spec_5b(4.0))
    ways = planner.decode_ways(job, False, False)
    assert ways == [(tile, parked) for parked in (False, True) for tile in TILES_PX]
    peaks = {way: decode_cost(replace(job, decode_tile_px=way[0], decode_parked=way[1])) for way in ways}
    for tile in TILES_PX:
        held, parked = peaks[tile, False], peaks[tile, True]
        assert parked.vram_bytes < held.vram_bytes and parked.ram_bytes > held.ram_bytes
    assert planner.decode_ways(job, False, True) == [(tile, False) for tile in TILES_PX]  # on a CPU nothing is gained


def test_minimum_vram_takes_the_least_even_when_there_is_plenty():
    plan = plan_5b(card(100), profile="minimum_vram")
    assert plan.decode_caches_in_ram
    assert sum("decoder's caches rest in RAM: saves" in sentence for sentence in plan.decisions) == 1
    assert (plan.spec.precision, plan.spec.placement, plan.decode_tile_px, plan.interpolation_batch) == (
        "4bit", "ram", 256, 1)
    assert plan.spec.window_latents == 24


def test_memory_stays_in_vram_when_ram_and_vram_are_one():
    asked = Budget(int(6 * GIB), 0, True, None, "RAM")
    plan = make_plan(TOY, TOY_VAE, 128, 80, 3.0, MemorySpec("toyworld", 8.0, 3, 3, 6), "minimum_vram", asked)
    assert plan.spec.placement == "vram"
    assert (plan.width, plan.height, plan.clip_latents, plan.decode_tile_px) == (128, 80, 6, 0)


def test_ladder_leaves_out_what_saves_nothing():
    asked = Job(NF4_5B, WAN22_VAE, 1280, 704, 8, MemorySpec("longlive_2", 24.0, 8, 8, 8, "4bit", "ram"))
    assert [rung.steps for rung in ladder(asked, "balanced", frozenset({"offload", "size"}))] == [()]


def test_pinned_steps_are_not_taken():
    plan = plan_5b(card(9), pinned=frozenset({"int8", "4bit", "window"}))
    assert (plan.spec.precision, plan.spec.window_latents, plan.spec.placement) == ("model", 24, "ram")


def plan_of(spec: MemorySpec, budget: Budget, clip_s: float = 4.0, profile: str = "balanced", facts=NF4_5B,
            pinned=frozenset(), size=(1280, 704), **extras):
    return make_plan(facts, WAN22_VAE, *size, clip_s, spec, profile, budget, pinned, Extras(**extras))


def test_pins_and_retrieval_are_kept_while_they_fit():
    spec = memory_spec("longlive_2", prompt_change="pin", retrieved_s=1.0)
    plan = plan_of(spec, card(60))
    assert plan.spec == spec and "nothing was given up" in plan.decisions[0]


def test_window_goes_before_retrieval_and_pins_stay():
    spec = memory_spec("longlive_2", 4.0, prompt_change="pin", retrieved_s=2.0, precision="4bit", placement="ram")
    start = Job(NF4_5B, WAN22_VAE, 1280, 704, 24, spec)
    shapes = [(r.job.spec.pinned_latents, r.job.spec.retrieved_latents, r.job.spec.window_latents)
              for r in ladder(start, "balanced") if set(r.steps) <= {"window"}]
    assert shapes == [(8, 16, 24), (8, 16, 16), (8, 16, 8), (8, 8, 8), (8, 0, 8)]
    for rung in ladder(start, "balanced"):
        empty_memory(rung.job.spec)  # raises where places are no whole chunks


def test_what_a_shorter_memory_gave_up_is_said():
    spec = memory_spec("longlive_2", 4.0, retrieved_s=1.0, precision="4bit", placement="ram")
    way = ladder(Job(NF4_5B, WAN22_VAE, 1280, 704, 8, spec), "balanced")
    text = decisions(way[0].job, [("window", way[-1].job)], way[-1].job, (1280, 704), 8 / 6)[-1]
    assert text.startswith("Memory window shortened from 4.0 to 1.3 s and places for chunks brought back cut from 1.3 "
                           "to 0.0 s: saves")


@pytest.mark.parametrize("profile", PROFILES)
def test_an_ordinary_checkpoint_gives_up_length_alone_when_the_model_must_stay_on_the_card(profile):
    spec = memory_spec("wan22_ti2v_5b")
    start, held = Job(NF4_5B, WAN22_VAE, 1280, 704, 30, spec), frozenset({"offload"})
    steps = {step for rung in ladder(start, profile, held | {"size"}) for step in rung.steps}
    assert steps == {"clip"}
    plan = plan_of(spec, card(4.8), 5.0, profile, pinned=held)
    assert plan.spec == spec and 1 <= plan.clip_latents < 30 == clip_latents_of(spec, 5.0)
    assert any(sentence.startswith("Clips shortened from 5.0 to") for sentence in plan.decisions)
    longer = replace(Job(NF4_5B, WAN22_VAE, 1280, 704, plan.clip_latents + 1, spec), decode_tile_px=plan.decode_tile_px)
    assert not fits(longer, card(4.8))
    offloaded = plan_of(spec, card(4.8), 5.0, profile)
    assert offloaded.clip_latents == 30 and 0 < offloaded.weights_in_ram_bytes < NF4_5B.weight_bytes


def test_a_clip_is_never_shorter_than_what_the_next_one_begins_with():
    spec = memory_spec("wan22_ti2v_5b", overlap_latents=3)
    assert clip_latents_of(spec, 0.1) == 3
    rungs = ladder(Job(NF4_5B, WAN22_VAE, 1280, 704, 6, spec), "balanced", frozenset({"offload", "size"}))
    assert [rung.job.clip_latents for rung in rungs] == [6, 5, 4, 3]
    assert clip_latents_of(memory_spec("wan22_ti2v_5b", reanchor_clips=4), 0.1) == 2
