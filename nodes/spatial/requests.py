"""What the nodes are given, checked and brought into the room's own layouts, and what they say about it."""

from __future__ import annotations

import torch

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE
from .cloud import Look, Reading
from .depth import Fit
from .values import CameraPath, SpatialMemory

MB = 2**20


def require_spatial(memory: object, asked: str) -> None:
    """Raise ValueError for what is no spatial memory."""
    if not isinstance(memory, SpatialMemory):
        raise ValueError(message(f"{asked}: spatial_memory", type(memory).__name__, "a SPATIAL_MEMORY",
                                 "Connect Lift to Spatial Memory or Load Spatial Memory."))


def require_path(path: object, asked: str) -> None:
    """Raise ValueError for what is no camera path."""
    if not isinstance(path, CameraPath):
        raise ValueError(message(f"{asked}: camera_path", type(path).__name__, "a CAMERA_PATH", "Connect Camera Path."))


def require_same_vae(memory: SpatialMemory, key: str, asked: str) -> None:
    """Raise ValueError where a memory was made from another VAE's latents."""
    if memory.vae_key and key and memory.vae_key != key:
        raise ValueError(message(f"{asked}: a memory from another VAE", f"latents of VAE {memory.vae_key[:8]}",
                                 f"those of VAE {key[:8]}, which is connected",
                                 "Connect the VAE that it was lifted with, or lift the place again."))


def frames_of_latent(samples: torch.Tensor, asked: str) -> torch.Tensor:
    """[C, T, h, w] float32 on the CPU of the samples of a LATENT of one video or one picture."""
    video = samples[:, :, None] if samples.ndim == 4 else samples
    if video.ndim != 5 or video.shape[0] != 1:
        raise ValueError(message(f"{asked}: latent", f"{tuple(samples.shape)}",
                                 "[1, C, T, h, w] or [1, C, h, w], one video or picture", "Take a batch apart."))
    return video[0].to("cpu", torch.float32)


def film_frames(first_frame: int, latents: int) -> tuple[int, ...]:
    """Frames whose cameras belong to a clip's latents: every fourth, from its first one on."""
    return tuple(first_frame + TEMPORAL_STRIDE * i for i in range(latents))


def make_look(latents: torch.Tensor, depth: torch.Tensor, mask: torch.Tensor | None, first_frame: int, asked: str,
              confidence: torch.Tensor | None = None) -> Look:
    """A Look of latents [C, T, h, w], a depth IMAGE and MASKs, of every frame of the clip or of every fourth."""
    count = latents.shape[1]
    depth = _every_fourth(depth[..., 0], count, "depth", asked)
    masks = {name: _mask_of_clip(value, count, name, asked) for name, value in
             (("mask", mask), ("confidence", confidence)) if value is not None}
    return Look(latents, depth.to("cpu", torch.float32), film_frames(first_frame, count), **masks)


def _mask_of_clip(mask: torch.Tensor, latents: int, name: str, asked: str) -> torch.Tensor:
    """[T, H, W] float32 on the CPU; one picture stands for all frames."""
    mask = mask[None] if mask.ndim == 2 else mask
    mask = mask.expand(latents, -1, -1) if len(mask) == 1 else _every_fourth(mask, latents, name, asked)
    return mask.to("cpu", torch.float32)


def _every_fourth(pictures: torch.Tensor, latents: int, name: str, asked: str) -> torch.Tensor:
    frames = TEMPORAL_STRIDE * (latents - 1) + 1
    if len(pictures) == latents:
        return pictures
    if len(pictures) == frames:
        return pictures[::TEMPORAL_STRIDE]
    raise ValueError(message(f"{asked}: {name} for {latents} latents", f"{len(pictures)} frames",
                             f"{frames} (every frame) or {latents} (every fourth)",
                             f"Make the {name} from the frames of the same clip."))


def size_line(memory: SpatialMemory) -> str:
    """How large a memory is, in one sentence."""
    merged = f", merged in cells of {memory.voxel:.3g}" if memory.voxel else ""
    return (f"{len(memory)} points of {memory.channels} channels from {memory.frames.unique().numel()} frames{merged}: "
            f"{memory.nbytes / MB:.2f} MB, {memory.point_bytes} bytes each.")


def fit_lines(fits: tuple[Fit, ...], frames: tuple[int, ...]) -> list[str]:
    """One sentence per fitted frame."""
    return [f"Frame {frame}: depth fitted on {fit.pixels} latent pixels, scale {fit.scale:.4g}, shift {fit.shift:.4g}, "
            f"median error {fit.error:.1%}." for frame, fit in zip(frames, fits, strict=False)]


def coverage_lines(reading: Reading, frames: tuple[int, ...]) -> list[str]:
    """What is known, on the whole and per frame."""
    shares = reading.coverage
    return [f"Known: {sum(shares) / len(shares):.1%} of {len(shares)} latent frames; the rest are holes.",
            *(f"Frame {frame}: {share:.1%}" for frame, share in zip(frames, shares, strict=True))]
