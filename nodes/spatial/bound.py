"""Keep a place under a budget: points that share a cell are merged, and the cell is as small as the budget allows."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..common.errors import message
from .values import SpatialMemory

STEPS = 16  # halvings between a cell that is surely too small and one that holds everything: 0.1 % of the edge
AXIS_CELLS = 2**20  # cells per axis that fit into one 63-bit key


def merge(memory: SpatialMemory, voxel: float) -> SpatialMemory:
    """One point per cell of a given edge: the one with the highest confidence, of equal ones the newest."""
    kept = _winners(memory, voxel)
    return replace(memory, points=memory.points[kept], features=memory.features[kept], frames=memory.frames[kept],
                   confidence=memory.confidence[kept], voxel=voxel)


def bound(memory: SpatialMemory, budget_bytes: int) -> SpatialMemory:
    """The memory with at most budget_bytes of points, merged in the smallest cells that do; itself where it fits.

    Raises ValueError for a budget of less than eight points, which no cell size could keep.
    """
    if budget_bytes < 8 * memory.point_bytes:
        raise ValueError(message("A spatial memory's budget", f"{budget_bytes} bytes",
                                 f"{8 * memory.point_bytes} bytes or more", "Give it a megabyte at least."))
    if memory.nbytes <= budget_bytes:
        return memory
    limit = budget_bytes // memory.point_bytes
    extent = float((memory.points.amax(0) - memory.points.amin(0)).max())
    large = max(extent, 1e-6) * 2.0
    small = max(memory.voxel, large / AXIS_CELLS)
    for _ in range(STEPS):
        middle = (small * large) ** 0.5
        if _cells(memory, middle) <= limit:
            large = middle
        else:
            small = middle
    return merge(memory, large)


def _keys(memory: SpatialMemory, voxel: float) -> torch.Tensor:
    """[N] int64, one number per cell; cells are counted from the cloud's corner on a grid that stays where it is."""
    cells = torch.floor(memory.points.double() / voxel).long()
    cells = cells - cells.amin(0)
    if len(cells) and int(cells.max()) >= 2 * AXIS_CELLS:
        raise ValueError(message("Merging points in cells", f"cells of {voxel:g}", f"at most {2 * AXIS_CELLS} per axis",
                                 "Use larger cells, or take out what is very far away with the mask."))
    return (cells[:, 0] * (2 * AXIS_CELLS) + cells[:, 1]) * (2 * AXIS_CELLS) + cells[:, 2]


def _cells(memory: SpatialMemory, voxel: float) -> int:
    return int(torch.unique(_keys(memory, voxel)).numel())


def _winners(memory: SpatialMemory, voxel: float) -> torch.Tensor:
    """Indices of the points that stay, in the order of the cloud."""
    if len(memory) == 0:
        return torch.zeros(0, dtype=torch.long)
    keys = _keys(memory, voxel)
    order = torch.argsort(memory.frames, descending=True, stable=True)
    order = order[torch.argsort(memory.confidence[order], descending=True, stable=True)]
    order = order[torch.argsort(keys[order], stable=True)]
    sorted_keys = keys[order]
    first = torch.ones_like(sorted_keys, dtype=torch.bool)
    first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    return order[first].sort().values
