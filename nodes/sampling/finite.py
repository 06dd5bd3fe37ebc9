"""What a model has made is looked at before it is kept: NaN in a memory would be in every clip after it."""

from __future__ import annotations

import torch

from ..common.errors import message


def finite(made: torch.Tensor, node: str) -> torch.Tensor:
    """made as it is; ValueError where it holds NaN or infinity. node: its name, for people."""
    if not bool(made.isfinite().all()):
        raise ValueError(message(
            f"{node} needs a picture from the model", "NaN or infinity", "finite numbers",
            "Usual causes are sage attention, float16 that overflows, and a broken checkpoint or LoRA: start ComfyUI "
            "without --use-sage-attention, load the model in bf16, or take its LoRAs and patches off one by one. "
            "Nothing of this was remembered."))
    return made
