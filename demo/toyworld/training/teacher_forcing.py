"""Block-causal teacher forcing: all chunks of a video are trained in one pass.

Every sample has N clean chunks (timestep 0) and N noisy ones. Both streams of chunk i attend to the clean chunks that
its memory would hold at that moment ("slots") and to themselves. `slots` [B, N, S] holds clean chunk indices, -1 =
empty, empty slots first. Dims as in dit.py; streams: 0 clean, 1 noisy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dit import Block, WanDiT, apply_rope, attend, rope_tables
from torch import Tensor
from world import CHUNK_LATENTS

HIDDEN = -1e4  # attention bias of what may not be seen


@dataclass(frozen=True)
class Context:
    """What every block needs to know besides the tokens; L tokens per chunk, S slots."""

    time: Tensor  # [B, 2, N, 6, dim]
    text: Tensor  # [B, N, tokens, dim]
    text_bias: Tensor  # [B*2*N, 1, 1, tokens]
    gather: Tensor  # [B, N*S, N] one-hot rows: which clean chunk lies in a slot
    slot_bias: Tensor  # [B*2*N, 1, 1, (S+1)*L]
    cos: Tensor  # [B, N, (S+1)*L, 1, D/2]
    sin: Tensor


def memory_slots(chunks: int, sink: int, window: int, slots: int = 3) -> Tensor:
    """The clean chunks a memory of `sink` first and `window` last chunks holds before each chunk, [chunks, slots]."""
    table = torch.full((chunks, slots), -1)
    for chunk in range(chunks):
        held = [past for past in range(chunk) if past < sink or past >= chunk - window]
        table[chunk, slots - len(held) :] = torch.tensor(held, dtype=torch.long)
    return table


def velocity(
    model: WanDiT,
    clean: Tensor,
    noisy: Tensor,
    sigma: Tensor,
    text: tuple[Tensor, Tensor],
    slots: Tensor,
    run_block: Callable[[Block, Tensor, Context], Tensor],
) -> Tensor:
    """Predict the velocity of all noisy chunks.

    clean and noisy [B, N, C, T, h, w], sigma [B, N], text = embeddings [B, N, tokens, text_dim] and additive bias
    [B, N, tokens], slots [B, N, S] -> [B, N, C, T, h, w]. `run_block` is `forward_block`, plain or compiled.
    """
    batch, chunks, _, frames, height, width = clean.shape
    x = torch.stack([clean, noisy], 1)  # [B, 2, N, C, T, h, w]
    x = model.patchify(x.flatten(0, 2)).unflatten(0, (batch, 2, chunks))  # [B, 2, N, L, dim]
    time, projection = model.embed_time(torch.stack([torch.zeros_like(sigma), sigma * 1000], 1))
    context = _context(model, projection, text, slots, (frames, height // 2, width // 2), x.dtype)
    for block in model.blocks:
        x = run_block(block, x, context)
    out = model.head(x[:, 1], time[:, 1]).flatten(0, 1)
    return model.unpatchify(out, (frames, height, width)).unflatten(0, (batch, chunks))


def forward_block(block: Block, x: Tensor, context: Context) -> Tensor:
    """One block over both streams of all chunks, x [B, 2, N, L, dim]."""
    batch, _, chunks, tokens, _ = x.shape
    remembered_tokens = context.cos.shape[2] - tokens  # S*L
    modulation = block.modulate(context.time)  # 6 x [B, 2, N, 1, dim]
    y = block.attention_input(x, modulation)
    q, (k, v) = block.self_attn.query(y), block.self_attn.key_value(y)  # [B, 2, N, L, H, D]

    def remember(clean: Tensor) -> Tensor:
        # a product with one-hot rows is a gather with a cheap gradient; [B, N, L, H, D] -> [B, N, S*L, H, D]
        return torch.bmm(context.gather, clean.flatten(2)).view(batch, chunks, remembered_tokens, *clean.shape[3:])

    past_k = apply_rope(
        remember(k[:, 0]), context.cos[:, :, :remembered_tokens], context.sin[:, :, :remembered_tokens]
    )
    own_cos, own_sin = context.cos[:, None, :, remembered_tokens:], context.sin[:, None, :, remembered_tokens:]
    q, k = apply_rope(q, own_cos, own_sin), apply_rope(k, own_cos, own_sin)
    k = torch.cat([_both_streams(past_k), k], 3).flatten(0, 2)
    v = torch.cat([_both_streams(remember(v[:, 0])), v], 3).flatten(0, 2)
    attended = attend(q.flatten(0, 2), k, v, context.slot_bias)
    text_k, text_v = block.cross_attn.key_value(context.text)
    text = (_both_streams(text_k).flatten(0, 2), _both_streams(text_v).flatten(0, 2))
    modulation = tuple(m.flatten(0, 2) for m in modulation)
    return block.after_attention(x.flatten(0, 2), attended, modulation, text, context.text_bias).view_as(x)


def _context(
    model: WanDiT,
    projection: Tensor,
    text: tuple[Tensor, Tensor],
    slots: Tensor,
    grid: tuple[int, int, int],
    dtype: torch.dtype,
) -> Context:
    frames, rows, columns = grid
    tokens, slot_count = frames * rows * columns, slots.shape[2]
    filled = slots >= 0  # [B, N, S]
    # empty slots come first and take no position, so that positions are contiguous from 0
    position = torch.cat([torch.cumsum(filled, 2) - filled.long(), filled.sum(2, keepdim=True)], 2)  # [B, N, S+1]
    cos, sin = rope_tables((slot_count + 1) * CHUNK_LATENTS, rows, columns, slots.device)
    cos = cos.view(slot_count + 1, tokens, -1)[position].flatten(2, 3).unsqueeze(-2)
    sin = sin.view(slot_count + 1, tokens, -1)[position].flatten(2, 3).unsqueeze(-2)
    if torch.is_autocast_enabled("cuda"):
        dtype, cos, sin = torch.bfloat16, cos.bfloat16(), sin.bfloat16()
    seen = torch.cat([filled, torch.ones_like(filled[:, :, :1])], 2)
    slot_bias = torch.where(seen, 0.0, HIDDEN).repeat_interleave(tokens, 2)  # [B, N, (S+1)*L]
    gather = (F.one_hot(slots.clamp(min=0), slots.shape[1]) * filled.unsqueeze(-1)).flatten(1, 2)
    embedding, text_bias = text
    return Context(
        time=projection,
        text=model.text_embedding(embedding),
        text_bias=_both_streams(text_bias).flatten(0, 2)[:, None, None].to(dtype),
        gather=gather.to(dtype),
        slot_bias=_both_streams(slot_bias).flatten(0, 2)[:, None, None].to(dtype),
        cos=cos,
        sin=sin,
    )


def _both_streams(x: Tensor) -> Tensor:
    """[B, N, ...] -> [B, 2, N, ...] without a copy."""
    return x.unsqueeze(1).expand(-1, 2, *x.shape[1:])
