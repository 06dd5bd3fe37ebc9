"""RIFE under ComfyUI's memory management: on the card while it works, off it when others need the room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import folder_paths
import torch

from ..common.errors import message
from .between import MOTION_PX, Between, FrameMaker, coarser_for, motion
from .retime import exact_fps, output_count
from .rife import batch_for, interpolation_bytes
from .seams import Moved
from .weights import find_weights, load_rife

# "frame_interpolation" is the folder that newer ComfyUI releases use for the same files, "rife" that of other packs.
FOLDERS = ("frame_interpolation", "rife")
OTHERS = "*/ckpts/rife"  # inside custom_nodes: where ComfyUI-Frame-Interpolation keeps what it fetched


def weight_folders() -> list[str]:
    """Folders in which the user may keep RIFE weights, each once, ours first."""
    found: list[Path] = []
    for name in FOLDERS:
        known = folder_paths.folder_names_and_paths
        found += map(Path, folder_paths.get_folder_paths(name) if name in known else ())
        found.append(Path(folder_paths.models_dir) / name)
    found.append(Path(folder_paths.models_dir) / "RIFE")
    for packs in folder_paths.get_folder_paths("custom_nodes"):
        found += sorted(Path(packs).glob(OTHERS))
    return [str(path) for path in {path.resolve(): path for path in reversed(found)}.values()][::-1]


def load_interpolator(model_name: str, flow_scale: str) -> RifeInterpolator:
    """The weights file `model_name` as a managed model: float16 on a card, float32 on a CPU."""
    device = mm.get_torch_device()
    dtype = torch.float16 if mm.should_use_fp16(device) else torch.float32
    module = load_rife(find_weights(model_name, weight_folders()), dtype)
    return RifeInterpolator(comfy.model_patcher.ModelPatcher(module, device, mm.unet_offload_device()), flow_scale)


def require_room(images: torch.Tensor, source_fps: float, target_fps: float) -> None:
    """RuntimeError when the images [N, H, W, C] at another rate do not fit into the RAM that is free."""
    count = output_count(len(images), exact_fps(source_fps), exact_fps(target_fps))
    needed, free = count * images[:1].numel() * torch.float32.itemsize, mm.get_free_memory(torch.device("cpu"))
    if needed > free:
        raise RuntimeError(message(
            "Interpolate Frames (RIFE) holds all images in RAM", f"{count} images of together {needed / 1e9:.1f} GB",
            f"up to {free / 1e9:.1f} GB, which is free now",
            "Lower the frame rate, take fewer images, or let Assemble Short do it, which streams."))


class RifeInterpolator:
    """What travels on a VIDEOMEMORY_RIFE wire: the network, and how fine its flow is; `stream` puts it to work."""

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, flow_scale: str) -> None:
        self.patcher, self.flow_scale = patcher, flow_scale

    def stream(self, width: int, height: int, batch: int = 0) -> RifeStream:
        """The network at work on one stream of frames; batch: frames made at once, 0 chooses by the frames' size."""
        return RifeStream(self.patcher, coarser_for(self.flow_scale, width, height), batch or batch_for(width, height))


class RifeStream:
    """An Interpolator (see retime.py). Out of memory, it makes half as many frames at once from there on.

    Loads the model onto its device whenever something has pushed it off.
    """

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, coarser: int, batch: int) -> None:
        self.patcher, self.batch = patcher, batch
        self.maker = FrameMaker(patcher.model, coarser)
        self.dtype_bytes = next(patcher.model.parameters()).element_size()

    def __call__(self, tasks: Sequence[Between]) -> list[torch.Tensor]:
        made: list[torch.Tensor] = []
        while len(made) < len(tasks):
            part = tasks[len(made) : len(made) + self.batch]
            try:
                self._load(*part[0].first.shape[:2], len(part))
                made += self.maker.make(part).cpu()
            except mm.OOM_EXCEPTION:
                self.maker.forget()
                if self.batch == 1:
                    raise
                self.batch //= 2
                mm.soft_empty_cache()
        return made

    def motion(self, first: torch.Tensor, second: torch.Tensor) -> Moved:
        """How the picture moves from one frame to the other."""
        self._load(MOTION_PX, MOTION_PX, 1)
        return motion(self.patcher.model, first, second)

    def _load(self, height: int, width: int, frames: int) -> None:
        cost = interpolation_bytes(width, height, frames, self.dtype_bytes, self.patcher.model.architecture)
        mm.load_models_gpu([self.patcher], memory_required=cost)
