"""Load Diffusion Model: a file becomes a MODEL whose large weights are packed, and a report of how."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch

from ..common.errors import message
from ..common.progress import SILENT, Progress
from . import formats
from .bridge_linear import QuantLinear, QuantOperations, show_shapes
from .bridge_patcher import QuantPatcher
from .bridge_save import SOURCE
from .codecs import WEIGHTS, stored_form
from .files import is_safetensors
from .plan import MIN_BYTES, LayerPlan, plan_layers
from .report import describe_load, describe_original
from .streaming import map_weights, read_weights, read_weights_cached

log = logging.getLogger(__name__)


def load_diffusion_model(path: str, weights: str = "nf4", min_bytes: int = MIN_BYTES,
                         progress: Progress = SILENT, cache: bool = False
                         ) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """A MODEL and the report of how it was loaded.

    weights: "nf4" and "int8" quantise on load, "original" leaves the weights to ComfyUI; a file whose weights are
    packed already is read as it is. min_bytes: weights smaller in 16 bits stay in high precision. cache: keep the
    quantised form beside the file. Raises ValueError for files that are not what was asked for.
    """
    check_weights(weights)
    if weights == "original" and not is_packed(path):
        return _load_original_model(path)
    checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
    plan = plan_layers(checkpoint, min_bytes, weights)
    load_device = comfy.model_management.get_torch_device()
    parameters = sum(torch.Size(header.shape).numel() for header in checkpoint.tensors.values())
    options = {"custom_operations": QuantOperations, "dtype": comfy.model_management.unet_dtype(
        device=load_device, model_params=parameters, weight_dtype=checkpoint.dtype)}
    load = comfy.sd.load_diffusion_model_state_dict
    extra = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(load).parameters else {}
    state, line = _read(checkpoint, plan, load_device, progress, cache)
    state = show_shapes(state, {name: checkpoint.tensors[name].shape for name in [*plan.quantize, *plan.stored]})
    loaded = load(state, model_options=options, metadata=checkpoint.metadata, **extra)
    _refuse_unplaced(loaded, checkpoint)
    refuse_incomplete([f"{name}.weight" for name, module in loaded.model.diffusion_model.named_modules()
                        if isinstance(module, QuantLinear) and module.weight is None], checkpoint)
    model = QuantPatcher(loaded.model, loaded.load_device, loaded.offload_device)
    model.set_attachments(SOURCE, {"name": checkpoint.path.name, "metadata": checkpoint.metadata})
    return model, describe_load(checkpoint, plan, model.model_size()) + line


def _read(checkpoint: formats.Checkpoint, plan: LayerPlan, device: torch.device, progress: Progress,
          cache: bool) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict, and the report's last line about the cache where one was asked for."""
    if not cache:
        return read_weights(checkpoint, plan, device, progress), ""
    state, line = read_weights_cached(checkpoint, plan, device, progress)
    return state, f"\n{line}"


def check_weights(weights: str) -> None:
    """Raise ValueError for a kind of weights that is none of WEIGHTS."""
    if weights not in WEIGHTS:
        raise ValueError(message("The loader needs a kind of weights", weights, ", ".join(WEIGHTS),
                                 "Choose one of these."))


def _load_original_model(path: str) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """Torch files are opened here: ComfyUI's own loader knows neither their wrappers nor FSDP's names."""
    checkpoint = None if is_safetensors(path) else formats.recognise(path, formats.DIFFUSION_MODELS)
    if checkpoint is None:
        model = comfy.sd.load_diffusion_model(path)
        return model, describe_original(Path(path), model.model_size())
    model = comfy.sd.load_diffusion_model_state_dict(map_weights(checkpoint))
    _refuse_unplaced(model, checkpoint)
    return model, describe_original(checkpoint.path, model.model_size(), checkpoint.note)


def refuse_incomplete(missing: list[str], checkpoint: formats.Checkpoint) -> None:
    """Raise ValueError where a model has parameters that the file has no tensors for."""
    if missing:
        raise ValueError(message(
            f"'{checkpoint.path}' must hold a whole {checkpoint.family.title}",
            f"a file without {', '.join(missing[:3])}", "all tensors of the model", "Download it again."))


def _refuse_unplaced(loaded: Any, checkpoint: formats.Checkpoint) -> None:
    if loaded is None:
        raise ValueError(message(
            f"'{checkpoint.path}' must be a diffusion model",
            f"a {checkpoint.family.title} of a shape that ComfyUI cannot place",
            "models of the installed ComfyUI", "Update ComfyUI, or choose another file."))


def is_packed(path: str) -> bool:
    """Whether some weight of the file is packed already."""
    headers = formats.read_header(path).tensors
    return any(stored_form(headers, name) for name in headers)
