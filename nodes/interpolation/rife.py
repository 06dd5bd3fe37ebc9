"""RIFE v4.26: the frame at any time between two frames, by intermediate flow.

Written from the paper (Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation", ECCV
2022) and the shapes of the published weights (Practical-RIFE v4.26, MIT licence, see data/RIFE_LICENSE.txt); its
numbers are checked against a public implementation (tests/interpolation/test_rife.py).

How it works: an encoder turns each image into 4 feature maps. Five blocks, at 1/16, 1/8, 1/4, 1/2 and full size, each
refine the flow from the wanted time to both images, seeing the images and features warped by the flow so far. The last
block's mask blends the two warped images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

SCALES = (16, 8, 4, 2, 1)  # each block works at 1/scale of the image
WIDTHS = (192, 128, 96, 64, 32)
FEATURES = 4  # channels of an image's encoding
HIDDEN = 8  # channels that a block hands to the next, besides 4 of flow and 1 of mask
MULTIPLE = 64  # sides must divide by it: the coarsest block (1/16) halves the image twice more
SLOPE = 0.2
VALUES_PER_PIXEL = 155  # peak of live tensors as torch's profiler counts them: 154 for one frame, 135 each for four


def interpolation_bytes(width: int, height: int, frames_per_call: int, dtype_bytes: int) -> int:
    """Peak of activations while `frames_per_call` frames are made between two images of this size."""
    padded = (width + -width % MULTIPLE) * (height + -height % MULTIPLE)
    return padded * VALUES_PER_PIXEL * dtype_bytes * frames_per_call


class Rife(nn.Module):
    """The network. Its parameter names are those of the published file (block<i>.*, encode.cnn<i>.*)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = ImageEncoder()
        for i, width in enumerate(WIDTHS):
            # two images, their features and the time; later blocks also mask, hidden channels and the flow so far
            inputs = 2 * (3 + FEATURES) + 1
            setattr(self, f"block{i}", FlowBlock(inputs + (1 + HIDDEN + 4 if i else 0), width))

    def forward(self, first: torch.Tensor, second: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Frames between `first` and `second` at times `t`.

        first, second: [B, 3, H, W] in 0..1, H and W multiples of 64. t: [B] in 0..1. Returns [B, 3, H, W].
        B may also be 1 for the images: they are encoded once and used for every t.
        """
        first, second = first.clamp(0, 1), second.clamp(0, 1)
        # warped by nothing yet: [B, 3 + 4, H, W] per image, image and features side by side
        sources = [torch.cat((image, self.encode(image)), dim=1) for image in (first, second)]
        sources = [source.expand(len(t), -1, -1, -1) for source in sources]
        time = t.to(first).view(-1, 1, 1, 1).expand(-1, 1, *first.shape[2:])
        warped, flow, state = sources, None, ()  # state: (mask, hidden)
        for i, scale in enumerate(SCALES):
            seen = torch.cat((warped[0][:, :3], warped[1][:, :3], warped[0][:, 3:], warped[1][:, 3:], time, *state), 1)
            change, *state = getattr(self, f"block{i}")(seen, flow, scale)
            flow = change if flow is None else flow + change  # [B, 2 + 2, H, W], x and y in pixels, per image
            warped = [warp(source, flow[:, 2 * n : 2 * n + 2]) for n, source in enumerate(sources)]
        share = torch.sigmoid(state[0])
        return warped[0][:, :3] * share + warped[1][:, :3] * (1 - share)


class ImageEncoder(nn.Module):
    """[B, 3, H, W] -> [B, 4, H, W]: features that are warped along with the image."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn0 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.cnn1 = nn.Conv2d(16, 16, 3, padding=1)
        self.cnn2 = nn.Conv2d(16, 16, 3, padding=1)
        self.cnn3 = nn.ConvTranspose2d(16, FEATURES, 4, stride=2, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for layer in (self.cnn0, self.cnn1, self.cnn2):
            image = F.leaky_relu(layer(image), SLOPE)
        return self.cnn3(image)


class FlowBlock(nn.Module):
    """One refinement: shrink, look, grow back.

    In: seen [B, inputs (- 4 with flow), H, W], flow [B, 4, H, W] or None. Out: change of flow [B, 4, H, W] in pixels,
    mask [B, 1, H, W] before the sigmoid, hidden [B, 8, H, W].
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(
            nn.Sequential(nn.Conv2d(inputs, width // 2, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)),
            nn.Sequential(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)),
        )
        self.convblock = nn.Sequential(*(ResidualConv(width) for _ in range(8)))
        grown = (4 + 1 + HIDDEN) * 4  # times 4: pixel shuffle by 2 after the deconvolution
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, grown, 4, stride=2, padding=1), nn.PixelShuffle(2))

    def forward(
        self, seen: torch.Tensor, flow: torch.Tensor | None, scale: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = _resize(seen, 1 / scale)
        if flow is not None:
            x = torch.cat((x, _resize(flow, 1 / scale) / scale), dim=1)
        x = _resize(self.lastconv(self.convblock(self.conv0(x))), scale)
        return x[:, :4] * scale, x[:, 4:5], x[:, 5:]


class ResidualConv(nn.Module):
    """A convolution added to its input, with a learned gain per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.conv(x) * self.beta + x, SLOPE)


def warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """image [B, C, H, W] sampled at each pixel plus flow [B, 2, H, W] (x, y in pixels), bilinear, edges held.

    Positions are float32 whatever the dtype: float16 cannot tell pixels apart beyond 2048.
    """
    height, width = image.shape[2:]
    x = torch.arange(width, device=image.device, dtype=torch.float32) + flow[:, 0].float()
    y = torch.arange(height, device=image.device, dtype=torch.float32)[:, None] + flow[:, 1].float()
    grid = torch.stack((x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1), dim=-1)  # [B, H, W, 2] in -1..1
    out = F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return out.to(image)


@torch.no_grad()
def frames_between(model: Rife, first: torch.Tensor, second: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
    """The frames at `times` (0..1) between two frames, made in one batch.

    first, second: [H, W, 3], uint8 or float 0..1, any size (edges are repeated up to a multiple of 64 for the network).
    Returns [len(times), H, W, 3] float32 in 0..1 on the model's device.
    """
    weight = model.encode.cnn0.weight
    pair = [_padded(frame, weight) for frame in (first, second)]
    made = model(*pair, torch.tensor(times, device=weight.device, dtype=weight.dtype))
    height, width = first.shape[:2]
    return made[:, :, :height, :width].permute(0, 2, 3, 1).float().clamp(0, 1)


def _padded(frame: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[H, W, 3] -> [1, 3, H', W'] in 0..1 with the dtype and device of `like`."""
    image = frame.to(like.device).permute(2, 0, 1)[None].float() / (255.0 if frame.dtype == torch.uint8 else 1.0)
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate").to(like.dtype)


def _resize(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
