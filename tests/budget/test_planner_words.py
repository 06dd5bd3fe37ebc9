"""The planner's words: what was given up, why nothing fits and what would, and what makes no sense."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from pack.nodes.budget.ladder import SIZES, fit_size
from pack.nodes.budget.planner import (
    NothingFits,
    budget_of,
    check_request,
    clip_latents_of,
    make_plan,
)
from pack.nodes.budget.probe import Budget, DiskView, Machine
from pack.nodes.budget.probe_card import CardView, Process
from pack.nodes.budget.report import gb, report
from pack.nodes.common.types import MemorySpec
from pack.nodes.sampling.presets import memory_spec

from .test_planner import CARD_12, GIB, KINDS, NF4_5B, TOY, TOY_VAE, card, plan_5b, plan_of, spec_5b


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
    ((0.0, "balanced"), r"clip \(seconds\)' is no length"), ((math.nan, "balanced"), r"clip \(seconds\)"),
    ((-4.0, "balanced"), r"clip \(seconds\)"), ((601.0, "balanced"), r"clip \(seconds\)"),
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
        with pytest.raises(ValueError, match=r"budget \(GB\)' is not a size"):
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
