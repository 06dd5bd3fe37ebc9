"""A chunk's picture as ComfyUI makes it: decoded with the VAE, or a preview of its latents."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import latent_preview
import numpy as np
import torch

from ..common.digest import patcher_key
from ..common.errors import message
from ..common.types import VideoMemory
from .report import FrameOf
from .state import caches

FORMATS = {16: comfy.latent_formats.Wan21, 48: comfy.latent_formats.Wan22}  # by channels, of checkpoints with K/V


def frame_maker(memory: VideoMemory, vae: Any) -> FrameOf:
    """Makes one frame of a chunk, from its middle: by the VAE or, without one, from core's latent-to-RGB factors.

    The chunk is decoded alone, up to its middle latent, whose last frame is taken: a little softer than in the film,
    because nothing before it is seen. Raises ValueError for a VAE of another model.
    """
    if vae is not None and memory.geometry is not None and vae.latent_channels != memory.geometry.channels:
        raise ValueError(message("Memory Report: this VAE does not belong to the film",
                                 f"a VAE of {vae.latent_channels} channels", f"{memory.geometry.channels} channels",
                                 "Connect the VAE that decodes the film."))
    channels = memory.geometry.channels if memory.geometry else next(iter(FORMATS))
    formats = FORMATS[channels]()

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        middle = latents.shape[1] // 2
        frames = vae.decode(formats.process_out(latents[None, :, : middle + 1]))
        return frames.reshape(-1, *frames.shape[-3:])[-1].float().cpu()

    def previewed(latents: torch.Tensor) -> torch.Tensor:
        middle = latents.shape[1] // 2
        factors = formats.latent_rgb_factors, formats.latent_rgb_factors_bias
        previewer = latent_preview.Latent2RGBPreviewer(*factors)
        image = previewer.decode_latent_to_preview(latents[None, :, middle : middle + 1])
        return torch.from_numpy(np.asarray(image).copy()).float() / 255

    return previewed if vae is None else decoded


def model_note(memory: VideoMemory, model: Any) -> tuple[str, ...]:
    """Whether the keys and values were made by this MODEL, as a sentence; nothing without a MODEL or without any."""
    if model is None or not caches(memory):
        return ()
    if patcher_key(model) == memory.model_key:
        return ("The connected model made this memory.",)
    return ("The connected model is not the one that made this memory (other weights, LoRA, strength or quantisation): "
            "its next clip rebuilds keys and values from the latents.",)
