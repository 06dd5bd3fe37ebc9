"""What was measured is kept by card and model, corrects the next prediction, and can be deleted."""

from __future__ import annotations

import json
import mmap
import time
from dataclasses import replace

import pytest
import torch
from pack.nodes.budget.learned import (
    KEPT,
    LARGEST_SHARE,
    Record,
    add_record,
    clear_records,
    clip_seconds,
    corrections,
    family_of,
    latest,
    plan_key,
    read_records,
)
from pack.nodes.budget.planner import Extras, make_plan
from pack.nodes.budget.watch import in_words, unlearned_bytes, watched

from .test_planner import NF4_5B, WAN22_VAE, card, spec_5b

GIB, MIB = 2**30, 2**20
CPU = torch.device("cpu")


def plan(**extras):
    return make_plan(NF4_5B, WAN22_VAE, 1280, 704, 4.0, spec_5b(), "balanced", card(24), frozenset(),
                     Extras(card="a card", **extras))


def record(phase="sampling", measured=0, predicted=10 * GIB, of=None, **fields) -> Record:
    made = Record("a card", family_of(NF4_5B), phase, plan_key(of or plan()), predicted, measured, 0, 0, 10.0, 3)
    return replace(made, **fields)


def test_records_survive_the_file_and_the_oldest_go(tmp_path):
    path = tmp_path / "videomemory" / "budget.json"
    for i in range(KEPT + 5):
        assert add_record(path, record(measured=i + 1)) == ""
    assert add_record(path, record("decode", measured=7)) == ""
    found = read_records(path)
    assert [one.measured_bytes for one in found] == [*range(6, KEPT + 6), 7]
    assert [file.name for file in path.parent.iterdir()] == ["budget.json"]
    assert clear_records(path) == KEPT + 1
    assert read_records(path) == () and clear_records(path) == 0


@pytest.mark.parametrize("content", ["", "[", "{}", '{"version": 2, "records": []}', '{"version": 1, "records": [{}]}',
                                     '{"version": 1, "records": 5}'])
def test_a_file_that_cannot_be_read_counts_as_none_and_is_replaced(tmp_path, content):
    path = tmp_path / "budget.json"
    path.write_text(content, encoding="utf-8")
    assert read_records(path) == ()
    add_record(path, record(measured=1))
    assert len(read_records(path)) == 1


def test_a_folder_that_cannot_be_written_to_costs_a_sentence_alone(tmp_path):
    (tmp_path / "user").write_text("a file where the folder should be", encoding="utf-8")
    assert "What was measured could not be kept in" in add_record(tmp_path / "user" / "budget.json", record())


def test_the_last_runs_correct_a_prediction_by_what_it_was_too_low_at_most():
    missed = [300, -50, 20, 80, 40, 10]  # MiB; the first is too old
    records = [record(measured=10 * GIB + m * MIB) for m in missed]
    assert corrections(records, "a card", NF4_5B) == (("sampling", 80 * MIB),)
    assert corrections(records[:1] * 2 + [record(measured=9 * GIB)] * 5, "a card", NF4_5B) == (("sampling", -GIB),)


def test_other_cards_other_models_and_unmeasured_phases_correct_nothing():
    records = [record(measured=11 * GIB, card="another"), record(measured=11 * GIB, family="another"), record()]
    assert corrections(records, "a card", NF4_5B) == ()
    assert family_of(NF4_5B) != family_of(replace(NF4_5B, weight_bytes=2 * NF4_5B.weight_bytes))


def test_a_correction_is_never_larger_than_a_share():
    found = corrections([record(measured=40 * GIB)], "a card", NF4_5B)
    assert found == (("sampling", int(LARGEST_SHARE * 10 * GIB)),)


def test_a_plan_made_with_records_predicts_what_was_measured():
    before = plan()
    predicted = unlearned_bytes(before.phases[1])
    found = corrections([record(measured=predicted + 200 * MIB, predicted=predicted)], "a card", NF4_5B)
    after = plan(learned=found)
    assert after.phases[1].live_bytes == predicted + 200 * MIB
    assert unlearned_bytes(after.phases[1]) == predicted  # so that the next correction is not added to this one


