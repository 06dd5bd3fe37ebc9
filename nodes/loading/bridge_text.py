"""Load Text Encoder: one or two files become a CLIP whose large weights are packed, and a report of how."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import torch

from ..common.errors import message
from ..common.progress import SILENT, Progress
from .bridge import check_weights
from .bridge_linear import QuantOperations
from .bridge_patcher import QuantPatcher
from .bridge_place import expected_tensors, refuse_other_shapes, refuse_stored_elsewhere
from .bridge_text_types import build_clip, core_can_load, skeletons
from .plan import MIN_BYTES, LayerPlan, plan_layers
from .report import describe_load, describe_original
from .streaming import read_weights, read_weights_cached
from .text_formats import CLIP_L, QWEN_VL, TextEncoder, read_text_encoder, resolve_type


def load_text_encoder(path: str, weights: str = "nf4", min_bytes: int = MIN_BYTES, progress: Progress = SILENT,
                      embeddings: list[str] | None = None, second: str | None = None, kind: str = "auto",
                      cache: bool = False) -> tuple[comfy.sd.CLIP, str]:
    """A CLIP and the report of how it was loaded; weights, min_bytes and cache as load_diffusion_model.

    Sizes are taken from the tensors, so reduced encoders load too, which ComfyUI's own loader cannot do. embeddings:
    folders of textual inversions. second: the other file of models that read prompts with two encoders, in any order.
    kind: a key of TYPES, or "auto". Raises ValueError, with nothing loaded, for files that are not what was asked for.
    """
    check_weights(weights)
    given = [read_text_encoder(file) for file in (path, second) if file]
    kind_used, encoders = resolve_type(given, kind)
    parts = skeletons(kind_used, encoders)
    plans = [_plan(encoder, parts[encoder.family.part], weights, min_bytes) for encoder in encoders]
    if weights == "original" and not any(plan.stored for plan in plans):
        clip, lines = _load_original(kind_used, encoders, plans, embeddings, progress)
    else:
        clip = build_clip(kind_used, encoders, embeddings, custom_operations=QuantOperations)
        _exchange_patcher(clip)
        lines = [_load_packed(clip, encoder, plan, progress, cache)
                 for encoder, plan in zip(encoders, plans, strict=True)]
    made_of = " and ".join(encoder.family.title for encoder in encoders)
    return clip, "\n".join([*lines, f"type: {kind_used}" + f" (auto: from {made_of})" * (kind == "auto")])


def _plan(encoder: TextEncoder, skeleton: torch.nn.Module, weights: str, min_bytes: int) -> LayerPlan:
    """What to do with each tensor; raises ValueError where the file is no whole encoder, or not of one size."""
    linears, shapes = expected_tensors(skeleton)
    needed = {name: encoder.checkpoint.tensors.get(name) for name in shapes
              if not (encoder.absent and name.startswith(encoder.absent))}
    refuse_other_shapes(needed, shapes, encoder.checkpoint)
    refuse_stored_elsewhere(linears, encoder.checkpoint)
    return plan_layers(encoder.checkpoint, min_bytes, weights, linears)


def _load_packed(clip: comfy.sd.CLIP, encoder: TextEncoder, plan: LayerPlan, progress: Progress, cache: bool) -> str:
    """Fill one encoder of the CLIP and describe it."""
    checkpoint, device = encoder.checkpoint, comfy.model_management.text_encoder_device()
    if cache:
        state, line = read_weights_cached(checkpoint, plan, device, progress)
    else:
        state, line = read_weights(checkpoint, plan, device, progress), ""
    _fill(clip, encoder, state, assign=True)
    size = _loaded_bytes(clip, encoder)
    if plan.weights == "original" and not plan.stored:  # beside a file that is packed
        return describe_original(checkpoint.path, size, checkpoint.note)
    return "\n".join(filter(None, (describe_load(checkpoint, plan, size), line, _describe_absent(encoder))))


def _load_original(kind: str, encoders: tuple[TextEncoder, ...], plans: list[LayerPlan], embeddings: list[str] | None,
                   progress: Progress) -> tuple[comfy.sd.CLIP, list[str]]:
    """ComfyUI's own loader takes full-size safetensors; torch files and reduced encoders are opened here."""
    if core_can_load(kind, encoders):
        clip = comfy.sd.load_clip([str(encoder.checkpoint.path) for encoder in encoders],
                                  embedding_directory=embeddings, clip_type=getattr(comfy.sd.CLIPType, kind.upper()))
    else:
        clip = build_clip(kind, encoders, embeddings)
        for encoder, plan in zip(encoders, plans, strict=True):
            _fill(clip, encoder, read_weights(encoder.checkpoint, plan, torch.device("cpu"), progress))
    return clip, [describe_original(encoder.checkpoint.path, _loaded_bytes(clip, encoder), encoder.checkpoint.note)
                  for encoder in encoders]


def _fill(clip: comfy.sd.CLIP, encoder: TextEncoder, state: dict[str, torch.Tensor], assign: bool = False) -> None:
    """Load one encoder of the CLIP. assign: its parameters become the tensors of `state`; RAM never holds both."""
    transformer = getattr(clip.cond_stage_model, encoder.family.part).transformer
    if encoder.absent and encoder.family is CLIP_L:  # ComfyUI computes it for every type, and uses it for others
        state["text_projection.weight"] = torch.eye(encoder.config["hidden_size"])
    if encoder.absent and encoder.family is QWEN_VL:
        transformer.visual = _NoVision()
    transformer.load_state_dict(state, strict=False, assign=assign)


def _loaded_bytes(clip: comfy.sd.CLIP, encoder: TextEncoder) -> int:
    return comfy.model_management.module_size(getattr(clip.cond_stage_model, encoder.family.part))


def _describe_absent(encoder: TextEncoder) -> str:
    return f"not in the file: {encoder.absent.rstrip('.')} ({encoder.family.optional[1]})" if encoder.absent else ""


class _NoVision(torch.nn.Module):
    """In place of the vision half of a Qwen2.5-VL whose file holds the text half alone."""

    def forward(self, *_: object) -> None:
        raise ValueError(message(
            "A prompt with images needs a text encoder that sees", "one whose file holds only the text half",
            "Qwen2.5-VL 7B with its visual tensors, e.g. qwen_2.5_vl_7b_fp8_scaled.safetensors",
            "Choose that file, or leave the images out."))


def _exchange_patcher(clip: comfy.sd.CLIP) -> None:
    """Give `clip` a QuantPatcher; core's own is taken off the list of loaded models, or it would be called a leak."""
    old, loaded_models = clip.patcher, comfy.model_management.current_loaded_models
    for loaded in [loaded for loaded in loaded_models if loaded.model is old]:
        loaded.model_unload()
        loaded_models.remove(loaded)
    clip.patcher = QuantPatcher(clip.cond_stage_model, old.load_device, old.offload_device)
    clip.patcher.hook_mode, clip.patcher.is_clip = old.hook_mode, True
