"""ComfyUI's classic ModelPatcher for models with packed weights: LoRAs are never baked into 4 bits."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.utils

from ..common.errors import message
from .bridge_linear import QuantLinear


class QuantPatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher that hangs patches on packed weights instead of writing into their bytes."""

    def patch_weight_to_device(self, key: str, device_to: Any = None, inplace_update: bool = False,
                               **options: Any) -> Any:
        module = self._packed_module(key)
        if module is None:
            return super().patch_weight_to_device(key, device_to, inplace_update, **options)
        if key in self.patches:
            module.resident_patch = [comfy.model_patcher.LowVramPatch(key, self.patches)]
        return None

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True, **options: Any) -> Any:
        if unpatch_weights:
            for module in self.model.modules():
                if isinstance(module, QuantLinear):
                    module.resident_patch = []
        return super().unpatch_model(device_to, unpatch_weights, **options)

    def patch_hook_weight_to_device(self, hooks: Any, combined_patches: dict, key: str, *rest: Any,
                                    **options: Any) -> Any:
        if key in combined_patches and self._packed_module(key) is not None:
            raise ValueError(message(
                "LoRA hooks (scheduled LoRAs) need weights that can be written to", f"the NF4 weight {key}",
                "models loaded with weights 'original'", "Use a LoRA loader instead of a hook, or weights 'original'."))
        return super().patch_hook_weight_to_device(hooks, combined_patches, key, *rest, **options)

    def _packed_module(self, key: str) -> QuantLinear | None:
        """The QuantLinear whose packed bytes are the parameter `key`."""
        name, _, parameter = key.rpartition(".")
        module = comfy.utils.get_attr(self.model, name) if name and parameter == "weight" else None
        return module if getattr(module, "codec", None) is not None else None
