"""VRAM Budget Gate inside ComfyUI on a CPU: the toy world's real files, and a full-size TI2V-5B of empty weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.nodes.common.types import MemoryBlock, MemorySpec, VideoMemory

pytestmark = pytest.mark.comfy

GIB = 2**30
TOY_MEMORY = VideoMemory(MemorySpec("toyworld", 8.0, 3, 3, 6))


@pytest.fixture(scope="module")
def gate():
    from pack.nodes.budget.nodes import BudgetGate

    return BudgetGate


@pytest.fixture(scope="module")
def toy_model(toyworld):
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"))


@pytest.fixture(scope="module")
def toy_vae(toyworld):
    import comfy.sd
    import comfy.utils

    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(toyworld / "toyworld_vae_fp16.safetensors")))


def test_schema_is_complete(gate):
    gate.GET_SCHEMA()
    schema = gate.define_schema()
    assert all(slot.tooltip for slot in (*schema.inputs, *schema.outputs))
    assert not {slot.id for slot in schema.inputs} & {slot.id for slot in schema.outputs}


def test_facts_of_the_toy_vae_are_read_from_its_modules(toy_vae):
    from pack.nodes.budget.bridge import vae_facts

    facts = vae_facts(toy_vae)
    assert (facts.kind, facts.dim, facts.spatial_stride) == ("wan21", 16, 8)
    assert facts.dtype_bytes == toy_vae.vae_dtype.itemsize
    assert facts.weight_bytes == sum(p.nbytes for p in toy_vae.first_stage_model.parameters())


def test_other_vaes_are_refused(toy_vae):
    from pack.nodes.budget.bridge import vae_facts

    class Other:
        first_stage_model = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="cannot predict this VAE, but got 'Linear'; allowed: the Wan 2.1"):
        vae_facts(Other())


def test_machine_is_seen_on_a_cpu(toy_model, toy_vae):
    from pack.nodes.budget.bridge import look_around

    machine = look_around(toy_model.load_device, 1000)
    assert machine.unified
    assert machine.device == "cpu"
    assert 0 < machine.ram_available_bytes == machine.vram_available_bytes
    assert machine.disk_free_bytes > 0


def test_toy_film_fits_as_asked_when_planned_with_ram(gate, toy_model, toy_vae):
    result = gate.execute(toy_model, toy_vae, TOY_MEMORY, 135, 80, 3.0, 0.0, "balanced").result
    plan, memory, width, height, length, text = result
    assert (width, height, length) == (128, 80, 21)
    assert (plan.clip_latents, plan.clip_s, plan.decode_tile_px) == (6, 3.0, 0)
    assert memory == replace(TOY_MEMORY, spec=plan.spec) == TOY_MEMORY
    assert plan.decisions[0].startswith("Size 135x80 became 128x80")
    assert "nothing was given up" in text
    assert "no card" in text


def test_stored_memory_keeps_its_window_and_precision(gate, toy_model, toy_vae):
    block = MemoryBlock(0, torch.zeros(16, 3, 10, 16))
    stored = replace(TOY_MEMORY, blocks=(block,), latents_done=3)
    plan, memory, *_, text = gate.execute(toy_model, toy_vae, stored, 128, 80, 3.0, 12.0, "minimum_vram").result
    assert (plan.spec.precision, plan.spec.window_latents, plan.spec.placement) == ("model", 6, "ram")
    assert memory.blocks is stored.blocks
    assert "holds clips already" in text


def test_unknown_profile_is_refused_before_anything_is_loaded(gate):
    assert gate.validate_inputs("balanced") is True
    assert gate.validate_inputs(None) is True
    assert "unknown profile, but got 'fast'" in gate.validate_inputs("fast")


@pytest.mark.parametrize(("name", "value", "part"), [
    ("width", 0, "width is no size"), ("clip_seconds", 0.0, "is no length"), ("budget_gb", -1.0, "is not a size"),
    ("profile", "fast", "unknown profile"),
])
def test_bad_values_over_a_link_are_refused(gate, toy_model, toy_vae, name, value, part):
    values = {"width": 128, "height": 80, "clip_seconds": 3.0, "budget_gb": 12.0, "profile": "balanced"}
    with pytest.raises(ValueError, match=part):
        gate.execute(toy_model, toy_vae, TOY_MEMORY, **{**values, name: value})


def test_ti2v_5b_is_planned_from_its_shapes_alone(gate, empty_5b):
    """A full-size model and VAE of tensors without data, as bf16 files would give them."""
    assert empty_5b.model_size() == pytest.approx(2 * 4_999_787_712, rel=1e-3)
    memory = VideoMemory(MemorySpec("longlive_2", 24.0, 8, 8, 24))
    plan, fitted, width, height, length, text = gate.execute(
        empty_5b, _empty_wan22_vae(), memory, 1280, 720, 4.0, 24.0, "balanced").result
    assert (width, height, length) == (1280, 704, 93)
    assert 9.3 * GIB < plan.phases[1].vram_bytes < plan.budget_bytes
    assert plan.phases[2].vram_bytes / GIB == pytest.approx(10.1, abs=0.05)
    assert fitted.spec == plan.spec
    assert "a 24 GB card" in text
    with pytest.raises(RuntimeError, match="with NF4 weights: 1280x704"):
        gate.execute(empty_5b, _empty_wan22_vae(), memory, 1280, 720, 4.0, 3.4, "balanced")


@pytest.fixture(scope="module")
def empty_5b():
    """A full-size TI2V-5B of tensors without data."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.WAN22_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30,
        "in_dim": 48, "out_dim": 48, "patch_size": (1, 2, 2), "text_dim": 4096, "freq_dim": 256})
    config.set_inference_dtype(torch.bfloat16, None)
    with torch.device("meta"):
        return comfy.model_patcher.ModelPatcher(
            config.get_model({}, device="meta"), torch.device("cpu"), torch.device("cpu"))


