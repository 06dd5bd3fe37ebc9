"""Any matrix survives packing within its format's error; any damage to a stored one is refused, or changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.nodes.loading import files, int8, nf4
from pack.nodes.loading.dequantize_torch import plain_absmax
from pack.nodes.loading.levels import LEVELS
from safetensors.torch import save_file

CODECS = {"nf4": nf4, "int8": int8}
DTYPES = list(nf4.SOURCE_DTYPES)
WIDEST = (LEVELS["nf4"][1:] - LEVELS["nf4"][:-1]).max().item()  # between two levels of NF4
NAME = "blocks.0.ffn.0.weight"


def matrix(rows: int, columns: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Weights whose rows differ in size, the last one zeros where there are several."""
    generator = torch.Generator().manual_seed(rows * 7919 + columns)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator) * scale
    if rows > 1:
        weight[-1] = 0
    return weight.to(dtype)


def check_nf4(weight: torch.Tensor, values: torch.Tensor) -> None:
    """Every value lies within half the widest gap of its block's scale, and the scales within a percent of the peaks.

    A scale's own error is at most half a step of the dynamic map at its coarsest, 0.9 / 64 / 2, of its nested peak.
    """
    packed = nf4.quantize(weight)
    flat, back = weight.float().flatten(), values.flatten()
    peaks = torch.stack([block.abs().max() for block in flat.split(64)])
    scales = plain_absmax(packed)
    slack = packed.nested_absmax.max() * 0.0075 + peaks.max() * 1e-5 + 1e-37
    assert ((scales - peaks).abs() <= slack).all()
    limit = (peaks * WIDEST / 2 + slack).repeat_interleave(64)[:flat.numel()]
    assert ((back - flat).abs() <= limit).all()


def check_int8(weight: torch.Tensor, values: torch.Tensor) -> None:
    step = weight.float().abs().amax(1, keepdim=True) / 127
    assert ((values - weight.float()).abs() <= step * 0.5001 + 1e-37).all()


CHECKS = {"nf4": check_nf4, "int8": check_int8}


@given(rows=st.integers(1, 40), columns=st.integers(1, 200), dtype=st.sampled_from(DTYPES),
       form=st.sampled_from([*CODECS]), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e3]))
@settings(deadline=None, max_examples=150)
def test_any_matrix_survives_packing_a_file_and_unpacking(rows: int, columns: int, dtype: torch.dtype, form: str,
                                                          scale: float) -> None:
    codec = CODECS[form]
    weight = matrix(rows, columns * (2 if form == "nf4" else 1), dtype, scale)
    packed = codec.quantize(weight)
    assert packed.shape == tuple(weight.shape) and packed.dtype == dtype
    assert sum(tensor.nbytes for tensor in packed.tensors().values()) == codec.packed_bytes(*weight.shape)
    again = codec.from_state_dict(codec.to_state_dict(packed, NAME), NAME)
    values = codec.dequantize(again, torch.float32)
    CHECKS[form](weight, values)
    for lower in (torch.float16, torch.bfloat16):
        assert torch.equal(codec.dequantize(again, lower), values.to(lower))


@pytest.mark.parametrize("form", CODECS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 1e-45, 1e-40, -1.2e-38, 1e-30, 1e30, -6e4])
@pytest.mark.parametrize("shape", [(1, 2), (1, 64), (3, 66), (9, 1024)], ids=str)
def test_a_constant_weight_stays_what_it_is(form: str, value: float, shape: tuple[int, int]) -> None:
    values = CODECS[form].dequantize(CODECS[form].quantize(torch.full(shape, value)), torch.float32)
    torch.testing.assert_close(values, torch.full(shape, value), rtol=1e-5, atol=1.2e-38)


@pytest.mark.parametrize("form", CODECS)
def test_huge_values_are_kept_or_refused_as_too_large(form: str) -> None:
    for size in (1e36, 1e37, 3e38):
        weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * size
        try:
            values = CODECS[form].dequantize(CODECS[form].quantize(weight), torch.float32)
        except ValueError as error:
            assert size > 1e36 and "numbers too large to average" in str(error)
            continue
        assert torch.isfinite(values).all()
        assert (values - weight).norm(dtype=torch.float64) < 0.2 * weight.norm(dtype=torch.float64)


