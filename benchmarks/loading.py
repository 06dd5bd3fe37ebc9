"""What packed weights cost and save: steps, VRAM, load time, RAM and disk, beside other people's and the arithmetic.

With CUDA: a TI2V-5B of random weights as plain bf16, our NF4 and int8, bitsandbytes' Linear4bit and, where a checkout
is named, the Q4_K functions of ComfyUI-GGUF. Step times of all kinds are taken in turn in one process; loads, peaks and
disk rows in a process each. Without CUDA steps are those of a small model, with aims for a GPU; RAM and disk are real.

    python benchmarks/loading.py --comfyui PATH [--gguf PATH] [--json RESULT] [--layers N] [--scale N] [--folder TEMP]

Needs a folder of ComfyUI 0.3.75 or newer and, of its requirements, einops, numpy, pillow, psutil, pyyaml, safetensors,
sentencepiece, torchvision, tqdm, transformers and what they need; bitsandbytes, and gguf for --gguf; 16 GB of disk; no
network. Floors: a step, its operations at the measured rate of a large matrix product; a
packed step, the bf16 step and the bytes of unpacking at the measured rate of copying; VRAM, the weights held and what
bf16 takes beside its own; load time, the file's bytes at the disk's plain read; RAM, the weights held.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import torch
from loading_table import aims, tables
from random_wan import write_wan

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.cuda.is_available()
DIM, FFN, CHANNELS, GRID = 3072, 14336, 48, (44, 80)  # Wan 2.2 TI2V-5B at 1280x704: 880 tokens per latent frame
LATENTS = {"long": 25, "short": 3}  # 97 frames in one forward; one chunk of a causal film
KINDS = ("nf4", "nf4_int8", "int8")
READS = 3


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shared = sizes(options)
        shared["file"] = str(write_wan(Path(folder) / "random_bf16.safetensors", dim=shared["dim"], ffn=shared["ffn"],
                                       layers=shared["layers"], channels=CHANNELS))
        result = {"device": device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
                  "sizes": {key: value for key, value in shared.items() if key not in ("comfyui", "file", "gguf")},
                  "file_bytes": os.path.getsize(shared["file"]), "notes": []}
        result["loads"] = [row for kind in ("bf16", *KINDS, "bitsandbytes")
                           if (row := run("load", shared | {"kind": kind}, result["notes"]))]
        result["speed"] = run("speed", shared)
        result["notes"] += result["speed"].pop("notes")
        result["disk"] = disk(shared, folder, options.disk_layers)
    result["aims"] = aims(result)
    print(tables(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), help="ComfyUI's folder")
    parser.add_argument("--gguf", type=Path, help="a checkout of city96's ComfyUI-GGUF")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--layers", type=int, default=30 if CUDA else 4, help="transformer blocks")
    parser.add_argument("--scale", type=int, default=1 if CUDA else 4, help="a model and a film so many times narrower")
    parser.add_argument("--disk-layers", type=int, default=30, help="without CUDA: blocks of the file for RAM and disk")
    parser.add_argument("--rounds", type=int, default=7 if CUDA else 3, help="the median of so many steps is shown")
    parser.add_argument("--folder", help="where the random files go for the time of the run")
    options = parser.parse_args()
    if not options.comfyui:
        parser.error("say where ComfyUI is: --comfyui PATH, or the environment variable COMFYUI_PATH")
    return options


def sizes(options: argparse.Namespace) -> dict:
    """What every measurement is told."""
    grid = [2 * round(side / options.scale / 2) for side in GRID]
    per_latent = grid[0] * grid[1] // 4
    return {"comfyui": options.comfyui, "gguf": str(options.gguf or ""), "kinds": KINDS, "rounds": options.rounds,
            "dim": DIM // options.scale, "ffn": FFN // options.scale, "layers": options.layers, "channels": CHANNELS,
            "grid": grid, "latents": LATENTS, "tokens": {key: n * per_latent for key, n in LATENTS.items()}}


def disk(shared: dict, folder: str, disk_layers: int) -> dict:
    """Peak RAM while quantising, and re-reading a saved file against the disk's plain read, in turn."""
    shared = shared | {"kind": "nf4", "saved": str(Path(folder) / "saved_nf4.safetensors")}
    if not CUDA:
        shared["file"] = str(write_wan(Path(folder) / "random_disk_bf16.safetensors", dim=DIM, ffn=FFN,
                                       layers=disk_layers, channels=CHANNELS))
    result = {"file_bytes": os.path.getsize(shared["file"]), "save": run("save", shared),
              "quantise": [run("quantise", shared | {"kind": kind}) for kind in KINDS]}
    reads = [(run("reread", shared), run("plain", shared)) for _ in range(READS)]
    for name, rows in zip(("reread", "plain"), zip(*reads, strict=True), strict=True):
        middle = statistics.median_low([row["seconds"] for row in rows])
        result[name] = next(row for row in rows if row["seconds"] == middle)
        result[name]["all_seconds"] = [row["seconds"] for row in rows]
    return result


def run(case: str, options: dict, notes: list[str] | None = None) -> dict | None:
    """One measurement in a process of its own. With `notes` a failure is noted and gives None, else it ends the run."""
    command = [sys.executable, str(Path(__file__).with_name("loading_measure.py")), case, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return json.loads(done.stdout.splitlines()[-1])
    kind = options.get("kind", "")
    if notes is None or kind != "bitsandbytes":
        raise SystemExit(f"The measurement {case} {kind} failed:\n{done.stderr}")
    notes.append(f"{case} {kind} is left out: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return None


def import_bridge(comfyui: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Our loader and ComfyUI's model management, without running the pack's own __init__."""
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0]] + ([] if CUDA else ["--cpu"])
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management

    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    from pack.nodes.loading import bridge

    return bridge, comfy.model_management


def device_name() -> str:
    if CUDA:
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


if __name__ == "__main__":
    main()
