"""Depth of unknown scale, made to fit what the memory already knows.

Depth models give depth or its inverse up to a scale and a shift; both are found by least squares where a frame sees
what was remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..common.errors import message
from .cloud import Look, grid_depth, read
from .values import CameraPath, SpatialMemory

KINDS = ("metric", "relative", "inverse")
FEWEST = 16  # latent pixels of overlap that a scale and a shift are trusted to


@dataclass(frozen=True)
class Fit:
    """value = scale x given + shift, of depth or (kind "inverse") of 1 / depth. pixels: latent pixels it was fitted
    on, error: median of |fitted - known| / known over them."""

    scale: float
    shift: float
    pixels: int
    error: float


def fitted(memory: SpatialMemory, look: Look, path: CameraPath, kind: str, near: float,
           far: float) -> tuple[Look, tuple[Fit, ...]]:
    """The look with metric depth, and per frame how it was found (nothing for kind "metric").

    kind: one of KINDS; "inverse" is what most depth nodes give, white = near. An empty memory has no scale: then the
    largest and the smallest value of the first frame become near and far (of "relative", the other way round).
    """
    if kind == "metric":
        return look, ()
    check = torch.ones_like(look.depth, dtype=torch.bool) if look.mask is None else look.mask <= 0
    if not bool(torch.isfinite(look.depth[check]).all()):
        raise ValueError(message("Fitting depth to the memory", "NaN or infinite depth", "finite numbers",
                                 "Take out sky with the mask, or repair the depth."))
    if len(memory) == 0:
        return _spread(look, check, kind, near, far), ()
    parts = [_fit_frame(memory, look, t, path, kind) for t in range(len(look.frames))]
    return replace(look, depth=torch.stack([depth for depth, _ in parts])), tuple(fit for _, fit in parts)


def least_squares(given: torch.Tensor, known: torch.Tensor) -> tuple[float, float]:
    """(scale, shift) of the line through two lists of numbers, in float64; ValueError where all of given is alike."""
    x, y = given.double(), known.double()
    centred = x - x.mean()
    spread = float((centred * centred).sum())
    if spread <= 1e-12 * max(float((x * x).sum()), 1e-30):
        raise ValueError(message("Fitting depth to the memory", "one depth everywhere on the overlap",
                                 "depths that differ", "Use metric depth, or look at more of the known place."))
    scale = float((centred * (y - y.mean())).sum()) / spread
    return scale, float(y.mean()) - scale * float(x.mean())


def _spread(look: Look, kept: torch.Tensor, kind: str, near: float, far: float) -> Look:
    if not 0 < near < far:
        raise ValueError(message("Lift to Spatial Memory: near and far", f"near {near}, far {far}", "0 < near < far",
                                 "Say how far away the nearest and the farthest things are."))
    values = look.depth[kept]
    low, high = float(values.min()), float(values.max())
    if high <= low:
        raise ValueError(message("Lift to Spatial Memory needs a depth map", f"the value {low:g} everywhere",
                                 "depths that differ", "Connect a depth node, or use metric depth."))
    part = ((look.depth - low) / (high - low)).clamp(0.0, 1.0)
    depth = near + part * (far - near) if kind == "relative" else 1.0 / (1 / far + part * (1 / near - 1 / far))
    return replace(look, depth=depth)


def _fit_frame(memory: SpatialMemory, look: Look, t: int, path: CameraPath, kind: str) -> tuple[torch.Tensor, Fit]:
    reading = read(memory, path, (look.frames[t],))
    lowest = float(look.depth[t][torch.isfinite(look.depth[t])].min())
    raised, kept = grid_depth(look.depth[t] - lowest + 1.0, None if look.mask is None else look.mask[t], memory.height,
                              memory.width)
    overlap = kept & ~reading.holes[0]
    given, known = (raised + lowest - 1.0)[overlap], reading.depth[0][overlap]
    if len(given) < FEWEST:
        raise ValueError(message(f"Fitting depth to the memory: frame {look.frames[t]} sees too little of it",
                                 f"{len(given)} latent pixels of overlap", f"{FEWEST} or more",
                                 "Move the camera in smaller steps, or use metric depth."))
    scale, shift = least_squares(given, known if kind == "relative" else 1 / known)
    depth, on_overlap = (_apply(value, scale, shift, kind) for value in (look.depth[t], given))
    wrong = (depth <= 0) if look.mask is None else (depth <= 0) & (look.mask[t] <= 0)
    if scale <= 0 or bool(wrong.any()):
        raise ValueError(message(f"Fitting depth to the memory: frame {look.frames[t]} does not fit",
                                 f"scale {scale:.4g}, shift {shift:.4g}, {int(wrong.sum())} pixels behind the camera",
                                 "a positive scale that puts everything in front of the camera",
                                 "Check the kind of depth (white is near = inverse) and the camera path."))
    return depth, Fit(scale, shift, len(given), float(((on_overlap - known).abs() / known).median()))


def _apply(value: torch.Tensor, scale: float, shift: float, kind: str) -> torch.Tensor:
    line = scale * value + shift
    return line if kind == "relative" else torch.where(line > 0, 1.0 / line, -1.0)
