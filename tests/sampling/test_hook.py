"""What the memory hook hands to the model and takes from it, and what it leaves alone."""

from __future__ import annotations

import pytest

from .hook_forwards import (
    CHUNK,
    HEIGHT,
    TOKENS,
    TOLERANCE,
    WIDTH,
    forward,
    hook_forward,
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


def test_given_latents_are_clean_to_the_model(wan, inputs):
    from pack.nodes.sampling.bridge_hook import MemoryHook

    chunks, context = inputs
    actual = forward(wan, MemoryHook(clean=1), chunks[0], 700, context)
    with torch.no_grad():
        expected = wan(chunks[0], torch.tensor([[0.0, 700.0, 700.0]]), context)
    assert (actual - expected).abs().max() < TOLERANCE


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


def skipping(block):
    """What a node that leaves out a block of the model sets."""
    return {"patches_replace": {"dit": {("double_block", block): lambda args, extra: {"img": args["img"]}}}}


def without_core_attention(monkeypatch):
    """What a node that puts its own function in place of core's attention does: overrides are not asked."""
    import comfy.ldm.wan.model as module

    core = module.optimized_attention

    def theirs(q, k, v, heads, **kwargs):
        kwargs["transformer_options"] = {}
        return core(q, k, v, heads, **kwargs)

    monkeypatch.setattr(module, "optimized_attention", theirs)


@pytest.mark.parametrize("block", [1, 2, None])
def test_a_block_that_hands_out_no_keys_is_named(wan, inputs, block, monkeypatch):
    chunks, context = inputs
    if block is None:
        without_core_attention(monkeypatch)
    missing = block or 0
    with pytest.raises(ValueError, match=f"got no keys and values of block {missing}; allowed: all blocks, 0 to 2. "
                                         f"Another node skips block {missing} or replaces the attention"):
        run_chunks(wan, chunks[:2], (0, 700), context, user_options=skipping(block) if block else None)


def test_keys_are_kept_by_the_number_of_their_block_in_whatever_order_they_come():
    from pack.nodes.sampling.bridge_hook import MemoryHook

    hook, empty = MemoryHook(), torch.zeros(1, TOKENS, 2, 128)
    hook.collect(("model",))
    hook.collected[0] = [{}]
    for layer in (2, 0, 1):
        hook._collect(layer, (0,), empty + layer, empty)
    kept = [layer.unpack(empty.dtype, empty.device)[0].max() for layer in hook.caches(0)[0].layers]
    assert kept == [0, 1, 2]