@pytest.mark.parametrize("form", CODECS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (8,), (2, 3, 4), (4, 16, 1, 2, 2), ()], ids=str)
def test_refuses_what_is_empty_or_no_matrix(form: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"quantisation needs a matrix, but got torch.float32 of shape .*not empty"):
        CODECS[form].quantize(torch.zeros(shape))


@pytest.mark.parametrize("form", CODECS)
def test_views_and_transposed_matrices_are_packed_like_copies(form: str) -> None:
    weight = matrix(66, 128, torch.float32).t()
    ours, expected = CODECS[form].quantize(weight), CODECS[form].quantize(weight.contiguous())
    assert all(torch.equal(tensor, expected.tensors()[field]) for field, tensor in ours.tensors().items())


def stored(codec: ModuleType) -> dict[str, torch.Tensor]:
    return codec.to_state_dict(codec.quantize(matrix(6, 86, torch.float16)), NAME)


def damage_state(state: dict[str, Any], chance: random.Random) -> bytes:
    """The JSON of a state with one entry exchanged, lost or doubled, or with bytes of its text changed."""
    strange = [None, True, -1, 0, 1, 2.5, 1 << 33, 1 << 70, 1e400, float("nan"), "", "64", [], [1], {}, [6, 86], "nf4"]
    if chance.random() < 0.4:
        state = dict(state)
        field = chance.choice([*state])
        kind = chance.randrange(4)
        if kind == 0:
            del state[field]
        elif kind == 1:
            state[field] = chance.choice(strange)
        elif kind == 2:
            state[field] = [chance.choice(strange) for _ in range(chance.randrange(4))]
        else:
            state[chance.choice(["shape", "extra", "nested_offset"])] = chance.choice(strange)
        return json.dumps(state).encode()
    text = bytearray(json.dumps(state).encode())
    for _ in range(chance.randrange(1, 4)):
        spot = chance.randrange(len(text))
        text[spot:spot + chance.randrange(2)] = bytes(chance.randrange(256) for _ in range(chance.randrange(3)))
    return bytes(text)


@pytest.mark.parametrize("form", CODECS)
def test_fuzzed_states_give_the_same_weight_or_a_value_error(form: str) -> None:
    codec, refused = CODECS[form], 0
    tensors = stored(codec)
    whole = json.loads(bytes(tensors[NAME + codec.STATE_SUFFIX].tolist()))
    for seed in range(600):
        text = damage_state(whole, random.Random(seed))
        changed = tensors | {NAME + codec.STATE_SUFFIX: torch.frombuffer(bytearray(text or b"{"), dtype=torch.uint8)}
        try:
            shape = codec.read_shape(changed.get, NAME)
            weight = codec.from_state_dict(changed, NAME)
        except ValueError as error:
            assert NAME in str(error), text
            refused += 1
            continue
        assert shape == weight.shape == (6, 86)
        expected = codec.from_state_dict(tensors, NAME)
        if form == "nf4":  # the mean is a number as good as any other; everything else must be as it was
            expected = expected.with_tensors({**expected.tensors(), "offset": weight.offset})
            assert weight.offset.item() == pytest.approx(json.loads(text)["nested_offset"], rel=1e-6)
        assert torch.equal(codec.dequantize(weight, torch.float32), codec.dequantize(expected, torch.float32)), text
    assert 300 < refused < 600, refused


def damage_tensors(tensors: dict[str, torch.Tensor], chance: random.Random) -> dict[str, torch.Tensor]:
    """One tensor lost, cut, lengthened, reshaped, in another dtype, or exchanged for another of the tensors."""
    changed, key = dict(tensors), chance.choice([*tensors])
    tensor = changed.pop(key)
    kind = chance.randrange(6)
    if kind == 1:
        changed[key] = tensor.flatten()[:chance.randrange(tensor.numel() + 1)]
    elif kind == 2:
        changed[key] = torch.cat((tensor.flatten(), tensor.flatten()[:chance.randrange(1, 9)]))
    elif kind == 3:
        changed[key] = tensor.reshape(chance.choice([(1, -1), (-1, 1), (1, 1, -1), (-1,)]))
    elif kind == 4:
        changed[key] = tensor.to(chance.choice([torch.float64, torch.float16, torch.int64, torch.int8, torch.bool]))
    elif kind == 5:
        changed[key] = chance.choice([*tensors.values()])
    return changed


