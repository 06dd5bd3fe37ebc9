"""Write a place and read it: latents are lifted to points with depth and cameras, and projected into other cameras.

Source: arXiv 2606.09828 and its authors' code (latent_point_cloud.py of the released repository), whose arithmetic is
kept step by step so that results are bit-equal in float32: latent pixels lie on integer coordinates, depth is resized
bilinearly, the nearest point wins a pixel, nothing is blended. Here in addition: points know where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ..common.errors import message
from .values import CameraPath, SpatialMemory

DEPTH_DO = "Take out sky and moving things with the mask, and repair the rest in the depth node."


@dataclass(frozen=True)
class Look:
    """What is written: T frames of a clip.

    latents: [C, T, h, w]. depth: [T, H, W], the depth along the camera's axis, of the path's size. frames: T frame
    numbers on the path. mask: [T, H, W] or None, above 0 = moving or sky, left out. confidence: [T, H, W] or None, then
    nearness is the confidence: of two looks at a thing the one from nearer by is kept.
    """

    latents: torch.Tensor
    depth: torch.Tensor
    frames: tuple[int, ...]
    mask: torch.Tensor | None = None
    confidence: torch.Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """A place as T cameras see it.

    latents: [C, T, h, w] float32, zeros in holes. holes: [T, h, w] bool, True where nothing is known. depth: [T, h, w]
    float32, infinite in holes.
    """

    latents: torch.Tensor
    holes: torch.Tensor
    depth: torch.Tensor

    @property
    def coverage(self) -> tuple[float, ...]:
        """Per frame, the part of its latent pixels that the memory knows, 0..1."""
        return tuple(float(share) for share in 1.0 - self.holes.float().mean((1, 2)))


def write(memory: SpatialMemory, look: Look, path: CameraPath) -> SpatialMemory:
    """A new memory with the points of a look behind the old ones; ValueError for what does not fit, before any work."""
    _check_look(memory, look, path)
    parts = [_lift(look, t, path, memory.height, memory.width) for t in range(len(look.frames))]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    old = (memory.points, memory.features, memory.frames, memory.confidence)
    points, features, frames, confidence = (torch.cat(pair) for pair in zip(old, columns, strict=True))
    return replace(memory, points=points, features=features, frames=frames, confidence=confidence)


def read(memory: SpatialMemory, path: CameraPath, frames: tuple[int, ...],
         device: torch.device | str = "cpu") -> Reading:
    """Project the memory into the cameras of some frames, on a device; the result lies on the CPU."""
    require_points(memory, "Read Spatial Memory")
    check_frames("Read Spatial Memory", frames, path)
    points, features = memory.points.to(device), memory.features.to(device)
    views = [_project(points, features, path.poses[frame].to(device),
                      path.on_grid(frame, memory.height, memory.width).to(device), memory.height, memory.width)
             for frame in frames]
    latents, depth = (torch.stack(column, 1 - i).cpu() for i, column in enumerate(zip(*views, strict=True)))
    return Reading(latents, torch.isinf(depth), depth)


def require_points(memory: SpatialMemory, asked: str) -> None:
    """Raise ValueError for a memory of nothing."""
    if len(memory) == 0:
        raise ValueError(message(f"{asked} needs a place that was seen", "an empty cloud", "at least one point",
                                 "Lift a first frame with Lift to Spatial Memory, and mask out less of it."))


def check_frames(asked: str, frames: tuple[int, ...], path: CameraPath) -> None:
    """Raise ValueError where a camera path is shorter than what is asked of it."""
    if not frames or min(frames) < 0 or max(frames) >= len(path):
        got = f"frames {min(frames)} to {max(frames)}" if frames else "no frames"
        raise ValueError(message(f"{asked} goes beyond the camera path", got, f"frames 0 to {len(path) - 1}",
                                 "Make the path longer, or the clip shorter."))


def to_camera(points: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """[N, 3] world -> [N, 3] in the axes of a camera, pose [4, 4] camera to world."""
    back = torch.inverse(pose)
    return (points @ back[:3, :3].T) + back[:3, 3]


def on_picture(seen: torch.Tensor, intrinsics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(u, v): [N] each, where points [N, 3] in a camera's axes fall on its picture, not rounded."""
    z = seen[:, 2]
    u = (seen[:, 0] * intrinsics[0, 0] / z) + intrinsics[0, 2]
    v = (seen[:, 1] * intrinsics[1, 1] / z) + intrinsics[1, 2]
    return u, v


