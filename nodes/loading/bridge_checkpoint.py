"""Load Checkpoint: an all-in-one file becomes a MODEL whose large weights are packed, and what lies beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import torch

from ..common.progress import SILENT, Progress
from . import formats, fp8
from .bridge import check_weights, is_packed, load_diffusion_model, load_packed, refuse_as_original
from .codecs import is_part_of_stored
from .files import open_tensors
from .plan import MIN_BYTES
from .report import describe_original, megabytes

ALL_IN_ONE = "model.diffusion_model."  # beginning of the model's names in a file that holds more than a model


@dataclass(frozen=True)
class Parts:
    """model: a MODEL. clip, clip_vision: None where the file has none. vae: one that says so when it is used, then."""

    model: Any
    clip: Any
    vae: Any
    clip_vision: Any


def load_checkpoint(path: str, weights: str = "nf4", min_bytes: int = MIN_BYTES, progress: Progress = SILENT,
                    embeddings: list[str] | None = None, cache: bool = False) -> tuple[Parts, str]:
    """The parts of an all-in-one file and the report of how they were loaded; arguments as load_diffusion_model.

    Only the diffusion model is packed: the others run once per film. embeddings: folders of textual inversions.
    """
    check_weights(weights)
    checkpoint = formats.recognise(path, formats.DIFFUSION_MODELS)
    if checkpoint is not None and not any(header.key.startswith(ALL_IN_ONE) for header in checkpoint.tensors.values()):
        model, report = load_diffusion_model(path, weights, min_bytes, progress, cache)
        parts = Parts(model, None, comfy.sd.VAE(sd={}), None)
    elif weights == "original" and not is_packed(path):
        refuse_as_original(path)
        parts = Parts(*comfy.sd.load_checkpoint_guess_config(
            path, output_clipvision=True, embedding_directory=embeddings)[:4])
        report = describe_original(Path(path), parts.model.model_size())
    else:
        checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
        model, report = load_packed(checkpoint, weights, min_bytes, progress, cache)
        progress.check_cancel()
        parts = Parts(model, *_load_others(checkpoint, embeddings))
    return parts, "\n".join([report, *_describe_others(parts)])


def _load_others(checkpoint: formats.Checkpoint, embeddings: list[str] | None) -> tuple[Any, Any, Any]:
    """CLIP, VAE and CLIP_VISION as ComfyUI loads them; of the model it sees the shapes alone, to know its kind."""
    tensors = checkpoint.tensors
    model = {header.key: torch.empty(header.shape, dtype=checkpoint.dtype, device="meta")
             for name, header in tensors.items() if not is_part_of_stored(tensors, name)
             and not fp8.is_part(tensors, name)}
    own = {header.key for header in tensors.values()}
    with open_tensors(checkpoint.path) as file:
        others = {key: file.get(key) for key in file.headers if key not in own}
        return comfy.sd.load_state_dict_guess_config(
            {**model, **others}, output_model=False, output_clipvision=True, embedding_directory=embeddings,
            metadata=dict(file.metadata))[1:4]


def _describe_others(parts: Parts) -> list[str]:
    """A line for each part beside the model."""
    found = {
        "CLIP": (parts.clip, "load a text encoder beside it"),
        "VAE": (parts.vae if parts.vae.first_stage_model is not None else None, "load a VAE beside it"),
        "CLIP_VISION": (parts.clip_vision, "only models that look at an image through one need it")}
    return [f"{name}: none in the file; {advice}" if part is None
            else f"{name}: as stored, {megabytes(part.patcher.model_size())}" for name, (part, advice) in found.items()]
