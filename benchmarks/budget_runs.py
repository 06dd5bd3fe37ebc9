"""What budget_accuracy.py runs: single phases, whole planned clips beside a ballast process, and the envelope."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product

import torch
from full_size import SHAPES, full_memory, text

GIB = 2**30
ENVELOPE = ((4, "480p", 4), (4, "720p", 4), (8, "720p", 4), (8, "720p", 8), (12, "720p", 8), (4, "720p", 16),
            (4, "1080p", 4))  # clip s, size, window s: the article's rows and design.md's
ARTICLE = ("comfortable, ~70 s", "~2 GB headroom, ~140 s", "~500 MB headroom, ~290 s", "OOM 1 run in 5, ~310 s",
           "OOM", "OOM", "OOM (16+ GB), tiled: seams")
BALLAST = """
import sys, time, torch
keep, held = float(sys.argv[1]), []
free = torch.cuda.mem_get_info()[0]
while free > keep + 2**20:
    held.append(torch.empty(int(min(free - keep, 2**30)), dtype=torch.uint8, device="cuda"))
    free = torch.cuda.mem_get_info()[0]
print(f"ready {free}", flush=True)
sys.stdin.read()
"""


class Ballast:
    """Another process that holds all of the card but so many GB, for as long as the block lasts; 0 = none."""

    def __init__(self, leave_gb: float) -> None:
        self.leave_bytes, self.process = int(leave_gb * GIB), None

    def __enter__(self) -> Ballast:
        if self.leave_bytes:
            self.process = subprocess.Popen([sys.executable, "-c", BALLAST, str(self.leave_bytes)],
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            line = self.process.stdout.readline()
            if not line.startswith("ready"):
                raise RuntimeError("The ballast process could not fill the card: is another program using it?")
            print(f"ballast: {int(line.split()[1]) / GIB:.2f} GiB of the card are left free")
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def run_sampling(row: object, model: object) -> None:
    """One clip behind a full memory, through Clip Sampler's own code."""
    from budget_accuracy import job_of, shape_of, spec_of
    from pack.nodes.sampling import bridge
    from pack.nodes.sampling.presets import PRESETS

    bridge.RAM_SHARE = 1000.0  # nothing goes to files: this is not what is measured here
    shape, job = shape_of(row), job_of(row, model)
    memory = full_memory(model, shape, spec_of(row))
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        bridge.sample_with_memory(model, memory, text(), PRESETS[shape.preset], shape.geometry(),
                                  min(job.clip_latents, 3 * job.spec.chunk_latents), 1)


def run_decode(row: object, _model: object) -> None:
    """A clip of five latents, through Save Clip's decoder."""
    from budget_accuracy import shape_of
    from pack.nodes.common.progress import SILENT
    from pack.nodes.video.bridge_decode import decode_frames

    shape = shape_of(row)
    samples = torch.randn(1, shape.channels, 5, shape.height // shape.stride, shape.width // shape.stride)
    vae = build_vae(shape.channels)
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        for _ in decode_frames(vae, samples, None, row.tile, SILENT, row.parked):
            pass


def run_interpolation(row: object, _model: object) -> None:
    from fractions import Fraction

    from budget_accuracy import SIZES
    from pack.nodes.common.progress import SILENT
    from pack.nodes.interpolation.bridge import load_interpolator
    from pack.nodes.interpolation.retime import retime_images
    from pack.nodes.interpolation.weights import BUNDLED

    width, height = SIZES[row.size]
    images, rife = torch.rand(3, height, width, 3), load_interpolator(BUNDLED, "auto")
    retime_images(images, float(Fraction(8)), 8.0 * (row.batch + 1), rife.stream(width, height, row.batch), SILENT)


def build_vae(channels: int) -> object:
    """ComfyUI's VAE object around a full-size module of random weights in bfloat16."""
    import comfy.sd
    from comfy.ldm.wan import vae, vae2_2

    options = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
               "temperal_downsample": [False, True, True], "dropout": 0.0}
    kind, dim = (vae2_2.WanVAE, 160) if channels == 48 else (vae.WanVAE, 96)
    module = kind(dim=dim, z_dim=channels, **options).to(torch.bfloat16)
    return comfy.sd.VAE(sd=module.state_dict(), dtype=torch.bfloat16)


def plan_for(shape: object, size: tuple[int, int], clip_s: float, window_s: float, budget: object,
             profile: str = "balanced") -> object:
    from budget_accuracy import facts_of, vae_of
    from pack.nodes.budget.planner import make_plan
    from pack.nodes.sampling.presets import memory_spec

    return make_plan(facts_of(shape, "nf4"), vae_of(shape), *size, clip_s, memory_spec(shape.preset, window_s), profile,
                     budget)


