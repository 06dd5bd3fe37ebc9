"""The budget gate's predictions against measured peaks, and the envelope of a 12 GB card in the article's format.

    python benchmarks/budget_accuracy.py --comfyui PATH [--only sampling decode interpolation] [--json RESULT]
    python benchmarks/budget_accuracy.py --comfyui PATH --envelope [--vram 12]     predictions alone; needs no card
    python benchmarks/budget_accuracy.py --comfyui PATH --runs 100 --vram 12       planned runs beside a ballast process
    python benchmarks/budget_accuracy.py --comfyui PATH --fit nodes/budget/data/wan.json   also write what was measured

Full-size models with random weights (made on the device; nothing is downloaded), the nodes' own code. The grid: Wan
1.3B, TI2V-5B and 14B; 480p to 1080p; clips of 1 to 12 s; windows of 0 to 16 s; bf16, NF4 and int8 weights; K/V in VRAM
and in RAM; whole frames, tiles and parked caches; RIFE. peak: what tensors took (torch.cuda.max_memory_allocated)
beside the same of the prediction; held: what the allocator held beside the whole prediction.

Aims: 95 % of the predictions within 5 % or 200 MiB of the peak, none more than 300 MiB too low; of 100 planned runs on
a card with exactly 12 GiB free, none out of memory. Without CUDA nothing is measured: the predictions are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from full_size import SHAPES, Shape, stand_in_for_missing

GIB, MIB, CUDA = 2**30, 2**20, torch.cuda.is_available()
SIZES = {"480p": (832, 480), "720p": (1280, 704), "1080p": (1920, 1088)}
SECONDS = (1.0, 4.0, 8.0, 12.0)  # of clips, taken in turn: peaks hardly depend on them
WINDOWS = ((0.0, "4bit", "vram"), (4.0, "4bit", "vram"), (8.0, "int8", "ram"), (16.0, "4bit", "ram"))
DECODES = ((0, False), (512, False), (384, False), (256, True))
WITHIN, WITHIN_BYTES, TOO_LOW_BYTES, AIM = 0.05, 200 * MIB, 300 * MIB, 0.95


@dataclass(frozen=True)
class Config:
    """One row of the grid. phase: sampling, decode or interpolation."""

    phase: str
    model: str
    weights: str
    size: str
    clip_s: float = 1.0
    window_s: float = 0.0
    precision: str = "4bit"
    placement: str = "vram"
    tile: int = 0
    parked: bool = False
    batch: int = 1

    @property
    def words(self) -> str:
        what = {"sampling": f"{self.clip_s:g} s clip, {self.window_s:g} s window, {self.precision} in {self.placement}",
                "decode": f"tiles {self.tile or 'none'}{', caches in RAM' if self.parked else ''}",
                "interpolation": f"{self.batch} at once"}[self.phase]
        return f"{self.phase:<13} {self.model:<8} {self.weights:<5} {self.size:<6} {what}"


def grid() -> list[Config]:
    """The configurations, by model, so that each is built once."""
    rows = []
    for i, (model, weights, size, window) in enumerate(product(
            ("1.3b", "ti2v_5b", "14b"), ("nf4", "int8", "bf16"), SIZES, WINDOWS)):
        if (model, weights) != ("14b", "bf16"):  # 28 GB of weights: nobody plans that for a small card
            rows.append(Config("sampling", model, weights, size, SECONDS[i % len(SECONDS)], *window))
    rows += [Config("decode", model, "bf16", size, tile=tile, parked=parked) for model, size, (tile, parked) in
             product(("1.3b", "ti2v_5b"), SIZES, DECODES)]
    return rows + [Config("interpolation", "ti2v_5b", "bf16", size, batch=batch) for size, batch in
                   product(SIZES, (1, 4))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), help="ComfyUI's folder")
    parser.add_argument("--only", nargs="+", choices=("sampling", "decode", "interpolation"))
    parser.add_argument("--models", nargs="+", choices=("1.3b", "ti2v_5b", "14b"))
    parser.add_argument("--envelope", action="store_true")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--vram", type=float, default=12.0, help="GB of the card that --envelope and --runs plan for")
    parser.add_argument("--fit", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.comfyui:
        parser.error("say where ComfyUI is: --comfyui PATH, or COMFYUI_PATH in the environment")
    from budget_runs import Ballast, planned_runs, print_envelope

    with Ballast(options.vram if CUDA and options.runs else 0.0):  # before this process has a context of its own
        stand_in_for_missing()
        from loading import device_name, import_bridge

        import_bridge(options.comfyui)
        result = {"device": device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "rows": []}
        print(f"{result['device']}, torch {result['torch']}, {result['date']}")
        if options.envelope:
            print_envelope(options.vram, result)
        elif options.runs:
            planned_runs(options.runs, options.vram, result)
        else:
            accuracy(options, result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def accuracy(options: argparse.Namespace, result: dict) -> None:
    """Every row of the grid, then the summary."""
    rows = [row for row in grid() if row.phase in (options.only or (row.phase,))
            and row.model in (options.models or (row.model,))]
    print(f"{len(rows)} configurations. " + ("predicted and peak in GiB" if CUDA else
          "PREDICTIONS ALONE: there is no CUDA device here, nothing is measured"))
    model, built = None, ("", "")
    for row in rows:
        if CUDA and row.phase == "sampling" and built != (row.model, row.weights):
            from full_size import build_model

            model = None
            clean()
            model, built = build_model(SHAPES[row.model], row.weights), (row.model, row.weights)
        found = measure(row, model)
        result["rows"].append(vars(row) | found)
        print(row.words.ljust(78), *(f"{name} {found[name] / GIB:6.2f}" for name in ("predicted", "peak", "held")
                                     if found.get(name) is not None), found.get("says", ""), flush=True)
    summary(result)
    if options.fit and CUDA:
        fit(options.fit, result)


def measure(row: Config, model: object) -> dict:
    """predicted: live bytes; whole: with what the allocator holds; peak, held: measured, where there is a card."""
    from budget_runs import run_decode, run_interpolation, run_sampling

    cost = cost_of(row, model)
    found = {"predicted": cost.live_bytes, "whole": cost.vram_bytes, "parts": dict(cost.parts), "peak": None}
    if not CUDA:
        return found
    if cost.vram_bytes > torch.cuda.mem_get_info()[1]:
        return found | {"says": "more than the card has"}
    clean()
    try:
        {"sampling": run_sampling, "decode": run_decode, "interpolation": run_interpolation}[row.phase](row, model)
    except torch.cuda.OutOfMemoryError:
        return found | {"says": "out of memory"}
    torch.cuda.synchronize()
    return found | {"peak": torch.cuda.max_memory_allocated(), "held": torch.cuda.max_memory_reserved()}


def cost_of(row: Config, model: object = None) -> object:
    """The gate's prediction of a row's phase."""
    from pack.nodes.budget.cost_model import phase_costs

    return next(cost for cost in phase_costs(job_of(row, model)) if cost.phase == row.phase)


def job_of(row: Config, model: object = None) -> object:
    from pack.nodes.budget.cost_model import Job
    from pack.nodes.budget.planner import clip_latents_of

    shape, spec = shape_of(row), spec_of(row)
    facts = facts_of(shape, row.weights)
    if model is not None:
        from pack.nodes.common.compat import model_facts

        facts = model_facts(model)
    return Job(facts, vae_of(shape), shape.width, shape.height, clip_latents_of(spec, row.clip_s), spec, row.tile,
               row.batch, row.parked)


def shape_of(row: Config) -> Shape:
    shape, (width, height) = SHAPES[row.model], SIZES[row.size]
    step = 2 * shape.stride
    return replace(shape, width=width // step * step, height=height // step * step)


def spec_of(row: Config) -> object:
    from pack.nodes.sampling.presets import memory_spec

    shape = SHAPES[row.model]
    spec = memory_spec(shape.preset, max(row.window_s, 1e-3), precision=row.precision, placement=row.placement)
    return spec if row.window_s else replace(spec, window_latents=0, sink_latents=0)


def facts_of(shape: Shape, weights: str) -> object:
    """The facts of such a model, its blocks' matrices packed as full_size.build_model packs them."""
    from pack.nodes.common.types import ModelFacts
    from pack.nodes.loading.codecs import CODECS
    from random_wan import wan_shapes

    size = 0
    for name, form in wan_shapes(shape.dim, shape.ffn, shape.layers, shape.channels).items():
        packed = weights in CODECS and name.startswith("blocks.") and len(form) == 2
        size += CODECS[weights].packed_bytes(*form) if packed else 2 * torch.Size(form).numel()
    return ModelFacts("wan", shape.layers, shape.dim // 128, 128, shape.ffn, (1, 2, 2), shape.channels, shape.stride,
                      size, 2, "ti2v" if shape.channels == 48 else "t2v")


