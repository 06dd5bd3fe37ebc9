"""One clip in a remembered place, on ComfyUI's own samplers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from ..common.compat import model_facts
from ..common.digest import patcher_key
from ..common.errors import message
from ..common.progress import Progress
from ..common.types import TEMPORAL_STRIDE, ModelFacts
from ..sampling.latent_presets import LATENT_RECIPES, LatentRecipe
from .cloud import Reading, read
from .conditions import FAMILIES, Keys, Shown
from .requests import film_frames, require_path, require_same_vae, require_spatial
from .values import CameraPath, SpatialMemory

ASKED = "Spatial Clip Sampler"
RECIPES = {"vace": LATENT_RECIPES["wan21_vace"], "ti2v": LATENT_RECIPES["wan22_ti2v_5b"]}


@dataclass(frozen=True)
class SpatialRequest:
    """positive, negative: CONDITIONING, negative None or []. start_image: IMAGE of one frame, or None. latents: of the
    clip. steps, cfg: 0 = the recipe's. trust: 0..1."""

    model: Any
    vae: Any
    positive: list
    negative: list | None
    memory: SpatialMemory
    path: CameraPath
    seed: int
    first_frame: int
    latents: int
    start_image: torch.Tensor | None
    trust: float
    steps: int
    cfg: float
    progress: Progress


def sample_in_place(request: SpatialRequest) -> tuple[torch.Tensor, Reading]:
    """([1, C, T, h, w] un-normalised float32 on the CPU, what was read); everything is checked before anything runs."""
    facts, recipe = _check(request)
    reading = read(request.memory, request.path, film_frames(request.first_frame, request.latents))
    request.progress.say(f"the place fills {sum(reading.coverage) / request.latents:.1%} of the clip")
    keys = FAMILIES[facts.kind](_shown(request, facts, reading))
    samples = _sample(request, recipe, keys)
    if keys.noise_mask is not None:  # uni_pc ends a little above 0: what was given is put back
        samples = torch.where(keys.noise_mask == 0, keys.samples, samples)
    return samples, reading


def _check(request: SpatialRequest) -> tuple[ModelFacts, LatentRecipe]:
    require_spatial(request.memory, ASKED)
    require_path(request.path, ASKED)
    facts = model_facts(request.model)
    if facts.kind not in RECIPES or facts.family != "wan":
        raise ValueError(message(f"{ASKED}: model", f"a {facts.family} {facts.kind} model",
                                 "Wan 2.1 VACE (1.3B or 14B), or Wan 2.2 TI2V-5B", "Load one of them."))
    if request.memory.channels != facts.latent_channels or request.vae.latent_channels != facts.latent_channels:
        raise ValueError(message(f"{ASKED}: latents of the model",
                                 f"a memory of {request.memory.channels} channels and a VAE of "
                                 f"{request.vae.latent_channels}", f"{facts.latent_channels} channels",
                                 "Lift the place with the VAE of this model."))
    require_same_vae(request.memory, patcher_key(request.vae.patcher), ASKED)
    wanted = (request.memory.height * facts.spatial_stride, request.memory.width * facts.spatial_stride)
    if (request.path.height, request.path.width) != wanted:
        raise ValueError(message(f"{ASKED}: camera path", f"{request.path.width}x{request.path.height}",
                                 f"{wanted[1]}x{wanted[0]}, the size of the memory", "Give it that size."))
    recipe = RECIPES[facts.kind]
    if (request.cfg or recipe.cfg) != 1 and not request.negative:
        raise ValueError(message(f"{ASKED}: cfg {request.cfg or recipe.cfg:g} needs a negative prompt", "none",
                                 "a CONDITIONING at negative, or cfg 1", "Connect an empty prompt to negative."))
    if request.steps == 1:
        raise ValueError(message(f"{ASKED}: steps", 1, "0 for the recipe's, or 2 and more (uni_pc needs two)",
                                 "Set 0."))
    return facts, recipe


def _shown(request: SpatialRequest, facts: ModelFacts, reading: Reading) -> Shown:
    height, width = request.path.height, request.path.width
    latents, blank = reading.latents[None], request.model.model.process_latent_out
    if facts.kind == "vace":
        frames = TEMPORAL_STRIDE * (request.latents - 1) + 1
        gray = _encode(request, torch.full((frames, height, width, 3), 0.5))
    else:
        gray = blank(torch.zeros_like(latents))
    start = request.start_image
    if start is not None:
        start = comfy.utils.common_upscale(start[:1].movedim(-1, 1), width, height, "bilinear", "center").movedim(1, -1)
        start = _encode(request, start)
    return Shown(latents, reading.holes, gray, start, request.trust)


def _encode(request: SpatialRequest, frames: torch.Tensor) -> torch.Tensor:
    request.progress.check_cancel()
    return request.vae.encode(frames[..., :3]).to("cpu", torch.float32)


def _sample(request: SpatialRequest, recipe: LatentRecipe, keys: Keys) -> torch.Tensor:
    model = request.model
    if "model_sampling" not in model.object_patches:
        model = ModelSamplingSD3().patch(model, recipe.shift)[0]
    steps, cfg = request.steps or recipe.steps, request.cfg or recipe.cfg
    conds = [node_helpers.conditioning_set_values(cond, keys.appended, append=True)
             for cond in (request.positive, request.negative or [])]
    sampler = comfy.samplers.KSampler(model, steps=steps, device=model.load_device, sampler=recipe.sampler,
                                      scheduler=recipe.scheduler, model_options=model.model_options)
    callback = latent_preview.prepare_callback(model, steps)

    def tick(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        callback(step, x0, x, total)
        request.progress.check_cancel()

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(cfg)
    noise = torch.randn(keys.samples.shape, generator=torch.Generator().manual_seed(request.seed))
    return guider.sample(noise, keys.samples, comfy.samplers.sampler_object(recipe.sampler), sampler.sigmas.cpu(),
                         denoise_mask=keys.noise_mask, callback=tick, seed=request.seed).to("cpu", torch.float32)
