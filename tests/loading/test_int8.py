"""int8 weights: against plain arithmetic, round trips, and files that somebody changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.loading import int8
from safetensors.torch import load_file, save_file

NAME = "blocks.0.ffn.0.weight"


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weights whose rows differ in size."""
    generator = torch.Generator().manual_seed(rows * 7919 + columns)
    return (torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)).to(dtype)


def stored(changes: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """A weight in a file's keys, with entries of its JSON exchanged."""
    tensors = int8.to_state_dict(int8.quantize(matrix(6, 10)), NAME)
    state = json.loads(bytes(tensors[NAME + int8.STATE_SUFFIX].tolist())) | (changes or {})
    tensors[NAME + int8.STATE_SUFFIX] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


@given(st.integers(1, 70), st.integers(1, 300), st.sampled_from(int8.SOURCE_DTYPES))
@settings(deadline=None, max_examples=60)
def test_every_value_is_within_half_a_step_of_its_row(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = matrix(rows, columns, dtype)
    ours = int8.quantize(weight)
    step = weight.float().abs().amax(1, keepdim=True) / 127
    error = (int8.dequantize(ours, torch.float32) - weight.float()).abs()
    assert (error <= step * 0.5001).all()
    assert ours.shape == (rows, columns) and ours.dtype == dtype
    assert sum(tensor.nbytes for tensor in ours.tensors().values()) == int8.packed_bytes(rows, columns)


@pytest.mark.parametrize("dtype", int8.SOURCE_DTYPES, ids=str)
def test_values_are_products_in_float32_rounded_once(dtype: torch.dtype) -> None:
    ours = int8.quantize(matrix(600, 900))
    assert torch.equal(int8.dequantize(ours, dtype), (ours.packed.float() * ours.scale[:, None]).to(dtype))


def test_rows_of_zeros_and_tiny_numbers_stay_what_they_are() -> None:
    weight = torch.zeros(3, 8)
    weight[1] = 1e-42
    weight[2] = 1e-30
    back = int8.dequantize(int8.quantize(weight), torch.float32)
    assert torch.equal(back[:2], torch.zeros(2, 8))
    torch.testing.assert_close(back[2], weight[2], rtol=1e-6, atol=0)


def test_state_dict_round_trip_through_a_file_keeps_every_bit(tmp_path) -> None:
    weight = int8.quantize(matrix(7, 22, torch.float16))
    save_file(int8.to_state_dict(weight, NAME), tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    assert int8.is_stored(tensors, NAME) and not int8.is_stored(tensors, "blocks.1.weight")
    again = int8.from_state_dict(tensors, NAME)
    assert again.dtype == torch.float16 and torch.equal(again.packed, weight.packed)
    assert torch.equal(again.scale, weight.scale)
    assert int8.read_shape(tensors.get, NAME) == (7, 22)


@pytest.mark.parametrize("weight", [torch.zeros(4), torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(1, 2, 3, 4, 5),
                                    torch.zeros(4, 4, dtype=torch.float64)], ids=lambda weight: str(weight.shape))
def test_refuses_what_has_no_int8_form(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"int8 quantisation needs a matrix, but got .* of shape .*not empty"):
        int8.quantize(weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_broken_weights(bad: float) -> None:
    weight = matrix(5, 64)
    weight[3, 10] = bad
    with pytest.raises(ValueError, match="int8 quantisation needs finite weights, but got a weight with NaN or inf"):
        int8.quantize(weight)


@pytest.mark.parametrize(("changes", "text"), [
    ({"version": 2}, "version 2 of int8; allowed: version 1"),
    ({"shape": [10, 6]}, r"torch.int8 of shape \[6, 10\]; allowed: int8 of shape \[10, 6\]"),
    ({"shape": [60]}, r"the shape \[60\]"), ({"shape": [6, -10]}, r"the shape \[6, -10\]"),
    ({"shape": "6x10"}, "the shape '6x10'"), ({"dtype": "uint8"}, "the dtype 'uint8'"),
    ({"dtype": ["float32"]}, r"the dtype \['float32'\]"),
])
def test_refuses_a_changed_state(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"The packed weight {NAME} must be intact, but got {text}"):
        int8.from_state_dict(stored(changes), NAME)


@pytest.mark.parametrize(("key", "tensor", "text"), [
    (".scale", torch.full((6,), float("nan")), "scale with NaN, infinity or negative numbers"),
    (".scale", torch.full((6,), -1.0), "scale with NaN, infinity or negative numbers"),
    (".scale", torch.ones(5), "5 values of scale in torch.float32; allowed: 6 values in float32"),
    (".scale", torch.ones(6).half(), "6 values of scale in torch.float16"),
    (".scale", torch.ones(6, 1), "no row of scales"), (".scale", None, "no row of scales"),
    ("", torch.zeros(6, 10), r"torch.float32 of shape \[6, 10\]; allowed: int8 of shape \[6, 10\]"),
    (int8.STATE_SUFFIX, torch.tensor([123, 34], dtype=torch.uint8), "a quant state that is not JSON"),
    (int8.STATE_SUFFIX, torch.tensor([255, 254], dtype=torch.uint8), "a quant state that is not JSON"),
    (int8.STATE_SUFFIX, torch.tensor([91, 93], dtype=torch.uint8), "a quant state that is a list"),
    (int8.STATE_SUFFIX, torch.zeros(5000, dtype=torch.uint8), r"torch.uint8 with shape \[5000\]"),
    (int8.STATE_SUFFIX, torch.zeros(9), r"torch.float32 with shape \[9\]"),
])
def test_refuses_changed_tensors(key: str, tensor: torch.Tensor | None, text: str) -> None:
    tensors = stored() | {NAME + key: tensor}
    with pytest.raises(ValueError, match=f"The packed weight {NAME} must be intact, but got .*{text}"):
        int8.from_state_dict({key: tensor for key, tensor in tensors.items() if tensor is not None}, NAME)


@pytest.mark.parametrize("shape", [[10, 6], [6, 11], [1 << 39, 1 << 39]])
def test_a_shape_is_told_only_of_a_weight_that_has_it(shape: list[int]) -> None:
    with pytest.raises(ValueError, match=f"The packed weight {NAME} must be intact, but got torch.int8 of shape"):
        int8.read_shape(stored({"shape": shape}).get, NAME)
