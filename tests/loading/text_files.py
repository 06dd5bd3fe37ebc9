"""Tiny text encoders with random weights in the real key layouts: names and shapes are those of ComfyUI's classes.

Also full-size files whose header is real and whose data is a hole in the disk: all zeros, and no bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# The sizes under the names of ComfyUI's model_options. The vocabularies are those of the real tokenizers.
T5_SIZES = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_kv": 24, "d_ff": 96}
SIZES: dict[str, dict[str, Any]] = {
    "umt5xxl": {**T5_SIZES, "vocab_size": 113},
    "t5xxl": T5_SIZES,
    "byt5_small": T5_SIZES,
    "clip_l": {"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192},
    "llama": {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2,
              "num_key_value_heads": 1},
}
SIZES["qwen25_7b"] = SIZES["llama"]
CONFIGS = {f"{'' if part == 'byt5_small' else part}_model_config": sizes for part, sizes in SIZES.items()}


def core_model(part: str, device: str, configs: dict) -> torch.nn.Module:
    """ComfyUI's transformer that is called `part` inside its text encoder classes."""
    import comfy.text_encoders.flux
    import comfy.text_encoders.hunyuan_image
    import comfy.text_encoders.hunyuan_video
    import comfy.text_encoders.wan

    class_of = {
        "umt5xxl": comfy.text_encoders.wan.te, "t5xxl": comfy.text_encoders.flux.flux_clip,
        "clip_l": comfy.text_encoders.flux.flux_clip, "llama": comfy.text_encoders.hunyuan_video.hunyuan_video_clip,
        "qwen25_7b": comfy.text_encoders.hunyuan_image.te, "byt5_small": comfy.text_encoders.hunyuan_image.te}
    model = class_of[part]()(device=device, dtype=torch.float32, model_options=configs)
    return getattr(model, part).transformer


def tiny_state(part: str, toyworld: Path) -> dict[str, torch.Tensor]:
    """Random float16 weights; without CLIP-L's text_projection and Qwen's vision half, which real files lack too."""
    generator, state = torch.Generator().manual_seed(len(part)), {}
    for name, tensor in core_model(part, "meta", CONFIGS).state_dict().items():
        if not name.startswith(("visual.", "text_projection.")):
            noise = torch.randn(tensor.shape, generator=generator)
            state[name] = (1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise).half()
    if part == "umt5xxl":
        state["spiece_model"] = load_file(toyworld / "toyworld_te_fp16.safetensors")["spiece_model"]
    return state


def write_sparse(path: Path, shapes: Iterable[tuple[str, tuple[int, ...], str]]) -> Path:
    """A safetensors file of zeros, as a hole. shapes: (key, shape, safetensors' word for the dtype)."""
    header, end = {}, 0
    for key, shape, dtype in shapes:
        size = torch.Size(shape).numel() * {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def write_full_size(path: Path, part: str, dtype: str = "F16", more: Iterable[tuple] = ()) -> Path:
    """A full-size encoder of zeros, with every name and shape that ComfyUI's class has, and `more`."""
    shapes = [(name, tuple(tensor.shape), dtype) for name, tensor in core_model(part, "meta", {}).state_dict().items()]
    return write_sparse(path, [*shapes, *[("spiece_model", (64,), "U8")] * (part == "umt5xxl"), *more])
