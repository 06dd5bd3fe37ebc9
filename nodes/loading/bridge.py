"""Quantised weights inside ComfyUI's model classes: the Linear that unpacks itself, its ModelPatcher, the two loaders.

Works with ComfyUI's classic ModelPatcher on every version: packed weight and scales are parameters of one leaf module,
so core counts, moves and pins them; LoRAs are added to the unpacked weight at run time and never baked into 4 bits.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.text_encoders.wan
import comfy.utils
import torch

from ..common.errors import message
from ..common.progress import SILENT, Progress
from . import formats, nf4
from .files import is_safetensors
from .streaming import map_weights, read_weights

log = logging.getLogger(__name__)

WEIGHTS = ("nf4", "original")
CODECS = (nf4,)  # modules with is_stored(), from_state_dict(), dequantize()
UMT5_XXL = {"num_layers": 24, "d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "vocab_size": 256384}


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
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.codec: Any = None  # the module of CODECS that packed the weight
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
        self.codec = next((codec for codec in CODECS if codec.is_stored(state_dict, name)), None)
        if self.codec is None:
            self._hold("weight", state_dict[name].to(self.dtype))
        else:
            packed = self.codec.from_state_dict(state_dict, name)
            self.form = packed.with_tensors({})
            for field, tensor in packed.tensors().items():
                self._hold("weight" if field == "packed" else field, tensor)
        if prefix + "bias" in state_dict:
            self._hold("bias", state_dict[prefix + "bias"].to(self.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        comfy.ops.run_every_op()
        tensors, stream = self._tensors_on(x.device)
        weight, bias = self._unpacked(tensors, x.dtype), tensors.get("bias")
        if bias is not None:
            bias = bias.to(x.dtype, copy=bool(self.bias_function))
            for function in self.bias_function:
                bias = function(bias)
        y = torch.nn.functional.linear(x, weight, bias)
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
        if not any(isinstance(function, comfy.model_patcher.LowVramPatch) for function in functions):
            functions = [*self.resident_patch, *functions]
        if self.codec is None:
            weight = tensors["weight"].to(dtype, copy=bool(functions))
        else:
            weight = self.codec.dequantize(self.form.with_tensors({**tensors, "packed": tensors["weight"]}), dtype)
        for function in functions:
            weight = function(weight)
        return weight


class QuantOperations(comfy.ops.manual_cast):
    """ComfyUI's layer classes with QuantLinear in place of Linear."""

    Linear = QuantLinear


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


def load_diffusion_model(path: str, weights: str = "nf4", min_bytes: int = formats.MIN_BYTES,
                         progress: Progress = SILENT) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """A MODEL and the report of how it was loaded.

    weights: "nf4" quantises on load (or reads a file that is NF4 already), "original" leaves the weights to ComfyUI.
    min_bytes: smaller weights stay in high precision. Raises ValueError for files that are not what was asked for.
    """
    _check_weights(weights)
    if weights == "original" and not _is_packed(path):
        return _load_original_model(path)
    checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
    plan = formats.plan_layers(checkpoint, min_bytes)
    load_device = comfy.model_management.get_torch_device()
    parameters = sum(torch.Size(header.shape).numel() for header in checkpoint.tensors.values())
    options = {"custom_operations": QuantOperations, "dtype": comfy.model_management.unet_dtype(
        device=load_device, model_params=parameters, weight_dtype=checkpoint.dtype)}
    load = comfy.sd.load_diffusion_model_state_dict
    extra = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(load).parameters else {}
    state = read_weights(checkpoint, plan, load_device, progress)
    loaded = load(state, model_options=options, metadata=checkpoint.metadata, **extra)
    _refuse_unplaced(loaded, checkpoint)
    _refuse_incomplete([f"{name}.weight" for name, module in loaded.model.diffusion_model.named_modules()
                        if isinstance(module, QuantLinear) and module.weight is None], checkpoint)
    model = QuantPatcher(loaded.model, loaded.load_device, loaded.offload_device)
    return model, formats.describe_load(checkpoint, plan, model.model_size())


