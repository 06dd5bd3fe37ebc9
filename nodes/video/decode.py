"""Streaming decode of the Wan 2.1 and Wan 2.2 VAEs: a few latents in, their frames out, nothing kept but the caches.

Both decoders are causal in time: each convolution needs the last two inputs it saw. ComfyUI's own `decode` holds those
in a list that it throws away when it returns, after all frames were concatenated; here the list lives as long as the
generator, so frames leave as soon as they exist and the frames in memory do not grow with the clip.

Frame counts: the first latent ever fed gives 1 frame, every later one 4. A clip that is not the first of its film is
therefore decoded behind the latents before it (its context), whose frames are dropped: 4 frames per latent remain and
the join is the one that the film decoded in one go would have had.

Layouts: latents [1, C, T, h, w] as the VAE takes them (un-normalised), frames [n, H, W, 3] float32 in 0..1.
Sources: Wan 2.1 and 2.2 VAE, Wan Team 2025 (causal feature cache); ComfyUI's module tree is only called, not copied.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..common.errors import message
from ..common.progress import SILENT
from ..common.types import TEMPORAL_STRIDE

# How many latents of the film to decode before a clip, and drop. Measured on the demo film (3 clips of 6 latents; the
# Wan VAE's depth in time is the same at every size), PSNR against the film decoded in one go:
#   k                     0     1     2     3     4     5
#   whole clip, dB      40.5  43.0  50.9  57.1  63.5  69.7
#   first 4 frames, dB  31.6  36.3  44.4  50.5  57.0  62.8
# 4 is the first whose error lies below what rounding to 8 bits costs anyway (58.9 dB).
CONTEXT_LATENTS = 4

# Small frames are decoded several latents at a time, up to this many latent pixels: 12 latents of the demo's 16x10, one
# of any film of 480 lines or more. On one CPU thread torch's 3D convolution leaves oneDNN for a loop ten times slower
# when its input is small; the demo's ten latents take 1.4 s in two calls and 6 s in ten (CPU seconds, AMD EPYC).
CALL_LATENT_PIXELS = 2048


@dataclass(frozen=True)
class WanDecoderTraits:
    """What differs between the Wan decoders, read from the module.

    cache_slots: causal convolutions in the decoder, one cache each. latents_per_call: least number of latents of a
    call after the first (2 where the caches keep only the last call's inputs). marks_first: forward takes
    `first_chunk`. patch: side of the pixel patch folded into the channels.
    """

    cache_slots: int
    latents_per_call: int
    marks_first: bool
    patch: int


def wan_decoder_traits(vae: torch.nn.Module) -> WanDecoderTraits | None:
    """The traits of a Wan VAE module, or None when it is not one (then its own `decode` must be used)."""
    decoder, parts = getattr(vae, "decoder", None), ("conv1", "middle", "upsamples", "head")
    if not hasattr(vae, "conv2") or not all(hasattr(decoder, part) for part in parts):
        return None
    slots = sum(type(module).__name__ == "CausalConv3d" for module in decoder.modules())
    marks_first = "first_chunk" in inspect.signature(decoder.forward).parameters
    patch = getattr(vae, "patch_size", 2) if marks_first else 1
    if not slots or decoder.head[-1].out_channels != 3 * patch * patch:
        return None
    # ComfyUI releases with `run_up` cache views of the current call only: two latents fill the two-deep cache.
    return WanDecoderTraits(slots, 2 if hasattr(decoder, "run_up") else 1, marks_first, patch)


def frame_count(latents: int, context_latents: int) -> int:
    """Pixel frames of a clip of `latents` latents decoded behind `context_latents` dropped ones."""
    return TEMPORAL_STRIDE * latents - (0 if context_latents else TEMPORAL_STRIDE - 1)


class ParkedCaches(list):
    """The decoder's caches, lying in RAM until their layer asks for them: VRAM holds one layer's at a time.

    ComfyUI's layers bring a cache to the device of their input before they use it, so that nothing else is needed.
    """

    def __setitem__(self, slot: int, cache: torch.Tensor | str | None) -> None:
        super().__setitem__(slot, cache.to("cpu") if isinstance(cache, torch.Tensor) else cache)


def new_caches(slots: int, parked: bool) -> list:
    """Empty caches of a decoder that has seen nothing yet."""
    return ParkedCaches([None] * slots) if parked else [None] * slots


@torch.no_grad()
def stream_decode(
    vae: torch.nn.Module,
    latents: torch.Tensor,
    context: torch.Tensor | None = None,
    check_cancel: Callable[[], None] = SILENT.check_cancel,
    parked: bool = False,
) -> Iterator[torch.Tensor]:
    """Yield the frames of `latents`, call by call, on the module's device.

    latents: [1, C, T, h, w] on the module's device and in its dtype. context: [1, C, k, h, w], the latents before them
    in the film, decoded and dropped. Equals `vae.decode` of both together without the context's frames. parked: the
    caches lie in RAM, with the same result.
    """
    traits = require_traits(vae, latents)
    drop = 0 if context is None else frame_count(context.shape[2], 0)
    film = latents if context is None else torch.cat([context.to(latents), latents], dim=2)
    caches = new_caches(traits.cache_slots, parked)
    for start, stop in calls_of(film.shape[2], traits, film.shape[3] * film.shape[4]):
        check_cancel()
        options = {"first_chunk": True} if traits.marks_first and start == 0 else {}
        out = joined(vae.decoder(vae.conv2(film[:, :, start:stop]), feat_cache=caches, feat_idx=[0], **options))
        frames = frames_of(out, traits.patch)
        if drop < len(frames):
            yield frames[drop:]
        drop = max(0, drop - len(frames))


def require_traits(vae: torch.nn.Module, latents: torch.Tensor) -> WanDecoderTraits:
    traits = wan_decoder_traits(vae)
    if traits is None:
        raise ValueError(message(
            "Streaming decode needs a Wan VAE", type(vae).__name__, "the Wan 2.1 and Wan 2.2 VAEs",
            "Load the VAE that belongs to the checkpoint."))
    if latents.ndim != 5 or latents.shape[0] != 1:
        raise ValueError(message(
            "Streaming decode takes one video at a time, [1, C, T, h, w]", f"the shape {list(latents.shape)}",
            "a batch of one with five dimensions", "Set the batch size to 1."))
    return traits


def calls_of(latents: int, traits: WanDecoderTraits, latent_pixels: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of the latents of each decoder call: the film's first alone, then as many as are worth it."""
    together = max(traits.latents_per_call, CALL_LATENT_PIXELS // latent_pixels)
    yield 0, 1
    for start in range(1, latents, together):
        yield start, min(start + together, latents)


def joined(out: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """What a decoder has returned as one tensor: later ComfyUI releases hand out pieces in time."""
    return torch.cat(out, dim=2) if isinstance(out, list) else out


def frames_of(out: torch.Tensor, patch: int) -> torch.Tensor:
    """A decoder's output [1, 3 * p * p, n, H / p, W / p] in -1..1 as frames [n, H, W, 3] float32 in 0..1."""
    _, channels, n, h, w = out.shape
    # the patch's column index varies slower than its row index in the channels
    out = out[0].view(channels // (patch * patch), patch, patch, n, h, w).permute(3, 4, 2, 5, 1, 0)
    return out.reshape(n, h * patch, w * patch, -1).float().add(1.0).div(2.0).clamp(0.0, 1.0)