def vae_of(shape: Shape) -> object:
    """Of the published VAEs in bfloat16."""
    from pack.nodes.budget.cost_model import VaeFacts

    if shape.channels == 48:
        return VaeFacts("wan22", 160, 16, int(1.3126 * GIB), 2)
    return VaeFacts("wan21", 96, 8, int(0.2364 * GIB), 2)


def summary(result: dict) -> None:
    """How many predictions were good enough, and the worst."""
    rows = [row for row in result["rows"] if row.get("peak")]
    if not rows:
        return
    missed = [row["peak"] - row["predicted"] for row in rows]
    good = sum(abs(miss) <= max(WITHIN * row["peak"], WITHIN_BYTES) for miss, row in zip(missed, rows, strict=True))
    held = sum(row["held"] > row["whole"] for row in rows)
    result["summary"] = {"measured": len(rows), "good": good, "too_low_most_mib": max(missed) / MIB}
    print(f"{good} of {len(rows)} ({good / len(rows):.0%}, aim {AIM:.0%}) within {WITHIN:.0%} or "
          f"{WITHIN_BYTES // MIB} MiB; at most {max(missed) / MIB:.0f} MiB too low (aim {TOO_LOW_BYTES // MIB}), "
          f"{-min(missed) / MIB:.0f} MiB too high; the allocator held more than was predicted in {held}")