def print_envelope(vram_gb: float, result: dict) -> None:
    """The article's table beside the gate's plans for such a card with a desktop on it. Predictions alone."""
    from budget_accuracy import SIZES
    from pack.nodes.budget.planner import budget_of
    from pack.nodes.budget.probe import Machine
    from pack.nodes.budget.report import PHASE_NAMES, gb

    machine = Machine("cuda:0", False, int(vram_gb * GIB), int(vram_gb * GIB), 0, 32 * GIB, 24 * GIB, 500 * GIB)
    budget = budget_of(machine, vram_gb)
    print(f"PREDICTED, not measured: TI2V-5B, NF4, 24 fps, planned for {budget.text}, 24 GB of free RAM")
    print("| clip | size | memory window | article | balanced: largest phase | headroom | at the least | given up |")
    print("|---" * 8 + "|")
    for (clip_s, size, window_s), article in zip(ENVELOPE, ARTICLE, strict=True):
        plan = plan_for(SHAPES["ti2v_5b"], SIZES[size], clip_s, window_s, budget)
        worst, least = (max(made.phases, key=lambda cost: cost.vram_bytes) for made in (
            plan, plan_for(SHAPES["ti2v_5b"], SIZES[size], clip_s, window_s, budget, "minimum_vram")))
        given_up = " ".join(sentence for sentence in plan.decisions if ": saves" in sentence) or "nothing"
        result["rows"].append({"clip_s": clip_s, "size": size, "window_s": window_s, "phase": worst.phase,
                               "predicted": worst.vram_bytes, "least": least.vram_bytes,
                               "budget": budget.vram_bytes, "decisions": plan.decisions})
        print(f"| {clip_s} s | {plan.width}x{plan.height} | {window_s} s | {article} | {PHASE_NAMES[worst.phase]} "
              f"{gb(worst.vram_bytes)} | {gb(budget.vram_bytes - worst.vram_bytes)} | {gb(least.vram_bytes)}, "
              f"{gb(budget.vram_bytes - least.vram_bytes)} headroom | {given_up} |")


def planned_runs(count: int, vram_gb: float, result: dict) -> None:
    """Clips of random size, length and window, planned for what is there and run: how many ran out of memory."""
    from budget_accuracy import CUDA, SIZES
    from full_size import build_model
    from pack.nodes.budget.bridge import look_around
    from pack.nodes.budget.planner import budget_of

    if not CUDA:
        print("NOT MEASURED: planned runs need a CUDA device")
        return
    import comfy.model_management as mm

    model, vae, chance = build_model(SHAPES["ti2v_5b"], "nf4"), build_vae(48), random.Random(0)
    cells = list(product((1, 4, 8, 12), SIZES, (1, 4, 8, 16)))
    for i in range(count):
        clip_s, size, window_s = chance.choice(cells)
        plan = plan_for(SHAPES["ti2v_5b"], SIZES[size], clip_s, window_s, budget_of(look_around(mm.get_torch_device())))
        torch.cuda.reset_peak_memory_stats()
        started, says = time.perf_counter(), "fits"
        try:
            run_plan(model, vae, plan)
        except torch.cuda.OutOfMemoryError:
            says = "OUT OF MEMORY"
        row = {"clip_s": clip_s, "size": size, "window_s": window_s, "says": says, "budget": plan.budget_bytes,
               "predicted": max(cost.vram_bytes for cost in plan.phases), "peak": torch.cuda.max_memory_allocated(),
               "held": torch.cuda.max_memory_reserved(), "seconds": time.perf_counter() - started}
        result["rows"].append(row)
        print(f"run {i + 1:>3}: {in_words(row)}", flush=True)
    failed = sum(row["says"] != "fits" for row in result["rows"])
    print(f"{failed} of {count} planned runs beside {vram_gb:g} GB ran out of memory (aim 0)")


def in_words(row: dict) -> str:
    sizes = (f"{name} {row[name] / GIB:.2f}" for name in ("predicted", "peak", "held"))
    return (f"{row['clip_s']:>2} s, {row['size']:<5}, {row['window_s']:>2} s window: {', '.join(sizes)} GiB, "
            f"{row['seconds']:.0f} s, {row['says']}")


def run_plan(model: object, vae: object, plan: object) -> None:
    """One chunk behind a full memory, then a decode, as the plan says: what the peaks depend on, without the rest."""
    from pack.nodes.common.progress import SILENT
    from pack.nodes.sampling import bridge
    from pack.nodes.sampling.presets import PRESETS
    from pack.nodes.video.bridge_decode import decode_frames

    bridge.RAM_SHARE = 1000.0
    shape = replace(SHAPES["ti2v_5b"], width=plan.width, height=plan.height)
    memory = full_memory(model, shape, plan.spec)
    with torch.inference_mode():
        samples, after = bridge.sample_with_memory(model, memory, text(), PRESETS[shape.preset], shape.geometry(),
                                                   plan.spec.chunk_latents, 1)
        if after.spec != plan.spec:  # it was stepped down: the plan did not hold
            raise torch.cuda.OutOfMemoryError("a concession was made while sampling")
        for _ in decode_frames(vae, samples, None, plan.decode_tile_px, SILENT, plan.decode_caches_in_ram):
            pass
