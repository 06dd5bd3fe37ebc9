"""NF4 bytes: against bitsandbytes itself where it is installed, against stored digests and plain arithmetic always."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from pack.nodes.loading import nf4
from pack.nodes.loading.levels import LEVELS

SHAPES = [(1, 64), (5, 6), (7, 22), (3, 128), (513, 130), (256, 4096)]
DTYPES = list(nf4.SOURCE_DTYPES)


def matrix(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weights whose rows differ in size, so that the absmax values spread."""
    generator = torch.Generator().manual_seed(shape[0] * 7919 + shape[1])
    return (torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator) * 0.05).to(dtype)


def halfway_points() -> torch.Tensor:
    """One block that holds every boundary between two levels, its neighbours in float32, and both ends."""
    middle = (LEVELS["nf4"][:-1] + LEVELS["nf4"][1:]) / 2
    above, below = torch.nextafter(middle, torch.tensor(2.0)), torch.nextafter(middle, torch.tensor(-2.0))
    return torch.cat((middle, above, below, torch.tensor([1.0, -1.0, 0.0]), torch.zeros(16))).view(1, 64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_equal_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = matrix(shape, dtype)
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    theirs = {"weight": packed.view(shape[0], -1),
              **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
    ours = nf4.to_state_dict(nf4.quantize(weight), "weight")
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key


def test_bytes_equal_bitsandbytes_when_values_lie_halfway() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, _ = functional.quantize_4bit(halfway_points(), blocksize=64, quant_type="nf4")
    assert torch.equal(nf4.quantize(halfway_points()).packed.view(-1), packed.view(-1))


def test_bytes_equal_bitsandbytes_when_blocks_are_zero_or_tiny() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for weight in (torch.zeros(8, 64), torch.full((8, 64), 1e-39), torch.full((8, 64), 0.25), torch.zeros(1, 6),
                   torch.full((3, 66), 1e-39)):
        packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        ours = nf4.quantize(weight)
        assert torch.equal(ours.packed.view(-1), packed.view(-1))
        assert torch.equal(ours.absmax, state.absmax)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dequantised_values_equal_bitsandbytes(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    from pack.nodes.loading import dequantize_bitsandbytes

    for shape in SHAPES:
        weight = nf4.quantize(matrix(shape))
        packed, state = functional.quantize_4bit(matrix(shape), blocksize=64, compress_statistics=True,
                                                 quant_type="nf4")
        state.dtype = dtype
        theirs = functional.dequantize_4bit(packed, state)
        assert torch.equal(nf4.dequantize(weight, dtype), theirs)
        assert torch.equal(dequantize_bitsandbytes.unpack(weight, dtype), theirs)


def test_reads_single_quantisation_and_other_block_sizes_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = matrix((513, 130))
    packed, state = functional.quantize_4bit(weight, blocksize=128, compress_statistics=False, quant_type="nf4")
    stored = {"w": packed, **{f"w.{key}": value for key, value in state.as_dict(packed=True).items()}}
    ours = nf4.from_state_dict(stored, "w")
    assert ours.shape == (513, 130)
    assert torch.equal(nf4.dequantize(ours, torch.float32), functional.dequantize_4bit(packed, state))


def test_bytes_equal_stored_digest() -> None:
    """The same bytes as bitsandbytes 0.50.2 gave on a CPU, for machines without it; the input is exact everywhere."""
    numbers = torch.arange(96 * 80) * 7919 % 1009 - 504
    weight = (numbers.view(96, 80) * torch.arange(1, 97)[:, None]).to(torch.bfloat16) / 65536
    ours = nf4.quantize(weight)
    digest = hashlib.sha256(b"".join(bytes(t.tolist()) for t in (ours.packed.view(-1), ours.absmax))).hexdigest()
    assert digest == "38888295727098c5bba15bc41bcd9a89a31f1ec3ad210f26857b5c9297053bcd"
    assert ours.offset.item() == pytest.approx(0.3700734, abs=1e-6)


def test_every_value_becomes_the_nearest_level() -> None:
    weight = matrix((64, 256))
    blocks = weight.view(-1, 64)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = (scaled[..., None] - LEVELS["nf4"]).abs().argmin(-1).view(-1)
    codes = torch.stack((nf4.quantize(weight).packed >> 4, nf4.quantize(weight).packed & 15), -1).view(-1)
    assert torch.equal(codes.long(), nearest)


def test_quantising_leaves_the_source_untouched() -> None:
    weight = matrix((256, 4096))
    before = weight.clone()
    nf4.quantize(weight)
    assert torch.equal(weight, before)


def test_state_dict_round_trip_keeps_every_bit() -> None:
    weight = nf4.quantize(matrix((7, 22), torch.float16))
    stored = nf4.to_state_dict(weight, "blocks.0.weight")
    assert nf4.is_stored(stored, "blocks.0.weight")
    again = nf4.from_state_dict(stored, "blocks.0.weight")
    assert again.dtype == torch.float16 and again.shape == (7, 22)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in weight.tensors().items())


def test_size_formula_counts_every_byte() -> None:
    for shape in SHAPES:
        held = sum(tensor.nbytes for tensor in nf4.quantize(matrix(shape)).tensors().values())
        assert nf4.packed_bytes(*shape) == held


@pytest.mark.parametrize("weight", [torch.zeros(4), torch.zeros(4, 3), torch.zeros(4, 4, dtype=torch.float64)])
def test_refuses_what_has_no_nf4_form(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"NF4 quantisation needs a matrix, but got .* of shape .*; allowed: float32"):
        nf4.quantize(weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_broken_weights(bad: float) -> None:
    weight = matrix((5, 64))
    weight[3, 10] = bad
    with pytest.raises(ValueError, match="needs finite weights, but got a weight with NaN or infinity"):
        nf4.quantize(weight)


def test_refuses_other_level_tables() -> None:
    stored = nf4.to_state_dict(nf4.quantize(matrix((1, 64))), "w")
    stored["w.quant_map"] = torch.linspace(-1, 1, 16)
    with pytest.raises(ValueError, match="w must be intact, but got quant_map: another table"):
        nf4.from_state_dict(stored, "w")


def test_state_is_the_json_that_bitsandbytes_reads() -> None:
    stored = nf4.to_state_dict(nf4.quantize(matrix((7, 22))), "w")
    state = json.loads(bytes(stored["w.quant_state.bitsandbytes__nf4"].tolist()))
    assert state.keys() == {"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype",
                            "nested_offset"}
