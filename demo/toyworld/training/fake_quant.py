"""Rounds tensors as a quantised memory or NF4 weights would, but keeps float32: what does precision cost?"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

NF4_LEVELS = torch.tensor((
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
))  # fmt: skip  (QLoRA, Dettmers et al. 2023, appendix E)


def round_absmax(x: Tensor, bits: int, group: int) -> Tensor:
    """Symmetric rounding of keys or values [B, L, H, D] with one float16 scale per `group` numbers of a head."""
    grouped = x.unflatten(-1, (-1, group))
    largest = 2 ** (bits - 1) - 1
    scale = (grouped.abs().amax(-1, keepdim=True).clamp(min=1e-8) / largest).half().float()
    return ((grouped / scale).round().clamp(-largest, largest) * scale).flatten(-2)


KV_PRECISIONS = {
    "int8": partial(round_absmax, bits=8, group=128),
    "int4": partial(round_absmax, bits=4, group=128),
    "int4_groups_of_32": partial(round_absmax, bits=4, group=32),
}


@torch.no_grad()
def round_blocks_to_nf4(model: nn.Module, block: int = 64) -> None:
    """Round the weights of all Linear layers in the DiT's blocks to NF4, in place."""
    levels = NF4_LEVELS.to(next(model.parameters()))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            rows = module.weight.view(-1, block)
            scale = rows.abs().amax(1, keepdim=True)
            nearest = ((rows / scale).unsqueeze(-1) - levels).abs().argmin(-1)
            module.weight.copy_((levels[nearest] * scale).view_as(module.weight))
