"""Room for a forward: ComfyUI leaves in RAM what of the weights does not fit beside it."""

from __future__ import annotations

import math
from typing import Any

from comfy.patcher_extension import WrappersMP

KEY = "videomemory_room"


def with_room(model: Any, least_bytes: int) -> Any:
    """A clone of MODEL for whose forwards ComfyUI keeps at least so many bytes of the device free; itself for 0."""
    if least_bytes <= 0:
        return model

    def wrapper(executor: Any, patcher: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(patcher, enlarged(patcher, list(noise_shape), least_bytes), conds, *args, **kwargs)

    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, wrapper)
    return patched


def enlarged(patcher: Any, shape: list[int], least_bytes: int) -> list[int]:
    """The shape, longer in time (of pictures: more of them) where ComfyUI's estimate of it would be too small."""
    axis = 2 if len(shape) == 5 else 0
    per_unit = max(1.0, patcher.memory_required(shape) / shape[axis])
    shape[axis] = max(shape[axis], math.ceil(least_bytes / per_unit))
    return shape