def fit(path: Path, result: dict) -> None:
    """Write what the rows say of the coefficients that they can tell of."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in result["rows"] if row.get("peak")]
    sampled = [row for row in rows if row["phase"] == "sampling"]
    found = {}
    if sampled:
        found["workspace_bytes"] = max(0.0, statistics.median(
            row["peak"] - row["predicted"] + row["parts"]["workspace"] for row in sampled))
        found["fragmentation"] = max(0.0, statistics.quantiles(
            [(row["held"] - row["peak"]) / (row["peak"] - row["parts"]["weights"]) for row in sampled], n=20)[-1])
    for kind, model in (("wan21", "1.3b"), ("wan22", "ti2v_5b")):
        whole = [row for row in rows if (row["phase"], row["model"], row["tile"]) == ("decode", model, 0)]
        if whole:
            entry = content["coefficients"][f"{kind}_decode_values"]["value"]
            found[f"{kind}_decode_values"] = max(
                entry * (row["peak"] - row["parts"]["weights"]) / row["parts"]["decode"] for row in whole)
    for name, value in found.items():
        entry = content["coefficients"][name]
        print(f"{name}: {entry['value']:g} ({entry['how']}) -> {value:g} (measured)")
        entry |= {"value": value, "how": "measured",
                  "note": f"{entry['note']}; {result['device']}, torch {result['torch']}, {result['date']}"}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def clean() -> None:
    import gc

    import comfy.model_management

    gc.collect()
    comfy.model_management.unload_all_models()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
