"""The fixed tables of bitsandbytes' 4-bit formats: 16 levels per quant type, and the 8-bit map of nested absmax values.

Sources: QLoRA, arXiv 2305.14314 (NF4); bitsandbytes 0.50's get_4bit_type (FP4: sign, two bits of exponent, one of
mantissa, divided by the largest value); arXiv 1511.04561 (the dynamic map).
"""

from __future__ import annotations

from functools import cache

import torch

_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # the upper half of the codes is the same with a minus
LEVELS = {  # by quant type: the value of every code 0..15, float32
    "nf4": torch.tensor([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]),
    "fp4": torch.tensor((*_FP4, 0.0, *(-level for level in _FP4[1:]))) / 12,
}


@cache
def levels_on(quant_type: str, device: torch.device) -> torch.Tensor:
    """[16] float32."""
    return LEVELS[quant_type].to(device)


@cache
def level_pairs(quant_type: str, device: torch.device) -> torch.Tensor:
    """[256] int64: for every byte its two levels as float32, the high half first, so that one look-up fetches both."""
    byte, levels = torch.arange(256), LEVELS[quant_type]
    return torch.stack((levels[byte >> 4], levels[byte & 15]), dim=1).view(torch.int64).view(-1).to(device)


@cache
def dynamic_map() -> torch.Tensor:
    """The signed 8-bit dynamic map, [256] ascending: seven decades, each with twice the values of the one below."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2**decade + 1)
        magnitudes = 10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += magnitudes.tolist() + (-magnitudes).tolist()
    return torch.tensor(sorted(values))
