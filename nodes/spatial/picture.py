"""Pictures of a place: latents as colours, and the cloud from a few sides. Tensors only.

Colours are the three directions in which the features of the cloud differ most; they stand for nothing but likeness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cloud import Reading, read
from .values import CameraPath, SpatialMemory, make_path

HOLE = 0.0  # black
CUT_OFF = 0.02  # part of the values that is cut off at both ends
VIEW = 384


@dataclass(frozen=True)
class Palette:
    """mean: [C]; axes: [C, 3]; low, high: [3]."""

    mean: torch.Tensor
    axes: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def colours(self, features: torch.Tensor) -> torch.Tensor:
        """[N, C] -> [N, 3], 0.1..1, so that nothing known is as black as a hole."""
        part = ((features - self.mean) @ self.axes - self.low) / (self.high - self.low)
        return 0.1 + 0.9 * part.clamp(0.0, 1.0)


def palette(memory: SpatialMemory) -> Palette:
    """The colours of a cloud with at least one point."""
    step = max(1, len(memory) // 20000)
    features = memory.features[::step].float()
    mean = features.mean(0)
    centred = features - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors[:, -3:].flip(1)
    axes = torch.nn.functional.pad(axes, (0, 3 - axes.shape[1]))
    values = centred @ axes
    low, high = torch.quantile(values, CUT_OFF, 0), torch.quantile(values, 1 - CUT_OFF, 0)
    return Palette(mean, axes, low, torch.maximum(high, low + 1e-6))


def reading_pictures(reading: Reading, colours: Palette, scale: int) -> torch.Tensor:
    """[T, h x scale, w x scale, 3] 0..1: what was read, holes black."""
    count, height, width = reading.holes.shape
    features = reading.latents.permute(1, 2, 3, 0).reshape(-1, reading.latents.shape[0])
    pictures = colours.colours(features).view(count, height, width, 3)
    pictures[reading.holes] = HOLE
    return pictures.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def cloud_pictures(memory: SpatialMemory) -> torch.Tensor:
    """[3, 384, 384, 3]: the cloud from behind the first camera, from the right, and from above."""
    path = _around(memory)
    grid = SpatialMemory(memory.points, memory.features, memory.frames, memory.confidence, VIEW // 4, VIEW // 4)
    return reading_pictures(read(grid, path, (0, 1, 2)), palette(memory), 4)


def middle_and_reach(memory: SpatialMemory) -> tuple[torch.Tensor, float]:
    """([3], the distance from there within which 95 % of the points lie) of a cloud with at least one point."""
    middle = memory.points.median(0).values
    far = (memory.points[:: max(1, len(memory) // 20000)] - middle).norm(dim=1)
    return middle, float(torch.quantile(far, 0.95)) + 1e-3


def _around(memory: SpatialMemory) -> CameraPath:
    """Three cameras that have most of the cloud in the picture; far away things may fall out."""
    middle, reach = middle_and_reach(memory)
    turns = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
                          [[0.0, 0, -1], [0, 1, 0], [1, 0, 0]],
                          [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]])
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, :3, :3] = turns
    poses[:, :3, 3] = middle - 2.5 * reach * turns[:, :, 2]
    k = torch.tensor([[VIEW * 1.1, 0, VIEW / 2], [0, VIEW * 1.1, VIEW / 2], [0, 0, 1.0]])
    return make_path(poses, k.repeat(3, 1, 1), VIEW, VIEW, 1.0)
