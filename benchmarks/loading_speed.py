"""The step times of loading.py: every kind of weights in turn in one model, and the best that the device could do."""

from __future__ import annotations

import contextlib
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import foreign_linear
import torch
from loading import import_bridge
from loading_model import CUDA, compute_dtype, forward, packable, place, synchronize

Linears = dict[str, torch.nn.Module]


def speed(options: dict) -> dict:
    """Seconds per step of every kind, interleaved over one model whose packable Linears are exchanged."""
    bridge, management = import_bridge(options["comfyui"])
    device = management.get_torch_device()
    model, _ = bridge.load_diffusion_model(options["file"], "original")
    model.model.diffusion_model.to(device)
    notes: list[str] = []
    linears = sets_of_linears(options, bridge, model, device, notes)
    return {"steps": step_times(options, model, linears, device), "notes": notes,
            "packed_bytes": {kind: sum(map(packed_bytes, some.values())) for kind, some in linears.items()},
            "weight_bytes": values(linears["bf16"]) * compute_dtype(model).itemsize,
            "unpack": unpacking(options, linears, compute_dtype(model), notes), "dtype": str(compute_dtype(model)),
            "machine": machine(options, compute_dtype(model), device)}


def sets_of_linears(options: dict, bridge: object, model: object, device: torch.device, notes: list[str],
                    ) -> dict[str, Linears]:
    """Per kind the Linears by name, all on the device; notes gets what was left out, with the reason."""
    names, dtype = packable(options["file"]), compute_dtype(model)
    sets = {"bf16": {name: model.model.diffusion_model.get_submodule(name) for name in names}}
    for kind in options["kinds"]:
        packed = bridge.load_diffusion_model(options["file"], kind)[0].model.diffusion_model
        sets[kind] = {name: packed.get_submodule(name).to(device) for name in names}
    with left_out("bitsandbytes", notes):
        sets["bitsandbytes"] = {name: foreign_linear.bitsandbytes_linear(linear, device, dtype)
                                for name, linear in sets["bf16"].items()}
    if options["gguf"]:
        with left_out("GGUF Q4_K", notes):
            dequant = foreign_linear.read_gguf(Path(options["gguf"]))
            sets["GGUF Q4_K"] = {name: foreign_linear.Q4KLinear(linear, dequant, device)
                                 for name, linear in sets["bf16"].items()}
    return sets


def step_times(options: dict, model: object, linears: dict[str, Linears], device: torch.device,
               ) -> dict[str, dict[str, float]]:
    """Per kind and length the median; the order of the kinds moves on by one in every round, the first warms up."""
    steps = {length: forward(model, device, options, latents) for length, latents in options["latents"].items()}
    times: dict[str, dict[str, list[float]]] = {kind: {length: [] for length in steps} for kind in linears}
    kinds = list(linears)
    for turn in range(options["rounds"] + 1):
        for length, step in steps.items():
            for kind in kinds[turn % len(kinds):] + kinds[:turn % len(kinds)]:
                place(model, linears[kind])
                step()  # the weights of the kind before are out of the caches, as they are in a real run of one kind
                times[kind][length].append(timed(step))
    return {kind: {length: statistics.median(some[1:]) for length, some in by_length.items()}
            for kind, by_length in times.items()}


def unpacking(options: dict, linears: dict[str, Linears], dtype: torch.dtype, notes: list[str]) -> list[dict]:
    """Seconds to unpack the largest weight, by every back end that works here and by ComfyUI-GGUF's functions."""
    from pack.nodes.loading import dequantize

    name = max(linears["bf16"], key=lambda name: linears["bf16"][name].weight.numel())
    rows = []
    for kind in ("nf4", "int8"):  # a mix has both
        weight = packed_weight(linears[kind][name])
        back_ends = dequantize.CUDA_BACK_ENDS[weight.KIND] if CUDA else ()
        chosen = dequantize.choose(weight, back_ends)[0]
        for back_end in (*back_ends, "torch"):
            with left_out(f"{kind} by {back_end}", notes):
                module = "dequantize_torch" if back_end == "torch" else back_end
                unpack = importlib.import_module(f"pack.nodes.loading.{module}").unpack
                seconds = repeated(lambda unpack=unpack, weight=weight: unpack(weight, dtype))
                rows.append({"kind": kind, "by": back_end + (" (chosen)" if back_end == chosen else ""),
                             "seconds": seconds, "packed_bytes": packed_bytes(linears[kind][name])})
    if "GGUF Q4_K" in linears:
        linear = linears["GGUF Q4_K"][name]
        rows.append({"kind": "GGUF Q4_K", "by": "ComfyUI-GGUF", "seconds": repeated(lambda: linear.unpack(dtype)),
                     "packed_bytes": packed_bytes(linear)})
    written = values({name: linears["bf16"][name]}) * dtype.itemsize
    return [{**row, "shape": list(linears["bf16"][name].weight.shape), "bytes": row["packed_bytes"] + written}
            for row in rows]


def packed_weight(linear: torch.nn.Module) -> object:
    """The packed weight of one of our Linears, with its tensors."""
    return linear.form.with_tensors({**dict(linear.named_parameters()), "packed": linear.weight})


def packed_bytes(linear: torch.nn.Module) -> int:
    """Bytes of what a Linear holds of its weight."""
    if hasattr(linear, "blocks"):
        return linear.blocks.nbytes
    state = getattr(linear.weight, "quant_state", None)
    if state is not None:
        return linear.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.state2.code.nbytes
    return sum(tensor.nbytes for field, tensor in linear.named_parameters() if field != "bias")


def values(linears: Linears) -> int:
    """Values of all these weights together."""
    return sum(linear.weight.numel() for linear in linears.values())


def machine(options: dict, dtype: torch.dtype, device: torch.device) -> dict:
    """What this device does at best: a matrix product of the model's largest size, and copying in its memory."""
    dim, ffn, tokens = options["dim"], options["ffn"], options["tokens"]["long"]
    x, w = (torch.randn(size, dim, device=device, dtype=dtype) for size in (tokens, ffn))
    source = torch.zeros(1 << (30 if CUDA else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {"flops": 2 * tokens * dim * ffn / repeated(lambda: torch.nn.functional.linear(x, w)),
            "bandwidth": 2 * source.nbytes / repeated(lambda: target.copy_(source))}


def repeated(function: Callable[[], object], seconds: float = 0.3) -> float:
    """Seconds per call: the median of five runs of many calls in a row."""
    function()
    calls = max(1, min(50, int(seconds / max(timed(function), 1e-6))))

    def many() -> None:
        for _ in range(calls):
            function()

    return statistics.median(timed(many) for _ in range(5)) / calls


def timed(function: Callable[[], object]) -> float:
    synchronize()
    started = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - started


@contextlib.contextmanager
def left_out(what: str, notes: list[str]) -> Iterator[None]:
    """Other people's code may be missing or fail in any way: then its row is, and is told."""
    try:
        yield
    except Exception as error:
        notes.append(f"{what} is left out: {type(error).__name__}: {error}")
