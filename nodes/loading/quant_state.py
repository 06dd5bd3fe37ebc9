"""The JSON that lies beside a packed weight in a file, as a uint8 tensor, and how a damaged one is refused.

Files come from strangers, so everything that a codec computes with is checked before it is used: a changed number must
end in a message that names the weight, never in a wrong model or in reading beyond a tensor.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from ..common.errors import message

SOURCE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_STATE = 4096  # bytes; a real one has about 200


def write_state(state: dict[str, Any]) -> torch.Tensor:
    """The JSON of `state` as uint8 [n], as bitsandbytes packs it."""
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


def read_state(tensor: torch.Tensor, name: str) -> dict[str, Any]:
    """The inverse of write_state for the weight `name`, with "shape" and "dtype" checked.

    Raises ValueError for anything that is not a JSON object with the shape of a matrix and the dtype of a weight.
    """
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or not 0 < tensor.numel() <= LARGEST_STATE:
        raise damaged(name, f"a quant state of {tensor.dtype} with shape {list(tensor.shape)}",
                      f"uint8, one dimension, 1 to {LARGEST_STATE} bytes")
    try:
        state = json.loads(bytes(tensor.tolist()))
    except (ValueError, RecursionError):
        raise damaged(name, "a quant state that is not JSON", "the JSON that the quantiser wrote") from None
    if not isinstance(state, dict):
        raise damaged(name, f"a quant state that is a {type(state).__name__}", "a JSON object")
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(is_count(size) for size in shape):
        raise damaged(name, f"the shape {shape!r}", "two positive numbers, [rows, columns]")
    if state.get("dtype") not in [dtype_name(dtype) for dtype in SOURCE_DTYPES]:
        raise damaged(name, f"the dtype {state.get('dtype')!r}", "float32, float16, bfloat16")
    return state


def is_count(value: object) -> bool:
    """Whether a value out of JSON is a whole number above 0 (true and false are not)."""
    return type(value) is int and 0 < value < 1 << 40


def check_scales(scales: torch.Tensor, count: int, name: str, title: str) -> None:
    """Raise ValueError unless `scales` are `count` finite float32 numbers of 0 or more."""
    if scales.dtype != torch.float32 or scales.numel() != count:
        raise damaged(name, f"{scales.numel()} values of {title} in {scales.dtype}", f"{count} values in float32")
    if not (torch.isfinite(scales).all() and (scales >= 0).all()):
        raise damaged(name, f"{title} with NaN, infinity or negative numbers", "finite numbers, 0 or more")


def damaged(name: str, got: str, allowed: str) -> ValueError:
    """The error for a packed weight whose numbers cannot be true."""
    return ValueError(message(f"The packed weight {name} must be intact", got, allowed,
                              "The file is damaged or was changed: download it again, or quantise the original again."))


def refuse_unpackable(format_name: str, weight: torch.Tensor, columns: str) -> None:
    """Raise ValueError for a weight that has no packed form: `columns` says which numbers of columns are allowed."""
    raise ValueError(message(
        f"{format_name} quantisation needs a matrix", f"{weight.dtype} of shape {list(weight.shape)}",
        f"float32, float16 or bfloat16, two dimensions, {columns}, not empty", "Keep this tensor as it is."))


def refuse_overflow(format_name: str) -> None:
    """Raise ValueError for a weight with NaN or infinity, or close to it."""
    raise ValueError(message(
        f"{format_name} quantisation needs finite weights",
        "a weight with NaN or infinity in it, or numbers too large to average", "finite numbers",
        "The file is damaged or was saved after an overflow: download it again."))


def dtype_name(dtype: torch.dtype) -> str:
    """As in JSON: "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