def test_ordinary_ti2v_5b_pays_for_the_whole_clip(gate, empty_5b):
    from pack.nodes.sampling.presets import memory_spec

    def planned(seconds: float, budget: float):
        return gate.execute(empty_5b, _empty_wan22_vae(), VideoMemory(memory_spec("wan22_ti2v_5b")), 1280, 704, seconds,
                            budget, "balanced").result

    plan, fitted, _, _, length, text = planned(4.0, 24.0)
    assert (plan.clip_latents, length) == (24, 93) and fitted.spec == memory_spec("wan22_ti2v_5b")
    assert 10.95 * GIB - 50e6 < plan.phases[1].vram_bytes < 1.08 * 10.95 * GIB
    assert "Latent memory: the film's first frame" in text and "one forward is counted" in text
    offloaded = planned(5.0, 12.0)[0]
    assert offloaded.clip_latents == 30 and "of the model rest in RAM: saves" in "".join(offloaded.decisions)


def test_a_place_and_a_branch_are_counted(gate, empty_5b):
    from pack.nodes.sampling.presets import memory_spec

    from .test_place import Cloud

    def sampling(**more):
        memory = VideoMemory(memory_spec("wan22_ti2v_5b"))
        return gate.execute(empty_5b, _empty_wan22_vae(), memory, 1280, 704, 1.4, 24.0, "balanced", **more
                            ).result[0].phases[1]

    plain, place = sampling(), sampling(spatial_memory=Cloud())
    assert place.vram_bytes == plain.vram_bytes and place.ram_bytes > plain.ram_bytes + 10**8
    assert sampling(spatial_memory=Cloud(), mirage_branch="nf4").vram_bytes > place.vram_bytes + 10**9


@pytest.mark.parametrize(("kind", "preset"), [
    ("hunyuan_v1", "hunyuan_i2v"), ("hunyuan_v2", "hunyuan_i2v_v2"), ("hunyuan15", "hunyuan15_i2v"), ("svd", "svd")])
def test_models_that_are_not_wan_are_planned_and_their_decode_is_left_to_comfyui(gate, kind, preset):
    from pack.nodes.common.types import TILE_BY_CORE
    from pack.nodes.sampling.presets import memory_spec

    from ..sampling.latent_models import blocks_vae, model

    memory = VideoMemory(memory_spec(preset))
    plan, fitted, _, _, _, text = gate.execute(model(kind), blocks_vae(preset), memory, 128, 96, 2.0, 12.0,
                                               "balanced").result
    parts = dict(plan.phases[1].parts)
    assert plan.decode_tile_px == TILE_BY_CORE and fitted.spec == memory.spec
    assert plan.model.family == kind.split("_")[0] and parts["activations"] > 0 and "memory" not in parts
    assert "no seam" not in text


def test_attention_that_keeps_scores_is_known(monkeypatch):
    import comfy.ldm.modules.attention as attention
    from pack.nodes.budget.bridge import is_fused

    for function, fused in ((attention.attention_pytorch, True), (attention.attention_sub_quad, False),
                            (attention.attention_split, False), (attention.attention_basic, False)):
        monkeypatch.setattr(attention, "optimized_attention", function)
        assert is_fused() is fused


def test_a_wan_model_with_another_vae_is_refused(gate, toy_model):
    from ..sampling.latent_models import blocks_vae

    with pytest.raises(ValueError, match="cannot predict this VAE"):
        gate.execute(toy_model, blocks_vae("hunyuan_i2v"), TOY_MEMORY, 128, 80, 3.0, 12.0, "balanced")


def test_a_family_without_coefficients_is_refused(gate, toy_model, toy_vae, monkeypatch):
    from pack.nodes.budget import bridge

    monkeypatch.setattr(bridge, "model_facts", lambda model: replace(_facts_of(model), family="ltx"))
    with pytest.raises(ValueError, match="cannot say what this model needs, but got 'WAN21'; allowed: models of the "
                                         "families hunyuan, hunyuan15, svd, wan. Leave the gate out"):
        gate.execute(toy_model, toy_vae, TOY_MEMORY, 128, 80, 3.0, 12.0, "balanced")


def _facts_of(model):
    from pack.nodes.common.compat import model_facts

    return model_facts(model)


def _empty_wan22_vae():
    import comfy.ldm.wan.vae2_2 as vae2_2
    import comfy.sd

    with torch.device("meta"):
        module = vae2_2.WanVAE(dim=160, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                               temperal_downsample=[False, True, True], dropout=0.0)
        return comfy.sd.VAE(sd=module.state_dict(), dtype=torch.bfloat16)
