"""The cost model against published figures: K/V arithmetic, and peaks measured on an H100 (design.md, section 7)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pack.nodes.budget import coefficients as coefficients_module
from pack.nodes.budget.cost_model import (
    PHASES,
    Job,
    VaeFacts,
    decode_cost,
    forward_bytes,
    kept_bytes,
    memory_bytes,
    phase_costs,
    resident_memory_bytes,
    sampling_cost,
    tokens_per_latent,
)
from pack.nodes.budget.writers import ffv1_ram_bytes
from pack.nodes.common.types import MemorySpec, ModelFacts
from pack.nodes.sampling.presets import memory_spec
from pack.nodes.video.decode import CONTEXT_LATENTS

GIB = 2**30
WAN22_VAE = VaeFacts("wan22", 160, 16, int(1.3126 * GIB), 2)
WAN21_VAE = VaeFacts("wan21", 96, 8, int(0.2364 * GIB), 2)
TI2V_5B = ModelFacts("wan", 30, 24, 128, 14336, (1, 2, 2), 48, 16, 2 * 4_999_787_712, 2)
T2V_14B = ModelFacts("wan", 40, 40, 128, 13824, (1, 2, 2), 16, 8, int(7.25 * GIB), 2)


def job(facts=TI2V_5B, vae=WAN22_VAE, size=(1280, 704), clip_latents=24, sink=8, window=24, chunk=8, **spec) -> Job:
    return Job(facts, vae, *size, clip_latents, MemorySpec("longlive_2", 24.0, chunk, sink, window, **spec))


@pytest.mark.parametrize(("facts", "size", "tokens"), [
    (TI2V_5B, (1280, 704), 880), (TI2V_5B, (832, 480), 390), (T2V_14B, (1280, 720), 3600), (T2V_14B, (832, 480), 1560),
])
def test_tokens_per_latent_are_those_of_the_model(facts, size, tokens):
    assert tokens_per_latent(facts, *size) == tokens


@pytest.mark.parametrize(("precision", "megabytes"), [("model", 324.4), ("int8", 164.7), ("4bit", 91.2)])
def test_memory_bytes_match_the_arithmetic_of_the_field(precision, megabytes):
    asked = job(sink=0, window=96, precision=precision)
    assert memory_bytes(asked, 96) / 96 / 1e6 == pytest.approx(megabytes, rel=0.002)


def test_sink_stays_in_8_bits_when_the_memory_has_4():
    asked = job(precision="4bit")
    assert memory_bytes(asked, 32) / 1e6 == pytest.approx(8 * 164.7 + 24 * 91.2, rel=0.002)


@pytest.mark.parametrize(("facts", "size", "latents", "weights_gib", "measured_gib"), [
    (TI2V_5B, (1280, 704), 25, 9.313, 10.95),
    (TI2V_5B, (1280, 704), 25, 2.53, 4.17),
    (T2V_14B, (1280, 720), 17, 7.25, 13.17),
])
def test_sampling_peak_is_near_the_measured_one(facts, size, latents, weights_gib, measured_gib):
    """One forward over the whole clip without memory, as it was measured: a chunk as long as the clip."""
    facts = replace(facts, weight_bytes=int(weights_gib * GIB))
    asked = job(facts, size=size, clip_latents=latents, sink=0, window=0, chunk=latents)
    collected = memory_bytes(replace(asked, spec=replace(asked.spec, window_latents=latents)), latents)
    predicted = (sampling_cost(asked).live_bytes - collected) / GIB
    assert measured_gib - 0.05 < predicted < 1.08 * measured_gib


@pytest.mark.parametrize(("vae", "measured_gib"), [(WAN22_VAE, 10.1), (WAN21_VAE, 9.3)])
def test_decode_peak_is_the_measured_one_when_untiled(vae, measured_gib):
    assert decode_cost(job(vae=vae)).vram_bytes / GIB == pytest.approx(measured_gib, abs=0.05)


def test_vram_does_not_grow_with_the_clip_but_for_its_latents():
    short, long = (sampling_cost(job(clip_latents=latents)).live_bytes for latents in (24, 72))
    assert long - short == 5 * 48 * 48 * 44 * 80 * 4
    assert decode_cost(job(clip_latents=24)).vram_bytes == decode_cost(job(clip_latents=72)).vram_bytes


def test_parts_add_up_to_the_peak_and_say_what_the_allocator_holds():
    for cost in phase_costs(job()):
        assert sum(size for _, size in cost.parts) == cost.vram_bytes
    parts = dict(sampling_cost(job()).parts)
    assert parts["fragmentation"] == int(0.03 * (parts["memory"] + parts["activations"] + parts["latents"]))


def test_weights_in_ram_leave_vram_and_come_to_ram():
    whole, part = sampling_cost(job()), sampling_cost(replace(job(), offload_bytes=GIB))
    assert whole.vram_bytes - part.vram_bytes == part.ram_bytes - whole.ram_bytes == GIB


def test_cfg_doubles_the_memory_and_its_scratch_but_not_the_forward():
    one, two = (dict(sampling_cost(replace(job(), prompts=prompts)).parts) for prompts in (1, 2))
    assert two["memory"] == 2 * one["memory"] and two["weights"] == one["weights"]
    assert one["activations"] <= two["activations"] < 1.5 * one["activations"]
    assert kept_bytes(replace(job(), prompts=2)) == 2 * kept_bytes(job())


def test_attention_that_is_not_fused_pays_for_its_scores():
    fused, other = (dict(sampling_cost(replace(job(), is_fused=is_fused)).parts) for is_fused in (True, False))
    keys = (8 + 32) * 880
    assert other["activations"] - fused["activations"] == 2 * 24 * 512 * keys * 4


def test_what_was_learned_is_added_to_its_phase_alone():
    asked = replace(job(), learned=(("sampling", 100 * 2**20), ("decode", -(2**20)), ("encode", 5)))
    for before, after in zip(phase_costs(job()), phase_costs(asked), strict=True):
        assert after.vram_bytes - before.vram_bytes == {"sampling": 100 * 2**20, "decode": -(2**20)}.get(after.phase, 0)
        assert sum(size for _, size in after.parts) == after.vram_bytes


def test_the_text_encoders_weights_count_in_ram():
    costs = dict(zip(PHASES, phase_costs(replace(job(), text_bytes=6 * GIB)), strict=True))
    assert costs["text"].ram_bytes == 6 * GIB
    assert costs["text"].vram_bytes == dict(zip(PHASES, phase_costs(job()), strict=True))["text"].vram_bytes


@pytest.mark.parametrize("change", [
    lambda entry: entry.pop("how"), lambda entry: entry.update(how="guessed"), lambda entry: entry.update(note=""),
    lambda entry: entry.update(value="many"),
])
def test_a_coefficient_without_its_source_is_refused(change, tmp_path, monkeypatch):
    from pack.nodes.budget import coefficients as module

    content = json.loads((module.DATA / "wan.json").read_text(encoding="utf-8"))
    change(content["coefficients"]["workspace_bytes"])
    (tmp_path / "wan.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(module, "DATA", tmp_path)
    with pytest.raises(ValueError, match=r"cost of a wan model needs its coefficients, but got wan\.json"):
        module.coefficients.__wrapped__("wan")


def test_the_measuring_script_of_every_family_is_there():
    from pack.nodes.budget.coefficients import DATA

    for path in DATA.glob("*.json"):
        script = json.loads(path.read_text(encoding="utf-8"))["script"].split()[0]
        assert (Path(__file__).resolve().parents[2] / script).is_file(), script


def test_every_concession_costs_less_than_what_it_replaces():
    exact, int8, four = (sampling_cost(job(precision=p)).vram_bytes for p in ("model", "int8", "4bit"))
    assert exact > int8 > four
    assert sampling_cost(job(placement="ram")).vram_bytes < exact
    assert sampling_cost(job(window=16)).vram_bytes < exact
    whole, tiled = decode_cost(job()), decode_cost(replace(job(), decode_tile_px=512))
    assert tiled.vram_bytes < whole.vram_bytes / 2
    middle = (24 + CONTEXT_LATENTS) * 44 * 80 * 1024 * 2
    assert tiled.ram_bytes - whole.ram_bytes == 96 * 1280 * 704 * 3 * 2 + middle


def latent(facts=TI2V_5B, preset="wan22_ti2v_5b", size=(1280, 704), clip_latents=24, vae=WAN22_VAE, **spec) -> Job:
    return Job(facts, vae, *size, clip_latents, replace(memory_spec(preset), **spec))


@pytest.mark.parametrize(("facts", "preset", "size", "latents", "weights_gib", "measured_gib"), [
    (TI2V_5B, "wan22_ti2v_5b", (1280, 704), 25, 9.313, 10.95),
    (TI2V_5B, "wan22_ti2v_5b", (1280, 704), 25, 2.53, 4.17),
    (replace(T2V_14B, kind="i2v"), "wan21_i2v_14b", (1280, 720), 17, 7.25, 13.17),
])
def test_whole_clip_of_an_ordinary_checkpoint_is_near_the_measured_peak(facts, preset, size, latents, weights_gib,
                                                                        measured_gib):
    """What was measured is one forward over so many latents: the clip, and the one that it begins with."""
    asked = latent(replace(facts, weight_bytes=int(weights_gib * GIB)), preset, size, latents - 1)
    assert asked.forward_latents == latents
    predicted = sampling_cost(asked).live_bytes / GIB
    assert measured_gib - 0.05 < predicted < 1.08 * measured_gib


def test_ordinary_checkpoints_have_no_keys_and_values_and_pay_for_the_whole_clip():
    asked = latent()
    assert kept_bytes(asked) == resident_memory_bytes(asked) == 0
    for other in (latent(precision="4bit"), latent(placement="ram"), latent(window_latents=24)):
        assert phase_costs(other) == phase_costs(asked)
    short, long = (forward_bytes(latent(clip_latents=latents)) for latents in (11, 23))
    tokens = 12 * 880
    assert long - short == pytest.approx(tokens * (3072 * 2 * (3 + 2 * 14336 / 3072) + 2048), rel=1e-6)


@pytest.mark.parametrize(("preset", "kind", "spec", "latents"), [
    ("wan22_ti2v_5b", "ti2v", {}, 25), ("wan22_ti2v_5b", "ti2v", {"overlap_latents": 3}, 27),
    ("wan22_ti2v_5b", "ti2v", {"reanchor_clips": 2}, 26), ("wan21_vace", "vace", {}, 28),
    ("wan22_svi_pro", "i2v", {}, 26), ("toyworld", "t2v", {}, 3),
])
def test_latents_of_a_forward_count_overlap_and_reference(preset, kind, spec, latents):
    assert latent(replace(TI2V_5B, kind=kind), preset, **spec).forward_latents == latents


def test_conditions_and_frames_are_counted_for_checkpoints_that_are_given_the_whole_clip():
    text, image = (latent(replace(T2V_14B, kind=kind), "wan21_i2v_14b", (1280, 720), 20) for kind in ("t2v", "i2v"))
    conditions = 2 * 20 * 21 * 90 * 160 * 4
    assert sampling_cost(image).live_bytes - sampling_cost(text).live_bytes == conditions
    assert sampling_cost(image).ram_bytes == 3 * 84 * 3 * 1280 * 720 * 4 and sampling_cost(text).ram_bytes == 0


def test_pins_and_retrieval_cost_what_a_window_of_their_length_costs():
    spec = memory_spec("longlive_2", prompt_change="pin", retrieved_s=1.0, window_s=2.0)
    places = replace(job(), spec=spec)
    window = replace(job(), spec=replace(spec, pinned_latents=0, retrieved_latents=0, window_latents=32))
    assert (spec.pinned_latents, spec.retrieved_latents, spec.window_latents) == (8, 8, 16)
    assert sampling_cost(places).vram_bytes == sampling_cost(window).vram_bytes


def test_recaching_costs_a_forward_over_the_window_and_the_chunk_before_it():
    keep, recache = (replace(job(), spec=memory_spec("longlive_1", prompt_change=change))
                     for change in ("keep", "recache"))
    assert (keep.forward_latents, recache.forward_latents) == (3, 9)
    assert sampling_cost(recache).vram_bytes > sampling_cost(keep).vram_bytes


def test_an_archive_is_counted_in_ram_and_on_disk():
    spec = memory_spec("longlive_2", retrieved_s=1.0)
    with_archive = replace(job(), spec=spec)
    without = replace(with_archive, spec=replace(spec, retrieved_latents=0, window_latents=16))
    archive = 16 * 8 * 324.4e6
    assert kept_bytes(with_archive) - kept_bytes(without) == pytest.approx(archive, rel=0.002)
    for phase in (1, 2):
        more, less = phase_costs(with_archive)[phase], phase_costs(without)[phase]
        assert more.ram_bytes - less.ram_bytes == pytest.approx(archive, rel=0.002)
        assert more.vram_bytes == less.vram_bytes
    assert decode_cost(with_archive).disk_bytes - decode_cost(without).disk_bytes == pytest.approx(archive, rel=0.002)


def test_disk_holds_the_memory_that_is_saved_with_every_clip():
    exact, four = job(), job(precision="4bit")
    saved = memory_bytes(exact, 32) - memory_bytes(four, 32)
    assert saved > 5e9
    assert decode_cost(exact).disk_bytes - decode_cost(four).disk_bytes == saved


def test_phases_come_in_order_and_are_never_negative():
    costs = phase_costs(job())
    assert tuple(cost.phase for cost in costs) == PHASES
    assert all(min(cost.vram_bytes, cost.ram_bytes, cost.disk_bytes) >= 0 for cost in costs)


HUNYUAN = ModelFacts("hunyuan", 0, 0, 0, 0, (1, 2, 2), 16, 8, int(7.5 * GIB), 2, "i2v")
CORE_VAE = VaeFacts("core", 0, 8, GIB // 4, 2, 2 * GIB)


def test_other_families_pay_per_token_as_traced():
    short, long = (forward_bytes(latent(HUNYUAN, "hunyuan_i2v", (1280, 720), latents, CORE_VAE)) for latents in (8, 16))
    traced = json.loads((Path(coefficients_module.DATA) / "hunyuan.json").read_text(encoding="utf-8"))
    assert long - short == pytest.approx(8 * 45 * 80 * traced["coefficients"]["bytes_per_token"]["value"], abs=2)


def test_svd_denoises_frames():
    facts = ModelFacts("svd", 0, 0, 0, 0, (1, 1, 1), 4, 8, int(2.8 * GIB), 2, "i2v")
    asked = latent(facts, "svd", (1024, 576), 6, CORE_VAE)
    frames = 4 * asked.forward_latents - 3
    traced = json.loads((Path(coefficients_module.DATA) / "svd.json").read_text(encoding="utf-8"))
    assert forward_bytes(asked) == pytest.approx(
        frames * 72 * 128 * traced["coefficients"]["bytes_per_token"]["value"], rel=1e-6)


def test_what_comfyui_decodes_costs_its_own_estimate():
    cost = decode_cost(latent(HUNYUAN, "hunyuan_i2v", (1280, 720), 8, CORE_VAE))
    assert dict(cost.parts) == {"weights": GIB // 4, "decode": 2 * GIB}
    assert cost.ram_bytes == 2 * 32 * 3 * 1280 * 720 * 4 + ffv1_ram_bytes(1280 * 720)
