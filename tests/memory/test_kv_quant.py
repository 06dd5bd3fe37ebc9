"""Packed keys and values: errors bounded by the format, sizes known before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.memory.kv_cache import BlockKV, kv_bytes, pack_layer
from pack.nodes.memory.kv_quant import pack, packed_bytes, unpack


def keys_with_outlier_channels(seed: int = 0, shape: tuple[int, ...] = (1, 40, 2, 128)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x[..., ::17] += 30 * torch.randn(shape[-1], generator=generator)[::17]  # constant over tokens, as real keys are
    return x


def relative_error(precision: str, centre: bool) -> float:
    x = keys_with_outlier_channels()
    residual = x - x.mean(1, keepdim=True)  # what attention can see: a constant key shift cancels in the softmax
    back = unpack(pack(x, precision, centre), torch.float32)
    return float((back - x).norm() / residual.norm())


def test_model_precision_is_exact_and_a_copy():
    x = keys_with_outlier_channels()
    packed = pack(x, "model")
    kept = x.clone()
    x.zero_()
    assert torch.equal(unpack(packed, torch.float32), kept)


def test_int8_is_within_half_a_step():
    x = torch.randn(1, 12, 2, 128, generator=torch.Generator().manual_seed(3))
    packed = pack(x, "int8")
    step = packed.scale.float()
    assert ((unpack(packed, torch.float32) - x).abs() <= 0.51 * step + 1e-6).all()


def test_4bit_is_within_half_a_step_of_its_group():
    x = torch.randn(1, 12, 2, 128, generator=torch.Generator().manual_seed(3))
    packed = pack(x, "4bit")
    error = (unpack(packed, torch.float32) - x).abs().unflatten(-1, (-1, 64)).amax(-1)
    assert (error <= 0.51 * packed.scale.float() + 2e-3).all()


def test_centring_is_what_makes_keys_fit():
    """Outlier channels cost most of the levels unless their mean is taken out first."""
    assert relative_error("4bit", centre=True) < 0.12
    assert relative_error("4bit", centre=False) > 3 * relative_error("4bit", centre=True)
    assert relative_error("int8", centre=True) < 0.01


def test_constant_input_survives():
    for precision in ("int8", "4bit"):
        x = torch.full((1, 4, 1, 64), 0.75)
        assert torch.allclose(unpack(pack(x, precision, centre=True), torch.float32), x, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 3), st.sampled_from([64, 128]), st.sampled_from(["model", "int8", "4bit"]),
       st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_bytes_are_known_before(tokens, heads, head_dim, precision, centre, dtype):
    centre = centre and precision != "model"
    packed = pack(torch.randn(1, tokens, heads, head_dim).to(dtype), precision, centre)
    assert packed.nbytes == packed_bytes(1, tokens, heads, head_dim, precision, dtype.itemsize, centre)


def test_block_bytes_match_the_published_table():
    """TI2V-5B at 1280x704, one latent frame of 880 tokens: 324 MB bf16, 165 MB int8, 91 MB 4-bit."""
    megabytes = [kv_bytes(30, 24, 128, 880, precision, 2) / 1e6 for precision in ("model", "int8", "4bit")]
    assert megabytes == pytest.approx([324.4, 164.7, 91.2], rel=0.005)


def test_block_moves_as_one_value():
    k, v = torch.randn(1, 8, 2, 64), torch.randn(1, 8, 2, 64)
    block = BlockKV((pack_layer(k, v, "int8"),))
    assert block.nbytes == kv_bytes(1, 2, 64, 8, "int8", 4)
    again_k, again_v = block.to("cpu").layers[0].unpack(torch.float32, torch.device("cpu"))
    assert torch.allclose(again_k, k, atol=0.05) and torch.allclose(again_v, v, atol=0.05)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is unknown, but got 'fp3'; allowed: model, int8, 4bit"):
        pack(torch.zeros(1, 1, 1, 64), "fp3")


def test_4bit_refuses_odd_head_sizes():
    with pytest.raises(ValueError, match="multiple of 64, but got 80.*int8"):
        pack(torch.zeros(1, 1, 1, 80), "4bit")


@pytest.mark.parametrize("centre", [True, False])
def test_4bit_is_closer_than_symmetric_groups_of_32(centre):
    """The toy world's model card found no loss of identity with those; ours has to be at least as close."""
    plain = torch.randn(1, 40, 2, 128, generator=torch.Generator().manual_seed(1))
    x = keys_with_outlier_channels() if centre else plain
    residual = x - x.mean(1, keepdim=True) if centre else x
    groups = residual.unflatten(-1, (-1, 32))
    step = groups.abs().amax(-1, keepdim=True) / 7
    card = ((groups / step).round() * step).flatten(-2) - residual
    assert (unpack(pack(x, "4bit", centre), torch.float32) - x).norm() < card.norm()


@pytest.mark.parametrize(("layers", "heads", "tokens"), [(30, 12, 3 * 1560), (30, 24, 8 * 880), (40, 40, 3 * 1560)])
def test_4bit_takes_at_most_057_bytes_per_value(layers, heads, tokens):
    """Chunks of Wan 1.3B and 14B at 832x480 (3 latents) and of TI2V-5B at 1280x704 (8 latents)."""
    assert kv_bytes(layers, heads, 128, tokens, "4bit", 2) <= 0.57 * 2 * layers * heads * 128 * tokens
