"""fp8 weights of other people's files, plain or scaled, and how they become numbers again.

A scaled file has a number beside each weight, `<layer>.scale_weight` (with a tensor `scaled_fp8` in the file) or
`<layer>.weight_scale`, by which its values are multiplied; some have one number per row. What else lies there serves
arithmetic in fp8, which is not done here. Sources: ComfyUI's QUANTIZATION.md and scaled_fp8_ops (0.3.75); its
`comfy_quant` tensors (0.3.76 and later).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from ..common.errors import message
from .files import TensorHeader
from .quant_state import dtype_name

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = (".scale_weight", ".weight_scale")
UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
MARKER = "scaled_fp8"
_CHUNK_VALUES = 1 << 21


def scale_of(tensors: Mapping[str, TensorHeader], name: str) -> str | None:
    """The name of the scale of the fp8 weight `name`; None for plain fp8."""
    layer = name.removesuffix(".weight")
    return next((layer + ending for ending in SCALES if layer + ending in tensors), None)


def is_part(tensors: Mapping[str, TensorHeader], name: str) -> bool:
    """Whether the tensor `name` lies there for an fp8 weight's sake."""
    if name == MARKER:
        return True
    ending = next((ending for ending in SCALES + UNUSED if name.endswith(ending)), None)
    return ending is not None and f"{name.removesuffix(ending)}.weight" in tensors


def overlooked_scale(tensors: Mapping[str, TensorHeader], quantization: str | None) -> str | None:
    """The name of a scale that ComfyUI's own loader does not read, so that its weight would be noise; else None.

    quantization: the file's metadata of that name, as ComfyUI is given it. Sources: ComfyUI's model_detection.py and
    ops.py (0.3.75), convert_old_quants (0.3.76): scale_weight is read where the marker is in the file, weight_scale
    where the metadata or a tensor comfy_quant says so.
    """
    listed = set(json.loads(quantization).get("layers", ())) if quantization else set()
    for name, header in tensors.items():
        scale = scale_of(tensors, name)
        if scale is None or header.dtype not in DTYPES:
            continue
        if scale.endswith(SCALES[0]):
            is_read = MARKER in tensors
        else:
            layer = name.removesuffix(".weight")
            is_read = f"{layer}.comfy_quant" in tensors or not listed.isdisjoint(
                (layer, header.key.removesuffix(".weight")))
        if not is_read:
            return scale
    return None


def check(tensors: Mapping[str, TensorHeader], name: str, file: str) -> None:
    """Raise ValueError for a weight whose packed form cannot be read: other integers, scales per block."""
    header, scale = tensors[name], scale_of(tensors, name)
    got = None
    if header.dtype in (torch.int8, torch.uint8) and name.endswith(".weight"):
        got = f"{name} in {dtype_name(header.dtype)} of another quantiser"
    elif header.dtype in DTYPES and scale is not None:
        shape, rows = tensors[scale].shape, header.shape[:1]
        if torch.Size(shape).numel() != 1 and shape not in (rows, (*rows, 1)):
            got = f"{name} with scales of shape {list(shape)}"
    if got is not None:
        raise ValueError(message(
            f"The weights of '{file}' must be in a form that can be unpacked", got,
            "fp32, fp16, bf16, fp8 with one scale per weight or row, NF4 and FP4 of bitsandbytes, int8 of this pack",
            "Take the fp16, bf16 or fp8 file, or set weights to 'original'."))


def to_numbers(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`weight` in float16, bfloat16 or float32, on its device; products are taken in float32 and rounded once.

    scale: one number, or one per row.
    """
    if scale is None or not weight.numel():
        return weight.to(dtype)
    rows = weight.reshape(weight.shape[0] if weight.ndim else 1, -1)
    factors = scale.to(weight.device, torch.float32).reshape(-1, 1).expand(rows.shape[0], 1)
    out = torch.empty(rows.shape, dtype=dtype, device=weight.device)
    step = max(1, _CHUNK_VALUES // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        out[part] = rows[part].float() * factors[part]
    return out.reshape(weight.shape)
