"""VAEs that ComfyUI decodes: HunyuanVideo's, LTX's and Stable Video Diffusion's own classes with random weights."""

from __future__ import annotations

import functools

import pytest
import torch
from pack.nodes.common.progress import SILENT

pytestmark = pytest.mark.comfy

KL = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
      "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
CHANNELS = {"hunyuan": 16, "ltx": 128, "svd": 4}
STRIDES = {"hunyuan": 8, "ltx": 32, "svd": 8}


@functools.cache
def vae(kind: str):
    """As core loads it from a file; ComfyUI knows these in their full size alone."""
    import comfy.sd
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
    from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine

    regularizer = {"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"}
    if kind == "hunyuan":
        module = AutoencoderKL(ddconfig={**KL, "z_channels": 16, "conv3d": True, "time_compress": 4}, embed_dim=16)
    elif kind == "ltx":
        module = VideoVAE(version=0)
    else:
        module = AutoencodingEngine(
            regularizer_config=regularizer,
            encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": KL},
            decoder_config={"target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
                            "params": {**KL, "video_kernel_size": [3, 1, 1], "alpha": 0.0}})
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(value.shape, generator=generator) * 0.03 for name, value in
               module.state_dict().items()}
    return comfy.sd.VAE(sd=weights, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(autouse=True, scope="module")
def _let_go():
    yield
    vae.cache_clear()


def latents(kind: str, count: int, height: int = 2, width: int = 3) -> torch.Tensor:
    return torch.randn(1, CHANNELS[kind], count, height, width, generator=torch.Generator().manual_seed(count))


def decoded(kind: str, samples: torch.Tensor, context: torch.Tensor | None = None, tile_px=None) -> torch.Tensor:
    from pack.nodes.video.bridge_decode import decode_frames

    return torch.cat(list(decode_frames(vae(kind), samples, context, tile_px, SILENT)))


def whole(kind: str, samples: torch.Tensor) -> torch.Tensor:
    frames = vae(kind).decode(samples[0].movedim(1, 0) if kind == "svd" else samples)
    return frames.reshape(-1, *frames.shape[-3:])


@pytest.mark.parametrize(("kind", "frames"), [("hunyuan", 9), ("ltx", 17), ("svd", 3)])
def test_a_first_clip_is_what_comfyui_decodes(kind, frames):
    samples = latents(kind, 3)
    out = decoded(kind, samples)
    assert out.shape == (frames, 2 * STRIDES[kind], 3 * STRIDES[kind], 3)
    assert torch.equal(out, whole(kind, samples)) and out.std() > 0.001


@pytest.mark.parametrize(("kind", "per_latent"), [("hunyuan", 4), ("ltx", 8), ("svd", 1)])
def test_a_later_clip_is_the_end_of_what_was_decoded_with_it(kind, per_latent):
    from pack.nodes.video.bridge_decode import frames_of_latents

    film = latents(kind, 3)
    out = decoded(kind, film[:, :, 1:], film[:, :, :1])
    assert len(out) == 2 * per_latent == frames_of_latents(vae(kind), 2, 1)
    assert torch.equal(out, whole(kind, film)[-len(out):])


@pytest.mark.parametrize("kind", CHANNELS)
def test_planned_tiles_are_core_s_own_and_lose_no_frame(kind):
    samples = latents(kind, 2, 9, 2)
    side = 8 * STRIDES[kind]
    out = decoded(kind, samples, tile_px=side)
    flat = samples[0].movedim(1, 0) if kind == "svd" else samples
    wanted = vae(kind).decode_tiled(flat, tile_x=8, tile_y=8, overlap=2)
    assert torch.equal(out, wanted.reshape(-1, *wanted.shape[-3:]))
    assert not torch.equal(out, decoded(kind, samples, tile_px=0))


def with_room(monkeypatch, kind: str, samples: torch.Tensor, share: float) -> dict:
    """The tiles that are chosen where this share of what whole frames need is free."""
    from pack.nodes.video import bridge_decode

    one = vae(kind)
    needed = one.memory_used_decode(samples.shape, one.vae_dtype)
    monkeypatch.setattr(bridge_decode.mm, "get_free_memory", lambda _device: int(one.model_size() + needed * share))
    monkeypatch.setattr(bridge_decode.mm, "current_loaded_models", [])
    return bridge_decode.core_tiles(one, samples, None)


@pytest.mark.parametrize("kind", ["hunyuan", "ltx"])
def test_without_a_plan_the_largest_tile_that_fits_is_taken(kind, monkeypatch):
    stride = STRIDES[kind]
    samples = torch.zeros(1, CHANNELS[kind], 33, 704 // stride, 1280 // stride)
    assert with_room(monkeypatch, kind, samples, 1.0) == {}
    half, less = (with_room(monkeypatch, kind, samples, share) for share in (0.7, 0.25))
    assert half == {"tile_x": 768 // stride, "tile_y": 768 // stride, "overlap": 768 // stride // 4}
    assert less["tile_x"] == 384 // stride and "tile_t" not in less
    short = with_room(monkeypatch, kind, samples, 0.04)
    assert (short["tile_x"], short["tile_t"], short["overlap_t"]) == (256 // stride, 16, 2)
    assert with_room(monkeypatch, kind, samples, 0.0)["tile_t"] == 8


def test_a_picture_at_a_time_is_tiled_where_one_does_not_fit(monkeypatch):
    samples = torch.zeros(25, 4, 72, 128)
    assert with_room(monkeypatch, "svd", samples, 1.0) == {}
    assert with_room(monkeypatch, "svd", samples, 0.5)["tile_x"] == 64


def test_tiles_in_time_lose_no_frame():
    from pack.nodes.video import bridge_decode

    samples = latents("hunyuan", 5, 2, 2)
    tiles = {**bridge_decode._tile(8), "tile_t": 3, "overlap_t": 2}
    assert len(vae("hunyuan").decode_tiled(samples, **tiles)[0]) == 17