def test_the_time_of_a_clip_is_known_when_it_was_sampled_and_decoded_before():
    records = [record(seconds=20.0), record(seconds=30.0), record(seconds=22.0)]
    assert clip_seconds(records, "a card", plan()) == 0.0
    records.append(record("decode", seconds=5.0))
    assert clip_seconds(records, "a card", plan()) == 27.0
    other = make_plan(NF4_5B, WAN22_VAE, 832, 480, 4.0, spec_5b(), "balanced", card(24))
    assert clip_seconds(records, "a card", other) == clip_seconds(records, "another", plan()) == 0.0


def test_the_latest_record_of_each_phase_of_a_plan_is_found():
    records = [record(measured=1), record(measured=2), record("decode", measured=3), record(measured=4, plan="other")]
    found = latest(records, plan())
    assert {phase: one.measured_bytes for phase, one in found.items()} == {"sampling": 2, "decode": 3}


def test_the_key_of_a_plan_is_of_what_its_peaks_depend_on():
    assert plan_key(plan()) == plan_key(replace(plan(), budget_bytes=1, decisions=("x",), card="b", profile="quality"))
    assert plan_key(plan()) != plan_key(replace(plan(), width=832))
    assert plan_key(plan()) != plan_key(replace(plan(), weights_in_ram_bytes=5))


def test_a_phase_is_measured_and_kept(tmp_path):
    with watched(plan(), "sampling", CPU, tmp_path) as watch:
        watch.units = 3
        held = mmap.mmap(-1, 64 * MIB)  # new pages; torch may be given some that were freed
        held.write(bytes(64 * MIB))
        time.sleep(0.2)
    held.close()
    (kept,) = read_records(tmp_path / "budget.json")
    assert (kept.card, kept.phase, kept.plan, kept.units) == ("a card", "sampling", plan_key(plan()), 3)
    assert kept.seconds >= 0.2 and kept.measured_bytes == 0  # no card, no VRAM
    assert 50 * MIB < kept.measured_ram_bytes < 200 * MIB
    assert kept.predicted_bytes == unlearned_bytes(plan().phases[1])
    parts = dict(plan().phases[1].parts)
    assert kept.predicted_ram_bytes == (plan().phases[1].ram_bytes + parts["memory"] + parts["activations"]
                                        + parts["latents"] + parts["workspace"])


def test_nothing_is_kept_without_a_plan_or_after_an_error(tmp_path):
    with watched(None, "sampling", CPU, tmp_path) as watch:
        pass
    with pytest.raises(RuntimeError, match="cancelled"), watched(plan(), "sampling", CPU, tmp_path):
        raise RuntimeError("cancelled")
    assert watch.sentence == "" and not (tmp_path / "budget.json").exists()


@pytest.mark.parametrize(("measured", "says"), [
    (0, False), (8 * GIB, False), (8 * GIB + 390 * MIB, False), (8 * GIB + 450 * MIB, True), (7 * GIB, True),
])
def test_only_a_prediction_that_was_off_is_spoken_of(measured, says):
    text = in_words(record(measured=measured, predicted=8 * GIB))
    assert bool(text) == says
    assert not says or ("8.0 GB were predicted" in text and text.startswith("Sampling took "))


def test_the_file_is_plain_json_for_people(tmp_path):
    path = tmp_path / "budget.json"
    add_record(path, record(measured=5))
    assert json.loads(path.read_text(encoding="utf-8"))["records"][0]["measured_bytes"] == 5


def test_what_came_between_plan_and_run_is_said():
    from pack.nodes.budget.watch import crowded

    cost = plan().phases[1]
    assert crowded(cost, cost.vram_bytes) == ""
    text = crowded(cost, cost.vram_bytes - 3 * GIB)
    assert text.startswith("Since the plan was made the card has filled up: sampling was planned with")


