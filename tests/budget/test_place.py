"""What a place adds to a clip's plan: RAM for its points, and Mirage's branch on the card."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.nodes.budget.answer import answer_graph
from pack.nodes.budget.cost_model import Job, phase_costs, sampling_cost
from pack.nodes.budget.place import BRANCHES, Place, branch_shapes, place_of
from pack.nodes.sampling.presets import memory_spec
from pack.nodes.spatial.costs import mirage_bytes, mirage_latents, read_bytes, update_bytes

from .test_cost_model import TI2V_5B as WAN_5B
from .test_cost_model import WAN22_VAE
from .test_graph import MACHINE

GIB = 2**30
TI2V_5B = replace(WAN_5B, kind="ti2v")
SIZE, GRID = (1280, 704), (44, 80)
JOB = Job(TI2V_5B, WAN22_VAE, *SIZE, 9, memory_spec("wan22_ti2v_5b"))


class Cloud:
    """As much of a SPATIAL_MEMORY as its size."""

    channels = 48

    def __len__(self) -> int:
        return 1_000_000


def parts(job: Job) -> dict[str, int]:
    return dict(sampling_cost(job).parts)


@pytest.mark.comfy
def test_tensors_of_a_branch_are_those_of_the_module_that_samples():
    import comfy.ldm.wan.model as wan
    import comfy.ops
    from pack.nodes.spatial.bridge_branch import Branch

    inner = wan.WanModel(model_type="t2v", dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48,
                         device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
    branch = Branch(inner, 15, 96, comfy.ops.disable_weight_init, torch.bfloat16, "meta")
    assert dict(branch_shapes(TI2V_5B)) == {name: tuple(value.shape) for name, value in branch.state_dict().items()}


def test_points_take_ram_alone_and_a_reading_with_them():
    costs = [dict(zip(("text", "sampling"), phase_costs(replace(JOB, place=place)), strict=False))["sampling"]
             for place in (None, Place(0, 48), place_of(Cloud(), TI2V_5B))]
    without, empty, full = costs
    assert without.vram_bytes == empty.vram_bytes == full.vram_bytes
    assert without.ram_bytes < empty.ram_bytes < full.ram_bytes
    shape, pixels = (9, *GRID), SIZE[0] * SIZE[1]
    work = [max(read_bytes(points, 48, *shape), update_bytes(points, 48, *shape, pixels)) for points in (0, 1_000_000)]
    assert full.ram_bytes - empty.ram_bytes == 1_000_000 * (12 + 48 * 2 + 4 + 2) + work[1] - work[0]
    assert empty.ram_bytes < GIB // 4


def test_a_clip_in_a_place_has_no_keys_and_values():
    rolling = replace(JOB, spec=memory_spec("longlive_2"), clip_latents=16)
    assert "memory" in parts(rolling) and "memory" not in parts(replace(rolling, place=Place(0, 48)))


@pytest.mark.parametrize(("weights", "gigabytes"), [("original", 5.2), ("int8", 2.6), ("nf4_int8", 1.8), ("nf4", 1.3)])
def test_a_branch_lies_beside_the_model_and_lengthens_the_forward(weights, gigabytes):
    place = place_of(None, TI2V_5B, weights)
    assert place.branch_bytes / 1e9 == pytest.approx(gigabytes, abs=0.1)
    with_branch, plain = replace(JOB, place=place), replace(JOB, place=Place(0, 48))
    assert parts(with_branch)["weights"] - parts(plain)["weights"] == place.branch_bytes
    longer = replace(plain, clip_latents=mirage_latents(9))
    more = parts(with_branch)["activations"] - parts(longer)["activations"]
    assert more == mirage_bytes(9, GRID[0] * GRID[1] // 4, 3072, 2) > 0


def test_a_branch_beside_another_model_is_refused():
    for kind in ("t2v", "vace"):
        with pytest.raises(ValueError, match=f"Mirage branch for this MODEL, but got a wan {kind} model; allowed"):
            place_of(None, replace(TI2V_5B, kind=kind), "nf4")


def test_no_place_is_no_place():
    assert place_of(None, TI2V_5B) is None and BRANCHES[0] == "none"


def test_a_graph_with_a_place_says_that_its_points_are_counted_later():
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan2.2_ti2v_5B_fp16.safetensors",
                                                     "weight_dtype": "default"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "wan2.2_vae.safetensors"}},
        "3": {"class_type": "VideoMemoryPersistentMemory", "inputs": {"preset": "wan22_ti2v_5b"}},
        "5": {"class_type": "VideoMemoryLiftSpatial", "inputs": {}},
        "4": {"class_type": "VideoMemoryBudgetGate", "inputs": {
            "model": ["1", 0], "vae": ["2", 0], "memory": ["3", 0], "spatial_memory": ["5", 0], "clip_seconds": 5.0,
            "budget_gb": 24.0}}}
    plain = answer_graph(graph, "4", lambda *_: None, 2, MACHINE)
    assert plain.fits and "points of the place are counted when the graph runs" in plain.message
    graph["4"]["inputs"]["mirage_branch"] = "int8"
    with_branch = answer_graph(graph, "4", lambda *_: None, 2, MACHINE)
    assert with_branch.phases[1].vram_bytes > plain.phases[1].vram_bytes + 2 * 10**9
