"""The Linear whose weight may be packed, and ComfyUI's layer classes with it in place of theirs.

Packed weight and scales are parameters of one leaf module, so core counts, moves and pins them on every version.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

from .codecs import CODECS, stored_form
from .lora import SidePath, add_side_path

SIDE = "side_path_"  # beginning of the names of a LoRA's parameters: they are there only while the model is loaded
PACKED = ".packed"  # where the bytes of a packed weight lie in a state dict whose shapes are shown


class QuantLinear(torch.nn.Module):
    """A Linear whose weight may be packed: `weight` holds the packed bytes, its scales lie beside it as parameters.

    It allocates nothing until a state dict is loaded. Without scales in the state dict it is an ordinary Linear in
    `dtype`. resident_patch: LoRA of a module that is loaded completely; core hangs the same LoRA on weight_function
    when it offloads the module, and then only that one counts.
    """

    comfy_cast_weights = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.has_bias, self.dtype = in_features, out_features, bias, dtype
        self.codec: Any = None  # the codec that packed the weight
        self.form: Any = None  # the packed weight without its tensors
        self.weight_function: list[Callable] = []
        self.bias_function: list[Callable] = []
        self.resident_patch: list[Callable] = []
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: Any, strict: bool,
                              missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str]) -> None:
        name = prefix + "weight"
        if name not in state_dict:
            missing_keys.append(name)
            return
        form = stored_form(state_dict, name)
        if form is None:
            self._hold("weight", state_dict[name].to(self.dtype))
        else:
            self.codec, tensors = CODECS[form], state_dict
            if name + PACKED in state_dict:
                tensors = ChainMap({name: state_dict[name + PACKED]}, state_dict)
            packed = self.codec.from_state_dict(tensors, name)
            self.form = packed.with_tensors({})
            for field, tensor in packed.tensors().items():
                self._hold("weight" if field == "packed" else field, tensor)
        if prefix + "bias" in state_dict:
            self._hold("bias", state_dict[prefix + "bias"].to(self.dtype))

    def set_side_path(self, path: SidePath | None) -> None:
        """Put a LoRA beside the weight, or take it away; its tensors are moved with the module from now on."""
        for field in SidePath.__dataclass_fields__:
            self._parameters.pop(SIDE + field, None)
            if path is not None:
                self._hold(SIDE + field, getattr(path, field))

    @property
    def has_side_path(self) -> bool:
        return SIDE + "down" in self._parameters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        comfy.ops.run_every_op()
        tensors, stream = self._tensors_on(x.device)
        weight, bias = self._unpacked(tensors, x.dtype), tensors.get("bias")
        if bias is not None:
            bias = bias.to(x.dtype, copy=bool(self.bias_function))
            for function in self.bias_function:
                bias = function(bias)
        y = torch.nn.functional.linear(x, weight, bias)
        if self.has_side_path:
            y = add_side_path(y, x, SidePath(*(tensors[SIDE + field] for field in SidePath.__dataclass_fields__)))
        if stream is not None:  # the stream's memory may be used again only after this layer's work
            stream.wait_stream(comfy.model_management.current_stream(x.device))
        return y

    def _hold(self, name: str, tensor: torch.Tensor) -> None:
        setattr(self, name, torch.nn.Parameter(tensor, requires_grad=False))

    def _tensors_on(self, device: torch.device) -> tuple[dict[str, torch.Tensor], Any]:
        """All parameters on `device`, and the offload stream that brought them (None if they were there)."""
        management = comfy.model_management
        parameters = dict(self.named_parameters(recurse=False))
        if all(parameter.device == device for parameter in parameters.values()):
            return parameters, None
        stream, non_blocking = management.get_offload_stream(device), management.device_supports_non_blocking(device)
        moved = {name: management.cast_to(parameter, None, device, non_blocking=non_blocking, stream=stream)
                 for name, parameter in parameters.items()}
        management.sync_stream(device, stream)
        return moved, stream

    def _unpacked(self, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        functions = self.weight_function
        if self.has_side_path:
            functions = [function for function in functions if not _is_core_patch(function)]
        elif not any(_is_core_patch(function) for function in functions):
            functions = [*self.resident_patch, *functions]
        if self.codec is None:
            weight = tensors["weight"].to(dtype, copy=bool(functions))
        else:
            weight = self.codec.dequantize(self.form.with_tensors({**tensors, "packed": tensors["weight"]}), dtype)
        for function in functions:
            weight = function(weight)
        return weight


def _is_core_patch(function: Callable) -> bool:
    return isinstance(function, comfy.model_patcher.LowVramPatch)


def show_shapes(state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """`state` as ComfyUI can read a model's sizes from it. shapes: (rows, columns) of each packed weight.

    Each gets a stand-in of that shape (one number seen many times: it takes no memory), and its bytes another key.
    """
    stand_ins = {name: torch.zeros((), dtype=torch.bfloat16).expand(shape) for name, shape in shapes.items()}
    return {**state, **stand_ins, **{name + PACKED: state[name] for name in shapes}}


class QuantOperations(comfy.ops.manual_cast):
    """ComfyUI's layer classes with QuantLinear in place of Linear.

    Other rooms find them at a MODEL (model_config.custom_operations) and know them by holds_packed.
    """

    holds_packed = True
    Linear = QuantLinear
