"""Colours of later clips held to the first one: per-channel mean and spread in latent space (AdaIN).

Source of the statistics: Huang and Belongie 2017, "Arbitrary style transfer with adaptive instance normalization".
"""

from __future__ import annotations

import torch

SMALLEST_STD = 1e-6


def channel_statistics(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) per channel of latents [C, T, h, w]: float32 [C] each."""
    flat = latents.float().flatten(1)
    return flat.mean(1), flat.std(1, correction=0)


def hold_colours(latents: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, strength: float,
                 given: int = 0) -> torch.Tensor:
    """latents [C, T, h, w] moved towards the channel statistics (mean, std) [C]; strength 0 returns them as they are.

    given: first latents that the film shows already; they stay, and the correction grows evenly behind them to its full
    strength at the last latent, so that no step appears where the clips join.
    """
    if strength == 0:
        return latents
    now_mean, now_std = (value.to(latents)[:, None, None, None] for value in channel_statistics(latents))
    mean, std = (value.to(latents)[:, None, None, None] for value in (mean, std))
    held = (latents - now_mean) / now_std.clamp(min=SMALLEST_STD) * std + mean
    length = latents.shape[1]
    ramp = (torch.arange(length, device=latents.device) - given + 1).clamp(min=0) / max(1, length - given)
    return torch.lerp(latents, held, (ramp * strength).to(latents.dtype)[None, :, None, None])
