"""Which frames of the film so far saw what the next clip will see.

Source: arXiv 2606.09828 and its authors' code: at most four frames, voxels of 0.1, intersection over union of at least
0.04 between what all target cameras see and what an old frame's camera saw of the cloud as it was then.
"""

from __future__ import annotations

import torch

from .cloud import on_picture, to_camera
from .values import CameraPath, SpatialMemory

VOXEL, THRESHOLD, MOST = 0.1, 0.04, 4
PRECEDING = 2  # latents before a chunk that stand behind it


def visible_cells(memory: SpatialMemory, path: CameraPath, frames: tuple[int, ...],
                  voxel: float = VOXEL) -> torch.Tensor:
    """[M, 3] int32: the cells of the points that fall on the picture of any of these frames, without doubles."""
    cells = [torch.zeros(0, 3, dtype=torch.int32)]
    for frame in frames:
        seen = to_camera(memory.points, path.poses[frame])
        u, v = on_picture(seen, path.on_grid(frame, memory.height, memory.width))
        inside = (seen[:, 2] > 0) & (u >= 0) & (u < memory.width) & (v >= 0) & (v < memory.height)
        cells.append(torch.floor(memory.points[inside] / voxel).to(torch.int32))
    return torch.unique(torch.cat(cells), dim=0)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two sets of cells as visible_cells gives them, 0 where one is empty."""
    if len(a) == 0 or len(b) == 0:
        return 0.0
    union = len(torch.unique(torch.cat((a, b)), dim=0))
    return (len(a) + len(b) - union) / union


def choose_references(target: torch.Tensor, history: dict[int, torch.Tensor], most: int = MOST,
                      threshold: float = THRESHOLD) -> tuple[int, ...]:
    """Keys of at most `most` old frames whose cells overlap the target's, most overlap first, then oldest first."""
    scored = [(overlap(target, cells), frame) for frame, cells in history.items()]
    scored = [one for one in scored if one[0] >= threshold]
    scored.sort(key=lambda one: one[0], reverse=True)
    return tuple(frame for _, frame in scored[:most])
