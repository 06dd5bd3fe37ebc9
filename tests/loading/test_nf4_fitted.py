"""NF4 with fitted scales: closer than NF4 on every kind of weight, and NF4 to everybody who reads it."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.loading import nf4, nf4_fitted
from pack.nodes.loading.dequantize_torch import plain_absmax

NAME = "blocks.0.ffn.0.weight"
KINDS = {"normal": 0.87, "laplace": 0.89, "uniform": 0.81, "outliers": 0.935}  # squared error against plain NF4


def matrix(kind: str, rows: int = 96, columns: int = 640) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(rows, columns, generator=generator)
    if kind == "laplace":
        weight *= torch.rand(rows, columns, generator=generator).clamp(min=1e-6).log().neg().sqrt()
    if kind == "uniform":
        weight = torch.rand(rows, columns, generator=generator) * 2 - 1
    if kind == "outliers":
        weight[:, ::97] *= 6
    return weight * torch.rand(rows, 1, generator=generator) * 0.05


def errors(codec: object, weight: torch.Tensor) -> torch.Tensor:
    """The squared error of every block of 64."""
    return (nf4.dequantize(codec.quantize(weight), torch.float32) - weight).square().view(-1, 64).sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_smaller_than_that_of_the_largest_magnitude(kind: str) -> None:
    weight = matrix(kind)
    assert errors(nf4_fitted, weight).sum() < KINDS[kind] * errors(nf4, weight).sum()


def test_normal_weights_come_closer_by_seven_percent() -> None:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    plain, fitted = (errors(codec, weight).sum().sqrt() / weight.norm() for codec in (nf4, nf4_fitted))
    assert plain == pytest.approx(0.0919, abs=5e-4) and fitted == pytest.approx(0.0854, abs=5e-4)


def test_no_other_scale_within_the_searched_range_is_much_better() -> None:
    """Against a search of 101 scales per block, each followed by the nearest levels."""
    weight = matrix("normal")
    blocks = weight.view(-1, 64)
    peaks = blocks.abs().amax(1, keepdim=True)
    best = torch.full((len(blocks),), torch.inf)
    levels = nf4.LEVELS["nf4"]
    for share in torch.linspace(0.6, 1.3, 101):
        scaled = (blocks / (peaks * share)).clamp(-1, 1)
        nearest = levels[(scaled[..., None] - levels).abs().argmin(-1)]
        best = torch.minimum(best, (nearest * peaks * share - blocks).square().sum(1))
    assert errors(nf4_fitted, weight).sum() < 1.025 * best.sum()


def test_it_is_nf4_to_every_reader() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = matrix("normal").to(torch.bfloat16)
    stored = nf4_fitted.to_state_dict(nf4_fitted.quantize(weight), NAME)
    assert stored.keys() == nf4.to_state_dict(nf4.quantize(weight), NAME).keys()
    ours = nf4.dequantize(nf4.from_state_dict(stored, NAME), torch.bfloat16)
    parts = {key.removeprefix(f"{NAME}."): tensor for key, tensor in stored.items() if key != NAME}
    theirs = functional.dequantize_4bit(stored[NAME].view(-1, 1), functional.QuantState.from_dict(parts, "cpu"))
    assert torch.equal(ours, theirs)


def test_levels_are_the_nearest_at_the_scale_that_is_read_back() -> None:
    weight = matrix("normal", 8, 128)
    packed = nf4_fitted.quantize(weight)
    levels = nf4.LEVELS["nf4"]
    scaled = weight.view(-1, 64) / plain_absmax(packed)[:, None]
    nearest = (scaled.clamp(-1, 1)[..., None] - levels).abs().argmin(-1).view(-1)
    codes = torch.stack((packed.packed >> 4, packed.packed & 15), -1).view(-1)
    assert torch.equal(codes.long(), nearest)


@pytest.mark.parametrize("shape", [(1, 2), (1, 62), (7, 22), (3, 4100), (513, 1030)])
def test_short_last_blocks_and_long_weights_are_packed_whole(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    packed = nf4_fitted.quantize(weight)
    assert packed.shape == shape
    assert sum(tensor.nbytes for tensor in packed.tensors().values()) == nf4_fitted.packed_bytes(*shape)
    values = nf4.dequantize(packed, torch.float32)
    tail = shape[0] * shape[1] % 64
    for part in (slice(0, None), slice(-tail, None)):
        assert (values.flatten()[part] - weight.flatten()[part]).norm() < 0.13 * weight.flatten()[part].norm()


def test_the_source_is_left_untouched() -> None:
    weight = matrix("normal")
    before = weight.clone()
    nf4_fitted.quantize(weight)
    assert torch.equal(weight, before)
