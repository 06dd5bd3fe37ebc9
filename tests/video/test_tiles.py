"""Tiles against the whole frame: equal to rounding for both VAEs, whatever the sizes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pack.nodes.video.decode import stream_decode
from pack.nodes.video.tiles import (
    _blend_weights,
    _blended,
    _blended_spans,
    _read,
    _steps,
    layer_spans,
    middle_bytes,
    stream_decode_tiled,
    tile_spans,
    tiled_buffer_bytes,
)

BUFFER = 1 / 65535  # one step of the buffer
RESIDUAL, RESAMPLE = [1, 1], [0, 1]  # a residual block's two convolutions, a doubling with its convolution
WAN21 = [*[RESIDUAL] * 3, RESAMPLE, *[RESIDUAL] * 3, RESAMPLE, *[RESIDUAL] * 3, RESAMPLE, *[RESIDUAL] * 3, [1]]


def streamed(vae, latents, context=None) -> torch.Tensor:
    return torch.cat(list(stream_decode(vae, latents, context)))


def tiled(vae, latents, tile, context=None) -> torch.Tensor:
    return torch.cat(list(stream_decode_tiled(vae, latents, context, tile)))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


@pytest.mark.comfy
@pytest.mark.parametrize(("version", "channels"), [("2.1", 4), ("2.2", 6)])
@pytest.mark.parametrize(("height", "width", "tile"), [(31, 6, 9), (5, 33, 16), (30, 29, 15), (7, 7, 3), (6, 5, 1)])
def test_tiles_equal_the_whole_frame(version, channels, height, width, tile, random_vae):
    vae = random_vae(version)
    z = torch.randn(1, channels, 2, height, width)
    wanted = streamed(vae, z)
    assert wanted.std() > 0.01
    assert (tiled(vae, z, tile) - wanted).abs().max() < 2 * BUFFER


@pytest.mark.comfy
def test_tiles_of_a_later_clip_equal_the_whole_frame_when_behind_its_context(toy_vae, film):
    z, context = film[:, :, 6:9], film[:, :, 4:6]
    pieces = list(stream_decode_tiled(toy_vae, z, context, 6))
    assert [len(piece) for piece in pieces] == [4, 4, 4]
    assert (torch.cat(pieces) - streamed(toy_vae, z, context)).abs().max() < 2 * BUFFER
    assert tiled_buffer_bytes(12, 80, 128) == torch.cat(pieces).numel() * 2
    assert middle_bytes(5, 10, 16, toy_vae.decoder.conv1.out_channels, 4) == 5 * 10 * 16 * 64 * 4


@pytest.mark.comfy
def test_tiles_stay_above_60_db_when_in_bfloat16(toy_vae, film):
    """Both are compared with float32: the tiles may not add to what bfloat16 itself costs."""
    half = _bfloat16(toy_vae)
    z = film[:, :, :3]
    whole, cut = streamed(half, z.bfloat16()), tiled(half, z.bfloat16(), 6)
    assert psnr(cut, whole) > 60
    exact = streamed(toy_vae, z)
    assert psnr(cut, exact) > psnr(whole, exact) - 0.1


@pytest.mark.comfy
def test_cancel_stops_within_a_tile(toy_vae, film):
    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(stream_decode_tiled(toy_vae, film[:, :, :2], None, 6, cancel))
    assert len(calls) == 3


@pytest.mark.comfy
def test_the_margin_is_read_off_the_decoder(toy_vae):
    assert [*map(_steps, toy_vae.decoder.upsamples), _steps(toy_vae.decoder.head)] == WAN21


@given(st.integers(1, 60), st.data())
def test_layers_are_given_what_their_convolutions_see(size, data):
    start = data.draw(st.integers(0, 8 * size - 1))
    span = (start, data.draw(st.integers(start + 1, 8 * size)))
    spans = layer_spans(WAN21, span, size)
    assert spans[-1] == span and len(spans) == len(WAN21) + 1
    scale = 1
    for layer, needed, given_on in zip(WAN21, spans[:-1], spans[1:], strict=True):
        assert 0 <= needed[0] < needed[1] <= size * scale
        start, stop = needed  # what of this layer's output is right
        for step in layer:
            if step == 0:
                start, stop, scale = 2 * start, 2 * stop, 2 * scale
            else:
                start, stop = (start + step if start else 0), (stop - step if stop < size * scale else stop)
        assert start <= given_on[0] and given_on[1] <= stop


@given(st.integers(1, 300), st.integers(1, 300))
def test_tiles_cover_everything_once(size, tile):
    spans = tile_spans(size, tile)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert all(0 < stop - start <= tile for start, stop in spans)


@pytest.mark.comfy
def test_blended_tiles_join_without_a_seam(toy_vae, film):
    """What decoders of other ComfyUI releases get, which cannot be cut behind the middle block."""
    z = film[:, :, :3]
    frames = streamed(toy_vae, z)
    blended = _read(_blended(toy_vae, None, z, None, 8, 9, lambda: None))
    assert psnr(blended, frames) > 30
    columns = (blended[:, :, 1:] - blended[:, :, :-1]).abs().mean((0, 1, 3))
    wanted = (frames[:, :, 1:] - frames[:, :, :-1]).abs().mean((0, 1, 3))
    assert (columns - wanted).abs().max() < 0.01  # no column stands out where tiles meet


@pytest.mark.parametrize(("size", "tile"), [(16, 8), (17, 8), (90, 32), (10, 9), (44, 24), (5, 2), (8, 8), (8, 99)])
def test_blended_tiles_cover_everything_and_weigh_one(size, tile):
    spans = _blended_spans(size, tile)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert all(stop - start == min(tile, size) for start, stop in spans)
    assert all(first[1] > second[0] for first, second in itertools.pairwise(spans))
    weights = torch.stack(_blend_weights(spans, size, 8))
    assert torch.allclose(weights.sum(0), torch.ones(size * 8), atol=1e-6)
    for weight, (start, stop) in zip(weights, spans, strict=True):
        assert weight[: start * 8].sum() == 0 and weight[stop * 8 :].sum() == 0 and weight.min() >= 0


def _bfloat16(vae: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(vae).bfloat16()
