"""RIFE under ComfyUI's memory management: on the card while it works, off it when others need the room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import folder_paths
import torch

from ..common.errors import message
from .retime import exact_fps, output_count
from .rife import frames_between, interpolation_bytes
from .weights import find_weights, load_rife

FOLDER = "frame_interpolation"  # the folder that newer ComfyUI releases use for the same files


def weight_folders() -> list[str]:
    """Folders in which the user may keep RIFE weights."""
    if FOLDER in folder_paths.folder_names_and_paths:
        return folder_paths.get_folder_paths(FOLDER)
    return [str(Path(folder_paths.models_dir) / FOLDER)]


def load_interpolator(model_name: str) -> RifeInterpolator:
    """The weights file `model_name` as a managed model: float16 on a card, float32 on a CPU."""
    device = mm.get_torch_device()
    dtype = torch.float16 if mm.should_use_fp16(device) else torch.float32
    module = load_rife(find_weights(model_name, weight_folders()), dtype)
    return RifeInterpolator(comfy.model_patcher.ModelPatcher(module, device, mm.unet_offload_device()))


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
    """What travels on a VIDEOMEMORY_RIFE wire: call it with two frames and the times between them."""

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher) -> None:
        self.patcher = patcher

    def __call__(self, first: torch.Tensor, second: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
        """Frames at `times` between two [H, W, 3] frames: [len(times), H, W, 3] float32 0..1 on the CPU.

        Loads the model onto its device first if something has pushed it off; out of memory, it makes fewer at once.
        """
        dtype_bytes = self.patcher.model.encode.cnn0.weight.element_size()
        height, width = first.shape[:2]
        made: list[torch.Tensor] = []
        at_once = len(times)
        while len(made) < len(times):
            part = times[len(made) : len(made) + at_once]
            try:
                cost = interpolation_bytes(width, height, len(part), dtype_bytes)
                mm.load_models_gpu([self.patcher], memory_required=cost)
                made += frames_between(self.patcher.model, first, second, part).cpu()
            except mm.OOM_EXCEPTION:
                if at_once == 1:
                    raise
                at_once = at_once // 2
                mm.soft_empty_cache()
        return torch.stack(made)
