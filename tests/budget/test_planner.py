"""The planner: monotone, within budget, plain about what it gave up; and design.md's envelope for a 12 GB card."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pack.nodes.budget import planner
from pack.nodes.budget.cost_model import Job, VaeFacts, decode_cost, phase_costs
from pack.nodes.budget.ladder import LADDERS, PROFILES, SIZES, fit_size, ladder
from pack.nodes.budget.planner import (
    TILES_PX,
    Extras,
    NothingFits,
    budget_of,
    check_request,
    clip_latents_of,
    fits,
    make_plan,
)
from pack.nodes.budget.probe import Budget, DiskView, Machine
from pack.nodes.budget.probe_card import CardView, Process
from pack.nodes.budget.report import decisions, gb, report
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


def test_report_says_what_a_memory_keeps_in_its_own_words():
    budget = budget_of(CARD_12)
    rolling = report(plan_of(memory_spec("longlive_2", prompt_change="pin"), budget), CARD_12, budget)
    assert "1.33 s from the start, 1.33 s pinned and the last 1.33 s" in rolling
    frames = report(plan_of(memory_spec("wan22_ti2v_5b"), budget), CARD_12, budget)
    assert "Latent memory: the film's first frame, the last frame of the clip before, colours held by 0.3." in frames


def test_each_concession_is_a_sentence_with_its_saving():
    plan = plan_5b(card(8.0), window_s=8)
    text = "\n".join(plan.decisions)
    assert "Size 1280x720 became 1280x704: the model works in steps of 32x32 pixels." in text
    assert "Frames decoded in tiles of up to 1024 pixels: saves" in text
    assert "Memory stored in 4 bits (the first seconds in 8): saves" in text
    assert "Memory kept in RAM: saves" in text
    assert len(plan.decisions) == steps_kinds(plan) + 1
    assert all(" of VRAM" in sentence and "-" not in sentence.split("saves")[1] for sentence in plan.decisions[1:])


def steps_kinds(plan) -> int:
    return sum(any(kind in sentence for sentence in plan.decisions) for kind in KINDS)


def test_refusal_names_the_phase_what_is_missing_and_three_plans_that_fit():
    with pytest.raises(NothingFits) as error:
        plan_5b(card(3.0), size=(1920, 1088))
    text = str(error.value)
    assert "1920x1088 does not fit" in text
    assert "GB too much" in text
    assert "up to 3.0 GB (a test card)" in text
    offers = re.findall(r"\d\) ([^:]+): (\d+)x(\d+), clips of", text)
    assert len(offers) == 3 and len({offer[1:] for offer in offers}) == 3
    sizes = [int(width) * int(height) for _, width, height in offers]
    assert sizes == sorted(sizes, reverse=True)
    for _, width, height in offers:
        plan_5b(card(3.0), size=(int(width), int(height)))


def test_the_nearest_smaller_size_is_the_largest_that_fits():
    with pytest.raises(NothingFits) as error:
        plan_5b(card(3.0), size=(1920, 1088))
    width, height = map(int, re.search(r" smaller: (\d+)x(\d+)", str(error.value)).groups())
    larger = [fit_size(NF4_5B, int(share * 1920), int(share * 1088)) for share in SIZES]
    for size in larger[: larger.index((width, height))]:
        with pytest.raises(NothingFits):
            plan_5b(card(3.0), size=size)


def test_letting_go_of_what_was_pinned_is_offered_first():
    held = frozenset({"int8", "4bit", "ram", "offload", "window", "clip"})
    with pytest.raises(NothingFits) as error:
        plan_5b(card(9.0), window_s=16, pinned=held)
    assert "1) without what was pinned: 1280x704" in str(error.value)


def test_nf4_weights_are_offered_where_they_would_help():
    wide = replace(NF4_5B, weight_bytes=10 * 10**9)
    with pytest.raises(NothingFits) as error:
        plan_of(spec_5b(), card(6.0), facts=wide, pinned=frozenset({"offload"}))
    assert "1) without what was pinned: 1280x704" in str(error.value)
    assert "2) with NF4 weights: 1280x704" in str(error.value)


def test_refusal_says_so_when_the_weights_alone_are_too_large():
    with pytest.raises(RuntimeError, match=r"No smaller size helps: the weights alone are 2\.8 GB. Load NF4 weights"):
        plan_5b(card(0.25))


def test_refusal_names_the_disk_when_it_is_full():
    budget = Budget(100 * GIB, 100 * GIB, False, 10 * 2**20, "a test card")
    with pytest.raises(RuntimeError, match=r"of disk in the decode phase, .* 10 MB of free disk"):
        plan_5b(budget)


@pytest.mark.parametrize(("values", "part"), [
    ((0.0, "balanced"), "clip_seconds is no length"), ((math.nan, "balanced"), "clip_seconds"),
    ((-4.0, "balanced"), "clip_seconds"), ((601.0, "balanced"), "clip_seconds"),
    ((4.0, "fast"), "unknown profile, but got 'fast'; allowed: balanced, quality"),
])
def test_bad_requests_are_refused(values, part):
    with pytest.raises(ValueError, match=part):
        check_request(*values)


@pytest.mark.parametrize(("size", "part"), [
    ((0, 704), "width is no size, but got 0"), ((-32, 704), "width is no size"), ((1280, 10**6), "height is no size"),
])
def test_absurd_sizes_are_refused(size, part):
    with pytest.raises(ValueError, match=part):
        fit_size(NF4_5B, *size)


def test_size_below_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"too small for the model, but got 16x704 pixels; allowed: 32x32"):
        plan_5b(card(60), size=(16, 704))


@pytest.mark.parametrize(("clip_s", "latents"), [(4, 24), (0.1, 8), (4.6, 24), (4.7, 32), (1 / 3, 8), (12, 72)])
def test_clip_is_rounded_to_whole_chunks(clip_s, latents):
    assert clip_latents_of(spec_5b(), clip_s) == latents


def test_toy_clip_of_three_seconds_is_two_chunks():
    assert clip_latents_of(MemorySpec("toyworld", 8.0, 3, 3, 6), 3.0) == 6


def test_budget_is_what_is_free_less_the_reserve_when_none_is_given():
    machine = Machine("cuda:0", False, 12 * GIB, 11 * GIB, GIB // 2, 32 * GIB, 20 * GIB)
    budget = budget_of(machine)
    assert (budget.vram_bytes, budget.ram_bytes, budget.unified) == (10.5 * GIB, 20 * GIB, False)


def test_budget_of_another_card_leaves_room_for_its_desktop():
    budget = budget_of(Machine("cpu", True, 0, 0, 0, 32 * GIB, 20 * GIB), 12.0)
    assert budget.vram_bytes == 12 * GIB - 600 * 10**6 - 450 * 2**20
    assert not budget.unified
    assert "0.6 GB for the desktop" in budget.text
    smaller = budget_of(Machine("cuda:0", False, 8 * GIB, 7 * GIB, 0, 32 * GIB, 20 * GIB), 12.0)
    assert "this card has 7.0 GB of it" in smaller.text


def test_budget_refuses_what_is_no_size():
    for value in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="budget_gb is not a size"):
            budget_of(CARD_12, value)


def test_report_shows_phases_room_and_what_was_not_seen():
    llm = Process(7, "ollama.exe", 3 * GIB, False)
    machine = Machine("cuda:0", False, 12 * GIB, 11 * GIB, 0, 32 * GIB, 24 * GIB, None,
                      CardView("a card", 12 * GIB, 11 * GIB, GIB, 3 * GIB, GIB // 2, (llm,)),
                      ("free disk of the output folder (why)",), 0, (DiskView("output", 40 * GIB, 5.6e8),),
                      (("WAN21", 2 * GIB),))
    budget = budget_of(machine)
    plan = plan_5b(budget)
    text = report(plan, machine, budget, ["a note"])
    row = next(line for line in text.splitlines() if line.startswith("sampling"))
    peak = plan.phases[1].vram_bytes
    assert gb(peak) in row
    assert gb(budget.vram_bytes - peak) in row
    assert "Other programs hold 3.0 GB of a card: ollama.exe 3.0 GB." in text
    assert "The desktop holds 0.5 GB of it." in text and "ComfyUI holds WAN21 2.0 GB: moved away" in text
    assert "Disks, measured: output 560 MB/s, 40.0 GB free." in text
    assert "System memory: 24.0 GB of 32.0 GB free, and 0 MB of pagefile" in text
    assert "Not seen: free disk of the output folder (why)." in text
    assert "a note" in text and "The text encoder's weights are not counted" in text
    counted = plan_of(spec_5b(), budget, text_bytes=GIB)
    assert "The text encoder's weights count in RAM" in report(counted, machine, budget)
    assert all(decision in text for decision in plan.decisions)


def test_a_plan_is_offered_however_absurd_the_size_that_was_asked_for():
    with pytest.raises(NothingFits) as error:
        make_plan(TOY, TOY_VAE, 8192, 8192, 3.0, MemorySpec("toyworld", 8.0, 3, 3, 6), "balanced", card(1.0))
    offers = re.findall(r"\d\) [^:]+: (\d+)x(\d+), clips of", str(error.value))
    assert len(offers) == 3
    for width, height in offers:
        assert make_plan(TOY, TOY_VAE, int(width), int(height), 3.0, MemorySpec("toyworld", 8.0, 3, 3, 6), "balanced",
                         card(1.0)).width == int(width)
