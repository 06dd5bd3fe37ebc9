"""The noise levels of a clip on one MODEL or on a pair for high and low noise, and the sampling itself: core's own."""

from __future__ import annotations

import hashlib
import traceback
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import latent_preview
import torch
from comfy.extra_samplers import uni_pc
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

from ..common.errors import message
from .bridge_room import with_room
from .finite import finite
from .latent_presets import LatentRecipe
from .strategy import ClipRequest
from .unfinished import Unfinished

ATTEMPTS = 4  # of one model's levels; each time a quarter of its weights more rests in RAM
UNI_PC = (uni_pc.sample_unipc, uni_pc.sample_unipc_bh2)


@dataclass(frozen=True)
class Part:
    """What one MODEL samples: its noise levels, float32 [steps + 1], falling."""

    model: Any
    sigmas: torch.Tensor

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def cfg_of(request: ClipRequest, recipe: LatentRecipe) -> float:
    return request.cfg or recipe.cfg


def plan_parts(request: ClipRequest, recipe: LatentRecipe) -> tuple[Part, ...]:
    """Who samples which noise levels; ValueError for levels that do not fall to 0, or leave a model nothing to do.

    Of a pair the first model samples at every level from recipe.boundary up, as Wan 2.2's generate.py asks
    t >= boundary * 1000, the second below it.
    """
    models = [_prepared(model, recipe) for model in (request.model, request.model_low_noise) if model is not None]
    sigmas = _levels(models[0], request, recipe)
    parts = [sigmas]
    if len(models) > 1:
        split = int((sigmas >= recipe.boundary).sum())
        parts = [sigmas[: split + 1], sigmas[split:]]
    if min(map(len, parts)) < 2:
        raise ValueError(message("Clip Sampler: one model of the pair would have nothing to do", _shown(sigmas),
                                 f"noise levels above and below {recipe.boundary:g}",
                                 "Give more levels, or disconnect sigmas and take the recipe's."))
    if getattr(_sampler(request, recipe), "sampler_function", None) in UNI_PC and min(map(len, parts)) == 2:
        raise ValueError(message("Clip Sampler: ComfyUI's uni_pc returns noise when it has a single step",
                                 f"{' and '.join(str(len(part) - 1) for part in parts)} steps",
                                 "two or more steps for each model", "Connect KSamplerSelect with euler to sampler."))
    return tuple(Part(model, part) for model, part in zip(models, parts, strict=True))


def sample_parts(parts: tuple[Part, ...], request: ClipRequest, recipe: LatentRecipe, conds: list[list],
                 noise: torch.Tensor, samples: torch.Tensor, noise_mask: torch.Tensor | None, clip: int,
                 unfinished: Unfinished, given_up: list[str]) -> torch.Tensor:
    """samples denoised, un-normalised, float32 on the CPU; noise is added once, whoever samples after that.

    clip: absolute latent at which the clip begins; random samplers draw by it. unfinished: keeps what each model has
    left, the last one too: the frames that the next clip needs are still to be decoded. given_up: gets a sentence where
    memory ran out. One progress bar over all parts.
    """
    first, kept = unfinished.parts(tuple(noise.shape))
    if kept is not None:
        noise, samples = torch.zeros_like(noise), kept
    done, total = sum(part.steps for part in parts[:first]), sum(part.steps for part in parts)
    callback = latent_preview.prepare_callback(parts[0].model, total)
    for i, part in enumerate(parts[first:], first):

        def tick(step: int, x0: torch.Tensor, x: torch.Tensor, _steps: int, before: int = done) -> None:
            callback(before + step, x0, x, total)
            request.progress.check_cancel()

        samples, attempts = _sample_part(part, request, recipe, conds, noise, samples, denoise_mask=noise_mask,
                                         callback=tick, seed=_seed(request.seed, f"clip {clip} part {i}"))
        finite(samples, "Clip Sampler")
        if attempts > 1:
            given_up.append(f"Memory ran out {attempts - 1}x: sampled again, with more of the model in RAM.")
        noise = torch.zeros_like(noise)  # the second model goes on from what the first has left
        done += part.steps
        words = "its samples" if i + 1 == len(parts) else "what its first model has made"
        failure = unfinished.keep(samples, words, i + 1)
        if failure:
            request.progress.say(failure)
    return samples


def _sample_part(part: Part, request: ClipRequest, recipe: LatentRecipe, conds: list[list], noise: torch.Tensor,
                 samples: torch.Tensor, **options: Any) -> tuple[torch.Tensor, int]:
    """(one model's levels, float32 on the CPU, attempts). Out of memory, they begin again with more of the model in
    RAM, unless the plan pins it to the card."""
    room, weights, attempt = request.room_bytes, int(part.model.model_size()), 1
    while True:
        guider = comfy.samplers.CFGGuider(with_room(part.model, room))
        guider.set_conds(*conds)
        guider.set_cfg(cfg_of(request, recipe))
        try:
            made = guider.sample(noise, samples, _sampler(request, recipe), part.sigmas, **options)
            return made.to("cpu", torch.float32), attempt
        except mm.OOM_EXCEPTION as error:
            if attempt == ATTEMPTS or "offload" in request.pinned:
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that did not fit
        attempt += 1
        mm.soft_empty_cache()
        room = max(room, int(part.model.memory_required(list(noise.shape)))) + weights // ATTEMPTS
        request.progress.say(f"memory ran out: attempt {attempt} of {ATTEMPTS}, with more of the model in RAM")


def noise_at(seed: int, names: list[str], shape: tuple[int, ...], dim: int) -> torch.Tensor:
    """Noise that depends on (seed, name) alone along dim: a resumed or re-rolled clip draws what it drew before."""
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(_seed(seed, f"latent {name}")))
                      for name in names], dim)


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little") >> 1


def _sampler(request: ClipRequest, recipe: LatentRecipe) -> Any:
    return request.sampler or comfy.samplers.sampler_object(recipe.sampler)


def _prepared(model: Any, recipe: LatentRecipe) -> Any:
    """The model with the recipe's shift, unless its own sampling was set by another node; SVD's with CFG that rises
    over the frames, as its authors sample it."""
    if recipe.family == "svd":
        model = VideoLinearCFGGuidance().patch(model, 1.0)[0]
    if not recipe.shift or "model_sampling" in model.object_patches:
        return model
    return ModelSamplingSD3().patch(model, recipe.shift)[0]


def _levels(model: Any, request: ClipRequest, recipe: LatentRecipe) -> torch.Tensor:
    if request.sigmas is None:
        return comfy.samplers.KSampler(model, steps=recipe.steps, device=model.load_device, sampler=recipe.sampler,
                                       scheduler=recipe.scheduler, model_options=model.model_options).sigmas.cpu()
    sigmas = request.sigmas.detach().to("cpu", torch.float32, copy=True)  # uni_pc writes into what it is given
    falls = sigmas.ndim == 1 and len(sigmas) > 1 and bool((sigmas[1:] < sigmas[:-1]).all()) and float(sigmas[-1]) == 0
    if not falls:
        raise ValueError(message("Clip Sampler: these sigmas do not make a clip out of noise", _shown(sigmas),
                                 "two or more noise levels that fall to 0", "Take those of BasicScheduler."))
    return sigmas


def _shown(sigmas: torch.Tensor) -> str:
    levels = [f"{float(level):g}" for level in sigmas.flatten()]
    return f"the levels {', '.join(levels[:12])}{', ...' if len(levels) > 12 else ''}" if levels else "no levels at all"
