"""The cost model against what is really allocated: ComfyUI's modules and our hook, traced on tensors without data."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pack.nodes.budget.cost_model import (
    DECODE_VALUES,
    Job,
    VaeFacts,
    decode_cost,
    forward_bytes,
    memory_bytes,
    resident_memory_bytes,
)
from pack.nodes.common.types import MemorySpec, ModelFacts
from pack.nodes.sampling.presets import memory_spec

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from live_bytes import LiveBytes

pytestmark = pytest.mark.comfy

STRIDES = {"wan21": 8, "wan22": 16}
LAYERS = 2  # activations do not depend on their number
MODELS = {  # dim, heads, ffn, channels, stride, width, height, chunk
    "ti2v_5b": (3072, 24, 14336, 48, 16, 1280, 704, 8),
    "t2v_14b": (5120, 40, 13824, 16, 8, 1280, 720, 3),
    "t2v_1.3b": (1536, 12, 8960, 16, 8, 832, 480, 3),
}


def job_of(name: str, spec: MemorySpec) -> Job:
    dim, heads, ffn, channels, stride, width, height, _ = MODELS[name]
    facts = ModelFacts("wan", LAYERS, heads, dim // heads, ffn, (1, 2, 2), channels, stride, 0, 2)
    return Job(facts, VaeFacts("wan22", 160, stride, 0, 2), width, height, spec.chunk_latents, spec)


@pytest.fixture
def flash(monkeypatch):
    """A fused attention allocates its output alone; tensors without data have none."""
    import comfy.ldm.wan.model as wan
    from comfy.ldm.modules.attention import wrap_attn

    monkeypatch.setattr(wan, "optimized_attention", wrap_attn(lambda q, k, v, heads, **kwargs: torch.empty_like(q)))


def wan_model(kind: str, name: str) -> torch.nn.Module:
    """ComfyUI's model of that kind and size, of two layers without data."""
    import comfy.ldm.wan.model as wan
    import comfy.ops

    dim, heads, ffn, channels, *_ = MODELS[name]
    side = {"vace_layers": 1, "vace_in_dim": 96} if kind == "vace" else {}
    return (wan.VaceWanModel if side else wan.WanModel)(
        model_type="t2v" if kind == "ti2v" else kind, dim=dim, ffn_dim=ffn, num_heads=heads, num_layers=LAYERS,
        in_dim=36 if kind == "i2v" else channels, out_dim=channels, device="meta", dtype=torch.bfloat16,
        operations=comfy.ops.disable_weight_init, **side)


