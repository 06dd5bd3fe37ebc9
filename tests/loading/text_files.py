"""Tiny text encoders with random weights in the real key layouts: names and shapes are those of ComfyUI's classes.

Also full-size files whose header is real and whose data is a hole in the disk: all zeros, and no bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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
PARTS_OF = {"wan": ("umt5xxl",), "ltxv": ("t5xxl",), "mochi": ("t5xxl",), "chroma": ("t5xxl",), "sd3": ("t5xxl",),
            "flux": ("t5xxl", "clip_l"), "stable_diffusion": ("clip_l",), "hunyuan_video": ("llama", "clip_l"),
            "hunyuan_video_15": ("qwen25_7b", "byt5_small")}
DETECTED = ("flux", "stable_diffusion", "hunyuan_video", "hunyuan_video_15")  # by core's loader, whatever the sizes


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


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def write_parts(kind: str, folder: Path, toyworld: Path) -> list[str]:
    for part in PARTS_OF[kind]:
        save_file(tiny_state(part, toyworld), folder / f"{part}.safetensors")
    return [str(folder / f"{part}.safetensors") for part in PARTS_OF[kind]]


def load(bridge_text: ModuleType, paths: list[str], weights: str, kind: str = "auto", **options: Any) -> Any:
    return bridge_text.load_text_encoder(paths[0], weights, min_bytes=0, kind=kind,
                                         second=paths[1] if len(paths) > 1 else None, **options)


def unpacked(path: str, weights: str) -> dict[str, torch.Tensor]:
    """The file's tensors in float32, those that are to be packed replaced by what their packed form stands for."""
    from pack.nodes.loading import text_formats
    from pack.nodes.loading.codecs import CODECS
    from pack.nodes.loading.plan import plan_layers

    plan = plan_layers(text_formats.read_text_encoder(path).checkpoint, 0, weights)
    assert plan.quantize
    state = {}
    for name, tensor in load_file(path).items():
        codec = CODECS.get(plan.quantize.get(name, ""))
        plain = codec.dequantize(codec.quantize(tensor), torch.float32) if codec else tensor
        state[name] = plain.float() if plain.is_floating_point() else plain
    return state


def core_clip(kind: str, states: list[dict[str, torch.Tensor]]) -> Any:
    """ComfyUI's own CLIP of that type: through its loader, or from its classes where that knows files by their size."""
    import comfy.sd
    import comfy.text_encoders.genmo
    import comfy.text_encoders.lt
    import comfy.text_encoders.pixart_t5
    import comfy.text_encoders.sd3_clip
    import comfy.text_encoders.wan

    options = {**CONFIGS, "dtype": torch.float32, "model_config": dict(SIZES["clip_l"])}  # CLIP-L's name in the loader
    if kind in DETECTED:
        return comfy.sd.load_text_encoder_state_dicts(
            states, clip_type=getattr(comfy.sd.CLIPType, kind.upper()), model_options=options)
    encoders = comfy.text_encoders
    clip_class, tokenizer = {
        "wan": (encoders.wan.te, encoders.wan.WanT5Tokenizer),
        "ltxv": (encoders.lt.ltxv_te, encoders.lt.LTXVT5Tokenizer),
        "mochi": (encoders.genmo.mochi_te, encoders.genmo.MochiT5Tokenizer),
        "chroma": (encoders.pixart_t5.pixart_te, encoders.pixart_t5.PixArtTokenizer),
        "sd3": (lambda: encoders.sd3_clip.sd3_clip(clip_l=False, clip_g=False), encoders.sd3_clip.SD3Tokenizer)}[kind]

    class Target:
        clip = clip_class()
        params: dict = {}  # noqa: RUF012

    Target.tokenizer = tokenizer
    clip = comfy.sd.CLIP(Target, tokenizer_data={"spiece_model": states[0].get("spiece_model")}, model_options=options)
    missing, _ = clip.load_sd(states[0])
    assert not missing
    return clip


def encode(clip: Any, prompt: str) -> dict[str, Any]:
    return clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True, return_dict=True)
