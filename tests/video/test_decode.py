"""Streaming decode against ComfyUI's own, and how many latents of context make a clip's start seamless."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack.nodes.video.decode import (
    CONTEXT_LATENTS,
    frame_count,
    new_caches,
    stream_decode,
    wan_decoder_traits,
)
from torch.utils._python_dispatch import TorchDispatchMode


def whole(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """ComfyUI's decode as frames [n, H, W, 3] in 0..1."""
    with torch.no_grad():
        return ((vae.decode(latents) + 1) / 2).clamp(0, 1)[0].permute(1, 2, 3, 0)


def streamed(vae: torch.nn.Module, latents: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cat(list(stream_decode(vae, latents, context)))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


@pytest.mark.comfy
@pytest.mark.parametrize(("version", "channels", "stride"), [("2.1", 4, 8), ("2.2", 6, 16)])
@pytest.mark.parametrize(("latents", "together", "pieces_frames"), [
    (1, 1, [1]), (2, 1, [1, 4]), (5, 1, [1, 4, 4, 4, 4]), (5, 3, [1, 12, 4]), (5, 99, [1, 16])])
def test_equals_comfyui_when_streamed(version, channels, stride, latents, together, pieces_frames, random_vae,
                                      monkeypatch):
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
def test_context_of_the_whole_film_changes_nothing(version, channels, random_vae):
    vae = random_vae(version)
    z = torch.randn(1, channels, 6, 4, 4)
    assert torch.equal(streamed(vae, z[:, :, 4:], z[:, :, :4]), streamed(vae, z)[-8:])
    assert frame_count(2, 4) == 8 and frame_count(2, 0) == 5


@pytest.mark.comfy
@pytest.mark.parametrize(("version", "channels"), [("2.1", 4), ("2.2", 6)])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(latents=st.integers(1, 6), context=st.integers(0, 5), height=st.integers(1, 5), width=st.integers(1, 5),
       together=st.integers(1, 6), parked=st.booleans())
def test_streamed_equals_whole_for_any_clip(version, channels, latents, context, height, width, together, parked,
                                            random_vae):
    """Also the count: 4n - 3 frames at the film's start, 4n behind any context."""
    vae = random_vae(version)
    film = torch.randn(1, channels, context + latents, height, width)
    z, before = film[:, :, context:], film[:, :, :context] if context else None
    with mock.patch("pack.nodes.video.decode.CALL_LATENT_PIXELS", together * height * width):
        frames = torch.cat(list(stream_decode(vae, z, before, parked=parked)))
    assert len(frames) == frame_count(latents, context) == 4 * latents - (0 if context else 3)
    assert (frames - whole(vae, film)[-len(frames):]).abs().max() < 1e-5


class ToRam(TorchDispatchMode):
    """Lets tensors without data, which stand for those on a card, be copied to RAM."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.empty(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)


@pytest.mark.comfy
@pytest.mark.parametrize(("version", "channels"), [("2.1", 4), ("2.2", 6)])
def test_parked_caches_leave_the_device(version, channels, random_vae):
    vae = random_vae(version).to("meta")
    for module in vae.modules():
        if hasattr(module, "optimized_attention"):
            module.optimized_attention = lambda q, k, v: torch.empty_like(q)
    places = []
    for parked in (False, True):
        caches = new_caches(wan_decoder_traits(vae).cache_slots, parked)
        with mock.patch("pack.nodes.video.decode.new_caches", lambda *_, caches=caches: caches), ToRam():
            frames = list(stream_decode(vae, torch.empty(1, channels, 3, 64, 64, device="meta"), parked=parked))
        places.append({cache.device.type for cache in caches if cache is not None})
    assert places == [{"meta"}, {"cpu"}] and len(frames) == 3 and {piece.device.type for piece in frames} == {"meta"}


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
