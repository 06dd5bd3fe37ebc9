"""The Wan 2.1 text-to-video DiT with ComfyUI's key names, with a K/V memory for chunk-by-chunk generation.

Keys are remembered after norm_k and BEFORE RoPE, and rotated at the position they have inside the memory:
[sink, window (oldest first), current chunk], contiguous from 0. The architecture is that of Wan team, "Wan: Open and
Advanced Large-Scale Video Generative Models", 2025.

Dims: B batch, C latent channels, T latents, h w latent height and width, L tokens, H heads, D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 128
TIME_FREQUENCIES = 256
ROPE_THETA = 10000.0

KeyValue = tuple[Tensor, Tensor]  # each [B, L, H, D]; keys without RoPE


def rope_tables(latents: int, height: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each [latents, height*width, HEAD_DIM/2] float32; axes share HEAD_DIM 44:42:42."""
    spatial = 2 * (HEAD_DIM // 6)
    angles = []
    for size, dims in ((latents, HEAD_DIM - 2 * spatial), (height, spatial), (width, spatial)):
        exponent = torch.linspace(0, (dims - 2) / dims, dims // 2, dtype=torch.float64)
        angles.append(torch.arange(size).double()[:, None] * (1.0 / ROPE_THETA**exponent))
    grid = (latents, height, width, -1)
    frame, row, column = angles[0][:, None, None], angles[1][None, :, None], angles[2][None, None]
    angle = torch.cat([frame.expand(grid), row.expand(grid), column.expand(grid)], -1).flatten(1, 2)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (2i, 2i+1) of x [..., H, D]; cos and sin broadcast as [..., 1, D/2]."""
    even, odd = x[..., 0::2].to(cos.dtype), x[..., 1::2].to(cos.dtype)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention on [B, L, H, D] -> [B, L, H*D]."""
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return y.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """The projections of self- and cross-attention, with norms on whole q and k rows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def query(self, x: Tensor) -> Tensor:
        """[..., L, dim] -> [..., L, H, D]."""
        return self.norm_q(self.q(x)).unflatten(-1, (-1, HEAD_DIM))

    def key_value(self, x: Tensor) -> KeyValue:
        """[..., L, dim] -> keys and values, each [..., L, H, D]."""
        return self.norm_k(self.k(x)).unflatten(-1, (-1, HEAD_DIM)), self.v(x).unflatten(-1, (-1, HEAD_DIM))


class Block(nn.Module):
    """One DiT block; modulation is given per token group as six tensors [N, 1, dim] (shift, scale, gate, twice)."""

    def __init__(self, dim: int, feed_forward_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.self_attn = Attention(dim)
        self.norm3 = nn.LayerNorm(dim, 1e-6)
        self.cross_attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, feed_forward_dim), nn.GELU(approximate="tanh"), nn.Linear(feed_forward_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def modulate(self, time: Tensor) -> tuple[Tensor, ...]:
        """Time projection [..., 6, dim] -> six tensors [..., 1, dim]."""
        return (self.modulation[0].to(time.dtype) + time).unsqueeze(-2).unbind(-3)

    def attention_input(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """What self-attention reads, same shape as x."""
        return self.norm1(x) * (1 + modulation[1]) + modulation[0]

    def after_attention(
        self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...], text: KeyValue, text_bias: Tensor | None
    ) -> Tensor:
        """Everything after self-attention; x and attended [N, L, dim]."""
        x = x + self.self_attn.o(attended) * modulation[2]
        x = x + self.cross_attn.o(attend(self.cross_attn.query(self.norm3(x)), *text, text_bias))
        return x + self.ffn(self.norm2(x) * (1 + modulation[4]) + modulation[3]) * modulation[5]


class Head(nn.Module):
    """Tokens to patches of velocity."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.head = nn.Linear(dim, channels * 4)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [..., L, dim], time [..., dim] -> [..., L, 4*channels]."""
        shift, scale = (self.modulation[0].to(time.dtype) + time.unsqueeze(-2)).unsqueeze(-2).unbind(-3)
        return self.head(self.norm(x) * (1 + scale) + shift)


class WanDiT(nn.Module):
    """The model; sizes are the toy world's by default."""

    def __init__(
        self, dim: int = 256, feed_forward_dim: int = 960, layers: int = 6, channels: int = 16, text_dim: int = 4096
    ) -> None:
        super().__init__()
        self.dim, self.channels = dim, channels
        self.patch_embedding = nn.Conv3d(channels, dim, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(
            nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(TIME_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList([Block(dim, feed_forward_dim) for _ in range(layers)])
        self.head = Head(dim, channels)
        self._initialise()

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Tensor]) -> WanDiT:
        """A float32 model with the sizes found in a state dict."""
        layers = 1 + max(int(key.split(".")[1]) for key in state_dict if key.startswith("blocks."))
        channels = state_dict["patch_embedding.weight"].shape[1]
        feed_forward_dim, dim = state_dict["blocks.0.ffn.0.weight"].shape
        model = cls(dim, feed_forward_dim, layers, channels)
        model.load_state_dict({key: value.float() for key, value in state_dict.items()})
        return model

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.normal_(self.text_embedding[0].weight, std=0.015)
        nn.init.normal_(self.time_embedding[0].weight, std=0.02)
        nn.init.normal_(self.time_embedding[2].weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def patchify(self, latents: Tensor) -> Tensor:
        """[N, C, T, h, w] -> [N, T*h/2*w/2, dim]."""
        return self.patch_embedding(latents).flatten(2).transpose(1, 2)

    def unpatchify(self, tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """[N, L, 4*C] -> [N, C, T, h, w] for shape = (T, h, w); a patch is ordered (row, column, channel) as in Wan."""
        latents, height, width = shape
        patches = tokens.view(-1, latents, height // 2, width // 2, 2, 2, self.channels)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, self.channels, latents, height, width)

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [...] in 0..1000 -> embedding [..., dim] and its projection [..., 6, dim]."""
        waves = _sinusoidal(timestep.flatten()).to(self.time_embedding[0].weight.dtype)
        embedding = self.time_embedding(waves).view(*timestep.shape, self.dim)
        return embedding, self.time_projection(embedding).unflatten(-1, (6, self.dim))

    def text(self, context: Tensor) -> list[KeyValue]:
        """Text [B, tokens, text_dim] -> the keys and values every block's cross-attention reads."""
        context = self.text_embedding(context)
        return [block.cross_attn.key_value(context) for block in self.blocks]

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Plain full attention, equal to ComfyUI's WanModel.

        latents [B, C, T, h, w], timestep [B] or [B, T] in 0..1000, context [B, tokens, text_dim] -> velocity
        like latents.
        """
        batch, _, frames, height, width = latents.shape
        tokens_per_latent = (height // 2) * (width // 2)
        x, text = self.patchify(latents), self.text(context)
        if timestep.dim() == 1:
            timestep = timestep[:, None].expand(batch, frames)
        time, projection = self.embed_time(timestep)
        cos, sin = _flat_rope(frames, height, width, latents.device)
        for block, text_kv in zip(self.blocks, text, strict=True):
            per_latent = block.modulate(projection)
            modulation = tuple(m.expand(-1, -1, tokens_per_latent, -1).flatten(1, 2) for m in per_latent)
            y = block.attention_input(x, modulation)
            q, (k, v) = block.self_attn.query(y), block.self_attn.key_value(y)
            attended = attend(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)
            x = block.after_attention(x, attended, modulation, text_kv, None)
        x = self.head(x.view(batch, frames, tokens_per_latent, -1), time).flatten(1, 2)
        return self.unpatchify(x, (frames, height, width))

    def forward_chunk(
        self,
        latents: Tensor,
        timestep: float,
        text: list[KeyValue],
        remembered: list[list[KeyValue]],
        text_bias: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """One chunk that attends to remembered chunks (oldest first, each a list over blocks) and to itself.

        latents [B, C, T, h, w], text from `text()` -> velocity like latents, and this chunk's own keys and values.
        """
        batch, _, frames, height, width = latents.shape
        tokens = frames * (height // 2) * (width // 2)
        x, own = self.patchify(latents), []
        time, projection = self.embed_time(torch.full((batch,), float(timestep), device=latents.device))
        cos, sin = _flat_rope((len(remembered) + 1) * frames, height, width, latents.device)
        for index, block in enumerate(self.blocks):
            modulation = block.modulate(projection)
            y = block.attention_input(x, modulation)
            q, (k, v) = block.self_attn.query(y), block.self_attn.key_value(y)
            own.append((k, v))
            k = torch.cat([chunk[index][0] for chunk in remembered] + [k], 1)
            v = torch.cat([chunk[index][1] for chunk in remembered] + [v], 1)
            q = apply_rope(q, cos[:, -tokens:], sin[:, -tokens:])
            attended = attend(q, apply_rope(k, cos, sin), v)
            x = block.after_attention(x, attended, modulation, text[index], text_bias)
        return self.unpatchify(self.head(x, time), (frames, height, width)), own


def _sinusoidal(timestep: Tensor) -> Tensor:
    half = TIME_FREQUENCIES // 2
    exponent = -torch.arange(half, device=timestep.device).float().div(half)
    angle = torch.outer(timestep.float(), torch.pow(10000, exponent))
    return torch.cat([angle.cos(), angle.sin()], 1)


def _flat_rope(latents: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """RoPE tables of consecutive latents, each [1, L, 1, HEAD_DIM/2]."""
    cos, sin = rope_tables(latents, height // 2, width // 2, device)
    return cos.flatten(0, 1)[None, :, None], sin.flatten(0, 1)[None, :, None]
