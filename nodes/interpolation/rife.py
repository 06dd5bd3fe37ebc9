"""RIFE v4: the frame at any time between two frames, by intermediate flow.

Written from the paper (Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation", ECCV
2022) and the shapes of the published weights (Practical-RIFE, MIT licence, see data/RIFE_LICENSE.txt); its numbers are
checked against a public implementation (tests/interpolation/test_rife.py). Which of the networks a file holds is found
out in architecture.py.

How it works: an encoder turns each image into feature maps (versions before 4.7 have none). Blocks at 1/16, 1/8, 1/4,
1/2 and full size each refine the flow from the wanted time to both images, seeing the images and features warped by
the flow so far. The last mask blends the two warped images.

What makes it fast here: a block at 1/s sees images shrunk by the factor s, and bilinear shrinking reads only the four
pixels in the middle of each cell of s x s. Only those are warped, and nothing but the flow is ever enlarged to full
size on the way: for the coarse blocks that is a fraction of the work, with the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from .architecture import RIFE_4_26, Architecture

SLOPE = 0.2
FLOW = 4  # channels of a flow: x and y in pixels to the first image, then to the second
BATCH_PIXELS, MAX_BATCH = 1280 * 768, 16  # without a plan: one frame of 720p at once, or as many smaller ones


def interpolation_bytes(width: int, height: int, frames_per_call: int, dtype_bytes: int,
                        architecture: Architecture = RIFE_4_26) -> int:
    """Peak of activations while `frames_per_call` frames are made between images of this size, encodings included."""
    multiple = architecture.multiple(1)
    padded = (width + -width % multiple) * (height + -height % multiple)
    values = 60 + 9 * architecture.features + 3 * architecture.hidden  # per pixel; traced in test_between.py
    return padded * values * dtype_bytes * frames_per_call


def batch_for(width: int, height: int) -> int:
    """Frames to make at once where no plan says it: small frames do not fill a device one by one."""
    return max(1, min(MAX_BATCH, BATCH_PIXELS // (width * height)))


class Rife(nn.Module):
    """The network. Its parameter names are those of the published files (block<i>.*, encode.cnn<i>.*)."""

    def __init__(self, architecture: Architecture = RIFE_4_26) -> None:
        super().__init__()
        self.architecture = architecture
        self.encode = ImageEncoder(architecture) if architecture.features else None
        for i, width in enumerate(architecture.widths):
            setattr(self, f"block{i}", FlowBlock(architecture.inputs(i), width, architecture.outputs))

    def sources(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in 0..1 -> what is warped: image and features side by side, [B, 3 + features, H, W]."""
        images = images.clamp(0, 1)
        return images if self.encode is None else torch.cat((images, self.encode(images)), dim=1)

    def forward(self, first: torch.Tensor, second: torch.Tensor, t: torch.Tensor, coarser: int = 1) -> torch.Tensor:
        """Frames between two images at times `t` (0 = first, 1 = second): [B, 3, H, W].

        first, second: their `sources`, [B or 1, 3 + features, H, W] with sides that architecture.multiple(coarser)
        divides. t: [B]. coarser: 1, 2 or 4; the flow is sought in images so many times smaller.
        """
        flow, mask = self.flow(first, second, t, coarser)
        one, other = (warp(source[:, :3], flow[:, 2 * n : 2 * n + 2]) for n, source in enumerate((first, second)))
        share = torch.sigmoid(mask)
        return one * share + other * (1 - share)

    def flow(self, first: torch.Tensor, second: torch.Tensor, t: torch.Tensor,
             coarser: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Flow [B, 4, H, W] in pixels from time `t` to both images, and the first one's share before the sigmoid."""
        kind, total, state, before = self.architecture, None, None, 0
        sources = [source.expand(len(t), -1, -1, -1) for source in (first, second)]
        for i, scale in enumerate(coarser * scale for scale in kind.scales):
            if total is None:
                seen, tail = [_mean_of_cells(_cells(source, scale)) for source in sources], []
            else:
                middle = _cells(total, scale)  # [B, 4 (+ 1), 2 h, 2 w], [.., H, W] at full size
                seen = [_mean_of_cells(warp(source, middle[:, 2 * n : 2 * n + 2], scale), scale)
                        for n, source in enumerate(sources)]
                low = _mean_of_cells(middle, scale)
                state = low[:, FLOW:] if kind.adds_masks else _enlarged(state, before // scale)
                tail = [state[:, : 1 + kind.hidden], low[:, :FLOW] / scale]
            time = t.to(seen[0]).view(-1, 1, 1, 1).expand(-1, 1, *seen[0].shape[2:])
            made = getattr(self, f"block{i}")(torch.cat(
                (seen[0][:, :3], seen[1][:, :3], seen[0][:, 3:], seen[1][:, 3:], time, *tail), dim=1))
            change = torch.cat((made[:, :FLOW] * scale, made[:, FLOW : kind.summed]), dim=1)
            change, state, before = _enlarged(change, scale), made[:, FLOW:], scale
            total = change if total is None else total + change
        return total[:, :FLOW], total[:, FLOW:] if kind.adds_masks else _enlarged(state[:, :1], before)


class ImageEncoder(nn.Module):
    """[B, 3, H, W] -> [B, features, H, W]: features that are warped along with the image."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, layers = architecture.encoder_width, architecture.encoder_layers
        self.cnn0 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        for i in range(1, layers - 1):
            setattr(self, f"cnn{i}", nn.Conv2d(width, width, 3, padding=1))
        setattr(self, f"cnn{layers - 1}", nn.ConvTranspose2d(width, architecture.features, 4, stride=2, padding=1))
        self.slope = SLOPE if layers > 2 else 1.0  # the encoder of two layers (4.7 to 4.9) is linear

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        *layers, last = self.children()
        for layer in layers:
            image = F.leaky_relu(layer(image), self.slope)
        return last(image)


class FlowBlock(nn.Module):
    """One refinement: [B, inputs, h, w] -> [B, outputs, h, w], 4 of flow, 1 of mask and what else the version has."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(
            nn.Sequential(nn.Conv2d(inputs, width // 2, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)),
            nn.Sequential(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)),
        )
        self.convblock = nn.Sequential(*(ResidualConv(width) for _ in range(8)))
        # times 4: pixel shuffle by 2 after the deconvolution
        self.lastconv = nn.Sequential(
            nn.ConvTranspose2d(width, 4 * outputs, 4, stride=2, padding=1), nn.PixelShuffle(2))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return self.lastconv(self.convblock(self.conv0(seen)))


class ResidualConv(nn.Module):
    """A convolution added to its input, with a learned gain per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.conv(x) * self.beta + x, SLOPE)


def warp(image: torch.Tensor, flow: torch.Tensor, scale: int = 1) -> torch.Tensor:
    """image [B or 1, C, H, W] sampled at pixel plus flow [B, 2, h, w] (x, y in pixels), bilinear, edges held.

    scale > 2: only at the four middle pixels of each cell of scale x scale, flow [B, 2, 2 H / scale, 2 W / scale].
    Positions are float32 whatever the dtype: float16 cannot tell pixels apart beyond 2048.
    """
    height, width = image.shape[2:]
    x, y = (_cells_of_row(torch.arange(side, device=image.device, dtype=torch.float32), scale)
            for side in (width, height))
    x, y = x + flow[:, 0].float(), y[:, None] + flow[:, 1].float()
    grid = torch.stack((x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1), dim=-1)  # [B, h, w, 2] in -1..1
    image = image.expand(len(flow), -1, -1, -1).float()
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True).to(flow)


def _cells(x: torch.Tensor, scale: int) -> torch.Tensor:
    """[B, C, H, W] -> the four middle pixels of each cell of scale x scale, [B, C, 2 H / scale, 2 W / scale]."""
    return x if scale <= 2 else _cells_of_row(_cells_of_row(x, scale).transpose(2, 3), scale).transpose(2, 3)


def _cells_of_row(x: torch.Tensor, scale: int) -> torch.Tensor:
    """The two middle ones of each `scale` along the last dimension."""
    if scale <= 2:
        return x
    return x.unflatten(-1, (-1, scale))[..., scale // 2 - 1 : scale // 2 + 1].flatten(-2)


def _mean_of_cells(middle: torch.Tensor, scale: int = 2) -> torch.Tensor:
    """What bilinear shrinking makes of cells: the mean of their four middle pixels; at full size nothing."""
    return middle if scale == 1 else F.avg_pool2d(middle, 2)


def _enlarged(x: torch.Tensor, factor: int) -> torch.Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
