"""What a memory costs: VRAM and seconds per chunk against window, precision and placement, beside the arithmetic.

Full-size models with random weights (made on the device; nothing is downloaded), sampled by Clip Sampler's own code.
The memory is full from the start: random latents and K/V in the real formats; at rest the layers of a chunk share one
copy, so that RAM is not the limit here. On a machine without CUDA a tiny model shows that it runs, and no VRAM.

    python benchmarks/memory_cost.py --comfyui PATH [-m ti2v_5b 14b 1.3b] [-w nf4 bf16] [-s 0 4 8 16] [-p 4bit int8
                                     model] [-r vram ram] [--flat] [--limit-gib 11] [--json RESULT]

Rows are printed and written as they come. --flat: 30 clips of one chunk instead, from an empty memory on (the first
window of -s). --limit-gib: torch may take no more of the card than this.
Aims: 16 s at 24 fps on TI2V-5B in NF4 in less than 11 GiB in total; RAM within 10 % of VRAM's time; clip 30 within 2 %
of the first clip with a full memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from itertools import product
from pathlib import Path

import torch
from full_size import SHAPES, Shape, build_model, full_memory, stand_in_for_missing, text
from loading import device_name, import_bridge

GIB, CUDA = 2**30, torch.cuda.is_available()
CHUNKS = 3  # of a row's clip; the last one is timed
FLAT_CLIPS, MEDIAN_OF = 30, 5
AIM_GIB, AIM_RAM, AIM_FLAT = 11, 1.10, 0.02


COLUMNS = (("model", "{:>8}"), ("weights", "{:>7}"), ("window_s", "{:>8.2f}"), ("latents", "{:>7}"),
           ("precision", "{:>9}"), ("placement", "{:>9}"), ("kv_gib", "{:>7.2f}"), ("predicted_gib", "{:>13.2f}"),
           ("peak_gib", "{:>8.2f}"), ("reserved_gib", "{:>12.2f}"), ("card_gib", "{:>8.2f}"), ("begin_s", "{:>7.2f}"),
           ("chunk_s", "{:>7.3f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), help="ComfyUI's folder")
    parser.add_argument("-m", "--models", nargs="+", choices=SHAPES, default=["ti2v_5b", "14b", "1.3b"])
    parser.add_argument("-w", "--weights", nargs="+", choices=("nf4", "bf16"), default=["nf4"])
    parser.add_argument("-s", "--seconds", nargs="+", type=float, default=[0.0, 4.0, 8.0, 16.0])
    parser.add_argument("-p", "--precisions", nargs="+", choices=("model", "int8", "4bit"), default=["4bit"])
    parser.add_argument("-r", "--placements", nargs="+", choices=("vram", "ram"), default=["vram", "ram"])
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--limit-gib", type=float)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.comfyui:
        parser.error("say where ComfyUI is: --comfyui PATH, or COMFYUI_PATH in the environment")
    stand_in_for_missing()
    import_bridge(options.comfyui)
    if CUDA and options.limit_gib:
        torch.cuda.set_per_process_memory_fraction(options.limit_gib * GIB / torch.cuda.mem_get_info()[1])
    result = {"device": device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
              "limit_gib": options.limit_gib, "rows": []}
    print(f"{result['device']}, torch {result['torch']}", "" if CUDA else "; a tiny model, and VRAM is not measured")
    if not options.flat:
        print(" ".join(name.rjust(len(form.format(0))) for name, form in COLUMNS))
    for name, weights in product(options.models if CUDA else ["tiny"], options.weights):
        run_model(name, weights, options, result)


def run_model(name: str, weights: str, options: argparse.Namespace, result: dict) -> None:
    """All rows of one model, each printed and written when it is there."""
    import comfy.model_management
    model = build_model(SHAPES[name], weights)
    rows = product(options.seconds[:1] if options.flat else options.seconds, options.precisions, options.placements)
    for seconds, precision, placement in rows:
        if not seconds and (precision, placement) != (options.precisions[0], options.placements[0]):
            continue
        head = {"model": name, "weights": weights, "window_s": seconds, "precision": precision, "placement": placement}
        try:
            row = head | (run_flat if options.flat else run_row)(model, SHAPES[name], seconds, precision, placement)
        except torch.OutOfMemoryError:
            row = head | {"says": "out of memory"}
        (print_flat if "clips" in row else print_row)(row, result["rows"])
        result["rows"].append(row)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    del model
    comfy.model_management.unload_all_models()


def run_row(model: object, shape: Shape, seconds: float, precision: str, placement: str) -> dict:
    """One clip behind a full memory; or what it would take where that is more than the card has."""
    spec = spec_of(shape, seconds, precision, placement)
    row = arithmetic(model, shape, spec)
    if CUDA and row["predicted_gib"] > torch.cuda.mem_get_info()[1] / GIB:
        return row | {"says": "more than the card has"}
    return row | sample(model, shape, full_memory(model, shape, spec), CHUNKS)[0]


def run_flat(model: object, shape: Shape, seconds: float, precision: str, placement: str) -> dict:
    """Clips of one chunk, from an empty memory on."""
    from pack.nodes.memory.state import empty_memory

    spec = spec_of(shape, seconds, precision, placement)
    memory, clips = empty_memory(spec), []
    for _ in range(FLAT_CLIPS):
        seen = sum(block.length for block in memory.blocks)
        cost, memory = sample(model, shape, memory, 1)
        clips.append({"seen_latents": seen} | cost)
    full = next((i for i, one in enumerate(clips) if one["seen_latents"] == spec.capacity_latents), len(clips) - 1)
    return arithmetic(model, shape, spec) | {"clips": clips, "first_full_clip": full + 1}


def spec_of(shape: Shape, seconds: float, precision: str, placement: str) -> object:
    """The recipe's sink and a window of these seconds (0: no memory at all)."""
    from dataclasses import replace

    from pack.nodes.sampling.presets import memory_spec

    spec = memory_spec(shape.preset, max(seconds, 1e-3), precision=precision, placement=placement)
    return spec if seconds else replace(spec, window_latents=0, sink_latents=0)


