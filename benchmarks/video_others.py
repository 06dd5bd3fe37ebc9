"""RIFE 4.26 by vs-rife and by ComfyUI-Frame-Interpolation, driven as their own filter and node drive it.

Their files stay where they are; nothing of them is part of this pack.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

Maker = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""maker(first [H, W, 3] uint8 in RAM, second) -> the frame in the middle, [H, W, 3] float32 in RAM."""


def others_for(vsrife: Path | None, frame_interpolation: Path | None) -> dict[str, Maker]:
    makers = {}
    if vsrife:
        makers["vs-rife 5.7.0"] = VsRife(vsrife)
    if frame_interpolation:
        makers["ComfyUI-Frame-Interpolation"] = frame_interpolation_maker(frame_interpolation)
    return makers


def our_weights() -> dict[str, torch.Tensor]:
    from pack.nodes.interpolation.weights import BUNDLED, DATA
    from safetensors.torch import load_file

    return {name: value.float() for name, value in load_file(DATA / BUNDLED).items()}


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    cuda = torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu"), torch.float16 if cuda else torch.float32


class VsRife:
    """As the filter without TensorRT: frames padded with zeros to 64, every frame encoded once, grid made once."""

    def __init__(self, folder: Path) -> None:
        package = sys.modules["vsrife"] = types.ModuleType("vsrife")
        package.__path__ = [str(folder)]  # without its __init__, which wants VapourSynth
        self.device, self.dtype = device_and_dtype()
        self.model = importlib.import_module("vsrife.IFNet_HDv3_v4_26").IFNet()
        self.model.load_state_dict(our_weights())
        self.model = self.model.eval().to(self.device, self.dtype)
        self.frame: torch.Tensor | None = None
        self.shape: tuple[int, int] | None = None

    @torch.inference_mode()
    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        height, width = first.shape[:2]
        if self.frame is not first:
            self.image, self.features = self._encode(first)
        before = self.image, self.features
        self.frame = second
        self.image, self.features = self._encode(second)
        self._grid(*self.image.shape[2:])
        time = torch.full((1, 1, *self.image.shape[2:]), 0.5, dtype=self.dtype, device=self.device)
        made = self.model(before[0], self.image, time, self.half, self.grid, before[1], self.features)
        return made[0, :, :height, :width].permute(1, 2, 0).float().clamp(0, 1).cpu()

    def _encode(self, frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image = frame.to(self.device).permute(2, 0, 1)[None].to(self.dtype) / 255
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % 64, 0, -height % 64))
        return image, self.model.encode(image)

    def _grid(self, height: int, width: int) -> None:
        if self.shape != (height, width):
            self.shape = height, width
            axes = (torch.linspace(-1, 1, side, device=self.device) for side in (width, height))
            self.grid = torch.stack(torch.meshgrid(*axes, indexing="xy"))[None]
            self.half = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=self.device)


def frame_interpolation_maker(folder: Path) -> Maker:
    """As the node with its defaults for rife426.pth: one task per call, padded by the model itself."""
    path = folder / "vfi_models" / "rife" / "rife_arch.py"
    spec = importlib.util.spec_from_file_location("frame_interpolation_rife", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device, dtype = device_and_dtype()
    model = module.IFNet(arch_ver="4.26")
    model.load_state_dict(our_weights())
    model = model.to(dtype).eval().to(device)

    @torch.inference_mode()
    def make(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        pair = [(frame.float() / 255).permute(2, 0, 1)[None].to(device, dtype=dtype) for frame in (first, second)]
        time = torch.tensor([0.5], dtype=dtype, device=device).view(-1, 1, 1, 1)
        made = model(*pair, time, [16, 8, 4, 2, 1], True, False).clamp(0, 1).detach().cpu()
        return made[0].permute(1, 2, 0)[: first.shape[0], : first.shape[1]].float()

    return make
