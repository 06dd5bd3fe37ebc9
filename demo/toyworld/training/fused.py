"""Two operations that dominate the VAE's training time, made cheap.

`norm_silu` is one Triton kernel forwards and one backwards on CUDA, plain torch elsewhere. `stack_time` has a backward
pass without padding copies. Channels are the last axis; for the kernel their number must be a power of two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton ships with CUDA builds of torch only
    triton = None

ELEMENTS_PER_PROGRAM = 4096


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """silu(x / rms(x) * gamma) over the last axis; gamma [channels]."""
    if triton is not None and x.is_cuda:
        return _NormSilu.apply(x, gamma)
    inverse_rms = torch.rsqrt(x.pow(2).mean(-1, keepdim=True, dtype=torch.float32).clamp(min=1e-24))
    return F.silu(x * inverse_rms.to(x.dtype) * gamma.to(x.dtype))


def stack_time(x: Tensor) -> Tensor:
    """[B, T, ..., C] -> [B, T, ..., 3*C]: frames t-2, t-1 and t side by side, zeros before the first."""
    return _StackTime.apply(x)


class _StackTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        channels = x.shape[-1]
        y = x.new_empty(*x.shape[:-1], 3 * channels)
        y[..., 2 * channels :] = x
        y[:, 1:, ..., channels : 2 * channels] = x[:, :-1]
        y[:, 2:, ..., :channels] = x[:, :-2]
        y[:, :1, ..., channels : 2 * channels] = 0
        y[:, :2, ..., :channels] = 0
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        channels = grad.shape[-1] // 3
        out = grad[..., 2 * channels :].clone()
        out[:, :-1] += grad[:, 1:, ..., channels : 2 * channels]
        out[:, :-2] += grad[:, 2:, ..., :channels]
        return out


if triton is not None:

    @triton.jit
    def _norm_silu_kernel(x_ptr, gamma_ptr, y_ptr, rows, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        channel = tl.arange(0, CHANNELS)
        offset = row[:, None] * CHANNELS + channel[None, :]
        inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        gamma = tl.load(gamma_ptr + channel).to(tl.float32)
        inverse_rms = 1.0 / tl.sqrt(tl.maximum(tl.sum(x * x, axis=1) / CHANNELS, 1e-24))
        scaled = x * inverse_rms[:, None] * gamma[None, :]
        y = scaled / (1.0 + tl.exp(-scaled))
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)

    @triton.jit
    def _norm_silu_grad_kernel(
        x_ptr, gamma_ptr, grad_y_ptr, grad_x_ptr, grad_gamma_ptr, rows, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
    ):
        program = tl.program_id(0).to(tl.int64)
        row = program * BLOCK + tl.arange(0, BLOCK)
        channel = tl.arange(0, CHANNELS)
        offset = row[:, None] * CHANNELS + channel[None, :]
        inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        grad_y = tl.load(grad_y_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        gamma = tl.load(gamma_ptr + channel).to(tl.float32)
        inverse_rms = 1.0 / tl.sqrt(tl.maximum(tl.sum(x * x, axis=1) / CHANNELS, 1e-24))
        normalised = x * inverse_rms[:, None]
        scaled = normalised * gamma[None, :]
        sigmoid = 1.0 / (1.0 + tl.exp(-scaled))
        grad_scaled = grad_y * (sigmoid + scaled * sigmoid * (1.0 - sigmoid))
        # one partial sum per program; the caller adds them up
        tl.store(grad_gamma_ptr + program * CHANNELS + channel, tl.sum(grad_scaled * normalised, axis=0))
        grad_normalised = grad_scaled * gamma[None, :]
        along = tl.sum(grad_normalised * normalised, axis=1) / CHANNELS
        grad_x = inverse_rms[:, None] * (grad_normalised - normalised * along[:, None])
        tl.store(grad_x_ptr + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)

    class _NormSilu(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
            x = x.contiguous()
            channels = x.shape[-1]
            rows, block = x.numel() // channels, ELEMENTS_PER_PROGRAM // channels
            y = torch.empty_like(x)
            _norm_silu_kernel[(triton.cdiv(rows, block),)](x, gamma, y, rows, channels, block, num_warps=4)
            ctx.save_for_backward(x, gamma)
            return y

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, gamma = ctx.saved_tensors
            channels = x.shape[-1]
            rows, block = x.numel() // channels, ELEMENTS_PER_PROGRAM // channels
            programs = triton.cdiv(rows, block)
            grad_x = torch.empty_like(x)
            grad_gamma = torch.empty(programs, channels, device=x.device, dtype=torch.float32)
            _norm_silu_grad_kernel[(programs,)](
                x, gamma, grad.contiguous(), grad_x, grad_gamma, rows, channels, block, num_warps=4
            )
            return grad_x, grad_gamma.sum(0).to(gamma.dtype)
