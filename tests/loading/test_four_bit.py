"""bitsandbytes' 4-bit files: read to the bit (a stored file with digests), and refused where somebody changed them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pack.nodes.loading import dequantize, fp4, nf4
from pack.nodes.loading.four_bit import BLOCK_SIZES
from safetensors import safe_open

ORACLE = Path(__file__).with_name("data") / "bitsandbytes_4bit.safetensors"
CODECS = {"nf4": nf4, "fp4": fp4}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAME = "blocks.0.ffn.0.weight"


def oracle(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One weight of the stored file in bitsandbytes' keys, and the digests of all weights' values."""
    with safe_open(ORACLE, framework="pt") as file:
        keys = [key for key in file.keys() if key.split(".")[0] == name]  # noqa: SIM118
        return {key: file.get_tensor(key) for key in keys}, file.metadata()


@pytest.mark.parametrize("statistics", ["double", "single"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("quant_type", CODECS)
def test_values_equal_those_of_bitsandbytes(quant_type: str, block_size: int, statistics: str) -> None:
    name = f"{quant_type}_{block_size}_{statistics}"
    tensors, digests = oracle(name)
    codec = CODECS[quant_type]
    assert codec.is_stored(tensors, name) and not codec.is_stored(tensors, "another")
    weight = codec.from_state_dict(tensors, name)
    assert weight.block_size == block_size and weight.shape == codec.read_shape(tensors.get, name)
    for dtype in DTYPES:
        values = codec.dequantize(weight, dtype)
        bits = (values + 0.0).view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(bits).hexdigest() == digests[f"{name}.{dtype}"], dtype


@pytest.mark.parametrize("quant_type", CODECS)
def test_what_was_read_is_written_as_it_was(quant_type: str) -> None:
    name = f"{quant_type}_64_double"
    tensors, _ = oracle(name)
    codec = CODECS[quant_type]
    again = codec.to_state_dict(codec.from_state_dict(tensors, name), name)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key].flatten(), tensor.flatten()) for key, tensor in tensors.items())


def test_a_codec_does_not_take_the_other_type() -> None:
    tensors, _ = oracle("fp4_64_double")
    assert not nf4.is_stored(tensors, "fp4_64_double")
    renamed = {key.replace("fp4", "nf4"): tensor for key, tensor in tensors.items()}
    with pytest.raises(ValueError, match="nf4_64_double must be intact, but got the quant_type 'fp4'; allowed: nf4"):
        nf4.from_state_dict(renamed, "nf4_64_double")


@pytest.mark.parametrize("values", [2, 62, 64, 66, 2 * 256 * 64, 2 * 256 * 64 + 2])
def test_the_beginning_of_a_weight_has_the_same_first_values(values: int) -> None:
    weight = nf4.quantize(torch.randn(2, values, generator=torch.Generator().manual_seed(values)))
    first = nf4.dequantize(weight.beginning(), torch.float32)
    assert first.shape == (1, min(2 * values, 2 * 256 * 64))
    assert torch.equal(first[0], nf4.dequantize(weight, torch.float32).flatten()[:first.numel()])