@pytest.mark.parametrize("form", CODECS)
def test_fuzzed_tensors_give_the_same_weight_or_a_value_error(form: str) -> None:
    codec, refused = CODECS[form], 0
    tensors = stored(codec)
    expected = codec.dequantize(codec.from_state_dict(tensors, NAME), torch.float32)
    for seed in range(400):
        changed = damage_tensors(tensors, random.Random(seed))
        if not codec.is_stored(changed, NAME):
            continue
        try:
            weight = codec.from_state_dict(changed, NAME)
        except ValueError as error:
            assert NAME in str(error), seed
            refused += 1
            continue
        assert torch.equal(codec.dequantize(weight, torch.float32), expected), seed
    assert 150 < refused < 400, refused


def damage_header(header: bytes, chance: random.Random) -> bytes:
    """A safetensors header with bytes exchanged, or one that is JSON still but tells something else of one tensor."""
    if chance.random() < 0.3:
        changed = bytearray(header)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    entries = json.loads(header)
    key = chance.choice([key for key in entries if key != "__metadata__"])
    entry, other = entries[key], entries[chance.choice([*entries])]
    kind = chance.randrange(6)
    if kind == 0:
        entry["dtype"] = chance.choice(["U8", "I8", "BOOL", "F8_E4M3", "F16", "F32", "F64", "U16", "Q4", "", 8])
    elif kind == 1:
        flat = [torch.Size(entry["shape"]).numel()]
        entry["shape"] = chance.choice([entry["shape"][::-1], [1, *entry["shape"]], flat, [], [0], [-1],
                                        [1 << 33, 1 << 33], ["6", 43], 258])
    elif kind == 2:
        entry["data_offsets"] = chance.choice([[0, 0], [-8, 8], [0, 1 << 63], [0], "all", entry["data_offsets"][::-1],
                                               other.get("data_offsets", [8, 16])])
    elif kind == 3:
        entries[chance.choice([key + "x", NAME, NAME + ".absmax", NAME + ".scale", "another", ""])] = entries.pop(key)
    elif kind == 4:
        entries[chance.choice(["twice", "__metadata__", NAME])] = chance.choice([entry, {}, None, {"format": 1}])
    else:
        entry[chance.choice(["dtype", "shape", "data_offsets", "more"])] = other.get(chance.choice(["dtype", "shape"]))
    return json.dumps(entries).encode()


@pytest.mark.parametrize("form", CODECS)
def test_fuzzed_file_headers_give_the_same_weights_or_a_value_error(form: str, tmp_path: Path) -> None:
    codec, refused, read = CODECS[form], 0, 0
    tensors = stored(codec)
    save_file(tensors, tmp_path / "whole.safetensors", {"format": "pt"})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    expected = codec.dequantize(codec.from_state_dict(tensors, NAME), torch.float32)
    for seed in range(500):
        chance = random.Random(seed)
        header = damage_header(whole[8:8 + length], chance)
        said = chance.choice([len(header)] * 9 + [chance.randrange(1 << 64)])
        path = tmp_path / f"{seed}.safetensors"
        path.write_bytes(said.to_bytes(8, "little") + header + whole[8 + length:])
        try:
            with files.open_tensors(path) as file:
                names = [name for name in file.headers if codec.is_stored(file.headers, name)]
                found = {key: file.get(key) for key in file.headers}
            weights = [codec.from_state_dict(found, name) for name in names]
        except ValueError as error:
            assert path.name in str(error) or "weight" in str(error), seed
            refused += 1
            continue
        finally:
            path.unlink()
        read += len(weights)
        assert all(torch.equal(codec.dequantize(weight, torch.float32), expected) for weight in weights), seed
    assert refused > 250 and read > 10, (refused, read)