def test_the_next_thing_to_give_up_follows_the_profile():
    from pack.nodes.budget.retreat import step_down

    def all_steps(profile, head_dim=128, pinned=frozenset(), eighths=0):
        spec, said = spec_5b(4.0), []
        while (found := step_down(spec, profile, head_dim, pinned, eighths > 0)) is not None:
            eighths -= found.kind == "offload"
            spec = found.spec
            said.append(found.words)
        return spec, said

    spec, said = all_steps("balanced")
    assert said == ["the memory is stored in 8 bits", "the memory is stored in 4 bits", "the memory rests in RAM",
                    "the memory's window is 2.7 s long", "the memory's window is 1.3 s long"]
    assert (spec.precision, spec.placement, spec.window_latents) == ("4bit", "ram", 8)
    assert all_steps("quality")[1][0] == "the memory rests in RAM"
    assert all_steps("speed")[1][2] == "the memory's window is 2.7 s long"
    assert "4 bits" not in "".join(all_steps("balanced", head_dim=96)[1])
    away = "more of the model rests in RAM"
    assert all_steps("balanced", eighths=2)[1][2:5] == ["the memory rests in RAM", away, away]
    assert all_steps("quality", eighths=2)[1][:3] == ["the memory rests in RAM", away, away]
    assert all_steps("balanced", pinned=frozenset({"int8", "4bit", "window", "offload"}), eighths=9)[1] == [
        "the memory rests in RAM"]


def test_memory_that_ran_out_teaches_only_that_more_was_taken_than_predicted(tmp_path, monkeypatch):
    """The peak is at least what was reached; time is not known. Below the prediction somebody else took the room."""
    from pack.nodes.budget import watch as at_work

    card, peak = torch.device("cuda"), [0]
    monkeypatch.setattr(at_work.torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    monkeypatch.setattr(at_work.torch.cuda, "max_memory_allocated", lambda _device: peak[0])
    predicted = at_work.unlearned_bytes(plan().phases[1])
    for reached, kept in ((predicted - MIB, 0), (predicted + 500 * MIB, 1)):
        peak[0] = reached + 100 * MIB
        with pytest.raises(torch.OutOfMemoryError), watched(plan(), "sampling", card, tmp_path, lambda: 100 * MIB):
            raise torch.OutOfMemoryError("the card is full")
        assert len(read_records(tmp_path / "budget.json")) == kept
    (record,) = read_records(tmp_path / "budget.json")
    assert record.measured_bytes == predicted + 500 * MIB and record.seconds == 0
    assert clip_seconds([record], "a card", plan()) == 0


def test_a_film_that_broke_off_leaves_no_record_of_its_encoder(tmp_path, monkeypatch):
    from pack.nodes.budget import watch as at_work

    monkeypatch.setattr(at_work.torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    monkeypatch.setattr(at_work.torch.cuda, "max_memory_allocated", lambda _device: 100 * MIB)
    with pytest.raises(torch.OutOfMemoryError), watched(plan(), ("interpolation", "encode"), torch.device("cuda"),
                                                        tmp_path):
        raise torch.OutOfMemoryError("the card is full")
    assert read_records(tmp_path / "budget.json") == ()


def test_phases_at_once_share_one_measurement(tmp_path):
    """RIFE's part is on the card, what both take of RAM is one number."""
    with watched(plan(), ("interpolation", "encode"), CPU, tmp_path):
        held = mmap.mmap(-1, 64 * MIB)
        held.write(bytes(64 * MIB))
    held.close()
    both = {record.phase: record for record in read_records(tmp_path / "budget.json")}
    assert set(both) == {"interpolation", "encode"}
    assert both["interpolation"].measured_ram_bytes == both["interpolation"].predicted_ram_bytes == 0
    costs = {cost.phase: cost for cost in plan().phases}
    assert both["encode"].predicted_ram_bytes == (costs["interpolation"].ram_bytes + costs["encode"].ram_bytes
                                                  + costs["interpolation"].live_bytes)  # no card: it lies in RAM
    assert both["encode"].measured_ram_bytes > 50 * MIB


def test_what_did_not_follow_its_plan_to_the_end_is_not_kept(tmp_path):
    with watched(plan(), "sampling", CPU, tmp_path) as watch:
        watch.follows_plan = False
    assert read_records(tmp_path / "budget.json") == () and watch.sentence == ""
