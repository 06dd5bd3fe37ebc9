"""Tiles against the whole frame: equal to rounding for both VAEs, whatever the sizes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack.nodes.video.decode import stream_decode
from pack.nodes.video.tiles import (
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
@pytest.mark.parametrize(("version", "channels"), [("2.1", 4), ("2.2", 6)])
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(height=st.integers(1, 13), width=st.integers(1, 13), across=st.integers(1, 4), latents=st.integers(1, 3),
       context=st.integers(0, 3), parked=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_tiles_of_any_clip_equal_the_whole_frame(version, channels, height, width, across, latents, context, parked,
                                                     dtype, random_vae):
    vae, tile = random_vae(version).to(dtype), -(-max(height, width) // across)
    film = torch.randn(1, channels, context + latents, height, width, dtype=dtype)
    z, before = film[:, :, context:], film[:, :, :context] if context else None
    wanted = streamed(vae, z, before)
    pieces = list(stream_decode_tiled(vae, z, before, tile, parked=parked))
    assert all(1 <= len(piece) <= 4 for piece in pieces)
    if dtype == torch.float32:
        assert (torch.cat(pieces) - wanted).abs().max() < 2 * BUFFER
    else:
        assert psnr(torch.cat(pieces), wanted) > 60


@pytest.mark.comfy
def test_frames_leave_before_the_last_tile_is_through(random_vae, monkeypatch):
    """What has left by then is complete: its pixels are those of the whole frame."""
    monkeypatch.setattr("pack.nodes.video.decode.CALL_LATENT_PIXELS", 1)  # one latent a call
    vae, calls = random_vae("2.1"), []
    z = torch.randn(1, 4, 4, 5, 6)
    pieces = stream_decode_tiled(vae, z, None, 3, lambda: calls.append(1))
    first = next(pieces)
    in_all = 4 + 2 * 2 * 4  # the middle block, then four calls of each tile
    assert len(calls) == in_all - 3 and len(first) == 1
    rest = list(pieces)
    assert len(calls) == in_all and [len(piece) for piece in rest] == [4, 4, 4]
    assert (torch.cat([first, *rest]) - streamed(vae, z)).abs().max() < 2 * BUFFER


@pytest.mark.comfy
@pytest.mark.parametrize("tile", [6, 99])
def test_a_decoder_that_hands_out_pieces_is_cut_as_exactly(toy_vae, film, tile):
    """ComfyUI after 0.3.75 takes the layers behind the middle block two frames at a time and returns a list."""
    later, z = in_pieces(toy_vae), film[:, :, :5]
    assert isinstance(later.decoder(later.conv2(z[:, :, :1]), feat_cache=[None] * 99, feat_idx=[0]), list)
    wanted = streamed(toy_vae, z)
    assert (streamed(later, z) - wanted).abs().max() < 1e-5
    assert (tiled(later, z, tile) - wanted).abs().max() < 2 * BUFFER


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


def in_pieces(vae: torch.nn.Module) -> torch.nn.Module:
    """The same VAE with its decoder run as later ComfyUI releases run it."""
    import copy

    class Later(type(vae.decoder)):
        def forward(self, x, feat_cache=None, feat_idx=(0,)):
            for layer in (_Cached(self.conv1), *self.middle):
                x = layer(x, feat_cache, feat_idx) if _is_causal(layer) else layer(x)
            pieces = []
            self.run_up(0, x, feat_cache, feat_idx, pieces)
            return pieces

        def run_up(self, number, x, feat_cache, feat_idx, pieces):
            if number == len(self.upsamples):
                for layer in map(_Cached, self.head):
                    x = layer(x, feat_cache, feat_idx)
                pieces.append(x)
                return
            layer = self.upsamples[number]
            x = layer(x, feat_cache, feat_idx)
            split = getattr(layer, "mode", "") == "upsample3d" and x.shape[2] > 2
            for part in x.split(2, dim=2) if split else [x]:
                place = feat_idx.copy() if split else feat_idx
                self.run_up(number + 1, part, feat_cache, place, pieces)

    later = copy.deepcopy(vae)
    later.decoder.__class__ = Later
    return later


class _Cached:
    """A layer outside a block with its own cache, which is the decoder's business."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __call__(self, x, feat_cache, feat_idx):
        if type(self.layer).__name__ not in ("CausalConv3d", "_Through"):
            return self.layer(x)
        before, feat_cache[feat_idx[0]] = feat_cache[feat_idx[0]], x[:, :, -2:].clone()
        feat_idx[0] += 1
        return self.layer(x, before)


def _is_causal(layer: object) -> bool:
    return isinstance(layer, _Cached) or type(layer).__name__ == "ResidualBlock"


def _bfloat16(vae: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(vae).bfloat16()
