"""What the orbit view in the graph editor shows: points of a place as plain data, as many as a page draws at once."""

from __future__ import annotations

import base64

import torch

from .picture import middle_and_reach, palette
from .values import SpatialMemory

ORBIT = "videomemory_orbit"  # the key in the node's ui output
MOST = 12000  # points, at 9 bytes each 144 KB of text
STEPS = 32767  # of a coordinate, from the middle to the farthest point


def orbit_of(memory: SpatialMemory) -> dict:
    """{"total", "shown", "middle", "reach", "scale", "points", "colours"}, ready for JSON, of at least one point.

    Every so-many-th point is shown, at most MOST. points: base64 of int16 [shown, 3], little-endian, world = middle +
    scale x points. colours: base64 of uint8 [shown, 3]. reach: most of the cloud is not farther from the middle.
    """
    kept = torch.linspace(0, len(memory) - 1, min(len(memory), MOST)).round().long()
    middle, reach = middle_and_reach(memory)
    offsets = memory.points[kept] - middle
    scale = max(float(offsets.abs().max()), 1e-6) / STEPS
    colours = palette(memory).colours(memory.features[kept].float())
    return {"total": len(memory), "shown": len(kept), "middle": middle.tolist(), "reach": reach, "scale": scale,
            "points": _text((offsets / scale).round().to(torch.int16)),
            "colours": _text((colours * 255).round().to(torch.uint8))}


def _text(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode("ascii")
