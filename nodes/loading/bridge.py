"""Load Diffusion Model: a file becomes a MODEL whose large weights are packed, and a report of how."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch

from ..common.errors import message
from ..common.progress import SILENT, Progress
from . import formats, fp8
from .bridge_linear import QuantOperations, show_shapes
from .bridge_patcher import QuantPatcher
from .bridge_place import find_place, refuse_unplaced
from .bridge_save import SOURCE
from .codecs import WEIGHTS, stored_form
from .plan import MIN_BYTES, LayerPlan, plan_layers
from .report import describe_load, describe_original, describe_unused
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
    return load_packed(formats.read_checkpoint(path, formats.DIFFUSION_MODELS), weights, min_bytes, progress, cache)


def load_packed(checkpoint: formats.Checkpoint, weights: str, min_bytes: int, progress: Progress, cache: bool,
                ) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """load_diffusion_model for a file that is recognised and not left to ComfyUI."""
    place = find_place(checkpoint)
    unused = describe_unused(place.unused)
    if unused:
        log.warning("VideoMemory: %s: %s", checkpoint.path.name, unused)
    checkpoint = checkpoint.without(place.unused)
    plan = plan_layers(checkpoint, min_bytes, weights, place.linears)
    options = {"custom_operations": QuantOperations, "dtype": place.dtype}
    load = comfy.sd.load_diffusion_model_state_dict
    extra = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(load).parameters else {}
    state, line = _read(checkpoint, plan, comfy.model_management.get_torch_device(), progress, cache)
    state = show_shapes(state, {name: checkpoint.tensors[name].shape for name in [*plan.quantize, *plan.stored]})
    loaded = load(state, model_options=options, metadata=dict(checkpoint.metadata), **extra)
    model = QuantPatcher(loaded.model, loaded.load_device, loaded.offload_device)
    model.set_attachments(SOURCE, {"name": checkpoint.path.name, "metadata": checkpoint.metadata})
    return model, "\n".join(filter(None, (describe_load(checkpoint, plan, model.model_size()), unused, line)))


def _read(checkpoint: formats.Checkpoint, plan: LayerPlan, device: torch.device, progress: Progress,
          cache: bool) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict, and the report's last line about the cache where one was asked for."""
    if not cache:
        return read_weights(checkpoint, plan, device, progress), ""
    state, line = read_weights_cached(checkpoint, plan, device, progress)
    return state, line


def check_weights(weights: str) -> None:
    """Raise ValueError for a kind of weights that is none of WEIGHTS."""
    if weights not in WEIGHTS:
        raise ValueError(message("The loader needs a kind of weights", weights, ", ".join(WEIGHTS),
                                 "Choose one of these."))


def _load_original_model(path: str) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """ComfyUI's own loader knows neither wrappers and FSDP's names in torch files, nor sets, nor diffusers' names."""
    refuse_as_original(path)
    checkpoint = formats.recognise(path, formats.DIFFUSION_MODELS)
    if checkpoint is None or checkpoint.is_plain:
        model = comfy.sd.load_diffusion_model(path)
        return model, describe_original(Path(path), model.model_size())
    if checkpoint.is_renamed:
        find_place(checkpoint)  # refuses what ComfyUI's own loader refuses
    model = comfy.sd.load_diffusion_model_state_dict(map_weights(checkpoint), metadata=dict(checkpoint.metadata))
    refuse_unplaced(model, checkpoint)
    return model, describe_original(checkpoint.path, model.model_size(), checkpoint.note)


def refuse_as_original(path: str) -> None:
    """Raise ValueError for a file that ComfyUI would load wrongly.

    Up to 0.3.75 it takes the weights beside comfy_quant tensors for plain fp8: the film would be noise.
    """
    header, checkpoint = formats.read_header(path), formats.recognise(path, formats.DIFFUSION_MODELS)
    names = header.tensors
    if checkpoint is None:
        formats.refuse_other_kind(path, names)
    else:
        _refuse_overlooked(checkpoint, header.metadata.get(formats.QUANTIZATION) if checkpoint.is_plain else None)
    if any(name.endswith(".comfy_quant") for name in names) and not hasattr(comfy.utils, "convert_old_quants"):
        raise ValueError(message(
            f"weights 'original' needs a ComfyUI that reads quantised '{Path(path).name}'",
            "one that knows nothing of its comfy_quant tensors", "ComfyUI 0.3.76 or later, or another kind of weights",
            "Update ComfyUI, or set weights to nf4 or int8."))


def _refuse_overlooked(checkpoint: formats.Checkpoint, quantization: str | None) -> None:
    """Raise ValueError where ComfyUI would take scaled fp8 weights for plain ones. quantization: what the metadata say
    of them."""
    scale = fp8.overlooked_scale(checkpoint.tensors, quantization)
    if scale is not None:
        raise ValueError(message(
            f"weights 'original' needs fp8 weights in '{checkpoint.path.name}' whose scales ComfyUI reads",
            f"{scale}, which it would overlook: the film would be noise",
            "nf4, int8, nf4_int8 for this file", "Set weights to one of these."))


def is_packed(path: str) -> bool:
    """Whether some weight of the file is packed already."""
    headers = formats.read_header(path).tensors
    return any(stored_form(headers, name) for name in headers)
