"""Weights and inputs for models in diffusers' names: the same numbers on every machine, made of their names."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch

GAINS = ("norm", "norm_q", "norm_k", "norm_added_q", "norm_added_k", "norm1", "norm2", "norm_in", "norm_out")


def numbers(name: str, shape: Sequence[int], scale: float = 0.12) -> torch.Tensor:
    """float32 of that shape, spread evenly over -scale / 2 .. scale / 2 without an order to be seen."""
    index = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.int64)
    mixed = (index * 40503 + zlib.crc32(name.encode()) % 65521) % 65521
    return ((mixed * mixed + index * 7) % 65521 / 65521 - 0.5).float().mul(scale).reshape(shape)


def state_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """A state dict; the gains of norms lie around 1."""
    return {name: numbers(name, shape) + (len(shape) == 1 and name.split(".")[-1] == "weight"
                                          and name.split(".")[-2] in GAINS)
            for name, shape in shapes.items()}


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    """What both implementations are given, in ComfyUI's shapes."""
    sizes = {
        "wan_i2v": {"x": (1, 36, 2, 4, 4), "context": (1, 512, 4096), "clip_fea": (1, 257, 1280)},
        "wan_flf2v": {"x": (1, 36, 2, 4, 4), "context": (1, 512, 4096), "clip_fea": (1, 514, 1280)},
        "wan_ti2v": {"x": (1, 48, 2, 4, 4), "context": (1, 9, 4096)},
        "wan_vace": {"x": (1, 16, 2, 4, 4), "context": (1, 9, 4096), "vace": (1, 96, 2, 4, 4)},
        "ltx": {"x": (1, 128, 2, 4, 4), "context": (1, 9, 4096)},
        "hunyuan": {"x": (1, 16, 2, 4, 4), "context": (1, 9, 96), "y": (1, 768)},
        "hunyuan_15": {"x": (1, 65, 2, 4, 4), "context": (1, 9, 96), "txt_byt5": (1, 5, 1472),
                       "clip_fea": (1, 10, 1152)}}
    return {name: numbers(f"{kind}.{name}", shape, 2.0) for name, shape in sizes[kind].items()}
