"""Chunked generation with the memory equals one full-sequence, block-causal forward of ComfyUI's own WanModel."""

from __future__ import annotations

import pytest

from .hook_forwards import (
    CHUNK,
    HEIGHT,
    TOKENS,
    TOLERANCE,
    WIDTH,
    block_causal,
    forward,
    random_chunks,
    remembering,
    run_chunks,
    tiny_wan,
)

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")


@pytest.fixture
def wan():
    return tiny_wan()


@pytest.fixture
def inputs():
    return random_chunks()


@pytest.mark.parametrize("kinds", [(0, 1), (1, 0)])
def test_both_prompts_have_a_memory_of_their_own_in_any_order(wan, inputs, kinds):
    chunks, context = inputs
    other = torch.randn(context.shape, generator=torch.Generator().manual_seed(9))
    texts = torch.cat([(context, other)[kind] for kind in kinds])
    hook = remembering(wan, chunks[:3], texts, kinds)
    both = forward(wan, hook, chunks[3], 700, texts, kinds)
    for row, kind in enumerate(kinds):
        expected = block_causal(wan, chunks, (0, 0, 0, 700), (context, other)[kind])[:, :, -CHUNK:]
        assert (both[row] - expected[0]).abs().max() < TOLERANCE
        alone = forward(wan, hook, chunks[3], 700, (context, other)[kind], (kind,))  # in a forward of its own
        assert (alone - expected).abs().max() < TOLERANCE
    assert (both[0] - both[1]).abs().max() > 0.1


def test_chunks_recached_together_see_each_other(wan, inputs):
    """LongLive 1 at a prompt switch: one forward over what follows the sink, which keeps its old K/V."""
    chunks, context = inputs
    hook = remembering(wan, chunks[:3], context, joint=2)
    actual = forward(wan, hook, chunks[3], 700, context)
    x, groups = torch.cat(chunks, 2), torch.tensor([0, 1, 1, 2]).repeat_interleave(TOKENS)
    mask = torch.where(groups[:, None] >= groups[None], 0.0, float("-inf"))

    def override(func, q, k, v, heads, **kwargs):
        if q.shape[1] == k.shape[1]:
            kwargs["mask"] = mask
        return func(q, k, v, heads, **kwargs)

    t = torch.tensor([[0.0] * 3 * CHUNK + [700.0] * CHUNK])
    with torch.no_grad():
        expected = wan(x, t, context, transformer_options={"optimized_attention_override": override})[:, :, -CHUNK:]
    assert (actual - expected).abs().max() < TOLERANCE
    causal = block_causal(wan, chunks, (0, 0, 0, 700), context)[:, :, -CHUNK:]
    assert (causal - expected).abs().max() > 1000 * TOLERANCE


def test_a_cut_moves_what_lies_before_it_away(wan, inputs):
    """LongLive 2: eight latents of rotary distance per cut, in one forward with the same gap."""
    chunks, context = inputs
    gap = 8
    hook = remembering(wan, chunks[:2], context)
    hook.look_at(hook.remembered, (), hook.positions, hook.start + gap)
    hook.collect(("model",))
    forward(wan, hook, chunks[2], 0, context)
    after = tuple(range(hook.start, hook.start + CHUNK))
    hook.look_at((*hook.remembered, *hook.caches(0)), (), (*hook.positions, *after), after[-1] + 1)
    hook.collect()
    actual = forward(wan, hook, chunks[3], 700, context)

    pe = torch.cat([wan.rope_encode(6, HEIGHT, WIDTH, t_start=start, dtype=torch.float32) for start in (0, 6 + gap)], 1)

    def patch(args, extra):
        return extra["original_block"]({**args, "pe": pe})

    layers = {("double_block", i): patch for i in range(3)}
    expected = block_causal(wan, chunks, (0, 0, 0, 700), context, patches_replace={"dit": layers})[:, :, -CHUNK:]
    assert (actual - expected).abs().max() < TOLERANCE
    without = block_causal(wan, chunks, (0, 0, 0, 700), context)[:, :, -CHUNK:]
    assert (without - expected).abs().max() > 1000 * TOLERANCE


def test_chunks_equal_full_sequence_forward(wan, inputs):
    chunks, context = inputs
    times = (0, 0, 0, 700)
    expected = block_causal(wan, chunks, times, context)
    actual = run_chunks(wan, chunks, times, context)
    assert (actual - expected).abs().max() < TOLERANCE
    assert expected.std() > 0.1  # the comparison means something


def test_a_rope_scale_holds_across_the_join(wan, inputs):
    """Core's ScaleROPE node spreads the positions: the chunk must lie as far behind its memory as in one forward."""
    chunks, context = inputs
    options = {"rope_options": {"scale_t": 3.0, "shift_t": 5.0, "scale_x": 0.5}}
    expected = block_causal(wan, chunks, (0, 0, 0, 700), context, **options)
    actual = run_chunks(wan, chunks, (0, 0, 0, 700), context, user_options=options)
    assert (actual - expected).abs().max() < TOLERANCE
    assert (block_causal(wan, chunks, (0, 0, 0, 700), context) - expected).abs().max() > 1000 * TOLERANCE


def test_memory_changes_the_result(wan, inputs):
    chunks, context = inputs
    expected = block_causal(wan, chunks, (0, 0, 0, 700), context)[:, :, -CHUNK:]
    alone = run_chunks(wan, chunks[-1:], (700,), context)
    assert (alone - expected).abs().max() > 0.1


def test_positions_close_the_gap_between_sink_and_window(wan, inputs):
    """With chunk 1 forgotten, chunk 3 sees [0, 2] exactly as a film that never had chunk 1."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
    from pack.nodes.sampling.bridge_hook import MemoryHook

    chunks, context = inputs
    kept = [chunks[0], chunks[2], chunks[3]]
    expected = run_chunks(wan, kept, (0, 0, 700), context)[:, :, -CHUNK:]

    hook = MemoryHook()
    stored = []
    for chunk, past in ((chunks[0], ()), (chunks[2], (0,))):
        start, options = CHUNK * len(past), {}
        hook.look_at(tuple(stored[i] for i in past), (), tuple(range(start)), start)
        hook.collect(("model",))
        add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "videomemory", hook, options)
        with torch.no_grad():
            wan(chunk, torch.tensor([0.0]), context, transformer_options=options)
        stored.extend(hook.caches(0))
    hook.look_at(tuple(stored), (), tuple(range(2 * CHUNK)), 2 * CHUNK)
    hook.collect()
    options = {}
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "videomemory", hook, options)
    with torch.no_grad():
        actual = wan(chunks[3], torch.tensor([700.0]), context, transformer_options=options)
    assert (actual - expected).abs().max() < TOLERANCE
