"""Frames in, frames out: what RIFE makes between the frames of one stream, and how far things move between two.

Frames are [H, W, 3], uint8 or float in 0..1, of any one size: edges are repeated up to what the network can divide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .rife import Rife, warp
from .seams import Moved

FLOW_SCALES = {"auto": 0, "full": 1, "half": 2, "quarter": 4}
# Above these sizes (longer side, pixels) "auto" seeks the flow in images 2 and 4 times smaller.
FULL_PX, HALF_PX = 2560, 5120
MOTION_PX = 512  # motion is measured in images of about this longer side


class Between(NamedTuple):
    """A frame to make: at the fraction t of the way from `first` to `second`."""

    first: torch.Tensor
    second: torch.Tensor
    t: float


def coarser_for(flow_scale: str, width: int, height: int) -> int:
    """By what factor images are shrunk before the flow is sought: 1, 2 or 4."""
    longer = max(width, height)
    return FLOW_SCALES[flow_scale] or (1 if longer <= FULL_PX else 2 if longer <= HALF_PX else 4)


class FrameMaker:
    """One stream of frames through the network. Every frame is encoded once: the encodings of the last call are kept.

    coarser: see coarser_for. Everything happens on the model's device; results are there too.
    """

    def __init__(self, model: Rife, coarser: int = 1) -> None:
        self.model, self.coarser = model, coarser
        self.forget()

    def forget(self) -> None:
        """Let go of the encodings."""
        self._encoded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the frame's id: the frame, its sources

    @torch.no_grad()
    def make(self, tasks: Sequence[Between]) -> torch.Tensor:
        """All frames asked for, in one batch: [len(tasks), H, W, 3] float32 in 0..1."""
        self._encode(frame for task in tasks for frame in task[:2])
        first, second = (self._sources([task[n] for task in tasks]) for n in (0, 1))
        weight = next(self.model.parameters())
        t = torch.tensor([task.t for task in tasks], device=weight.device, dtype=weight.dtype)
        made = self.model(first, second, t, self.coarser)
        height, width = tasks[0].first.shape[:2]
        return made[:, :, :height, :width].permute(0, 2, 3, 1).float().clamp(0, 1)

    def _encode(self, frames: Iterable[torch.Tensor]) -> None:
        wanted = {id(frame): frame for frame in frames}
        self._encoded = {key: kept for key, kept in self._encoded.items() if key in wanted}
        multiple, weight = self.model.architecture.multiple(self.coarser), next(self.model.parameters())
        for key, frame in wanted.items():
            if key not in self._encoded:
                image = _padded(_image(frame.to(weight.device)), multiple).to(weight.dtype)
                self._encoded[key] = frame, self.model.sources(image)

    def _sources(self, frames: list[torch.Tensor]) -> torch.Tensor:
        """[n, C, H, W], or [1, C, H, W] where all n are one frame."""
        found = [self._encoded[id(frame)][1] for frame in frames]
        return found[0] if all(source is found[0] for source in found) else torch.cat(found)


@torch.no_grad()
def motion(model: Rife, first: torch.Tensor, second: torch.Tensor) -> Moved:
    """How the picture moves between two frames, by the network's flow from the middle to both.

    distance: root mean square over the picture, in pixels of the frames. ghosting: mean difference of the two frames
    warped to the middle, weighted by how evenly the network would blend them (1 at half and half).
    """
    weight = next(model.parameters())
    shrink = max(1, round(max(first.shape[:2]) / MOTION_PX))
    small = [F.avg_pool2d(_image(frame.to(weight.device)), shrink, ceil_mode=True) for frame in (first, second)]
    height, width = small[0].shape[2:]
    sources = [model.sources(_padded(image, model.architecture.multiple(1)).to(weight.dtype)) for image in small]
    flow, mask = model.flow(*sources, torch.full((1,), 0.5, device=weight.device))
    one, other = (warp(source[:, :3], flow[:, 2 * n : 2 * n + 2]) for n, source in enumerate(sources))
    share = torch.sigmoid(mask)
    unlike = (one - other).abs().mean(dim=1, keepdim=True) * (4 * share * (1 - share))
    moved = flow[:, 2:] - flow[:, :2]  # from the first image to the second
    unlike, moved = (value[:, :, :height, :width].float() for value in (unlike, moved))
    return Moved(float(moved.square().sum(dim=1).mean().sqrt()) * shrink, 255 * float(unlike.mean()))


def _image(frame: torch.Tensor) -> torch.Tensor:
    """[H, W, 3] -> [1, 3, H, W] float32 in 0..1."""
    return frame.permute(2, 0, 1)[None].float() / (255.0 if frame.dtype == torch.uint8 else 1.0)


def _padded(image: torch.Tensor, multiple: int) -> torch.Tensor:
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
