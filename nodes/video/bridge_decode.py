"""Latents and a VAE as ComfyUI hands them over -> frames, as soon as they exist.

Wan's VAEs are streamed (decode.py, tiles.py). Any other (HunyuanVideo, LTX, Stable Video Diffusion) is decoded by
ComfyUI, in one piece or in its blended tiles; where no plan says so, its own estimate of memory decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.model_management as mm
import torch

from ..common.progress import Progress
from ..common.types import TILE_BY_CORE, RenderPlan
from .decode import CONTEXT_LATENTS, frame_count, stream_decode, wan_decoder_traits
from .tiles import stream_decode_tiled

TILES_PX = (1024, 768, 512, 384, 256)  # for other VAEs; 256 is what ComfyUI itself falls back to
TIME_TILES = (32, 16, 8)  # latents, where not even the smallest tile fits through the whole clip
MARGIN_LATENTS = 5  # around a tile of a Wan VAE, both sides together
RESCUES = ((384, True), (256, True))  # (tile in pixels, caches in RAM) after running out of memory


def decode_frames(vae: Any, samples: torch.Tensor, context: torch.Tensor | None, tile_px: int | None,
                  progress: Progress, parked: bool = False) -> Iterator[torch.Tensor]:
    """Yield a clip's frames [n, H, W, 3] float32 0..1 on the CPU as soon as they exist.

    samples [1, C, T, h, w] un-normalised, as in a LATENT; context: the latents before them, which are decoded with them
    and dropped (of a Wan VAE the last CONTEXT_LATENTS). tile_px: side of a tile, 0 = whole frames, None = nobody has
    planned it: whole frames of a Wan VAE, of others what fits. parked: a Wan VAE's caches lie in RAM.
    """
    module = vae.first_stage_model
    if wan_decoder_traits(module) is None:
        yield from _decode_by_core(vae, samples, context, tile_px)
        return
    height, width = samples.shape[3:]
    tile = tile_px // vae.spacial_compression_decode() if tile_px else max(height, width)
    around = [min(tile + MARGIN_LATENTS, side) for side in (height, width)]
    needed = vae.memory_used_decode((1, samples.shape[1], 1, *around), vae.vae_dtype)
    mm.load_models_gpu([vae.patcher], memory_required=needed)
    latents = samples.to(vae.device, vae.vae_dtype)
    if context is not None:
        context = context[:, :, -CONTEXT_LATENTS:].to(latents)
    if tile_px:
        pieces = stream_decode_tiled(module, latents, context, tile, progress.check_cancel, parked)
    else:
        pieces = stream_decode(module, latents, context, progress.check_cancel, parked)
    for frames in pieces:
        yield frames.cpu()


def is_exact_in_tiles(vae: Any) -> bool:
    """Whether tiles of this VAE equal the whole frame, so that it does not matter which were taken."""
    return wan_decoder_traits(vae.first_stage_model) is not None


def ways_to_decode(plan: RenderPlan | None) -> list[tuple[int | None, bool]]:
    """(tile_px, parked) as planned, then what to try after each time that memory ran out."""
    by_core = plan is None or plan.decode_tile_px == TILE_BY_CORE
    first = (None, False) if by_core else (plan.decode_tile_px, plan.decode_caches_in_ram)
    return [first, *(way for way in RESCUES if not first[0] or way[0] < first[0])]


def frames_of_latents(vae: Any, latents: int, context: int) -> int:
    """Frames of a clip of `latents` latents behind `context` others, by the VAE's own rule."""
    if is_exact_in_tiles(vae):
        return frame_count(latents, min(context, CONTEXT_LATENTS))
    if vae.latent_dim != 3:  # a VAE of pictures (SVD's) has one frame per latent
        return latents
    return _rule(vae, context + latents) - _rule(vae, context)


def _rule(vae: Any, latents: int) -> int:
    """Frames of that many latents from the start: 4n-3 of HunyuanVideo, 8n-7 of LTX."""
    rule = vae.upscale_ratio[0]
    return int(rule(latents) if callable(rule) else rule * latents) if latents else 0


def _decode_by_core(vae: Any, samples: torch.Tensor, context: torch.Tensor | None,
                    tile_px: int | None) -> Iterator[torch.Tensor]:
    """In one piece in time unless memory asks for more; behind all of the context, whose frames are dropped."""
    is_video = vae.latent_dim == 3
    total = frames_of_latents(vae, samples.shape[2], 0 if context is None else context.shape[2])
    if context is not None:
        samples = torch.cat((context.to(samples), samples), 2)
    if not is_video:
        samples = samples[0].movedim(1, 0)
    tiles = core_tiles(vae, samples, tile_px)
    images = vae.decode_tiled(samples, **tiles) if tiles else vae.decode(samples)
    yield from images.reshape(-1, 1, *images.shape[-3:])[-total:].float().cpu()


def core_tiles(vae: Any, samples: torch.Tensor, tile_px: int | None) -> dict[str, int]:
    """Arguments of core's decode_tiled (in latents) for samples [1, C, T, h, w] or pictures [n, C, h, w]; {} = none.

    tile_px: as planned. None: the largest tile that fits, by ComfyUI's own estimate, into what is free or held by
    models that it can move away; where the smallest does not fit, fewer latents at a time.
    """
    if tile_px == 0:
        return {}
    stride, (height, width) = vae.spacial_compression_decode(), samples.shape[-2:]
    if tile_px:
        return _tile(max(8, tile_px // stride))
    room = mm.get_free_memory(vae.device) + sum(
        loaded.model_loaded_memory() for loaded in mm.current_loaded_models if loaded.device == vae.device)

    def fits(side: int, latents: int) -> bool:
        shape = (*samples.shape[:-2], min(side, height), min(side, width))
        shape = (*shape[:2], latents, *shape[3:]) if len(shape) == 5 else shape
        return vae.model_size() + vae.memory_used_decode(shape, vae.vae_dtype) <= room

    length = samples.shape[2] if samples.ndim == 5 else 0
    if fits(max(height, width), length):
        return {}
    sides = [max(8, px // stride) for px in TILES_PX if px // stride < max(height, width)] or [max(8, width, height)]
    for side in sides:
        if fits(side, length):
            return _tile(side)
    times = [latents for latents in TIME_TILES if latents < length]
    short = next((latents for latents in times if fits(sides[-1], latents)), times[-1] if times else 0)
    return {**_tile(sides[-1]), **({"tile_t": short, "overlap_t": 2} if short else {})}


def _tile(side: int) -> dict[str, int]:
    return {"tile_x": side, "tile_y": side, "overlap": side // 4}
