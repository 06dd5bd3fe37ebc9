"""Load Text Encoder: a file becomes a CLIP whose large weights are packed, and a report of how."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.text_encoders.wan
import comfy.utils
import torch

from ..common.progress import SILENT, Progress
from . import formats
from .bridge import check_weights, is_packed
from .bridge_linear import QuantOperations
from .bridge_patcher import QuantPatcher
from .bridge_place import refuse_incomplete
from .files import is_safetensors
from .plan import MIN_BYTES, plan_layers
from .report import describe_load, describe_original
from .streaming import map_weights, read_weights
from .text_formats import TEXT_ENCODERS, umt5_config

log = logging.getLogger(__name__)

UMT5_XXL = {"num_layers": 24, "d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "vocab_size": 256384}


def load_text_encoder(path: str, weights: str = "nf4", min_bytes: int = MIN_BYTES,
                      progress: Progress = SILENT, embeddings: list[str] | None = None) -> tuple[comfy.sd.CLIP, str]:
    """A CLIP for Wan models and the report of how it was loaded; arguments as load_diffusion_model.

    Reduced UMT5 encoders are built with the sizes of their tensors, which ComfyUI's own loader cannot do. embeddings:
    folders of textual inversions.
    """
    check_weights(weights)
    if weights == "original" and not is_packed(path):
        return _load_original_clip(path, embeddings)
    checkpoint = formats.read_checkpoint(path, TEXT_ENCODERS)
    config = umt5_config(checkpoint)
    plan = plan_layers(checkpoint, min_bytes, weights)
    device = comfy.model_management.text_encoder_device()
    clip = _build_clip(read_weights(checkpoint, plan, device, progress), config, checkpoint, embeddings,
                       custom_operations=QuantOperations)
    _exchange_patcher(clip)
    return clip, describe_load(checkpoint, plan, clip.patcher.model_size())


def _load_original_clip(path: str, embeddings: list[str] | None) -> tuple[comfy.sd.CLIP, str]:
    """ComfyUI's own loader takes full-size safetensors; torch files and reduced encoders are opened here.

    Another file is refused: ComfyUI's loader would make an SD 1 encoder without weights of it.
    """
    checkpoint = formats.read_checkpoint(path, TEXT_ENCODERS)
    config = umt5_config(checkpoint)
    if is_safetensors(path) and config.items() >= UMT5_XXL.items():
        clip = comfy.sd.load_clip([path], embedding_directory=embeddings, clip_type=comfy.sd.CLIPType.WAN)
        return clip, describe_original(Path(path), clip.patcher.model_size())
    clip = _build_clip(map_weights(checkpoint), config, checkpoint, embeddings)
    return clip, describe_original(checkpoint.path, clip.patcher.model_size(), checkpoint.note)


def _build_clip(state: dict[str, torch.Tensor], config: dict[str, Any], checkpoint: formats.Checkpoint,
                embeddings: list[str] | None, **options: Any) -> comfy.sd.CLIP:
    """ComfyUI's Wan text encoder with another configuration and, optionally, custom_operations."""

    class Target:
        clip = comfy.text_encoders.wan.te(dtype_t5=checkpoint.dtype)
        tokenizer = comfy.text_encoders.wan.WanT5Tokenizer
        params: dict[str, Any] = {}  # noqa: RUF012  (copied by CLIP)

    extra = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(comfy.sd.CLIP).parameters else {}
    clip = comfy.sd.CLIP(
        Target, embedding_directory=embeddings, tokenizer_data={"spiece_model": state.pop("spiece_model")},
        parameters=comfy.utils.calculate_parameters(state), **extra,
        model_options={"umt5xxl_model_config": config, **options,
                       "initial_device": comfy.model_management.text_encoder_offload_device()})
    missing, unexpected = clip.load_sd(state)
    refuse_incomplete(missing, checkpoint)
    log.debug("VideoMemory: unused tensors in %s: %s", checkpoint.path.name, unexpected)
    return clip


def _exchange_patcher(clip: comfy.sd.CLIP) -> None:
    """Give `clip` a QuantPatcher; core's own is taken off the list of loaded models, or it would be called a leak."""
    old, loaded_models = clip.patcher, comfy.model_management.current_loaded_models
    for loaded in [loaded for loaded in loaded_models if loaded.model is old]:
        loaded.model_unload()
        loaded_models.remove(loaded)
    clip.patcher = QuantPatcher(clip.cond_stage_model, old.load_device, old.offload_device)
    clip.patcher.hook_mode, clip.patcher.is_clip = old.hook_mode, True