def traced_clip(kind: str, name: str, latents: int) -> int:
    """Peak of one forward over a whole clip, with what the kind is given beside the noisy latents."""
    model, (_, _, _, _, stride, width, height, _) = wan_model(kind, name), MODELS[name]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, device="meta", dtype=torch.bfloat16)

    grid = (latents, height // stride, width // stride)
    beside = {"i2v": {"clip_fea": empty(257, 1280)},
              "vace": {"vace_context": empty(1, 96, *grid), "vace_strength": [1.0]}}.get(kind, {})
    times = torch.empty(1, latents, device="meta") if kind == "ti2v" else torch.empty(1, device="meta")
    live = LiveBytes([*model.parameters(), *(value for value in beside.values() if torch.is_tensor(value))])
    with torch.no_grad(), live:
        model(empty(36 if kind == "i2v" else MODELS[name][3], *grid), times, empty(512, 4096), transformer_options={},
              **beside)
    return live.peak


@pytest.mark.parametrize(("kind", "name", "preset"), [
    ("ti2v", "ti2v_5b", "wan22_ti2v_5b"), ("i2v", "t2v_14b", "wan22_i2v_14b"), ("vace", "t2v_14b", "wan21_vace"),
    ("vace", "t2v_1.3b", "wan21_vace"),
])
def test_whole_clip_is_never_dearer_than_predicted(kind, name, preset, flash):
    job = job_of(name, memory_spec(preset))
    job = replace(job, facts=replace(job.facts, kind=kind), clip_latents=21)
    traced, predicted = traced_clip(kind, name, job.forward_latents), forward_bytes(job)
    assert traced <= predicted <= 1.35 * traced


def traced_forward(name: str, blocks: int, precision: str, collect: bool) -> int:
    """Peak of one chunk's forward on the real WanModel with our hook and `blocks` remembered chunks."""
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.memory.kv_cache import BlockKV, pack_layer
    from pack.nodes.sampling.bridge_hook import MemoryHook

    dim, heads, _, channels, stride, width, height, chunk = MODELS[name]
    model = wan_model("t2v", name)
    tokens = chunk * (height // stride // 2) * (width // stride // 2)
    k = torch.empty(1, tokens, heads, dim // heads, device="meta", dtype=torch.bfloat16)
    memory = tuple(BlockKV(tuple(pack_layer(k, k, precision) for _ in range(LAYERS))) for _ in range(blocks))
    known = [t for block in memory for layer in block.layers
             for t in (*layer.k.tensors().values(), *layer.v.tensors().values())]
    hook = MemoryHook(memory, (), tuple(range(blocks * chunk)), blocks * chunk, (precision,) if collect else ())
    x = torch.empty(1, channels, chunk, height // stride, width // stride, device="meta", dtype=torch.bfloat16)
    context = torch.empty(1, 512, 4096, device="meta", dtype=torch.bfloat16)
    live = LiveBytes([*model.parameters(), *known])
    with torch.no_grad(), live:
        model(x, torch.empty(1, device="meta"), context,
              transformer_options={"wrappers": {WrappersMP.DIFFUSION_MODEL: {"test": [hook]}}})
    return live.peak


@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
@pytest.mark.parametrize("blocks", [0, 3])
@pytest.mark.parametrize("name", MODELS)
def test_forward_is_never_dearer_than_predicted(name, blocks, precision, flash):
    chunk = MODELS[name][-1]
    spec = MemorySpec("longlive_2", 24, chunk, 0, blocks * chunk, precision)
    job = job_of(name, spec)
    predicted = forward_bytes(job) + resident_memory_bytes(job) - memory_bytes(job, spec.capacity_latents)
    traced = max(traced_forward(name, blocks, precision, collect) for collect in (False, True))
    assert traced <= predicted
    assert predicted <= 1.35 * traced


@pytest.mark.parametrize("kind", ["wan21", "wan22"])
def test_decoder_keeps_less_alive_than_predicted(kind):
    """The prediction is the measured peak: above the trace by cuDNN's workspaces, below twice the trace."""
    from pack.nodes.video.decode import stream_decode

    model, dim, latents = decoder(kind, 1280, 704)
    live = LiveBytes([*model.parameters()])
    with live:
        for _ in stream_decode(model, latents):
            pass
    predicted = DECODE_VALUES[kind] * dim * 1280 * 704 * 2
    assert live.peak < predicted < 2 * live.peak


@pytest.mark.parametrize("kind", ["wan21", "wan22"])
@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize(("width", "height", "tile"), [(1280, 704, 512), (1280, 704, 256), (1920, 1088, 384)])
def test_tiles_keep_less_alive_than_predicted(kind, width, height, tile, parked):
    from pack.nodes.video.tiles import stream_decode_tiled

    model, dim, latents = decoder(kind, width, height)
    live = LiveBytes([*model.parameters()])
    with live:
        for _ in stream_decode_tiled(model, latents, None, tile // STRIDES[kind], parked=parked):
            pass
    spec = MemorySpec("longlive_2", 24, 8, 8, 16)
    facts = job_of("ti2v_5b", spec).facts
    job = Job(facts, VaeFacts(kind, dim, STRIDES[kind], 0, 2), width, height, 8, spec, decode_tile_px=tile,
              decode_parked=parked)
    assert live.peak < decode_cost(job).vram_bytes < 2 * live.peak


def decoder(kind: str, width: int, height: int) -> tuple[torch.nn.Module, int, torch.Tensor]:
    """A full-size Wan VAE without data, its base channels, and four latents for it."""
    from comfy.ldm.wan import vae, vae2_2

    options = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
               "temperal_downsample": [False, True, True], "dropout": 0.0}
    with torch.device("meta"):
        wan22 = kind == "wan22"
        dim, channels, stride = (160, 48, STRIDES[kind]) if wan22 else (96, 16, STRIDES[kind])
        model = (vae2_2.WanVAE if wan22 else vae.WanVAE)(dim=dim, z_dim=channels, **options).to(torch.bfloat16)
    for module in model.modules():
        if hasattr(module, "optimized_attention"):
            module.optimized_attention = lambda q, k, v: torch.empty_like(q)
    latents = torch.empty(1, channels, 4, height // stride, width // stride, device="meta", dtype=torch.bfloat16)
    return model, dim, latents


def test_ram_placement_keeps_two_layers_of_the_memory_and_one_of_the_chunk():
    spec = MemorySpec("longlive_2", 24, 8, 8, 16, "model", "ram")
    job = job_of("ti2v_5b", spec)
    job = replace(job, facts=replace(job.facts, layers=30))
    per_layer_latent = 880 * 3072 * 2 * 2
    assert resident_memory_bytes(job) == (2 * 24 + 8) * per_layer_latent


@pytest.mark.parametrize("family", ["hunyuan", "hunyuan15", "svd"])
def test_other_families_keep_alive_what_their_file_says(family):
    """Again on ComfyUI's modules, at another length than the two that the line was drawn through."""
    import budget_trace

    _, unet, (height, width), patch, lengths = budget_trace.FAMILIES[family]
    length = sum(lengths) // 2
    stride = 16 if family == "hunyuan15" else 8
    facts = ModelFacts(family, 0, 0, 0, 0, (1, patch, patch), unet["out_channels"], stride, 0, 2, "i2v")
    preset = {"hunyuan": "hunyuan_i2v", "hunyuan15": "hunyuan15_i2v", "svd": "svd"}[family]
    units = (length + 3) // 4 if family == "svd" else length  # SVD: frames
    job = Job(facts, VaeFacts("core", 0, stride, 0, 2), width * stride, height * stride, units - 1, memory_spec(preset))
    assert job.forward_latents == units
    traced = budget_trace.traced(family, budget_trace.network(family), 4 * units - 3 if family == "svd" else units)
    assert forward_bytes(job) == pytest.approx(traced, rel=0.02)
