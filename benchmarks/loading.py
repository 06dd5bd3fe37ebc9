"""Load a full-size random Wan 1.3B file as NF4 and as it is: seconds, GB/s, peak RAM and VRAM, size of the model.

    python benchmarks/loading.py --comfyui PATH [--json RESULT] [--layers 30] [--folder TEMP]

Needs ComfyUI 0.3.75 or newer and its Python, 3 GB of disk, and no network. Every case runs in its own process, so that
the peaks do not mix.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import psutil
import torch
from random_wan import write_wan

ROOT = Path(__file__).resolve().parents[1]
CASES = ("nf4", "original")
COLUMNS = (("weights", "{}"), ("seconds", "{:.2f}"), ("gb_per_s", "{:.2f}"), ("peak_ram_gb", "{:.2f}"),
           ("peak_vram_gb", "{:.2f}"), ("model_gb", "{:.3f}"), ("first_forward_s", "{:.2f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), help="ComfyUI's folder")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--layers", type=int, default=30, help="transformer blocks of the random model")
    parser.add_argument("--folder", help="where the random file goes for the time of the run")
    parser.add_argument("--case", nargs=2, metavar=("WEIGHTS", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.comfyui:
        parser.error("say where ComfyUI is: --comfyui PATH, or the environment variable COMFYUI_PATH")
    if options.case:
        print(json.dumps(measure(options.comfyui, *options.case)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = write_wan(Path(folder) / "random_wan_1.3b_bf16.safetensors", layers=options.layers)
        rows = [run_case(options.comfyui, weights, path) for weights in CASES]
        result = {"device": device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
                  "file_gb": path.stat().st_size / 1e9, "layers": options.layers, "rows": rows}
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run_case(comfyui: str, weights: str, path: Path) -> dict:
    command = [sys.executable, __file__, "--comfyui", comfyui, "--case", weights, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The case {weights} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(comfyui: str, weights: str, file: str) -> dict:
    """Load `file` once in this process, after the imports; peak_ram_gb is what loading added to them."""
    bridge, management = import_bridge(comfyui)
    cuda = torch.cuda.is_available()
    before = psutil.Process().memory_info().rss
    sampler = PeakSampler(before)
    started = time.perf_counter()
    with sampler:
        model, _ = bridge.load_diffusion_model(file, weights)
        management.load_models_gpu([model])
    seconds = time.perf_counter() - started
    vram = torch.cuda.max_memory_allocated() if cuda else 0
    return {"weights": weights, "seconds": seconds, "gb_per_s": os.path.getsize(file) / 1e9 / seconds,
            "peak_ram_gb": sampler.added_bytes / 1e9, "peak_vram_gb": vram / 1e9, "model_gb": model.model_size() / 1e9,
            "first_forward_s": first_forward(model)}


def import_bridge(comfyui: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Our loader and ComfyUI's model management, without running the pack's own __init__."""
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0]] + ([] if torch.cuda.is_available() else ["--cpu"])
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management

    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    from pack.nodes.loading import bridge

    return bridge, comfy.model_management


class PeakSampler:
    """The most RAM that this process held above a baseline: anonymous and mapped memory, looked at every 2 ms."""

    def __init__(self, baseline_bytes: int) -> None:
        self.baseline_bytes = baseline_bytes
        self.added_bytes = 0

    def __enter__(self) -> PeakSampler:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.002):
            self.added_bytes = max(self.added_bytes, process.memory_info().rss - self.baseline_bytes)


@torch.no_grad()
def first_forward(model: object) -> float:
    """Seconds of one forward over one latent frame of 128x128 pixels: unpacks every weight once."""
    inner, device = model.model.diffusion_model, model.load_device
    x = torch.randn(1, 16, 1, 16, 16, device=device, dtype=inner.dtype)
    text = torch.zeros(1, 512, 4096, device=device, dtype=inner.dtype)
    started = time.perf_counter()
    inner(x, torch.tensor([500.0], device=device), text).cpu()
    return time.perf_counter() - started


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def print_table(result: dict) -> None:
    print(f"{result['device']}, torch {result['torch']}; random Wan file, {result['layers']} blocks, bf16, "
          f"{result['file_gb']:.2f} GB")
    print(" | ".join(name for name, _ in COLUMNS))
    for row in result["rows"]:
        print(" | ".join(form.format(row[name]).rjust(len(name)) for name, form in COLUMNS))


if __name__ == "__main__":
    main()
