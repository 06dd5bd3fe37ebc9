"""What a clip of an ordinary checkpoint can be refused for, each in a sentence, before anything is encoded."""

from __future__ import annotations

from typing import Any

import torch

from ..common.compat import model_facts
from ..common.errors import message
from ..common.types import ModelFacts
from ..memory.latent_memory import check_latent_spec, frames_to_keep, latents_of
from .bridge_latent_run import cfg_of
from .latent_presets import LatentRecipe
from .strategy import ClipRequest

FAMILY_NAMES = {"wan": "Wan", "hunyuan": "HunyuanVideo", "hunyuan15": "HunyuanVideo 1.5",
                "svd": "Stable Video Diffusion", "ltx": "LTX-Video"}
KIND_NAMES = {"t2v": "text to video", "i2v": "image to video", "ti2v": "5B text and image to video", "vace": "VACE"}
# Wan variants with other inputs (controls, cameras, sound, poses) have the same sizes but for these: kind -> (class of
# the network, channels that it takes in). Wan 2.1 Fun-InP and FLF2V are I2V with both.
PLAIN_WANS = {"t2v": ("WanModel", 16), "i2v": ("WanModel", 36), "ti2v": ("WanModel", 48), "vace": ("VaceWanModel", 16)}


def check_request(request: ClipRequest, recipe: LatentRecipe, facts: ModelFacts) -> None:
    """Raise ValueError for the first thing that is missing, wrong, or of no use."""
    _check_models(request, recipe, facts)
    check_latent_spec(request.memory.spec, recipe.max_overlap, recipe.min_overlap)
    _check_vae(request, recipe, facts)
    if recipe.clip_vision == "needed" and request.clip_vision is None:
        raise ValueError(message(f"Clip Sampler: {recipe.label} sees its picture through CLIP", "no CLIP Vision model",
                                 "the CLIP_VISION of the checkpoint", "Connect it to clip_vision."))
    if cfg_of(request, recipe) != 1 and not request.negative and recipe.family != "svd":
        raise ValueError(message(f"Clip Sampler: cfg {cfg_of(request, recipe):g} needs a negative prompt", "none",
                                 "a CONDITIONING at negative, or cfg 1", "Connect an empty prompt to negative."))
    if cfg_of(request, recipe) != 1 and recipe.family == "hunyuan_v2":  # core gives it one prompt at a time alone
        raise ValueError(message(f"Clip Sampler: {recipe.label} has its guidance built in", f"cfg {request.cfg:g}",
                                 "cfg 0 or 1", "Set cfg to 1, and use FluxGuidance on the prompt."))
    needed = latents_of(frames_to_keep(request.memory.spec))
    if request.latents < needed:
        raise ValueError(message("Clip Sampler: the clip is shorter than what the next one is given of it",
                                 f"{request.latents} latents", f"{needed} or more",
                                 "Make the clip longer or the overlap shorter."))
    if request.start_image is not None and len(request.start_image) != 1:
        raise ValueError(message("Clip Sampler: a film begins with one picture",
                                 f"a batch of {len(request.start_image)} at start_image", "one IMAGE",
                                 "Choose one with ImageFromBatch."))


def _check_models(request: ClipRequest, recipe: LatentRecipe, facts: ModelFacts) -> None:
    if bool(recipe.boundary) != (request.model_low_noise is not None):
        got = "one model" if recipe.boundary else "two models"
        raise ValueError(message(f"Clip Sampler: {recipe.label}", got,
                                 "the high noise model at model and the low noise one at model_low_noise"
                                 if recipe.boundary else "model alone",
                                 "Connect or disconnect model_low_noise."))
    models = [("model", request.model, facts)]
    if request.model_low_noise is not None:
        models.append(("model_low_noise", request.model_low_noise, model_facts(request.model_low_noise)))
    for name, model, found in models:
        if (found.family, found.kind) != recipe.model or not _is_plain(model, found):
            raise ValueError(message(f"Clip Sampler: the memory is for {recipe.label}",
                                     f"{_named(model, found)} at {name}", _kind_name(*recipe.model),
                                     "Choose on Persistent Memory the checkpoint of your MODEL, or load that one."))


def _is_plain(model: Any, facts: ModelFacts) -> bool:
    inner = model.model.diffusion_model
    return facts.family != "wan" or (type(inner).__name__, inner.in_dim) == PLAIN_WANS[facts.kind]


def _named(model: Any, facts: ModelFacts) -> str:
    if _is_plain(model, facts):
        return _kind_name(facts.family, facts.kind)
    inner = model.model.diffusion_model
    return f"a Wan variant with other inputs ({type(model.model).__name__}, {inner.in_dim} channels in)"


def _kind_name(family: str, kind: str) -> str:
    named = FAMILY_NAMES[family] if family == "svd" else f"{FAMILY_NAMES[family]} {KIND_NAMES[kind]}"
    return f"a {named} model"


def _check_vae(request: ClipRequest, recipe: LatentRecipe, facts: ModelFacts) -> None:
    vae, dims = request.vae, 2 if facts.family == "svd" else 3
    if vae is None:
        raise ValueError(message("Clip Sampler: latent memory looks at the frames themselves", "no VAE",
                                 "the VAE of the checkpoint", "Connect the VAE loader to vae."))
    network = type(vae.first_stage_model).__name__
    found = (vae.latent_channels, vae.latent_dim, vae.spacial_compression_encode())
    # HunyuanVideo's and Wan 2.1's have the same sizes: only the network tells them apart
    is_other = network == ("AutoencodingEngine" if facts.family == "wan" else "WanVAE")
    if found != (facts.latent_channels, dims, facts.spatial_stride) or is_other:
        raise ValueError(message(
            f"Clip Sampler: this VAE does not belong to {recipe.label}",
            f"{network} with {found[0]} channels at {found[2]} pixels{'' if found[1] == 3 else ', for pictures'}",
            f"the checkpoint's own, {facts.latent_channels} channels at {facts.spatial_stride} pixels",
            "Load the VAE of the checkpoint."))
    if not _can_encode(vae):
        raise ValueError(message("Clip Sampler: latent memory encodes frames of the film",
                                 f"a VAE that can only decode ({network})", "the checkpoint's full VAE",
                                 "Load that one; the small one may still serve Save Clip."))


def _can_encode(vae: Any) -> bool:
    """Core's light VAEs of Wan 2.2 and HunyuanVideo 1.5 refuse pixels, which would be said in the second clip."""
    try:
        vae.process_input(torch.zeros(1, 3, 1, 1))
    except NotImplementedError:
        return False
    return True
