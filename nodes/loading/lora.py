"""LoRA beside a packed weight: the weight stays as it is and its low-rank change is computed from the input.

y = x W^T + ((x down^T) * scale) up^T, which is x (W + up diag(scale) down)^T without ever writing W.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from .diffusers_names import spellings

PREFIXES = ("base_model.model.", "pipe.dit.")  # what peft's and DiffSynth's training code put before the model's names
MODEL_PREFIX = "diffusion_model."  # what ComfyUI expects there


@dataclass(frozen=True)
class SidePath:
    """The sum of one or several LoRAs of a Linear. down: [rank, in], up: [out, rank], scale: float32 [rank]."""

    down: torch.Tensor
    up: torch.Tensor
    scale: torch.Tensor

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes + self.scale.nbytes


def side_path(parts: Sequence[tuple[torch.Tensor, torch.Tensor, float]]) -> SidePath | None:
    """Several LoRAs (up, down, factor) as one of all their ranks; None where nothing is left.

    up: [out, rank] and down: [rank, in] with any number of trailing dimensions of size 1. Factors of 0 drop out. A
    single LoRA's tensors are taken as they are, without a copy.
    """
    used = [(up.flatten(1), down.flatten(1), factor) for up, down, factor in parts if factor]
    if not used:
        return None
    scale = torch.cat([torch.full((down.shape[0],), factor, dtype=torch.float32) for _, down, factor in used])
    if len(used) == 1:
        return SidePath(used[0][1], used[0][0], scale)
    dtype = reduce(torch.promote_types, (_wide(part) for up, down, _ in used for part in (up, down)))
    return SidePath(torch.cat([down.to(dtype) for _, down, _ in used]),
                    torch.cat([up.to(dtype) for up, _, _ in used], dim=1), scale)


def _wide(part: torch.Tensor) -> torch.dtype:
    """The dtype that holds a LoRA's matrix and can be promoted, which those of 8 bits cannot."""
    return torch.bfloat16 if part.dtype.itemsize == 1 else part.dtype


def add_side_path(y: torch.Tensor, x: torch.Tensor, path: SidePath) -> torch.Tensor:
    """y [..., out] plus what the LoRA makes of x [..., in], in the dtype of x; changes y."""
    inner = torch.nn.functional.linear(x, path.down.to(x.dtype)).mul_(path.scale.to(x.dtype))
    return y.add_(torch.nn.functional.linear(inner, path.up.to(x.dtype)))


def comfy_names(lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA file with peft's names (base_model.model.blocks..., pipe.dit.blocks...) under those ComfyUI looks for.

    Sources: LongLive's lora.pt, whose keys are base_model.model.blocks.N....lora_A.weight; Mirage's training code,
    which saves pipe.dit.blocks.N....lora_A.weight and reads lora_A.default.weight too.
    """
    return {MODEL_PREFIX + _bare_name(key) if key.startswith(PREFIXES) else key: tensor for key, tensor in lora.items()}


def model_names(lora: Mapping[str, torch.Tensor], layers: Container[str]) -> dict[str, torch.Tensor]:
    """A LoRA file whose names have no beginning of ComfyUI's, or are diffusers', under those ComfyUI looks for.

    layers: the model's layers, without ComfyUI's prefix. Names of no layer stay as they are. Sources: DiffSynth-Studio,
    which saves blocks.N....lora_A.default.weight; diffusers' LoRA loaders, which save transformer.blocks.N.attn1....
    """
    found = {}
    for key, tensor in lora.items():
        name = _bare_name(key)
        names = [spelling for spelling in (name, *spellings(name)) if _is_of_layer(spelling, layers)]
        found[MODEL_PREFIX + names[0] if names else key] = tensor
    return found


def _bare_name(key: str) -> str:
    for prefix in (*PREFIXES, "model.", MODEL_PREFIX, "transformer."):
        key = key.removeprefix(prefix)
    return key.replace("_fsdp_wrapped_module.", "").replace(".default.weight", ".weight")


def _is_of_layer(name: str, layers: Container[str]) -> bool:
    return any(name[:dot.start()] in layers for dot in re.finditer(r"\.", name))


def describe_coverage(name: str, keys: int, unmatched: Iterable[str]) -> str:
    """The coverage line: how many of a LoRA's keys found a place, loudly when fewer than nine in ten did."""
    left = list(unmatched)
    line = f"{name}: {keys - len(left)} of {keys} keys matched"
    if not left:
        return line
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    warning = "WARNING: " if keys - len(left) < 0.9 * keys else ""
    return f"{warning}{line}; not used: {', '.join(left[:3])}{more}"