def arithmetic(model: object, shape: Shape, spec: object) -> dict:
    """What the pack's own formulas say: bytes of the K/V, and the gate's peak of sampling."""
    from pack.nodes.budget.cost_model import Job, VaeFacts, memory_bytes, sampling_cost
    from pack.nodes.common.compat import model_facts

    facts = model_facts(model)
    job = Job(facts, VaeFacts("wan22", 160, shape.stride, 0, 2), shape.width, shape.height,
              CHUNKS * spec.chunk_latents, spec)
    return {"latents": spec.capacity_latents, "kv_gib": memory_bytes(job, spec.capacity_latents) / GIB,
            "predicted_gib": sampling_cost(job).vram_bytes / GIB}


def sample(model: object, shape: Shape, memory: object, chunks: int) -> tuple[dict, object]:
    """Costs of one clip of Clip Sampler's code, and the memory after it. begin_s: until its first forward is done."""
    from pack.nodes.common.progress import Progress
    from pack.nodes.sampling import bridge
    from pack.nodes.sampling.presets import PRESETS

    bridge.RAM_SHARE = 1000.0  # nothing goes to files: this is not what is measured here
    preset, times = PRESETS[shape.preset], []
    clean()
    started = tick(times)
    with torch.inference_mode():
        _, after = bridge.sample_with_memory(model, memory, text(), preset, shape.geometry(), chunks * preset.chunk, 1,
                                             Progress(update=lambda _done, _total: tick(times)))
    forwards = len(preset.sigmas)
    between = forwards if chunks > 1 else forwards - 1  # a clip's first forward also loads
    chunk_s = (times[-1] - times[-1 - between]) * forwards / between
    return {"begin_s": times[1] - started, "chunk_s": chunk_s, "call_s": tick(times) - started, **vram()}, after


def tick(times: list[float]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    times.append(time.perf_counter())
    return times[-1]


def vram() -> dict:
    """Peaks since clean(): what tensors took, what torch held, and that with the CUDA context and other processes."""
    if not CUDA:
        return {"peak_gib": None, "reserved_gib": None, "card_gib": None}
    free, total = torch.cuda.mem_get_info()
    reserved, others = torch.cuda.max_memory_reserved(), total - free - torch.cuda.memory_reserved()
    return {"peak_gib": torch.cuda.max_memory_allocated() / GIB, "reserved_gib": reserved / GIB,
            "card_gib": (reserved + others) / GIB}


def clean() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def print_row(row: dict, before: list[dict]) -> None:
    """The row; with RAM placement also its time beside that of the same row in VRAM."""
    cells = (form.format(row[name]) if row.get(name) is not None else "-".rjust(len(form.format(0)))
             for name, form in COLUMNS)
    same = [row[key] for key in ("model", "weights", "window_s", "precision")] + ["vram"]
    twin = next((one for one in before if row["placement"] == "ram" and "chunk_s" in one and same == [
        one[key] for key in ("model", "weights", "window_s", "precision", "placement")]), None)
    says = row.get("says", "")
    if twin and "chunk_s" in row:
        says = f"{row['chunk_s'] / twin['chunk_s']:.3f} x VRAM's time (aim <= {AIM_RAM})"
    if (row["model"], row["weights"], row["window_s"]) == ("ti2v_5b", "nf4", 16) and row.get("card_gib"):
        says += f"  {row['card_gib']:.2f} GiB in total (aim < {AIM_GIB})"
    print(*cells, says.strip(), flush=True)


def print_flat(row: dict, _before: list[dict]) -> None:
    clips, full = row["clips"], row["first_full_clip"]
    print(f"{row['model']} {row['weights']}, {row['window_s']:g} s, {row['precision']} in {row['placement']}:")
    for i in sorted({1, full, len(clips)}):
        one = clips[i - 1]
        peak = "not measured" if one["peak_gib"] is None else f"{one['peak_gib']:.3f} GiB"
        print(f"  clip {i:>2}: {one['seen_latents']:>3} latents in view, chunk {one['chunk_s']:.3f} s, "
              f"whole clip {one['call_s']:.3f} s, peak {peak}")
    first, last = (statistics.median(one["chunk_s"] for one in some)
                   for some in (clips[full - 1:full + MEDIAN_OF - 1], clips[-MEDIAN_OF:]))
    print(f"  median of the last {MEDIAN_OF} clips / of {MEDIAN_OF} from clip {full} on: {last / first:.3f} x the time "
          f"(aim 1 +- {AIM_FLAT})", flush=True)


if __name__ == "__main__":
    main()
