"""Where ComfyUI puts a checkpoint, asked of its header alone: what does not fit is refused before weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_detection
import comfy.model_management
import torch

from ..common.errors import message
from . import fp8
from .bridge_linear import QuantLinear, QuantOperations
from .codecs import is_part_of_stored, stored_form
from .formats import Checkpoint

META = torch.device("meta")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Place:
    """dtype: what the model computes in. linears: the names, in the file, of the weights of linear layers.

    unused: the file's tensors that ComfyUI's model has no place for, and what belongs to them.
    """

    dtype: torch.dtype
    linears: frozenset[str]
    unused: tuple[str, ...]


def find_place(checkpoint: Checkpoint) -> Place:
    """Build the model without memory and compare; raises ValueError where the file is no whole model of ComfyUI's."""
    names = [name for name in checkpoint.tensors
             if not is_part_of_stored(checkpoint.tensors, name) and not fp8.is_part(checkpoint.tensors, name)]
    headers = {name: torch.empty(checkpoint.tensors[name].shape, device=META) for name in names}
    config = comfy.model_detection.model_config_from_unet(dict(headers), "", metadata=dict(checkpoint.metadata))
    refuse_unplaced(config, checkpoint)
    dtype = compute_dtype(checkpoint, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, None)
    config.custom_operations = QuantOperations
    inner = config.get_model(dict(headers), "", device=META).diffusion_model
    placed = config.process_unet_state_dict(dict(headers))  # by ComfyUI's names, which may differ from the file's
    linears, expected = expected_tensors(inner)
    refuse_other_shapes({name: placed.get(name) for name in expected}, expected, checkpoint)
    in_file = {id(header): name for name, header in headers.items()}
    linear_names = frozenset(in_file[id(placed[name])] for name in linears)
    homes = {*expected, *(name for name, _ in inner.named_buffers())}
    lost = [in_file[id(header)] for name, header in placed.items() if name not in homes and id(header) in in_file]
    refuse_lost(lost, checkpoint)
    unused = with_parts(lost, [name for name in checkpoint.tensors if name not in headers])
    refuse_stored_elsewhere(linear_names, checkpoint.without(unused))
    return Place(dtype, linear_names, unused)


def with_parts(weights: Sequence[str], parts: Sequence[str]) -> tuple[str, ...]:
    """The weights, and those of the parts of packed weights and of scales that belong to them."""
    layers = {name.removesuffix(".weight") for name in weights}
    return (*weights, *(name for name in parts
                        if name.rpartition(".weight.")[0] in layers or name.rpartition(".")[0] in layers))


def compute_dtype(checkpoint: Checkpoint, supported: list[torch.dtype]) -> torch.dtype:
    """What ComfyUI would compute this model in, but bfloat16 before float16 where the card has both: it does not
    overflow. A file in float16 stays that."""
    return comfy.model_management.unet_dtype(
        device=comfy.model_management.get_torch_device(), model_params=checkpoint.parameters,
        supported_dtypes=[dtype for dtype in DTYPES if dtype in supported], weight_dtype=checkpoint.dtype)


def refuse_incomplete(missing: list[str], checkpoint: Checkpoint) -> None:
    """Raise ValueError where a model has parameters that the file has no tensors for."""
    if missing:
        raise ValueError(message(
            f"'{checkpoint.path}' must hold a whole {checkpoint.family.title}",
            f"a file without {', '.join(missing[:3])}", "all tensors of the model", "Download it again."))


def refuse_lost(lost: Sequence[str], checkpoint: Checkpoint) -> None:
    """Raise ValueError where a model in diffusers' names has layers that ComfyUI's has not: it is another model."""
    if lost and checkpoint.is_renamed:
        raise ValueError(message(
            f"'{checkpoint.path}' must be a {checkpoint.family.title} of ComfyUI's kinds",
            f"one with {len(lost)} tensors that ComfyUI has no place for, the first named {lost[0]}",
            "models in diffusers' names whose every tensor has a place",
            "Load it with the node pack that was made for it, or choose another file."))


def refuse_unplaced(place: Any, checkpoint: Checkpoint) -> None:
    """Raise ValueError where ComfyUI found no place for a file."""
    if place is None:
        raise ValueError(message(
            f"'{checkpoint.path}' must be a diffusion model",
            f"a {checkpoint.family.title} of a shape that ComfyUI cannot place",
            "models of the installed ComfyUI", "Update ComfyUI, or choose another file."))


def expected_tensors(inner: torch.nn.Module) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """The names of the weights of linear layers, and the shape of everything that a file must bring.

    inner: built with QuantOperations. Buffers are left out: the model makes them itself where a file has none.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in inner.named_parameters()}
    linears = {}
    for name, module in inner.named_modules():
        if isinstance(module, QuantLinear):
            linears[f"{name}.weight"] = (module.out_features, module.in_features)
            if module.has_bias:
                shapes[f"{name}.bias"] = (module.out_features,)
    return set(linears), shapes | linears


def refuse_other_shapes(placed: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint,
                        ) -> None:
    """Raise ValueError where a tensor of the model is missing (None) or has another shape than expected."""
    refuse_incomplete([name for name, header in placed.items() if header is None], checkpoint)
    for name, header in placed.items():
        if tuple(header.shape) != expected[name]:
            raise ValueError(message(
                f"'{checkpoint.path}' must hold a {checkpoint.family.title} whose shapes agree",
                f"{name} of shape {list(header.shape)}", f"{list(expected[name])}, after the other tensors",
                "Download the file again, or update ComfyUI: it may be of a newer kind."))


def refuse_stored_elsewhere(linears: frozenset[str], checkpoint: Checkpoint) -> None:
    """A packed weight can be unpacked by a linear layer alone."""
    for name in checkpoint.tensors:
        if stored_form(checkpoint.tensors, name) is not None and name not in linears:
            raise ValueError(message(
                f"'{checkpoint.path}' must have packed weights in linear layers only", f"the packed weight {name}",
                f"weights of {len(linears)} linear layers", "Quantise the original file again."))