def load_text_encoder(path: str, weights: str = "nf4", min_bytes: int = formats.MIN_BYTES,
                      progress: Progress = SILENT, embeddings: list[str] | None = None) -> tuple[comfy.sd.CLIP, str]:
    """A CLIP for Wan models and the report of how it was loaded; arguments as load_diffusion_model.

    Reduced UMT5 encoders are built with the sizes of their tensors, which ComfyUI's own loader cannot do. embeddings:
    folders of textual inversions.
    """
    _check_weights(weights)
    if weights == "original" and not _is_packed(path):
        return _load_original_clip(path, embeddings)
    checkpoint = formats.read_checkpoint(path, formats.TEXT_ENCODERS)
    config = formats.umt5_config(checkpoint)
    plan = formats.plan_layers(checkpoint, min_bytes)
    device = comfy.model_management.text_encoder_device()
    clip = _build_clip(read_weights(checkpoint, plan, device, progress), config, checkpoint, embeddings,
                       custom_operations=QuantOperations)
    _exchange_patcher(clip)
    return clip, formats.describe_load(checkpoint, plan, clip.patcher.model_size())


def _check_weights(weights: str) -> None:
    if weights not in WEIGHTS:
        raise ValueError(message("The loader needs a kind of weights", weights, ", ".join(WEIGHTS),
                                 "Choose one of these."))


def _load_original_model(path: str) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """Torch files are opened here: ComfyUI's own loader knows neither their wrappers nor FSDP's names."""
    checkpoint = None if is_safetensors(path) else formats.recognise(path, formats.DIFFUSION_MODELS)
    if checkpoint is None:
        model = comfy.sd.load_diffusion_model(path)
        return model, formats.describe_original(Path(path), model.model_size())
    model = comfy.sd.load_diffusion_model_state_dict(map_weights(checkpoint))
    _refuse_unplaced(model, checkpoint)
    return model, formats.describe_original(checkpoint.path, model.model_size(), checkpoint.note)


def _load_original_clip(path: str, embeddings: list[str] | None) -> tuple[comfy.sd.CLIP, str]:
    """ComfyUI's own loader takes full-size safetensors; torch files and reduced encoders are opened here.

    Another file is refused: ComfyUI's loader would make an SD 1 encoder without weights of it.
    """
    checkpoint = formats.read_checkpoint(path, formats.TEXT_ENCODERS)
    config = formats.umt5_config(checkpoint)
    if is_safetensors(path) and config.items() >= UMT5_XXL.items():
        clip = comfy.sd.load_clip([path], embedding_directory=embeddings, clip_type=comfy.sd.CLIPType.WAN)
        return clip, formats.describe_original(Path(path), clip.patcher.model_size())
    clip = _build_clip(map_weights(checkpoint), config, checkpoint, embeddings)
    return clip, formats.describe_original(checkpoint.path, clip.patcher.model_size(), checkpoint.note)


def _build_clip(state: dict[str, torch.Tensor], config: dict[str, Any], checkpoint: formats.Checkpoint,
                embeddings: list[str] | None, **options: Any) -> comfy.sd.CLIP:
    """ComfyUI's Wan text encoder with another configuration and, optionally, custom_operations."""

    class Target:
        clip = comfy.text_encoders.wan.te(dtype_t5=checkpoint.dtype)
        tokenizer = comfy.text_encoders.wan.WanT5Tokenizer
        params: dict[str, Any] = {}  # noqa: RUF012  (copied by CLIP)

    extra = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(comfy.sd.CLIP).parameters else {}
    clip = comfy.sd.CLIP(
        Target, embedding_directory=embeddings, tokenizer_data={"spiece_model": state.pop("spiece_model")},
        parameters=comfy.utils.calculate_parameters(state), **extra,
        model_options={"umt5xxl_model_config": config, **options,
                       "initial_device": comfy.model_management.text_encoder_offload_device()})
    missing, unexpected = clip.load_sd(state)
    _refuse_incomplete(missing, checkpoint)
    log.debug("VideoMemory: unused tensors in %s: %s", checkpoint.path.name, unexpected)
    return clip


def _exchange_patcher(clip: comfy.sd.CLIP) -> None:
    """Give `clip` a QuantPatcher; core's own is taken off the list of loaded models, or it would be called a leak."""
    old, loaded_models = clip.patcher, comfy.model_management.current_loaded_models
    for loaded in [loaded for loaded in loaded_models if loaded.model is old]:
        loaded.model_unload()
        loaded_models.remove(loaded)
    clip.patcher = QuantPatcher(clip.cond_stage_model, old.load_device, old.offload_device)
    clip.patcher.hook_mode, clip.patcher.is_clip = old.hook_mode, True


def _refuse_incomplete(missing: list[str], checkpoint: formats.Checkpoint) -> None:
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


def _is_packed(path: str) -> bool:
    headers = formats.read_header(path).tensors
    return any(codec.is_stored(headers, name) for codec in CODECS for name in headers)
