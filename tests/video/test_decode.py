"""Streaming decode against ComfyUI's own, and how many latents of context make a clip's start seamless."""

from __future__ import annotations

import itertools

import pytest
import torch
from pack.nodes.video.decode import (
    CONTEXT_LATENTS,
    _blend_weights,
    _tile_spans,
    frame_count,
    stream_decode,
    stream_decode_tiled,
    tiled_buffer_bytes,
    wan_decoder_traits,
)


def whole(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """ComfyUI's decode as frames [n, H, W, 3] in 0..1."""
    with torch.no_grad():
        return ((vae.decode(latents) + 1) / 2).clamp(0, 1)[0].permute(1, 2, 3, 0)


def streamed(vae: torch.nn.Module, latents: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cat(list(stream_decode(vae, latents, context)))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def random_vae(version: str) -> torch.nn.Module:
    pytest.importorskip("comfy.ops")
    from comfy.ldm.wan import vae, vae2_2

    torch.manual_seed(0)
    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    if version == "2.1":
        model = vae.WanVAE(dim=8, z_dim=4, **shape)
    else:
        model = vae2_2.WanVAE(dim=8, dec_dim=8, z_dim=6, **shape)
    for parameter in model.parameters():  # core's layers leave their memory as it was
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


@pytest.fixture(scope="module")
def toy_vae(toyworld) -> torch.nn.Module:
    pytest.importorskip("comfy.ops")
    from comfy.ldm.wan.vae import WanVAE
    from safetensors.torch import load_file

    weights = load_file(toyworld / "toyworld_vae_fp16.safetensors")
    model = WanVAE(dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    model.load_state_dict(weights)
    return model.float().eval()


@pytest.fixture(scope="module")
def film(toyworld) -> torch.Tensor:
    pytest.importorskip("comfy.ops")
    from comfy.latent_formats import Wan21
    from safetensors.torch import load_file

    latents = load_file(toyworld / "reference_rollout.safetensors")["latents_euler8"][None]
    return Wan21().process_out(latents)  # [1, 16, 18, 10, 16]


@pytest.mark.comfy
@pytest.mark.parametrize(("version", "channels", "stride"), [("2.1", 4, 8), ("2.2", 6, 16)])
@pytest.mark.parametrize(("latents", "together", "pieces_frames"), [
    (1, 1, [1]), (2, 1, [1, 4]), (5, 1, [1, 4, 4, 4, 4]), (5, 3, [1, 12, 4]), (5, 99, [1, 16])])
def test_equals_comfyui_when_streamed(version, channels, stride, latents, together, pieces_frames, monkeypatch):
    monkeypatch.setattr("pack.nodes.video.decode.CALL_LATENT_PIXELS", together * 4 * 6)
    vae = random_vae(version)
    z = torch.randn(1, channels, latents, 4, 6)
    pieces = list(stream_decode(vae, z))
    assert [len(piece) for piece in pieces] == pieces_frames
    assert pieces[0].shape == (1, 4 * stride, 6 * stride, 3)
    wanted = whole(vae, z)
    assert wanted.std() > 0.01
    assert (torch.cat(pieces) - wanted).abs().max() < 1e-5


@pytest.mark.comfy
@pytest.mark.parametrize(("version", "channels"), [("2.1", 4), ("2.2", 6)])
def test_context_of_the_whole_film_changes_nothing(version, channels):
    vae = random_vae(version)
    z = torch.randn(1, channels, 6, 4, 4)
    assert torch.equal(streamed(vae, z[:, :, 4:], z[:, :, :4]), streamed(vae, z)[-8:])
    assert frame_count(2, 4) == 8 and frame_count(2, 0) == 5


@pytest.mark.comfy
def test_toy_film_equals_comfyui(toy_vae, film):
    z = film[:, :, :4]
    assert (streamed(toy_vae, z) - whole(toy_vae, z)).abs().max() < 1e-5


@pytest.mark.comfy
def test_context_hides_the_join(toy_vae, film):
    """The numbers in decode.py's table, for the join of clips 1 and 2 and the frames right behind it."""
    join = 6
    wanted = streamed(toy_vae, film[:, :, : join + 2])[4 * join - 3 :]
    by_context = {k: psnr(streamed(toy_vae, film[:, :, join : join + 2], film[:, :, join - k : join]), wanted)
                  for k in (1, CONTEXT_LATENTS)}
    assert by_context[1] < 45
    assert by_context[CONTEXT_LATENTS] > 58


@pytest.mark.comfy
def test_tiles_join_without_a_seam(toy_vae, film):
    z = film[:, :, :3]
    frames = streamed(toy_vae, z)
    pieces = list(stream_decode_tiled(toy_vae, z, None, 8))
    assert [len(piece) for piece in pieces] == [4, 4, 1]
    tiled = torch.cat(pieces)
    assert psnr(tiled, frames) > 30
    columns = (tiled[:, :, 1:] - tiled[:, :, :-1]).abs().mean((0, 1, 3))
    wanted = (frames[:, :, 1:] - frames[:, :, :-1]).abs().mean((0, 1, 3))
    assert (columns - wanted).abs().max() < 0.01  # no column stands out where tiles meet
    one_tile = torch.cat(list(stream_decode_tiled(toy_vae, z, None, 16)))
    assert (one_tile - frames).abs().max() < 1e-3  # float16 of the buffer
    context = torch.cat(list(stream_decode_tiled(toy_vae, film[:, :, 2:3], film[:, :, :2], 16)))
    assert (context - frames[-4:]).abs().max() < 1e-3
    assert tiled_buffer_bytes(9, 80, 128) == 9 * 80 * 128 * 6


@pytest.mark.comfy
def test_cancel_stops_at_the_next_latent(toy_vae, film):
    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(stream_decode(toy_vae, film[:, :, :5], None, cancel))
    assert len(calls) == 2


@pytest.mark.comfy
def test_batches_are_refused(toy_vae):
    with pytest.raises(ValueError, match=r"one video at a time.*but got the shape \[2, 16, 1, 4, 4\]"):
        next(stream_decode(toy_vae, torch.zeros(2, 16, 1, 4, 4)))


def test_other_vaes_are_not_taken_for_wan():
    assert wan_decoder_traits(torch.nn.Conv2d(1, 1, 1)) is None
    with pytest.raises(ValueError, match="needs a Wan VAE, but got 'Conv2d'"):
        next(stream_decode(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 4, 1, 4, 4)))


@pytest.mark.parametrize(("size", "tile"), [(16, 8), (17, 8), (90, 32), (10, 9), (44, 24), (5, 2), (8, 8), (8, 99)])
def test_tiles_cover_everything_and_weigh_one(size, tile):
    spans = _tile_spans(size, tile)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert all(stop - start == min(tile, size) for start, stop in spans)
    assert all(first[1] > second[0] for first, second in itertools.pairwise(spans))
    weights = torch.stack(_blend_weights(spans, size, 8))
    assert torch.allclose(weights.sum(0), torch.ones(size * 8), atol=1e-6)
    for weight, (start, stop) in zip(weights, spans, strict=True):
        assert weight[: start * 8].sum() == 0 and weight[stop * 8 :].sum() == 0 and weight.min() >= 0
