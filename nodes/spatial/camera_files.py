"""Camera paths from files: COLMAP's text model, and JSON of ours or of NeRF's transforms.json.

COLMAP (format of its documentation): cameras.txt and images.txt in one folder; poses are world to camera, quaternion
w x y z. NeRF: transform_matrix is camera to world with y up and z backwards, camera_angle_x the horizontal field of
view in radians. Ours: {"width", "height", "fps", "frames": [{"c2w": 4x4, "fx", "fy", "cx", "cy"}]}, y down, z forward.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from ..common.errors import message
from .cameras import intrinsics_from_fov
from .values import CameraPath, make_path

MODELS = {"SIMPLE_PINHOLE": (0, 0, 1, 2), "PINHOLE": (0, 1, 2, 3)}  # places of fx, fy, cx, cy among the parameters
Parsed = tuple[torch.Tensor, torch.Tensor, int, int, float]  # poses, intrinsics, width, height, fps as in CameraPath
ALLOWED = "a .json of ours or of NeRF, or a folder with COLMAP's cameras.txt and images.txt"


def path_from_file(file: str | Path, width: int, height: int, fps: float) -> CameraPath:
    """The path in a file or folder, for pictures of width x height; ValueError for what is no camera path.

    Cameras of another size are scaled. fps: of the film, where the file names none.
    """
    file = Path(file)
    try:
        poses, intrinsics, own_width, own_height, own_fps = (
            _colmap(file, fps) if file.is_dir() else _json(file, width, height, fps))
        scale = torch.tensor([[width / own_width], [height / own_height], [1.0]])
    except (OSError, KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError,
            ZeroDivisionError) as error:
        raise ValueError(message(f"Camera Path cannot read {file.name}", f"{type(error).__name__}: {error}", ALLOWED,
                                 "Check the file.")) from error
    return make_path(poses, intrinsics * scale, width, height, own_fps)


def path_to_json(path: CameraPath) -> str:
    """A path in our JSON form."""
    frames = [{"c2w": pose.tolist(), "fx": float(k[0, 0]), "fy": float(k[1, 1]), "cx": float(k[0, 2]),
               "cy": float(k[1, 2])} for pose, k in zip(path.poses, path.intrinsics, strict=True)]
    return json.dumps({"width": path.width, "height": path.height, "fps": path.fps, "frames": frames})


def _json(file: Path, width: int, height: int, fps: float) -> Parsed:
    data = json.loads(file.read_text(encoding="utf-8"))
    frames = data["frames"]
    if "transform_matrix" in frames[0]:
        flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
        poses = torch.stack([torch.tensor(frame["transform_matrix"], dtype=torch.float32) @ flip for frame in frames])
        k = intrinsics_from_fov(width, height, math.degrees(data["camera_angle_x"]))
        return poses, k.repeat(len(frames), 1, 1), width, height, fps
    poses = torch.stack([torch.tensor(frame["c2w"]) for frame in frames])
    ks = torch.stack([_camera(frame["fx"], frame["fy"], frame["cx"], frame["cy"]) for frame in frames])
    return poses, ks, int(data["width"]), int(data["height"]), float(data.get("fps", fps))


def _colmap(folder: Path, fps: float) -> Parsed:
    cameras = {}
    for line in filter(str.strip, _lines(folder / "cameras.txt")):
        number, model, width, height, *numbers = line.split()
        if model not in MODELS:
            raise ValueError(message("Camera Path: camera model", model, ", ".join(MODELS),
                                     "Undistort the pictures in COLMAP (image_undistorter) and export again."))
        camera = _camera(*(float(numbers[place]) for place in MODELS[model]))
        cameras[number] = (camera, int(width), int(height))
    images = sorted((line.split() for line in _lines(folder / "images.txt")[::2]), key=lambda words: words[9])
    sizes = {cameras[words[8]][1:] for words in images}
    if len(sizes) != 1:
        raise ValueError(message("Camera Path needs pictures of one size", f"{sorted(sizes)}", "one size",
                                 "Make the model from the frames of one film."))
    poses = torch.stack([_pose([float(word) for word in words[1:8]]) for words in images])
    return poses, torch.stack([cameras[words[8]][0] for words in images]), *sizes.pop(), fps


def _lines(file: Path) -> list[str]:
    """Without comments; an image without points has an empty second line, which counts."""
    return [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _pose(numbers: list[float]) -> torch.Tensor:
    """[4, 4] camera to world of COLMAP's qw qx qy qz tx ty tz, which is world to camera."""
    q = torch.tensor(numbers[:4], dtype=torch.float64)
    w, x, y, z = (q / q.norm()).tolist()
    rotation = torch.tensor([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                             [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                             [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation.T
    pose[:3, 3] = -rotation.T @ torch.tensor(numbers[4:7], dtype=torch.float64)
    return pose.float()


def _camera(fx: float, fy: float, cx: float, cy: float) -> torch.Tensor:
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
