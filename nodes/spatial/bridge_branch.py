"""The VACE branch that Mirage's training code saves: read, quantised on the way where that is asked, and kept.

A branch is kept with its model, so that the chunks of a film read no file again. Source of its layout: branch.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from comfy.ldm.wan.model import VaceWanAttentionBlock

from ..common.errors import message
from ..common.progress import SILENT, Progress
from ..loading.codecs import is_part_of_stored
from ..loading.formats import Checkpoint
from ..loading.plan import MIN_BYTES, LayerPlan, plan_layers
from ..loading.report import describe_load, describe_original
from ..loading.streaming import read_weights
from .branch import CONTEXTS, PATCH, count_blocks, read_branch

ASKED = "Mirage Branch: file"
_KEPT: WeakKeyDictionary[Any, tuple[tuple, tuple[Any, str]]] = WeakKeyDictionary()  # a model -> its branch


class Branch(torch.nn.Module):
    """The VACE branch: `vace_patch_embedding` and `vace_blocks`, named as its training code saves them."""

    def __init__(self, inner: Any, blocks: int, channels: int, operations: Any, dtype: torch.dtype,
                 device: Any = None) -> None:
        super().__init__()
        settings = {"operations": operations, "device": device, "dtype": dtype}
        self.layers = tuple(range(0, len(inner.blocks), len(inner.blocks) // blocks))[:blocks]
        self.vace_patch_embedding = operations.Conv3d(channels, inner.dim, kernel_size=inner.patch_size,
                                                      stride=inner.patch_size, device=device, dtype=dtype)
        self.vace_blocks = torch.nn.ModuleList(
            VaceWanAttentionBlock("t2v_cross_attn", inner.dim, inner.ffn_dim, inner.num_heads, cross_attn_norm=True,
                                  block_id=i, operation_settings=settings) for i in range(blocks))

    @property
    def channels(self) -> int:
        return self.vace_patch_embedding.in_channels

    def hints(self, x: torch.Tensor, place: torch.Tensor, **how: Any) -> Iterator[torch.Tensor]:
        """[B, S, dim] per layer of `layers`, one at a time: all fifteen would take 0.9 GB at 1280x704.

        x: [B, S, dim], the tokens of layer 0 without references. place: [1, channels, T + P, h, w].
        """
        c = self.vace_patch_embedding(place.to(x)).flatten(2).transpose(1, 2).expand(len(x), -1, -1)
        for block in self.vace_blocks:
            hint, c = block(c, x, **how)
            x = None  # the first block alone reads it
            yield hint
            del hint


def branch_of(path: str, model: Any, weights: str = "original", min_bytes: int = MIN_BYTES,
              progress: Progress = SILENT) -> tuple[Any, str]:
    """load_branch, once per model: the next call with the same unchanged file reads nothing.

    What is kept belongs to the model's weights, of whichever clone, and goes with them or with another choice.
    """
    facts = os.stat(path)
    wanted = (path, facts.st_mtime_ns, facts.st_size, weights, min_bytes)
    kept = _KEPT.get(model.model)
    if kept is None or kept[0] != wanted:
        _KEPT.pop(model.model, None)
        kept = None  # two branches would lie in RAM
        kept = _KEPT[model.model] = wanted, load_branch(path, model, weights, min_bytes, progress)
    return kept[1]


def load_branch(path: str, model: Any, weights: str = "original", min_bytes: int = MIN_BYTES,
                progress: Progress = SILENT) -> tuple[Any, str]:
    """A ModelPatcher around the branch in a file, for a Wan 2.2 TI2V MODEL, and the report of how it was loaded.

    weights: one of loading's WEIGHTS; packed ones need a MODEL whose own layers can be packed. min_bytes: weights that
    are smaller in 16 bits stay. ValueError, before weights are read, for what is no such file or does not fit.
    """
    inner = model.model.diffusion_model
    checkpoint = _recognise(path, inner)
    patch = checkpoint.tensors[f"{PATCH}weight"]
    sizes = inner, count_blocks(checkpoint.tensors), patch.shape[1]
    like = Branch(*sizes, comfy.ops.manual_cast, checkpoint.dtype, "meta")
    _refuse_other_tensors(checkpoint, {name: tuple(part.shape) for name, part in like.state_dict().items()})
    linears = {f"{name}.weight" for name, part in like.named_modules() if isinstance(part, torch.nn.Linear)}
    plan = plan_layers(checkpoint, min_bytes, weights, linears)
    operations, patcher = _layers(model, plan)
    state = read_weights(checkpoint, plan, mm.get_torch_device(), progress)
    branch = Branch(*sizes, operations, checkpoint.dtype, "meta")
    branch.load_state_dict(state, assign=True)
    made = patcher(branch.eval(), model.load_device, mm.unet_offload_device())
    if not plan.quantize and not plan.stored:
        return made, describe_original(Path(path), made.model_size(), checkpoint.note)
    return made, describe_load(checkpoint, plan, made.model_size())


def _recognise(path: str, inner: Any) -> Checkpoint:
    checkpoint = read_branch(path)
    patch, blocks = checkpoint.tensors.get(f"{PATCH}weight"), count_blocks(checkpoint.tensors)
    is_branch = patch is not None and patch.shape[0] == inner.dim and patch.shape[1] in CONTEXTS
    if not is_branch or not 0 < blocks <= len(inner.blocks):
        raise ValueError(message(ASKED, f"{blocks} blocks, patch embedding "
                                 f"{None if patch is None else tuple(patch.shape)}",
                                 f"a VACE branch of Mirage's training code: {inner.dim} wide, {CONTEXTS} channels in",
                                 "Choose the branch that was trained for this model."))
    return checkpoint


def _refuse_other_tensors(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: header.shape for name, header in checkpoint.tensors.items()
             if not is_part_of_stored(checkpoint.tensors, name)}
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = [f"{name} {found[name]}" for name in expected.keys() & found.keys() if found[name] != expected[name]]
    if missing or unknown or other:
        raise ValueError(message(ASKED, f"missing {missing[:3]}, unknown {unknown[:3]}, of another shape {other[:3]}",
                                 "all tensors of the branch, of this model's sizes, and no others",
                                 "Choose a complete file of the training code."))


def _layers(model: Any, plan: LayerPlan) -> tuple[Any, Any]:
    """(layer classes, class of patcher) for the branch: those of a quantised MODEL, where weights are packed."""
    if not plan.quantize and not plan.stored:
        return comfy.ops.manual_cast, comfy.model_patcher.ModelPatcher
    operations = getattr(model.model.model_config, "custom_operations", None)
    if not getattr(operations, "holds_packed", False):
        raise ValueError(message(
            f"Mirage Branch: weights {plan.weights} for this MODEL", "a MODEL whose layers cannot be packed",
            "a MODEL of Load Diffusion Model (NF4) with nf4, int8 or nf4_int8; or an unquantised branch",
            "Load the model with that node, or set branch weights to original."))
    return operations, type(model)
