"""The Wan 2.1 VAE with ComfyUI's key names, written as one parallel pass over time.

ComfyUI streams groups of frames (1, 4, 4, ...) through caches; the result is the same. Inside, tensors are
[B, T, H, W, C] and a causal 3-D convolution is a 2-D convolution over three time-shifted copies. `encode` and `decode`
take and give [B, T, C, H, W], pixels in -1..1.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from fused import norm_silu, stack_time
from torch import Tensor, nn

# ComfyUI's fixed latent format of Wan 2.1
WAN_MEAN = torch.tensor((
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
))  # fmt: skip
WAN_STD = torch.tensor((
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
))  # fmt: skip
LATENT_CHANNELS = 16
WIDTH_MULTIPLES = (1, 2, 4, 4)
RESIDUAL_BLOCKS = 2
HALVES_TIME = (False, True, True)


class CausalConv3d(nn.Conv3d):
    """The parameters of a Conv3d, applied causally in time to [B, T, H, W, C]; the kernel is 1 or 3 frames long."""

    def forward(self, x: Tensor) -> Tensor:
        frames, height, width = self.kernel_size
        padding = (height // 2, width // 2)
        if frames == 1:
            return _conv2d(x, self.weight[:, :, 0], self.bias, padding)
        return _conv2d(stack_time(x), self._weight_2d(), self.bias, padding)

    def halve_time(self, x: Tensor) -> Tensor:
        """Stride 2 in time, no padding: T frames -> (T - 3) // 2 + 1."""
        frames = (x.shape[1] - 3) // 2 + 1
        shifted = [x[:, start : start + 2 * frames - 1 : 2] for start in range(3)]
        return _conv2d(torch.cat(shifted, -1), self._weight_2d(), self.bias, 0)

    def _weight_2d(self) -> Tensor:
        return self.weight.permute(0, 2, 1, 3, 4).flatten(1, 2)  # [out, 3*in, height, width]


class RMSNorm(nn.Module):
    """x / rms(x) * gamma over the channels; gamma has the trailing axes of ComfyUI's file."""

    def __init__(self, dim: int, trailing_axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * trailing_axes))

    def forward(self, x: Tensor) -> Tensor:
        inverse_rms = torch.rsqrt(x.pow(2).mean(-1, keepdim=True, dtype=torch.float32).clamp(min=1e-24))
        return x * inverse_rms.to(x.dtype) * self.gamma.flatten().to(x.dtype)


