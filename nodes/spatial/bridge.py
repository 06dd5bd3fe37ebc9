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
from ..common.types import TEMPORAL_STRIDE, Geometry, ModelFacts, VideoMemory
from ..memory.latent_memory import ClipStart
from ..memory.state import begin_clip
from ..sampling.finite import finite
from ..sampling.latent_presets import LATENT_RECIPES, LatentRecipe
from .cloud import Reading, read
from .conditions import FAMILIES, Keys, Shown
from .hero import as_latent, check_hero, hero_line, hero_start, remembered, shared_latents
from .requests import film_frames, require_path, require_same_vae, require_spatial
from .values import CameraPath, SpatialMemory

ASKED = "Spatial Clip Sampler"
PRESETS = {"vace": "wan21_vace", "ti2v": "wan22_ti2v_5b"}  # kind of MODEL -> its recipe, also for a hero's memory


@dataclass(frozen=True)
class SpatialRequest:
    """positive, negative: CONDITIONING, negative None or []. start_image: IMAGE of one frame, or None. latents: of the
    clip. steps, cfg: 0 = the recipe's. trust: 0..1. hero: VIDEO_MEMORY or None."""

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
    hero: VideoMemory | None = None


@dataclass(frozen=True)
class PlacedClip:
    """samples: a LATENT, un-normalised float32 on the CPU, without the latents that a hero's film has already. reading:
    of all of request.latents. first_frame: of the path, of the first latent in samples. hero: the VIDEO_MEMORY after
    the clip, and lines: what it gave; None and empty without one."""

    samples: dict[str, Any]
    reading: Reading
    first_frame: int
    hero: VideoMemory | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Film:
    """A hero's memory bound to this clip, what the clip begins with, and the first frame to hold the hero to."""

    memory: VideoMemory
    start: ClipStart

    @property
    def anchor_frame(self) -> torch.Tensor | None:
        if self.memory.anchor is not None:
            return self.memory.anchor.frame[None].float() / 255
        return None if self.start.frames is None else self.start.frames[:1]


def sample_in_place(request: SpatialRequest) -> PlacedClip:
    """One clip that is shown the place and, where there is one, the hero; all is checked before anything runs."""
    facts, recipe = _check(request)
    reading = read(request.memory, request.path, film_frames(request.first_frame, request.latents))
    request.progress.say(f"the place fills {sum(reading.coverage) / request.latents:.1%} of the clip")
    film = None if request.hero is None else _film(request, facts)
    shown = _shown(request, facts, reading, film)
    keys = FAMILIES[facts.kind](shown)
    samples = _sample(request, recipe, keys)
    if keys.noise_mask is not None:  # uni_pc ends a little above 0: what was given is put back
        samples = torch.where(keys.noise_mask == 0, keys.samples, samples)
    samples = samples[:, :, keys.lead:]
    if film is None:
        return PlacedClip({"samples": samples}, reading, request.first_frame)
    return _remembered(request, film, samples, shown, reading)


def _check(request: SpatialRequest) -> tuple[ModelFacts, LatentRecipe]:
    require_spatial(request.memory, ASKED)
    require_path(request.path, ASKED)
    facts = model_facts(request.model)
    if facts.kind not in PRESETS or facts.family != "wan":
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
    recipe = LATENT_RECIPES[PRESETS[facts.kind]]
    if (request.cfg or recipe.cfg) != 1 and not request.negative:
        raise ValueError(message(f"{ASKED}: cfg {request.cfg or recipe.cfg:g} needs a negative prompt", "none",
                                 "a CONDITIONING at negative, or cfg 1", "Connect an empty prompt to negative."))
    if request.steps == 1:
        raise ValueError(message(f"{ASKED}: steps", 1, "0 for the recipe's, or 2 and more (uni_pc needs two)",
                                 "Set 0."))
    if request.hero is not None:
        geometry = Geometry(request.memory.channels, request.memory.height, request.memory.width)
        check_hero(request.hero, PRESETS[facts.kind], geometry, request.latents, request.path,
                   request.start_image is not None, ASKED)
    return facts, recipe


