"""Other people's 4-bit Linears, put beside ours for the measurement: bitsandbytes' own, and ComfyUI-GGUF's Q4_K."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

Q4_K_VALUES, Q4_K_BYTES = 256, 144  # per block: two float16 scales, 12 bytes of 6-bit scales, half a byte per value


def bitsandbytes_linear(linear: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Linear4bit (NF4, double quantisation) with the weights of `linear`, as its users make one."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    rows, columns = linear.weight.shape
    made = Linear4bit(columns, rows, bias=linear.bias is not None, compute_dtype=dtype, compress_statistics=True,
                      quant_type="nf4", device="meta")
    made.weight = Params4bit(linear.weight.detach().contiguous(), requires_grad=False, quant_type="nf4",
                             compress_statistics=True).to(device)
    if linear.bias is not None:
        made.bias = torch.nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
    return made


def read_gguf(checkout: Path) -> ModuleType:
    """dequant.py of a ComfyUI-GGUF checkout; needs the package gguf for its constants."""
    spec = importlib.util.spec_from_file_location("comfyui_gguf_dequant", checkout / "dequant.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Q4KLinear(torch.nn.Module):
    """A Linear of random Q4_K blocks, unpacked by ComfyUI-GGUF's functions in every forward, as its layers do it."""

    def __init__(self, linear: torch.nn.Module, dequant: ModuleType, device: torch.device) -> None:
        super().__init__()
        self.dequant, self.shape = dequant, tuple(linear.weight.shape)
        self.blocks = random_blocks(self.shape, device)
        self.bias = None if linear.bias is None else torch.nn.Parameter(linear.bias.detach().to(device), False)

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        kind = self.dequant.gguf.GGMLQuantizationType.Q4_K
        return self.dequant.dequantize(self.blocks, kind, self.shape).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.nn.functional.linear(x, self.unpack(x.dtype), bias)


def random_blocks(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """uint8 [blocks, 144] of a weight whose values lie within some 0.05 of 0."""
    blocks = torch.randint(0, 256, (shape[0] * shape[1] // Q4_K_VALUES, Q4_K_BYTES), dtype=torch.uint8, device=device)
    scales = torch.tensor([1e-4, 7e-4], dtype=torch.float16, device=device)  # of the values, and of their minima
    blocks[:, :4] = scales.view(torch.uint8)
    return blocks