class Resample(nn.Module):
    """Doubles or halves height and width, and time too where `with_time`; the first frame stays alone."""

    def __init__(self, dim: int, up: bool, with_time: bool) -> None:
        super().__init__()
        self.up, self.with_time = up, with_time
        if up:
            nearest = nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact")
            self.resample = nn.Sequential(nearest, nn.Conv2d(dim, dim // 2, 3, padding=1))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=(2, 2)))
        if with_time:
            self.time_conv = CausalConv3d(dim, dim * 2 if up else dim, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        changes_time = self.with_time and x.shape[1] > 1
        if changes_time and self.up:
            # as in ComfyUI the first frame is neither convolved nor seen
            pairs = torch.stack(self.time_conv(x[:, 1:]).chunk(2, -1), 2)
            x = torch.cat([x[:, :1], pairs.flatten(1, 2)], 1)
        images = self.resample(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = images.unflatten(0, x.shape[:2])
        if changes_time and not self.up:
            x = torch.cat([x[:, :1], self.time_conv.halve_time(x)], 1)
        return x


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice; indices 2 and 6 are the convolutions, as in ComfyUI's file."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(dim_in, 3),
            nn.SiLU(),
            CausalConv3d(dim_in, dim_out, 3, padding=1),
            RMSNorm(dim_out, 3),
            nn.SiLU(),
            nn.Dropout(0.0),
            CausalConv3d(dim_out, dim_out, 3, padding=1),
        )
        self.shortcut = CausalConv3d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first_norm, _, first_conv, second_norm, _, _, second_conv = self.residual
        y = first_conv(norm_silu(x, first_norm.gamma.flatten()))
        return self.shortcut(x) + second_conv(norm_silu(y, second_norm.gamma.flatten()))


class AttentionBlock(nn.Module):
    """One-head self-attention inside every frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, height, width, dim = x.shape
        flat = self.norm(x).reshape(batch * frames, 1, height * width, dim)
        q, k, v = F.linear(flat, self.to_qkv.weight[:, :, 0, 0], self.to_qkv.bias).chunk(3, dim=-1)
        y = F.linear(F.scaled_dot_product_attention(q, k, v), self.proj.weight[:, :, 0, 0], self.proj.bias)
        return x + y.view_as(x)


class Encoder(nn.Module):
    """Pixels [B, T, H, W, 3] -> [B, t, H/8, W/8, dim_out]."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        widths = [dim * multiple for multiple in (1, *WIDTH_MULTIPLES)]
        self.conv1 = CausalConv3d(3, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(widths)):
            layers += [ResidualBlock(before if i == 0 else after, after) for i in range(RESIDUAL_BLOCKS)]
            if level < len(HALVES_TIME):
                layers.append(Resample(after, up=False, with_time=HALVES_TIME[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.downsamples(self.conv1(x)))
        return self.head[2](norm_silu(x, self.head[0].gamma.flatten()))


class Decoder(nn.Module):
    """Latents [B, t, h, w, dim_in] -> pixels [B, 4t-3, 8h, 8w, 3]."""

    def __init__(self, dim: int, dim_in: int) -> None:
        super().__init__()
        widths = [dim * multiple for multiple in (WIDTH_MULTIPLES[-1], *reversed(WIDTH_MULTIPLES))]
        self.conv1 = CausalConv3d(dim_in, widths[0], 3, padding=1)
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(widths)):
            entering = before // 2 if level else before  # an upsampling layer halves the channels
            layers += [ResidualBlock(entering if i == 0 else after, after) for i in range(RESIDUAL_BLOCKS + 1)]
            if level < len(HALVES_TIME):
                layers.append(Resample(after, up=True, with_time=HALVES_TIME[-1 - level]))
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.upsamples(self.middle(self.conv1(x)))
        return self.head[2](norm_silu(x, self.head[0].gamma.flatten()))


class WanVAE(nn.Module):
    """Causal video VAE: T = 4t - 3 pixel frames to t latents of 16 channels at an eighth of the size."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.encoder = Encoder(dim, LATENT_CHANNELS * 2)
        self.conv1 = CausalConv3d(LATENT_CHANNELS * 2, LATENT_CHANNELS * 2, 1)
        self.conv2 = CausalConv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(dim, LATENT_CHANNELS)

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Tensor]) -> WanVAE:
        """A float32 model with the width found in a state dict."""
        model = cls(state_dict["decoder.head.0.gamma"].shape[0])
        model.load_state_dict({key: value.float() for key, value in state_dict.items()})
        return model

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, 3, H, W] in -1..1 -> mean and log variance, each [B, t, 16, H/8, W/8]."""
        y = self.conv1(self.encoder(pixels.permute(0, 1, 3, 4, 2).contiguous()))
        mean, log_variance = y.permute(0, 1, 4, 2, 3).chunk(2, dim=2)
        return mean, log_variance

    def encode(self, pixels: Tensor) -> Tensor:
        """The mean of `moments`: un-normalised latents."""
        return self.moments(pixels)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Un-normalised latents [B, t, 16, h, w] -> pixels [B, 4t-3, 3, 8h, 8w], about -1..1."""
        return self.decoder(self.conv2(latents.permute(0, 1, 3, 4, 2).contiguous())).permute(0, 1, 4, 2, 3)


def normalise_latents(latents: Tensor) -> Tensor:
    """ComfyUI's Wan21 process_in on [B, t, 16, h, w]."""
    return (latents - WAN_MEAN.to(latents).view(-1, 1, 1)) / WAN_STD.to(latents).view(-1, 1, 1)


def denormalise_latents(latents: Tensor) -> Tensor:
    """ComfyUI's Wan21 process_out on [B, t, 16, h, w]."""
    return latents * WAN_STD.to(latents).view(-1, 1, 1) + WAN_MEAN.to(latents).view(-1, 1, 1)


@torch.no_grad()
def fold_latent_scale(vae: WanVAE, mean: Tensor, std: Tensor) -> None:
    """Give a VAE whose latents have this mean and std [16] those of Wan 2.1, in place; reconstructions do not change.

    z' = (z - mean) / std * WAN_STD + WAN_MEAN is folded into conv1 and undone in conv2.
    """
    wan_mean, factor = WAN_MEAN.to(mean), WAN_STD.to(mean) / std
    weight, bias = vae.conv1.weight, vae.conv1.bias
    weight[:LATENT_CHANNELS] *= factor.view(-1, 1, 1, 1, 1)
    bias[:LATENT_CHANNELS] = (bias[:LATENT_CHANNELS] - mean) * factor + wan_mean
    weight, bias = vae.conv2.weight, vae.conv2.bias
    bias += (weight[:, :, 0, 0, 0] * (mean - wan_mean / factor)).sum(1)
    weight /= factor.view(1, -1, 1, 1, 1)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, padding: int | tuple[int, int]) -> Tensor:
    """[B, T, H, W, C] convolved frame by frame."""
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight.contiguous(memory_format=torch.channels_last), bias, padding=padding)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _middle(dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim))


def _head(dim: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(dim, 3), nn.SiLU(), CausalConv3d(dim, dim_out, 3, padding=1))
