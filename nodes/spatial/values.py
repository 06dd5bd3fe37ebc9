"""The values of the room: a place as a cloud of points that carry latent features, and a path of cameras through it.

Source: latent spatial memory (Mirage, arXiv 2606.09828). World axes are those of the first camera: x right, y down,
z forward, in the unit of the depth (metres where the depth is metric).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.errors import message

FRAME_BYTES, CONFIDENCE_BYTES, POINT_BYTES, FEATURE_BYTES = 4, 2, 12, 2
DO_NOT_SQUASH = 1e-3  # how far a rotation may be from one: text files with four digits pass, a scaled one does not


@dataclass(frozen=True)
class SpatialMemory:
    """What a place looks like. Immutable: writing returns a new one.

    points: [N, 3] float32, world. features: [N, C] float16, latents as they lie in a LATENT (un-normalised). frames:
    [N] int32, the pixel frame of the film that a point was seen in. confidence: [N] float16, the higher one wins where
    points are merged. All on the CPU. height, width: the latent grid it is read and written on. vae_key: whose latents
    they are, "" where that is not known. voxel: edge of the cells in which points were merged, 0 = never.
    """

    points: torch.Tensor
    features: torch.Tensor
    frames: torch.Tensor
    confidence: torch.Tensor
    height: int
    width: int
    vae_key: str = ""
    voxel: float = 0.0

    def __len__(self) -> int:
        return int(self.points.shape[0])

    @property
    def channels(self) -> int:
        return int(self.features.shape[1])

    @property
    def point_bytes(self) -> int:
        return point_bytes(self.channels)

    @property
    def nbytes(self) -> int:
        return len(self) * self.point_bytes


@dataclass(frozen=True)
class CameraPath:
    """One camera per pixel frame.

    poses: [F, 4, 4] float32, camera to world. intrinsics: [F, 3, 3] float32 in pixels of width x height (focal lengths
    and centre). fps: frames per second.
    """

    poses: torch.Tensor
    intrinsics: torch.Tensor
    width: int
    height: int
    fps: float

    def __len__(self) -> int:
        return int(self.poses.shape[0])

    def on_grid(self, frame: int, height: int, width: int) -> torch.Tensor:
        """[3, 3]: the intrinsics of a frame on a grid of another size over the same picture."""
        scaled = self.intrinsics[frame].clone()
        scaled[0, 0] *= width / self.width
        scaled[0, 2] *= width / self.width
        scaled[1, 1] *= height / self.height
        scaled[1, 2] *= height / self.height
        return scaled


def point_bytes(channels: int) -> int:
    """Bytes that one point takes, in memory and in a file: 114 with the 48 channels of Wan 2.2, 50 with 16."""
    return POINT_BYTES + FEATURE_BYTES * channels + FRAME_BYTES + CONFIDENCE_BYTES


def empty_memory(channels: int, height: int, width: int, vae_key: str = "") -> SpatialMemory:
    """A place of which nothing was seen yet."""
    return SpatialMemory(torch.zeros(0, 3), torch.zeros(0, channels, dtype=torch.float16),
                         torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.float16), height, width, vae_key)


def make_path(poses: torch.Tensor, intrinsics: torch.Tensor, width: int, height: int, fps: float) -> CameraPath:
    """A checked CameraPath: rotations must be rotations, focal lengths positive, everything finite; ValueError."""
    poses, intrinsics = poses.to(torch.float32), intrinsics.to(torch.float32)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0 or intrinsics.shape != (len(poses), 3, 3):
        raise ValueError(message("A camera path needs one pose and one camera per frame",
                                 f"poses {tuple(poses.shape)} and intrinsics {tuple(intrinsics.shape)}",
                                 "[F, 4, 4] and [F, 3, 3], F > 0", "Give every frame its pose."))
    if min(width, height) < 1 or not fps > 0:
        raise ValueError(message("A camera path needs a picture size and a rate", f"{width}x{height} at {fps} fps",
                                 "at least 1x1, and more than 0 fps", "Give the size of the film."))
    _check_poses(poses)
    focal = torch.stack((intrinsics[:, 0, 0], intrinsics[:, 1, 1]))
    if not bool(torch.isfinite(intrinsics).all() and (focal > 0).all()):
        raise ValueError(message("A camera path needs focal lengths", f"{focal[:, 0].tolist()} in its first frame",
                                 "positive, finite pixels", "Check fx and fy, or give a field of view."))
    return CameraPath(poses, intrinsics, width, height, float(fps))


def _check_poses(poses: torch.Tensor) -> None:
    if not bool(torch.isfinite(poses).all()):
        raise ValueError(message("A camera path needs finite poses", "NaN or infinity in a pose", "finite numbers",
                                 "Check the file that the poses come from."))
    rotation = poses[:, :3, :3]
    off = (rotation @ rotation.transpose(1, 2) - torch.eye(3)).abs().amax((1, 2))
    wrong = (off > DO_NOT_SQUASH) | (torch.linalg.det(rotation) < 0)
    bottom = (poses[:, 3] - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().amax(1) > DO_NOT_SQUASH
    if bool((wrong | bottom).any()):
        frame = int((wrong | bottom).nonzero()[0])
        raise ValueError(message(f"A camera path needs a rotation in every pose; frame {frame} has none",
                                 f"determinant {float(torch.linalg.det(rotation[frame])):.4g}, off by "
                                 f"{float(off[frame]):.2g}, last row {poses[frame, 3].tolist()}",
                                 "orthonormal 3x3 with determinant 1, last row 0 0 0 1",
                                 "Take scale and mirroring out of the poses (camera to world, y down, z forward)."))
