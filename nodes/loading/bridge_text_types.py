"""ComfyUI's text encoder classes by the type of model that they serve, built to the sizes of given files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.flux
import comfy.text_encoders.genmo
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.lt
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import torch

from .bridge_linear import QuantOperations
from .bridge_place import expected_tensors
from .files import open_tensors
from .text_formats import BYT5, CLIP_L, UMT5, TextEncoder

Dtypes = dict[str, torch.dtype]  # by an encoder's part


@dataclass(frozen=True)
class Recipe:
    """clip: makes ComfyUI's class for encoders that were saved in these dtypes. tokenizer: ComfyUI's."""

    clip: Callable[[Dtypes], Callable[..., torch.nn.Module]]
    tokenizer: type


RECIPES = {
    "wan": Recipe(lambda dtypes: comfy.text_encoders.wan.te(dtype_t5=dtypes["umt5xxl"]),
                  comfy.text_encoders.wan.WanT5Tokenizer),
    "ltxv": Recipe(lambda dtypes: comfy.text_encoders.lt.ltxv_te(dtype_t5=dtypes["t5xxl"]),
                   comfy.text_encoders.lt.LTXVT5Tokenizer),
    "hunyuan_video": Recipe(
        lambda dtypes: comfy.text_encoders.hunyuan_video.hunyuan_video_clip(dtype_llama=dtypes["llama"]),
        comfy.text_encoders.hunyuan_video.HunyuanVideoTokenizer),
    "hunyuan_video_15": Recipe(
        lambda dtypes: comfy.text_encoders.hunyuan_image.te(byt5=True, dtype_llama=dtypes["qwen25_7b"]),
        comfy.text_encoders.hunyuan_video.HunyuanVideo15Tokenizer),
    "stable_diffusion": Recipe(lambda dtypes: comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
    "flux": Recipe(lambda dtypes: comfy.text_encoders.flux.flux_clip(dtype_t5=dtypes["t5xxl"]),
                   comfy.text_encoders.flux.FluxTokenizer),
    "mochi": Recipe(lambda dtypes: comfy.text_encoders.genmo.mochi_te(dtype_t5=dtypes["t5xxl"]),
                    comfy.text_encoders.genmo.MochiT5Tokenizer),
    "chroma": Recipe(lambda dtypes: comfy.text_encoders.pixart_t5.pixart_te(dtype_t5=dtypes["t5xxl"]),
                     comfy.text_encoders.pixart_t5.PixArtTokenizer),
    "sd3": Recipe(lambda dtypes: comfy.text_encoders.sd3_clip.sd3_clip(
                      clip_l="clip_l" in dtypes, clip_g=False, dtype_t5=dtypes["t5xxl"]),
                  comfy.text_encoders.sd3_clip.SD3Tokenizer),
}


def build_clip(kind: str, encoders: tuple[TextEncoder, ...], embeddings: list[str] | None,
               **options: Any) -> comfy.sd.CLIP:
    """A CLIP without weights, of the files' sizes. options: model_options, e.g. custom_operations."""
    dtypes = _dtypes(encoders)

    class Target:
        clip = RECIPES[kind].clip(dtypes)
        tokenizer = RECIPES[kind].tokenizer
        params: dict[str, Any] = {}  # noqa: RUF012  (copied by CLIP)

    extra = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(comfy.sd.CLIP).parameters else {}
    return comfy.sd.CLIP(
        Target, embedding_directory=embeddings, tokenizer_data=_tokenizer_data(encoders), **extra,
        model_options={**_configs(encoders), **options, "dtype": dtypes.get(CLIP_L.part, next(iter(dtypes.values()))),
                       "initial_device": comfy.model_management.text_encoder_offload_device()})


def skeletons(kind: str, encoders: tuple[TextEncoder, ...]) -> dict[str, torch.nn.Module]:
    """ComfyUI's transformers of the files' sizes by part, without memory, to see what they have a place for."""
    return _skeletons(kind, encoders, _configs(encoders))


def core_can_load(kind: str, encoders: tuple[TextEncoder, ...]) -> bool:
    """Whether ComfyUI's own loader makes the same of the files: safetensors, with its names, its sizes and its scales.

    Scales of fp8 weights under the newer name are left aside by some versions of it, without a word.
    """
    headers = [(name, header) for encoder in encoders for name, header in encoder.checkpoint.tensors.items()]
    ours, theirs = (
        {part: expected_tensors(module) for part, module in _skeletons(kind, encoders, configs).items()}
        for configs in (_configs(encoders), {}))
    return ours == theirs and all(encoder.checkpoint.is_plain for encoder in encoders) and all(
        header.key == name and not name.endswith(".weight_scale") for name, header in headers)


def _skeletons(kind: str, encoders: tuple[TextEncoder, ...], configs: dict[str, Any]) -> dict[str, torch.nn.Module]:
    model = RECIPES[kind].clip(_dtypes(encoders))(
        device="meta", dtype=torch.float32, model_options={**configs, "custom_operations": QuantOperations})
    return {encoder.family.part: getattr(model, encoder.family.part).transformer for encoder in encoders}


def _dtypes(encoders: tuple[TextEncoder, ...]) -> Dtypes:
    return {encoder.family.part: encoder.checkpoint.dtype for encoder in encoders}


def _configs(encoders: tuple[TextEncoder, ...]) -> dict[str, Any]:
    """The sizes under the names of model_options; ComfyUI gives ByT5's class no name."""
    return {f"{'' if encoder.family is BYT5 else encoder.family.part}_model_config": encoder.config
            for encoder in encoders}


def _tokenizer_data(encoders: tuple[TextEncoder, ...]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for encoder in encoders:
        if encoder.family is UMT5:
            with open_tensors(encoder.checkpoint.path) as file:
                data["spiece_model"] = file.get(encoder.checkpoint.tensors["spiece_model"].key).clone()
        if encoder.family is CLIP_L:
            data["clip_l_max_length"] = encoder.config["max_position_embeddings"]
    return data