def stored(changes: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """A weight [6, 86], nine blocks of 64, in a file's keys, with entries of its JSON exchanged; None takes one out."""
    weight = torch.randn(6, 86, generator=torch.Generator().manual_seed(1))
    tensors = nf4.to_state_dict(nf4.quantize(weight), NAME)
    state = json.loads(bytes(tensors[NAME + nf4.STATE_SUFFIX].tolist())) | (changes or {})
    text = json.dumps({key: value for key, value in state.items() if value is not None})
    tensors[NAME + nf4.STATE_SUFFIX] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return tensors


def single() -> dict[str, torch.Tensor]:
    """The same with single quantisation: absmax in float32."""
    tensors = {key: tensor for key, tensor in stored({"nested_offset": None}).items() if "nested" not in key}
    return tensors | {f"{NAME}.absmax": torch.rand(9)}


@pytest.mark.parametrize(("changes", "text"), [
    ({"shape": [6, 88]}, r"torch.uint8 of shape \[6, 43\] for a weight of shape \[6, 88\]"),
    ({"shape": [3, 86]}, r"torch.uint8 of shape \[6, 43\] for a weight of shape \[3, 86\]"),
    ({"shape": [172, 3]}, r"for a weight of shape \[172, 3\]; allowed: uint8, half a byte per value, an even number"),
    ({"shape": [1 << 39, 1 << 39]}, "for a weight of shape"), ({"shape": [1 << 41, 2]}, "the shape"),
    ({"shape": [516]}, r"the shape \[516\]"), ({"shape": [-6, -86]}, "the shape"), ({"shape": None}, "the shape None"),
    ({"shape": [6.0, 86]}, "the shape"), ({"shape": [True, 516]}, "the shape"),
    ({"blocksize": 63}, "the blocksize 63; allowed: 32, 64, 128"), ({"blocksize": 0}, "the blocksize 0"),
    ({"blocksize": "64"}, "the blocksize '64'"), ({"blocksize": 64.0}, "the blocksize 64.0"),
    ({"blocksize": [64]}, r"the blocksize \[64\]"), ({"blocksize": -64}, "the blocksize -64"),
    ({"blocksize": 32}, r"absmax: torch.uint8 of shape \[9\]; allowed: uint8 of shape \[17\]"),
    ({"blocksize": 4096}, r"absmax: torch.uint8 of shape \[9\]; allowed: uint8 of shape \[1\]"),
    ({"dtype": "int8"}, "the dtype 'int8'"), ({"dtype": {}}, "the dtype {}"), ({"dtype": None}, "the dtype None"),
    ({"quant_type": "af4"}, "the quant_type 'af4'; allowed: nf4"), ({"quant_type": None}, "the quant_type None"),
    ({"nested_blocksize": 128}, "the nested_blocksize 128; allowed: 256"),
    ({"nested_dtype": "float16"}, "the nested_dtype 'float16'; allowed: float32"),
    ({"nested_offset": float("nan")}, "the nested_offset nan; allowed: a finite number, 0 or more"),
    ({"nested_offset": float("inf")}, "the nested_offset inf"), ({"nested_offset": -0.5}, "the nested_offset -0.5"),
    ({"nested_offset": 10**400}, "the nested_offset 1000"), ({"nested_offset": "1"}, "the nested_offset '1'"),
    ({"nested_offset": True}, "the nested_offset True"), ({"nested_offset": None}, "the nested_offset None"),
    ({"nested_offset": 3.4028234e38}, r"nested_absmax \+ nested_offset with NaN, infinity"),
    ({"comment": "x" * 5000}, "a quant state of torch.uint8 with shape"),
])
def test_refuses_a_changed_state(changes: dict[str, Any], text: str) -> None:
    tensors = stored(changes)
    if "nested_offset" in changes and changes["nested_offset"] == 3.4028234e38:
        tensors[f"{NAME}.nested_absmax"] = torch.tensor([3.0e38])
    with pytest.raises(ValueError, match=f"The packed weight {NAME} must be intact, but got .*{text}"):
        nf4.from_state_dict(tensors, NAME)


@pytest.mark.parametrize(("key", "tensor", "text"), [
    ("", None, "no bytes for a weight"), ("", torch.zeros(6, 42, dtype=torch.uint8), r"shape \[6, 42\] for a weight"),
    ("", torch.zeros(6, 43), r"torch.float32 of shape \[6, 43\]"),
    ("", torch.zeros(6, 43, dtype=torch.int8), r"torch.int8 of shape \[6, 43\]"),
    (".absmax", None, r"absmax: none; allowed: uint8 of shape \[9\]"),
    (".absmax", torch.zeros(8, dtype=torch.uint8), r"absmax: torch.uint8 of shape \[8\]"),
    (".absmax", torch.zeros(10, dtype=torch.uint8), r"absmax: torch.uint8 of shape \[10\]"),
    (".absmax", torch.zeros(9, 1, dtype=torch.uint8), r"absmax: torch.uint8 of shape \[9, 1\]"),
    (".absmax", torch.zeros(9), r"absmax: torch.float32 of shape \[9\]"),
    (".nested_absmax", None, "nested_absmax: none"), (".nested_absmax", torch.zeros(2), r"of shape \[2\]"),
    (".nested_absmax", torch.tensor([float("nan")]), "nested_absmax with NaN, infinity or negative numbers"),
    (".nested_absmax", torch.tensor([float("inf")]), "nested_absmax with NaN, infinity or negative numbers"),
    (".nested_absmax", torch.tensor([-1.0]), "nested_absmax with NaN, infinity or negative numbers"),
    (".nested_absmax", torch.zeros(1).half(), "nested_absmax: torch.float16"),
    (".nested_quant_map", None, "nested_quant_map: none"),
    (".nested_quant_map", torch.linspace(-1, 1, 256), "nested_quant_map: another table"),
    (".nested_quant_map", torch.full((256,), float("nan")), "nested_quant_map: another table"),
    (".nested_quant_map", torch.zeros(255), r"nested_quant_map: torch.float32 of shape \[255\]"),
    (".quant_map", torch.linspace(-1, 1, 16), "quant_map: another table"), (".quant_map", None, "quant_map: none"),
    (nf4.STATE_SUFFIX, torch.tensor([123, 34], dtype=torch.uint8), "a quant state that is not JSON"),
    (nf4.STATE_SUFFIX, torch.zeros(0, dtype=torch.uint8), r"a quant state of torch.uint8 with shape \[0\]"),
    (nf4.STATE_SUFFIX, torch.zeros(1 << 20, dtype=torch.uint8), r"a quant state of .* with shape \[1048576\]"),
])
def test_refuses_changed_tensors(key: str, tensor: torch.Tensor | None, text: str) -> None:
    tensors = stored() | {NAME + key: tensor}
    with pytest.raises(ValueError, match=f"The packed weight {NAME} must be intact, but got .*{text}"):
        nf4.from_state_dict({key: tensor for key, tensor in tensors.items() if tensor is not None}, NAME)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_refuses_absmax_that_is_no_magnitude(bad: float) -> None:
    tensors = single()
    assert nf4.from_state_dict(tensors, NAME).shape == (6, 86)
    tensors[f"{NAME}.absmax"][4] = bad
    with pytest.raises(ValueError, match=f"{NAME} must be intact, but got absmax with NaN, infinity or negative"):
        nf4.from_state_dict(tensors, NAME)


@pytest.mark.parametrize("shape", [[6, 88], [1 << 39, 1 << 39], [516]])
def test_a_shape_is_told_only_of_a_weight_that_has_it(shape: list[int]) -> None:
    with pytest.raises(ValueError, match=f"The packed weight {NAME} must be intact"):
        nf4.read_shape(stored({"shape": shape}).get, NAME)


def test_back_ends_that_fail_or_differ_are_left_out_and_told(caplog: pytest.LogCaptureFixture,
                                                             monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "missing_library.py").write_text("import no_such_library\n")
    (tmp_path / "no_compiler.py").write_text("def unpack(weight, dtype):\n    raise KeyError('cc')\n")
    (tmp_path / "other_numbers.py").write_text(
        "from . import dequantize_torch\n\ndef unpack(weight, dtype):\n"
        "    return dequantize_torch.unpack(weight, dtype) * 2\n")
    (tmp_path / "good.py").write_text("from .dequantize_torch import unpack\n")
    import pack.nodes.loading as room

    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    caplog.set_level("INFO")
    weight = nf4.quantize(torch.randn(4, 64))
    modules = ("missing_library", "no_compiler", "other_numbers")
    assert dequantize.choose(weight, modules)[0] == "torch"
    assert dequantize.choose(weight, (*modules, "good", "missing_library"))[0] == "good"
    assert "missing_library is not usable (ModuleNotFoundError" in caplog.text
    assert "no_compiler is not usable (KeyError" in caplog.text
    assert "other_numbers is not used: it gives other numbers than torch" in caplog.text
