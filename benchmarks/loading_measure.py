"""One measurement of loading.py in a process of its own, so that peaks do not mix; prints one line of JSON.

    python benchmarks/loading_measure.py CASE '{"comfyui": PATH, "file": PATH, ...}'
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import foreign_linear
import psutil
import torch
from full_size import stand_in_for_missing
from loading import import_bridge
from loading_model import CUDA, compute_dtype, forward, packable, place, synchronize
from loading_speed import speed

BLOCK = 1 << 24  # bytes of a plain read


def load(options: dict) -> dict:
    """Load the file as one kind of weights: seconds, RAM, VRAM at both lengths. Peaks are what loading added."""
    bridge, management = import_bridge(options["comfyui"])
    device, kind = management.get_torch_device(), options["kind"]
    is_theirs = kind == "bitsandbytes"
    if is_theirs:
        importlib.import_module("bitsandbytes.nn")
    torch.zeros(1, device=device)
    make_cold(options["file"])
    watch = Watch()
    with watch:
        model, _ = bridge.load_diffusion_model(options["file"], "original" if kind == "bf16" or is_theirs else kind)
        if is_theirs:
            exchange(model, packable(options["file"]), device)
            model.model.diffusion_model.to(device)
        else:
            management.load_models_gpu([model], force_full_load=True)
        synchronize()
    result = {"kind": kind, "seconds": watch.seconds, "peak_ram": watch.peak_bytes, "model_bytes": held(model)}
    for length, latents in options["latents"].items():
        step = forward(model, device, options, latents)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        step()
        synchronize()
        result[f"vram_{length}"] = torch.cuda.max_memory_allocated() if CUDA else 0
    return result


def quantise(options: dict) -> dict:
    """Peak RAM while the file is packed, above what the process held before, and the size of the result."""
    import_bridge(options["comfyui"])
    from pack.nodes.loading import formats, plan, streaming

    checkpoint = formats.read_checkpoint(options["file"], formats.DIFFUSION_MODELS)
    layers = plan.plan_layers(checkpoint, weights=options["kind"])
    device = torch.device("cuda" if CUDA else "cpu")
    torch.zeros(1, device=device)
    make_cold(options["file"])
    watch = Watch()
    with watch:
        state = streaming.read_weights(checkpoint, layers, device)
    return {"kind": options["kind"], "seconds": watch.seconds, "peak_ram": watch.peak_bytes,
            "result_bytes": sum(tensor.nbytes for tensor in state.values())}


def save(options: dict) -> dict:
    bridge, _ = import_bridge(options["comfyui"])
    from pack.nodes.loading.bridge_save import save_model

    started = time.perf_counter()
    save_model(bridge.load_diffusion_model(options["file"], options["kind"])[0], Path(options["saved"]))
    return {"seconds": time.perf_counter() - started, "bytes": os.path.getsize(options["saved"])}


def reread(options: dict) -> dict:
    """Load a saved file until all of it is on the device, or, without CUDA, was read once where it is mapped."""
    bridge, management = import_bridge(options["comfyui"])
    make_cold(options["saved"])
    watch = Watch()
    with watch:
        model, _ = bridge.load_diffusion_model(options["saved"], "original")
        if CUDA:
            management.load_models_gpu([model], force_full_load=True)
            synchronize()
        else:
            for tensor in model.model.diffusion_model.state_dict().values():
                tensor.clone()
    return {"seconds": watch.seconds, "peak_ram": watch.peak_bytes, "bytes": os.path.getsize(options["saved"])}


def plain(options: dict) -> dict:
    """Read the saved file from its beginning to its end, and nothing else."""
    make_cold(options["saved"])
    buffer = bytearray(BLOCK)
    started = time.perf_counter()
    with open(options["saved"], "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return {"seconds": time.perf_counter() - started, "bytes": os.path.getsize(options["saved"])}


class Watch:
    """Seconds, and the most RAM above the beginning: anonymous and mapped memory, looked at every 2 ms."""

    def __enter__(self) -> None:
        gc.collect()
        self._stop, self._process = threading.Event(), psutil.Process()
        self._before, self.peak_bytes = self._process.memory_info().rss, 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self._started = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss - self._before)


def exchange(model: object, names: list[str], device: torch.device) -> None:
    """bitsandbytes' Linears for the model's, one after the other, so that no two forms of the whole model are held."""
    for name in names:
        linear = model.model.diffusion_model.get_submodule(name)
        place(model, {name: foreign_linear.bitsandbytes_linear(linear, device, compute_dtype(model))})


def held(model: object) -> int:
    """Bytes of all parameters, of bitsandbytes' states too."""
    inner, total = model.model.diffusion_model, 0
    for tensor in (*inner.parameters(), *inner.buffers()):
        total += tensor.nbytes
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            total += sum(part.nbytes for part in (state.absmax, state.code, state.state2.absmax, state.state2.code))
    return total


def make_cold(path: str) -> None:
    """Take the file out of the system's page cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


CASES = {case.__name__: case for case in (load, speed, quantise, save, reread, plain)}

if __name__ == "__main__":
    stand_in_for_missing()
    print(json.dumps(CASES[sys.argv[1]](json.loads(sys.argv[2]))))