def _film(request: SpatialRequest, facts: ModelFacts) -> _Film:
    memory = as_latent(request.hero, PRESETS[facts.kind], lambda latents: _decode(request, latents))
    place, (prompt, told) = request.memory, request.positive[0]
    memory = begin_clip(memory, Geometry(place.channels, place.height, place.width), patcher_key(request.model), prompt,
                        told.get("videomemory_text", ""))
    return _Film(memory, hero_start(memory, _start_image(request)))


def _remembered(request: SpatialRequest, film: _Film, samples: torch.Tensor, shown: Shown,
                reading: Reading) -> PlacedClip:
    memory, dropped = film.memory, film.start.dropped
    inner = request.model.model
    first = None if shown.start is None else inner.process_latent_in(shown.start[:, :, :1])[0]
    after = remembered(memory, film.start, inner.process_latent_in(samples)[0], first,
                       lambda latents: _decode(request, latents))
    latent = {"samples": samples[:, :, dropped:], "first_latent": memory.latents_done, "fps": memory.spec.fps}
    if dropped:
        latent["context_samples"] = samples[:, :, :dropped]
    frame = request.first_frame + TEMPORAL_STRIDE * bool(dropped)
    return PlacedClip(latent, reading, frame, after, (hero_line(memory, film.start, shown.reference is not None),))


def _shown(request: SpatialRequest, facts: ModelFacts, reading: Reading, film: _Film | None) -> Shown:
    blank, before = request.model.model.process_latent_out, 0 if film is None else shared_latents(film.start)
    latents = torch.nn.functional.pad(reading.latents[None], (0, 0, 0, 0, before, 0))
    holes = torch.nn.functional.pad(reading.holes, (0, 0, 0, 0, before, 0), value=True)
    gray = blank(torch.zeros_like(latents))
    if facts.kind == "vace":
        frames = TEMPORAL_STRIDE * (latents.shape[2] - 1) + 1
        gray = _encode(request, torch.full((frames, request.path.height, request.path.width, 3), 0.5))
    start = _start_image(request) if film is None else film.start.frames
    reference = None
    if film is not None and facts.kind == "vace" and film.anchor_frame is not None:
        hero = _encode(request, film.anchor_frame)
        reference = torch.cat((hero, blank(torch.zeros_like(hero))), 1)
    return Shown(latents, holes, gray, None if start is None else _encode(request, start), request.trust, reference)


def _start_image(request: SpatialRequest) -> torch.Tensor | None:
    """[1, H, W, 3] of the path's size."""
    image = request.start_image
    if image is None:
        return None
    return comfy.utils.common_upscale(image[:1].movedim(-1, 1), request.path.width, request.path.height, "bilinear",
                                      "center").movedim(1, -1)[..., :3].to("cpu", torch.float32)


def _encode(request: SpatialRequest, frames: torch.Tensor) -> torch.Tensor:
    request.progress.check_cancel()
    return request.vae.encode(frames[..., :3]).to("cpu", torch.float32)


def _decode(request: SpatialRequest, latents: torch.Tensor) -> torch.Tensor:
    """[n, H, W, 3] float 0..1 of normalised latents [C, n, h, w]."""
    request.progress.check_cancel()
    frames = request.vae.decode(request.model.model.process_latent_out(latents[None]))
    return frames.reshape(-1, *frames.shape[-3:]).to("cpu", torch.float32)


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
    made = guider.sample(noise, keys.samples, comfy.samplers.sampler_object(recipe.sampler), sampler.sigmas.cpu(),
                         denoise_mask=keys.noise_mask, callback=tick, seed=request.seed).to("cpu", torch.float32)
    return finite(made, ASKED)
