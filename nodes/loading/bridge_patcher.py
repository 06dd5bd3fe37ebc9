"""ComfyUI's classic ModelPatcher for models with packed weights: LoRAs are never baked into 4 bits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import comfy.model_patcher
import comfy.utils

from ..common.errors import message
from .bridge_linear import QuantLinear
from .bridge_lora import fits, is_plain, logical_shape, side_path_of
from .lora import SidePath

log = logging.getLogger(__name__)


class QuantPatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher that puts LoRAs beside packed weights instead of writing into their bytes.

    Plain LoRAs become side paths of their modules before core counts and places these, and leave with unpatch_model.
    Other patches change the unpacked weight in every forward.
    """

    def add_patches(self, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """As core's, but says what came of it, and refuses a LoRA that fits no weight of a diffusion model."""
        fitting = {key: patch for key, patch in patches.items() if self._fits(key, patch)}
        elsewhere = any(not _name(key).startswith("diffusion_model.") for key in patches)  # e.g. a text encoder's
        if not fitting and not elsewhere and not self.is_clip:
            raise ValueError(message(
                f"This {type(self.model.diffusion_model).__name__} needs a LoRA made for it",
                f"one with {len(patches)} weights of another shape" if patches else "one without a name of this model",
                "LoRAs of this family and size of model", "Choose a LoRA made for this model."))
        placed = super().add_patches(fitting, strength_patch, strength_model)
        if len(patches) > 1 and placed:
            self._say(placed, len(patches))
        return placed

    def model_size(self) -> int:
        return super().model_size() + sum(path.bytes for _, path in self._side_paths())

    def clone(self, *args: Any, **options: Any) -> Any:
        copy = super().clone(*args, **options)
        copy.size = self.size  # without the LoRAs, which every clone counts for itself
        return copy

    def load(self, *args: Any, **options: Any) -> Any:
        for module, path in self._side_paths():
            if not module.has_side_path:
                module.set_side_path(path)
        return super().load(*args, **options)

    def partially_load(self, device_to: Any, extra_memory: int = 0, force_patch_weights: bool = False,
                       **options: Any) -> int:
        """As core's, which forces patches into the weights where it goes on to write them to a file."""
        if force_patch_weights and any(getattr(module, "codec", None) is not None for module in self.model.modules()):
            raise ValueError(message(
                "ComfyUI's own Save and Extract nodes need weights that are not packed",
                f"a quantised {type(getattr(self.model, 'diffusion_model', self.model)).__name__}",
                "models loaded with weights 'original'",
                "Use Save Quantized Model; a text encoder's file is the one it was loaded from."))
        return super().partially_load(device_to, extra_memory, force_patch_weights, **options)

    def patch_weight_to_device(self, key: str, device_to: Any = None, inplace_update: bool = False,
                               **options: Any) -> Any:
        module = self._packed_module(key)
        if module is None:
            return super().patch_weight_to_device(key, device_to, inplace_update, **options)
        if key in self.patches and not module.has_side_path:
            module.resident_patch = [comfy.model_patcher.LowVramPatch(key, self.patches)]
        return None

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True, **options: Any) -> Any:
        result = super().unpatch_model(device_to, unpatch_weights, **options)
        if unpatch_weights:  # after core, which still unpins the LoRAs' parameters
            for module in self.model.modules():
                if isinstance(module, QuantLinear):
                    module.resident_patch = []
                    module.set_side_path(None)
        return result

    def patch_hook_weight_to_device(self, hooks: Any, combined_patches: dict, key: str, *rest: Any,
                                    **options: Any) -> Any:
        if key in combined_patches and self._packed_module(key) is not None:
            raise ValueError(message(
                "LoRA hooks (scheduled LoRAs) need weights that can be written to", f"the quantised weight {key}",
                "models loaded with weights 'original'", "Use a LoRA loader instead of a hook, or weights 'original'."))
        return super().patch_hook_weight_to_device(hooks, combined_patches, key, *rest, **options)

    def _side_paths(self) -> Iterator[tuple[QuantLinear, SidePath]]:
        for key, patches in self.patches.items():
            module = self._packed_module(key)
            path = side_path_of(patches, (module.out_features, module.in_features)) if module is not None else None
            if path is not None:
                yield module, path

    def _fits(self, key: Any, patch: Any) -> bool:
        name = _name(key)
        try:
            weight = comfy.utils.get_attr(self.model, name)
        except AttributeError:
            return False
        if isinstance(patch, list) and self._packed_module(name) is not None:
            raise ValueError(message(
                "Merging models needs weights that can be written to", f"the quantised weight {name}",
                "models loaded with weights 'original'", "Merge first, then quantise the result."))
        return not isinstance(key, str) or fits(patch, logical_shape(self.model, name, weight))

    def _say(self, placed: list, given: int) -> None:
        packed = [key for key in map(_name, placed) if self._packed_module(key) is not None]
        beside = sum(is_plain(self.patches[key]) for key in packed)
        linears = sum(isinstance(module, QuantLinear) for module in self.model.modules())
        log.log(logging.WARNING if len(placed) < 0.9 * given else logging.INFO,
                "VideoMemory: LoRA: %d of %d weights patched (the model has %d linear layers): %d beside packed "
                "weights, %d by changing the unpacked weight in every step", len(placed), given, linears, beside,
                len(packed) - beside)

    def _packed_module(self, key: str) -> QuantLinear | None:
        """The QuantLinear whose packed bytes are the parameter `key`."""
        name, _, parameter = key.rpartition(".")
        module = comfy.utils.get_attr(self.model, name) if name and parameter == "weight" else None
        return module if getattr(module, "codec", None) is not None else None


def _name(key: Any) -> str:
    """The parameter of a patch's key, which is a tuple where only a part of the weight is meant."""
    return key if isinstance(key, str) else key[0]
