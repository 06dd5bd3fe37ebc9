"""How far remembered frames are from the beginning of the film, in two cheap numbers.

latent distance: per channel the 2-Wasserstein distance between two normal distributions with the channel's mean and
spread, sqrt((m1 - m2)^2 + (s1 - s2)^2), root mean square over the channels. Latents are normalised to a spread of
about 1, so 1.0 is a whole spread. colour distance: CIE 1976 distance between the mean colours of two pictures in CIE
Lab (D65, sRGB); about 2 is just seen side by side.

What they can tell: that brightness, tint, contrast or texture wander, as they do when a film degrades. What they
cannot: a new scene changes them as much as drift does, so compare chunks of one scene; and who is in the picture does
not enter. Identity is not measured.
"""

from __future__ import annotations

import torch

from .colour import channel_statistics

Statistics = tuple[torch.Tensor, torch.Tensor]  # (mean, std) per channel, float32 [C]

_WHITE = (0.95047, 1.0, 1.08883)  # D65
_XYZ_OF_RGB = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_STEP = 6 / 29  # where CIE Lab's cube root becomes a line


def statistics_of(latents: list[torch.Tensor]) -> Statistics:
    """(mean, std) per channel over all of these latents, each [C, n, h, w]."""
    return channel_statistics(torch.cat(latents, 1))


def latent_distance(a: Statistics, b: Statistics) -> float:
    """See the module's docstring; 0 for equal statistics."""
    return float(((a[0] - b[0]).square() + (a[1] - b[1]).square()).mean().sqrt())


def mean_lab(pictures: torch.Tensor) -> torch.Tensor:
    """Mean CIE Lab of sRGB pictures [..., 3], uint8 or float 0..1: float64 [3], L in 0..100."""
    return _lab(pictures).mean(0)


def look_of(pictures: torch.Tensor) -> torch.Tensor:
    """Mean CIE Lab and contrast (spread of L) of pictures as mean_lab takes them: float64 [4]."""
    lab = _lab(pictures)
    return torch.cat((lab.mean(0), lab[:, 0].std(correction=0, keepdim=True)))


def _lab(pictures: torch.Tensor) -> torch.Tensor:
    rgb = pictures.double() / (255 if pictures.dtype == torch.uint8 else 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear.reshape(-1, 3) @ torch.tensor(_XYZ_OF_RGB, dtype=torch.double).T / torch.tensor(_WHITE)
    x, y, z = torch.where(xyz > _STEP**3, xyz.clamp(min=0) ** (1 / 3), xyz / (3 * _STEP**2) + 4 / 29).unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)  # [pixels, 3]


def colour_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """CIE 1976 distance of two colours in Lab, [3] each."""
    return float((a - b).norm())


def direction(start: torch.Tensor, now: torch.Tensor) -> str:
    """Where the mean colour went, in words: "darker, yellower"; "" where nothing changed by 1 or more."""
    words = (("darker", "lighter"), ("greener", "redder"), ("bluer", "yellower"))
    return ", ".join(pair[int(change > 0)] for pair, change in zip(words, (now - start).tolist(), strict=True)
                     if abs(change) >= 1)
