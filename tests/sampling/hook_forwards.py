"""One chunk through the memory hook, on a tiny WanModel; and the full-sequence forward that it must equal."""

from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch")

CHUNK, HEIGHT, WIDTH = 3, 8, 8
TOKENS = CHUNK * (HEIGHT // 2) * (WIDTH // 2)
TOLERANCE = 4e-6  # the outputs have a standard deviation of 1.08, the largest difference was 2.1e-6


@functools.cache
def tiny_wan():
    """A tiny WanModel of random weights, float32; its norms are around 1, as trained: attention picks out keys."""
    ops = pytest.importorskip("comfy.ops")
    from comfy.ldm.wan.model import WanModel

    model = WanModel(model_type="t2v", in_dim=16, out_dim=16, dim=256, ffn_dim=512, num_heads=2, num_layers=3,
                     text_dim=64, device="cpu", dtype=torch.float32, operations=ops.disable_weight_init).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_gain = name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight"))
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.06 + is_gain)
    return model


@functools.cache
def random_chunks():
    """(four chunks, a conditioning)"""
    generator = torch.Generator().manual_seed(1)
    chunks = [torch.randn(1, 16, CHUNK, HEIGHT, WIDTH, generator=generator) for _ in range(4)]
    return chunks, torch.randn(1, 20, 64, generator=generator)


def block_causal(wan, chunks, times, context, sink=99, window=99, **options):
    """The oracle: every chunk at once, chunk q attends to itself, to the sink chunks and to the window before it."""
    x = torch.cat(chunks, 2)
    chunk_of = torch.arange(len(chunks) * TOKENS) // TOKENS
    query, key = chunk_of[:, None], chunk_of[None]
    visible = (key == query) | ((key < query) & ((key < sink) | (key >= query - window)))
    mask = torch.where(visible, 0.0, float("-inf"))

    def override(func, q, k, v, heads, **kwargs):
        if q.shape[1] == k.shape[1]:
            kwargs["mask"] = mask
        return func(q, k, v, heads, **kwargs)

    t = torch.tensor([[time for time in times for _ in range(CHUNK)]], dtype=torch.float32)
    with torch.no_grad():
        return wan(x, t, context, transformer_options={"optimized_attention_override": override, **options})


def run_chunks(wan, chunks, times, context, precision="model", user_options=None):
    """Ours: each chunk alone through the hook, its clean K/V collected for the next ones."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
    from pack.nodes.sampling.bridge_hook import MemoryHook

    hook, outputs = MemoryHook(), []
    for chunk, time in zip(chunks, times, strict=True):
        hook.collect((precision,))
        options = dict(user_options or {})
        add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "videomemory", hook, options)
        with torch.no_grad():
            outputs.append(wan(chunk, torch.tensor([float(time)]), context, transformer_options=options))
        end = hook.start + CHUNK
        hook.look_at((*hook.remembered, *hook.caches(0)), (), tuple(range(end)), end)
    return torch.cat(outputs, 2)


def forward(wan, hook, chunk, time, context, kinds=(0,)):
    """One forward of one chunk through the hook, with one row per kind of prompt."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    options = {"cond_or_uncond": list(kinds)}
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "videomemory", hook, options)
    rows = chunk.repeat(len(kinds), 1, 1, 1, 1)
    with torch.no_grad():
        return wan(rows, torch.full((len(kinds),), float(time)), context, transformer_options=options)


def remembering(wan, chunks, context, kinds=(0,), joint=0, **settings):
    """A hook that has collected these chunks one after the other (the last `joint` ones in one forward)."""
    from pack.nodes.sampling.bridge_hook import MemoryHook

    hook = MemoryHook(**settings)
    groups = [[chunk] for chunk in chunks[:len(chunks) - joint]] + ([chunks[-joint:]] if joint else [])
    for group in groups:
        hook.collect(("model",) * len(group))
        forward(wan, hook, torch.cat(group, 2), 0, context, kinds)
        end = hook.start + CHUNK * len(group)
        hook.look_at((*hook.remembered, *hook.caches(0)), (*hook.negative, *hook.caches(1)), tuple(range(end)), end)
        hook.collect()
    return hook


def hook_forward(wan, chunk, latents, options, time=0.0, context=None, **settings):
    """One forward through the hook behind `latents` remembered latents without blocks."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
    from pack.nodes.sampling.bridge_hook import MemoryHook

    context = torch.zeros(1, 20, 64).to(chunk) if context is None else context
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "videomemory", MemoryHook(start=latents, **settings), options)
    with torch.no_grad():
        return wan(chunk, torch.tensor([time]), context, transformer_options=options)
