"""Chunked generation with the memory equals one full-sequence, block-causal forward of ComfyUI's own WanModel."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

CHUNK, HEIGHT, WIDTH = 3, 8, 8
TOKENS = CHUNK * (HEIGHT // 2) * (WIDTH // 2)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def wan():
    """A tiny WanModel with random weights, float32."""
    ops = pytest.importorskip("comfy.ops")
    from comfy.ldm.wan.model import WanModel

    torch.manual_seed(0)
    model = WanModel(model_type="t2v", in_dim=16, out_dim=16, dim=256, ffn_dim=512, num_heads=2, num_layers=3,
                     text_dim=64, device="cpu", dtype=torch.float32, operations=ops.disable_weight_init).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.06)
    return model


@pytest.fixture(scope="module")
def inputs():
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


@pytest.mark.parametrize("kinds", [(0,), (1, 0)])
def test_memory_in_ram_gives_the_same_bits(wan, inputs, kinds):
    chunks, context = inputs
    texts = context.repeat(len(kinds), 1, 1)
    hooks = (remembering(wan, chunks[:3], texts, kinds, rests_in_ram=ram) for ram in (False, True))
    want, got = (forward(wan, hook, chunks[3], 700, texts, kinds) for hook in hooks)
    assert torch.equal(want, got)


def test_prefetch_hands_out_every_layer_in_any_order(wan, inputs):
    from pack.nodes.sampling.prefetch import LayerPrefetch, layer_bytes

    chunks, context = inputs
    blocks = remembering(wan, chunks[:2], context).remembered
    prefetch = LayerPrefetch(blocks, torch.device("cpu"))
    for layer in (0, 1, 2, 0, 2, 2, 1):
        for block, arrived in zip(blocks, prefetch.layer(layer), strict=True):
            assert torch.equal(arrived.k.data, block.layers[layer].k.data)
            assert torch.equal(arrived.v.data, block.layers[layer].v.data)
    held = {slot.arrived.untyped_storage().data_ptr(): slot.arrived.nbytes for slot in prefetch.slots}
    assert sum(held.values()) == 2 * layer_bytes(blocks)  # two layers, however many the model has


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
    assert (causal - expected).abs().max() > 10 * TOLERANCE


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
    assert (without - expected).abs().max() > 10 * TOLERANCE


def test_given_latents_are_clean_to_the_model(wan, inputs):
    from pack.nodes.sampling.bridge_hook import MemoryHook

    chunks, context = inputs
    actual = forward(wan, MemoryHook(clean=1), chunks[0], 700, context)
    with torch.no_grad():
        expected = wan(chunks[0], torch.tensor([[0.0, 700.0, 700.0]]), context)
    assert (actual - expected).abs().max() < TOLERANCE


def hook_forward(wan, chunk, latents, options, time=0.0, context=None, **settings):
    """One forward through the hook behind `latents` remembered latents without blocks."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
    from pack.nodes.sampling.bridge_hook import MemoryHook

    context = torch.zeros(1, 20, 64).to(chunk) if context is None else context
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "videomemory", MemoryHook(start=latents, **settings), options)
    with torch.no_grad():
        return wan(chunk, torch.tensor([time]), context, transformer_options=options)


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
    assert (block_causal(wan, chunks, (0, 0, 0, 700), context) - expected).abs().max() > 10 * TOLERANCE


def test_positions_above_256_are_told_apart_in_bfloat16(wan):
    """The chunk behind a long memory is turned by whole positions, whatever the model's dtype."""
    from copy import deepcopy

    from pack.nodes.sampling.bridge_hook import _rotations

    half = deepcopy(wan).to(torch.bfloat16)
    half.patch_embedding.float()  # as core keeps it
    x = torch.zeros(1, 16, CHUNK, HEIGHT, WIDTH)
    _, exact = _rotations(wan, x, (), 360, {})
    seen = []

    def patch(args, extra):
        seen.append(args["pe"])
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 0): patch}}}
    hook_forward(half, x.bfloat16(), 360, options)
    assert torch.equal(seen[0], exact)
    assert (exact[:, 0] - exact[:, TOKENS // CHUNK]).abs().max() > 0.1  # neighbours differ


def test_whole_timesteps_reach_the_model_cut(wan, inputs):
    """LongLive 2: 937.27 is given to the model as 937, its solver uses 0.93727."""
    chunks, context = inputs
    cut, plain = (hook_forward(wan, chunks[0], 0, {}, 937.27, context, whole_timesteps=whole)
                  for whole in (True, False))
    with torch.no_grad():
        expected = wan(chunks[0], torch.tensor([937.0]), context)
    assert torch.allclose(cut, expected, atol=TOLERANCE) and not torch.allclose(plain, expected, atol=TOLERANCE)


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


def test_short_text_is_not_mistaken_for_self_attention(wan, inputs):
    """Cross-attention with as many text tokens as the chunk has tokens must not be given the memory."""
    chunks, _ = inputs
    context = torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(2))
    times = (0, 700)
    x, visible = torch.cat(chunks[:2], 2), torch.arange(2 * TOKENS) // TOKENS
    mask = torch.where(visible[:, None] >= visible[None], 0.0, float("-inf"))

    def override(func, q, k, v, heads, **kwargs):
        if k.shape[1] == 2 * TOKENS:
            kwargs["mask"] = mask
        return func(q, k, v, heads, **kwargs)

    t = torch.tensor([[0.0] * CHUNK + [700.0] * CHUNK])
    with torch.no_grad():
        expected = wan(x, t, context, transformer_options={"optimized_attention_override": override})
    assert (run_chunks(wan, chunks[:2], times, context) - expected).abs().max() < TOLERANCE


def test_other_packs_patches_still_run(wan, inputs):
    """A block patch and an attention override that were there before are called inside ours."""
    chunks, context = inputs
    seen = []

    def patch(args, extra):
        seen.append("block")
        return extra["original_block"](args)

    def override(func, *args, **kwargs):
        seen.append("attention")
        return func(*args, **kwargs)

    options = {"patches_replace": {"dit": {("double_block", 1): patch}}, "optimized_attention_override": override}
    plain = run_chunks(wan, chunks[:2], (0, 700), context)
    patched = run_chunks(wan, chunks[:2], (0, 700), context, user_options=options)
    assert torch.equal(plain, patched)
    assert seen.count("block") == 2 and seen.count("attention") == 2 * 3 * 2


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.02), ("4bit", 0.2)])
def test_quantised_memory_stays_close(wan, inputs, precision, limit):
    chunks, context = inputs
    exact = run_chunks(wan, chunks, (0, 0, 0, 700), context)[:, :, -CHUNK:]
    stored = run_chunks(wan, chunks, (0, 0, 0, 700), context, precision)[:, :, -CHUNK:]
    error = ((stored - exact).norm() / exact.norm()).item()
    assert 0 < error < limit


def test_batch_is_refused(wan, inputs):
    chunks, context = inputs
    with pytest.raises(ValueError, match="one film at a time.*batch of 2.*batch 1"):
        run_chunks(wan, [chunks[0].repeat(2, 1, 1, 1, 1)], (0,), context.repeat(2, 1, 1))
