"""A synthetic room with exact depth: four walls, floor, ceiling and a pillar, textured by functions of the place.

Every pixel's ray is cut with the planes and the pillar, so depth and cameras are exact, and a point looks the same from
everywhere. World axes: x right, y down, z forward; metres.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

LOW, HIGH = torch.tensor([-4.0, -1.6, -3.0]), torch.tensor([4.0, 1.4, 5.0])
PILLAR_X, PILLAR_Z, PILLAR_RADIUS = 1.2, 3.0, 0.4
FINER = 2  # rays per pixel and axis of a picture; depth is that of the pixel's middle


def render(pose: torch.Tensor, intrinsics: torch.Tensor, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([H, W, 3] 0..1, [H, W] depth along the camera's axis) of a camera, pose [4, 4] camera to world.

    A pixel's coordinates are integers, as the memory has them.
    """
    picture = _look(pose, intrinsics, width, height, FINER)[0].movedim(-1, 0)[None]
    picture = F.avg_pool2d(picture, FINER)[0].movedim(0, -1)
    return picture, _look(pose, intrinsics, width, height, 1)[1]


def _look(pose: torch.Tensor, k: torch.Tensor, width: int, height: int,
          finer: int) -> tuple[torch.Tensor, torch.Tensor]:
    step = torch.arange(finer * max(width, height)) / finer - (finer - 1) / (2 * finer)
    v, u = torch.meshgrid(step[: finer * height], step[: finer * width], indexing="ij")
    rays = torch.stack(((u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], torch.ones_like(u)), -1) @ pose[:3, :3].T
    origin = pose[:3, 3]
    walls = torch.where(rays == 0, float("inf"), torch.where(rays > 0, HIGH - origin, LOW - origin) / rays)
    depth = torch.minimum(walls.amin(-1), _pillar(rays, origin))
    return _colour(origin + depth[..., None] * rays), depth


def _pillar(rays: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    """Where rays meet the pillar, infinite where they do not."""
    x, z = origin[0] - PILLAR_X, origin[2] - PILLAR_Z
    a = rays[..., 0] ** 2 + rays[..., 2] ** 2
    b = x * rays[..., 0] + z * rays[..., 2]
    root = b * b - a * (x * x + z * z - PILLAR_RADIUS**2)
    near = (-b - root.clamp(min=0).sqrt()) / a
    return torch.where((root > 0) & (near > 0), near, float("inf"))


def _colour(points: torch.Tensor) -> torch.Tensor:
    """Large soft shapes and panels, different on every wall."""
    x, y, z = points.unbind(-1)
    panels = ((x * 1.3).floor() + (z * 1.3).floor() + (y * 1.3).floor()) % 2
    red = 0.5 + 0.3 * torch.sin(1.1 * x + 0.4 * z) + 0.15 * panels
    green = 0.5 + 0.3 * torch.sin(0.9 * z - 0.7 * y + 1.0) - 0.15 * panels
    blue = 0.5 + 0.3 * torch.cos(1.3 * y + 0.5 * x - 0.6 * z) + 0.1 * panels
    return torch.stack((red, green, blue), -1).clamp(0.0, 1.0)
