"""ComfyUI's patches seen as low-rank side paths, and which of a LoRA's keys a MODEL has a place for."""

from __future__ import annotations

import logging
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter.lora
import torch

from ..common.errors import message
from .lora import MODEL_PREFIX, SidePath, comfy_names, describe_coverage, model_names, side_path

log = logging.getLogger(__name__)


def side_path_of(patches: list[tuple], shape: tuple[int, int]) -> SidePath | None:
    """The side path of one weight [out, in] of `shape`, or None where some patch is more than a plain LoRA.

    patches: (strength, patch, strength of the model's own weight, offset, function) as a ModelPatcher keeps them.
    """
    if not is_plain(patches):
        return None
    parts = []
    for strength, patch, _, _, _ in patches:
        up, down, alpha = patch.weights[:3]
        if not _is_of_shape(up, down, shape):
            return None
        parts.append((up, down, strength * (alpha / down.shape[0] if alpha is not None else 1.0)))
    return side_path(parts)


def is_plain(patches: list[tuple]) -> bool:
    """Whether every patch is a LoRA of two matrices on the whole weight: no LoHa, LoKr, DoRA, difference, slice."""
    return all(isinstance(patch, comfy.weight_adapter.lora.LoRAAdapter) and not any(
        part is not None for part in patch.weights[3:]) and own == 1.0 and offset is None and function is None
        for _, patch, own, offset, function in patches)


def fits(patch: Any, shape: tuple[int, ...] | None) -> bool:
    """Whether a patch can be meant for a weight [out, in]: a LoRA's matrices tell, other patches are left to core."""
    if shape is None or not isinstance(patch, comfy.weight_adapter.lora.LoRAAdapter) or any(
            part is not None for part in patch.weights[3:]):
        return True
    return _is_of_shape(*patch.weights[:2], shape)


def load_lora(model: Any, lora: dict[str, torch.Tensor], name: str, strength: float) -> tuple[Any, str]:
    """A clone of MODEL with the LoRA, and the line that says how many of its keys found a place.

    Raises ValueError, with nothing changed, where none did: a LoRA of another family, or of another size of it.
    """
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    shapes = {key: logical_shape(model.model, key, weight) for key, weight in model.model.state_dict().items()}
    layers = {key.removeprefix(MODEL_PREFIX).removesuffix(".weight") for key in shapes}
    ways = (comfy_names(lora), model_names(lora, layers))
    placed, unmatched = max((_placed(named, key_map, shapes) for named in ways), key=lambda found: len(found[0]))
    if not placed:
        raise ValueError(message(
            f"'{name}' must be a LoRA for {type(model.model.diffusion_model).__name__}",
            f"{len(lora)} keys of which none fits, the first named {next(iter(lora), None)!r}",
            "LoRAs trained on this family and size of model", "Choose a LoRA made for this model."))
    line = describe_coverage(name, len(lora), unmatched)
    log.log(logging.WARNING if line.startswith("WARNING") else logging.INFO, "VideoMemory: %s", line)
    patched = model.clone()
    patched.add_patches(placed, strength)
    return patched, line


def _placed(lora: dict[str, torch.Tensor], key_map: dict, shapes: dict[str, tuple[int, ...] | None],
            ) -> tuple[dict, list[str]]:
    """The patches that the model has a place for, and the keys that found none."""
    converted = comfy.lora_convert.convert_lora(lora)
    patches = comfy.lora.load_lora(converted, key_map, log_missing=False)
    placed = {key: patch for key, patch in patches.items()
              if _plain_key(key) in shapes and (not isinstance(key, str) or fits(patch, shapes[key]))}
    used = {used for key in placed for used in _file_keys(key, converted, key_map)}
    return placed, [key for key in converted if key not in used]


def logical_shape(model: torch.nn.Module, key: str, weight: torch.Tensor) -> tuple[int, ...] | None:
    """The shape of what a parameter stands for: packed weights are smaller than their [out, in]; None: nobody knows.

    Source, for other packs' packed weights: city96's ComfyUI-GGUF, whose layers put an empty tensor of the packed
    bytes' shape into the state dict, and beside the largest weight a `temp.weight` that belongs to no layer.
    """
    try:
        module = model.get_submodule(key.rpartition(".")[0])
    except AttributeError:
        return None
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if key.endswith(".weight") and None not in sizes:
        return sizes
    return tuple(weight.shape) if weight.is_floating_point() else None


def _is_of_shape(up: torch.Tensor, down: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return up.shape[0] == shape[0] and down.shape[1:].numel() == torch.Size(shape[1:]).numel() and \
        up.shape[1] == down.shape[0]


def _plain_key(key: Any) -> str:
    return key if isinstance(key, str) else key[0]


def _file_keys(placed: Any, lora: dict, key_map: dict) -> list[str]:
    """The keys of the file that a patch was made of: those that begin with one of the weight's LoRA names."""
    base = placed if isinstance(placed, str) else placed[0]
    stems = [stem for stem, target in key_map.items()
             if target == placed or (isinstance(target, str) and base == f"{target.removesuffix('.weight')}.bias")]
    return [key for key in lora for stem in stems if key == stem or key.startswith((stem + ".", stem + "_lora"))]
