"""Mirage's own branch on a Wan 2.2 TI2V-5B MODEL: one forward over [references | target | preceding].

Source: arXiv 2606.09828 and its authors' code (model_fn_wan_video): a VACE branch of full blocks on every second layer,
each adding its projection to what is target or preceding; references and preceding stand at timestep 0; references lie
at rows h..2h-1 and times -R..-1, preceding behind the target. Nothing of core is replaced: a DIFFUSION_MODEL wrapper
lengthens the sequence and hooks the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ..common.compat import compute_dtype
from .costs import mirage_bytes

KEY = "videomemory_mirage"


@dataclass(frozen=True)
class Surroundings:
    """What stands beside the target.

    place: [1, channels of the branch, T + P, h, w], normalised. references, preceding: [1, 48, n, h, w] normalised, n
    may be 0. The target's first frame is given: it stands at timestep 0.
    """

    place: torch.Tensor
    references: torch.Tensor
    preceding: torch.Tensor
    strength: float = 1.0


def with_branch(model: Any, branch: Any, around: Surroundings) -> Any:
    """A clone of the MODEL whose forwards see the surroundings through the branch."""
    clone = model.clone()
    clone.set_additional_models(KEY, [branch])
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _Mirage(branch, around))
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, partial(_make_room, around))
    return clone


def _make_room(around: Surroundings, executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any,
               **kwargs: Any) -> Any:
    """ComfyUI estimates the target alone: the shape is lengthened by what stands beside it and by the branch."""
    batch, channels, target, *size = noise_shape
    rows, columns = _grid(model.model.diffusion_model, size)
    beside = around.references.shape[2] + around.preceding.shape[2]
    shape = [batch, channels, target + beside, *size]
    branch = mirage_bytes(target, rows * columns, model.model.diffusion_model.dim, compute_dtype(model).itemsize)
    shape[2] += math.ceil(branch / max(1.0, model.memory_required(shape) / shape[2]))
    return executor(model, shape, conds, *args, **kwargs)


def _grid(inner: Any, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of tokens of a latent of (h, w)."""
    return tuple(-(-length // patch) for length, patch in zip(size, inner.patch_size[1:], strict=True))


class _Mirage:
    """The wrapper: target in, flow of the target out."""

    def __init__(self, branch: Any, around: Surroundings) -> None:
        self.branch, self.around = branch, around

    def __call__(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor,
                 clip_fea: torch.Tensor | None = None, time_dim_concat: torch.Tensor | None = None,
                 transformer_options: dict | None = None, **kwargs: Any) -> torch.Tensor:
        references, preceding = (part.to(x).expand(len(x), -1, -1, -1, -1)
                                 for part in (self.around.references, self.around.preceding))
        lead, target = references.shape[2], x.shape[2]
        times = timestep if timestep.ndim == 2 else timestep[:, None].expand(-1, target)
        times = torch.cat((torch.zeros_like(times[:, :1]), times[:, 1:].floor()), 1)  # the authors send whole ones
        clean = [times.new_zeros(len(times), part.shape[2]) for part in (references, preceding)]
        inner = executor.class_obj
        positions = _positions(inner, lead, target + preceding.shape[2], x.shape[3:], x)
        options = self._hooked(transformer_options or {}, len(inner.blocks), lead, positions)
        flow = executor(torch.cat((references, x, preceding), 2), torch.cat((clean[0], times, clean[1]), 1), context,
                        clip_fea, time_dim_concat, options, **kwargs)
        return flow[:, :, lead : lead + target]

    def _hooked(self, options: dict, blocks: int, lead: int, positions: torch.Tensor) -> dict:
        replaced = dict(options.get("patches_replace", {}))
        before, hints = dict(replaced.get("dit", {})), []
        hooks = {("double_block", i): self._hook(i, hints, lead, positions, before.get(("double_block", i)))
                 for i in range(blocks)}
        return {**options, "patches_replace": {**replaced, "dit": {**before, **hooks}}}

    def _hook(self, layer: int, hints: list, lead: int, positions: torch.Tensor,
              before: Callable | None) -> Callable[[dict, dict], dict]:
        """hints: of this forward; the first layer puts the branch's iterator there."""
        branch, around = self.branch.model, self.around

        def block(args: dict, extra: dict) -> dict:
            args = {**args, "pe": positions}
            first = lead * (args["img"].shape[1] // args["vec"].shape[1])
            if layer == 0:
                hints.append(branch.hints(
                    args["img"][:, first:], around.place, context=args["txt"], e=args["vec"][:, lead:],
                    freqs=positions[:, first:], transformer_options=args["transformer_options"]))
            hint = next(hints[0]) if layer in branch.layers else None
            out = extra["original_block"](args) if before is None else before(args, extra)
            if hint is not None:
                image = out["img"].clone()
                image[:, first:].add_(hint, alpha=around.strength)
                out = {**out, "img": image}
            return out

        return block


def _positions(inner: Any, lead: int, rest: int, size: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    """Rotations of [references | rest], in float32 whatever the model computes in."""
    rows, columns = _grid(inner, size)

    def ids(times: torch.Tensor, down: int) -> torch.Tensor:
        axes = torch.meshgrid(times, torch.arange(rows) + down, torch.arange(columns), indexing="ij")
        return torch.stack(axes, -1).reshape(1, -1, 3)

    both = torch.cat((ids(torch.arange(-lead, 0), rows), ids(torch.arange(rest), 0)), 1)
    return inner.rope_embedder(both.to(x.device, torch.float32)).movedim(1, 2)