def _project(points: torch.Tensor, features: torch.Tensor, pose: torch.Tensor, intrinsics: torch.Tensor, height: int,
             width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([C, h, w] float32, [h, w] depth): per pixel the nearest point; of equally near ones the newest."""
    seen = to_camera(points, pose)
    u, v = (torch.round(axis) for axis in on_picture(seen, intrinsics))
    inside = (seen[:, 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    candidates = inside.nonzero()[:, 0]
    pixel = v[candidates].long() * width + u[candidates].long()
    z = seen[candidates, 2]
    depth = torch.full((height * width,), float("inf"), device=points.device).scatter_reduce(0, pixel, z, "amin")
    nearest = z == depth[pixel]
    winner = torch.full((height * width,), -1, dtype=torch.long, device=points.device)
    winner = winner.scatter_reduce(0, pixel[nearest], candidates[nearest], "amax")
    picture = torch.zeros(height * width, features.shape[1], device=points.device)
    picture[winner >= 0] = features[winner[winner >= 0]].float()
    return picture.T.reshape(-1, height, width), depth.view(height, width)


def _lift(look: Look, t: int, path: CameraPath, height: int,
          width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(points, features, frames, confidence) of one frame, masked ones left out."""
    depth, kept = grid_depth(look.depth[t], None if look.mask is None else look.mask[t], height, width)
    frame = look.frames[t]
    k, pose = path.on_grid(frame, height, width), path.poses[frame]
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    seen = torch.stack(((u - k[0, 2]) * depth / k[0, 0], (v - k[1, 2]) * depth / k[1, 1], depth), -1)
    points = ((seen @ pose[:3, :3].T) + pose[:3, 3]).reshape(-1, 3)
    kept = kept.reshape(-1)
    features = look.latents[:, t].permute(1, 2, 0).reshape(-1, look.latents.shape[0])
    trust = 1.0 / depth if look.confidence is None else _resize(look.confidence[t], height, width)
    count = int(kept.sum())
    return (points[kept], features[kept].to(torch.float16), torch.full((count,), frame, dtype=torch.int32),
            trust.reshape(-1)[kept].clamp(max=6e4).to(torch.float16))


def grid_depth(depth: torch.Tensor, mask: torch.Tensor | None, height: int,
               width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([h, w] depth, [h, w] bool): depth on the latent grid, and where it may be used.

    A pixel is left out where the mask lies on it, and where a masked pixel without a depth would be blended in.
    """
    usable = torch.isfinite(depth) & (depth > 0)
    resized = _resize(torch.where(usable, depth, 1.0), height, width)
    kept = torch.ones(height, width, dtype=torch.bool)
    if not bool(usable.all()):
        kept = _resize(usable.float(), height, width) > 1.0 - 1e-4
    if mask is not None:
        kept = kept & ~(F.interpolate(mask[None, None].float(), size=(height, width), mode="nearest")[0, 0] > 0)
    return resized, kept


def _resize(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(picture[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)[0, 0]


def _check_look(memory: SpatialMemory, look: Look, path: CameraPath) -> None:
    asked = "Writing to a spatial memory"
    check_frames(asked, look.frames, path)
    count, latents = len(look.frames), look.latents
    if latents.shape != (memory.channels, count, memory.height, memory.width):
        raise ValueError(message(f"{asked} needs latents of its grid", f"{tuple(latents.shape)}",
                                 f"{(memory.channels, count, memory.height, memory.width)} (channels, frames, height, "
                                 "width)", "Use the VAE and the size that the memory was begun with."))
    if not bool(torch.isfinite(latents).all() and latents.abs().max() < 6e4):
        raise ValueError(message(f"{asked} needs finite latents", "NaN, infinity or values beyond 60000",
                                 "what a VAE or a sampler gives", "Look at the clip before it is remembered."))
    for name, picture in (("depth", look.depth), ("mask", look.mask), ("confidence", look.confidence)):
        if picture is not None and picture.shape != (count, path.height, path.width):
            raise ValueError(message(f"{asked}: {name} of another size", f"{tuple(picture.shape)}",
                                     f"{(count, path.height, path.width)} (frames, height, width), as the camera path",
                                     f"Resize the {name}, or give the camera path its size."))
    if look.confidence is not None and not bool((look.confidence >= 0).all()):
        raise ValueError(message(f"{asked}: confidence", "NaN or negative values", "0 or more",
                                 "Leave it unconnected, or repair it."))
    _check_depth(asked, look)


def _check_depth(asked: str, look: Look) -> None:
    kept = torch.ones_like(look.depth, dtype=torch.bool) if look.mask is None else look.mask <= 0
    depth = look.depth[kept]
    for name, wrong in (("NaN", torch.isnan(depth)), ("infinite", torch.isinf(depth)), ("negative", depth < 0),
                        ("zero", depth == 0)):
        if bool(wrong.any()):
            raise ValueError(message(f"{asked} needs a depth in every pixel that is kept",
                                     f"{name} depth in {int(wrong.sum())} of {depth.numel()} pixels",
                                     "positive, finite numbers", DEPTH_DO))
