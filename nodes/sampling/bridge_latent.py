"""One clip of an ordinary checkpoint on ComfyUI's own samplers: encode what it begins with, sample, trim, remember."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

from ..common.compat import model_facts, patcher_key
from ..common.errors import message
from ..common.types import Anchor, ModelFacts, VideoMemory
from ..memory.colour import hold_colours
from ..memory.latent_memory import (
    ClipStart,
    check_latent_spec,
    clip_start,
    frames_to_keep,
    latents_of,
    make_anchor,
    overlap_frames,
    remember,
)
from ..memory.state import begin_clip
from .latent_presets import LATENT_RECIPES, LatentRecipe
from .latent_strategy import FAMILIES, Given, Keys
from .strategy import ClipRequest, ClipResult

DECODE_CONTEXT = 4  # latents decoded before the last frames: as many as video.decode needs for a join that is not seen
SVD_MOTION_BUCKET = 127


@dataclass(frozen=True)
class _Film:
    """The request with what was derived from it: the recipe, the memory bound to this film, and the clip's start."""

    request: ClipRequest
    recipe: LatentRecipe
    memory: VideoMemory
    start: ClipStart
    anchor: Anchor | None
    width: int
    height: int

    @property
    def latents(self) -> int:
        """Latents of the sampled clip, those that will be dropped included."""
        return self.request.latents + self.start.dropped

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return self.request.vae.encode(frames[:, :, :, :3]).to("cpu", torch.float32)

    @property
    def anchor_frame(self) -> torch.Tensor | None:
        return self.start.frames[:1] if self.anchor is None and self.start.frames is not None else (
            None if self.anchor is None else self.anchor.frame[None].float() / 255)


def sample_latent(request: ClipRequest) -> ClipResult:
    """One clip of an ordinary checkpoint: the strategy "latent" of Clip Sampler."""
    film = _open(request)
    inner = request.model.model
    request.progress.say(f"clip {film.memory.clips_done + 1}: {film.latents} latents")
    if film.recipe.family == "svd":
        raw, encoded = _sample_svd(film), None
    else:
        given = _given(film, inner.process_latent_out)
        keys = FAMILIES[film.recipe.family](given)
        conds = [_with_keys(cond, _with_vision(film, keys)) for cond in (request.positive, request.negative or [])]
        raw, encoded = _sample(film, keys, conds)[:, :, keys.lead:], given.anchor_latent
    clean = inner.process_latent_in(raw)
    anchor = film.anchor or _make_anchor(film, raw, clean, encoded)
    if film.memory.spec.colour_hold and film.anchor is not None:
        slots = film.start.dropped if film.start.is_continued else 0
        clean = hold_colours(clean[0], anchor.mean, anchor.std, film.memory.spec.colour_hold, _raw(film, slots))[None]
        raw = inner.process_latent_out(clean)
    return _result(film, raw, clean, anchor)


def _open(request: ClipRequest) -> _Film:
    """Everything that can be refused is refused here, before anything is encoded."""
    recipe, facts = LATENT_RECIPES[request.memory.spec.preset], model_facts(request.model)
    _check(request, recipe, facts)
    geometry, key = request.geometry, patcher_key(request.model)
    if request.model_low_noise is not None:
        key = key[:16] + patcher_key(request.model_low_noise)[:16]
    memory = begin_clip(request.memory, geometry, key, request.positive[0][0])
    width, height = geometry.width * facts.spatial_stride, geometry.height * facts.spatial_stride
    image = request.start_image
    if image is not None:  # as core's nodes do it
        image = comfy.utils.common_upscale(image[:1].movedim(-1, 1), width, height, "bilinear", "center").movedim(1, -1)
        image = image[..., :3].to("cpu", torch.float32)
    start = clip_start(memory, image, request.is_cut, recipe.reanchors, recipe.family not in ("vace", "svi"))
    if recipe.needs_start and memory.anchor is None and start.frames is None:
        raise ValueError(message(f"Clip Sampler: {recipe.label} begins a film with a picture", "no start image",
                                 "an IMAGE at start_image in the first clip", "Connect Load Image to start_image."))
    return _Film(request, recipe, memory, start, memory.anchor, width, height)


def _check(request: ClipRequest, recipe: LatentRecipe, facts: ModelFacts) -> None:
    found = (facts.family, facts.kind)
    if found != recipe.model:
        raise ValueError(message(f"Clip Sampler: the memory is for {recipe.label}", " ".join(found),
                                 " ".join(recipe.model), "Choose on Persistent Memory the checkpoint of your MODEL."))
    check_latent_spec(request.memory.spec, recipe.max_overlap)
    if request.vae is None:
        raise ValueError(message("Clip Sampler: latent memory looks at the frames themselves", "no VAE",
                                 "the VAE of the checkpoint", "Connect the VAE loader to vae."))
    if _cfg(request, recipe) != 1 and request.negative is None and recipe.family != "svd":
        raise ValueError(message(f"Clip Sampler: cfg {_cfg(request, recipe):g} needs a negative prompt", "none",
                                 "a CONDITIONING at negative, or cfg 1", "Connect an empty prompt to negative."))
    if bool(recipe.boundary) != (request.model_low_noise is not None):
        got = "one model" if recipe.boundary else "two models"
        raise ValueError(message(f"Clip Sampler: {recipe.label}", got,
                                 "the high noise model at model and the low noise one at model_low_noise"
                                 if recipe.boundary else "model alone",
                                 "Connect or disconnect model_low_noise."))
    if recipe.clip_vision == "needed" and request.clip_vision is None:
        raise ValueError(message(f"Clip Sampler: {recipe.label} sees its picture through CLIP", "no CLIP Vision model",
                                 "the CLIP_VISION of the checkpoint", "Connect it to clip_vision."))
    if request.latents < request.memory.spec.overlap_latents:
        raise ValueError(message("Clip Sampler: the clip is shorter than what the next one is given of it",
                                 f"{request.latents} latents", f"{request.memory.spec.overlap_latents} or more",
                                 "Make the clip longer or the overlap shorter."))


def _cfg(request: ClipRequest, recipe: LatentRecipe) -> float:
    return request.cfg or recipe.cfg


def _given(film: _Film, blank: Callable[[torch.Tensor], torch.Tensor]) -> Given:
    anchor, memory = film.anchor, film.memory
    latent = None
    if anchor is not None:
        latent = blank(anchor.latents[None])
    elif film.start.frames is not None:
        latent = film.encode(film.start.frames[:1])
    motion = None
    if film.recipe.family == "svi" and film.start.is_continued and memory.spec.overlap_latents > 1:
        motion = blank(memory.tail[None, :, -(memory.spec.overlap_latents - 1):])
    return Given(film.request.geometry, film.latents, film.width, film.height, film.start.frames, film.anchor_frame,
                 latent, motion, film.encode, blank)


def _with_vision(film: _Film, keys: Keys) -> Keys:
    """The film's first frame through CLIP, where the model looks at it."""
    if film.recipe.clip_vision and film.request.clip_vision is not None:
        keys.values["clip_vision_output"] = film.request.clip_vision.encode_image(film.anchor_frame)
    return keys


def _with_keys(cond: list, keys: Keys) -> list:
    cond = node_helpers.conditioning_set_values(cond, keys.values)
    return node_helpers.conditioning_set_values(cond, keys.appended, append=True)


def _sample(film: _Film, keys: Keys, conds: list[list]) -> torch.Tensor:
    """[1, C, N, h, w] un-normalised, float32 on the CPU."""
    request, recipe = film.request, film.recipe
    names = [f"lead {film.memory.clips_done}.{i}" for i in range(keys.lead)]
    first = film.memory.latents_done - film.start.dropped
    names += [str(first + i) for i in range(film.latents)]
    noise = noise_at(request.seed, names, keys.samples[:, :, :1].shape, 2)
    models = [_shifted(model, recipe) for model in (request.model, request.model_low_noise) if model is not None]
    sigmas = _sigmas(models[0], request, recipe)
    return _run(film, models, conds, noise, keys.samples, keys.noise_mask, sigmas)


def _run(film: _Film, models: list, conds: list[list], noise: torch.Tensor, samples: torch.Tensor,
         noise_mask: torch.Tensor | None, sigmas: torch.Tensor) -> torch.Tensor:
    """Sample with one model, or with a pair: the first down to the recipe's boundary, the second from there."""
    request, recipe = film.request, film.recipe
    parts, done, total = [sigmas], 0, len(sigmas) - 1
    if len(models) > 1:
        split = int((sigmas >= recipe.boundary).sum())
        parts = [sigmas[: split + 1], sigmas[split:]]
    callback = latent_preview.prepare_callback(models[0], total)
    sampler = request.sampler or comfy.samplers.sampler_object(recipe.sampler)
    for model, levels in zip(models, parts, strict=True):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(*conds)
        guider.set_cfg(_cfg(request, recipe))

        def tick(step: int, x0: torch.Tensor, x: torch.Tensor, _steps: int, before: int = done) -> None:
            callback(before + step, x0, x, total)
            request.progress.check_cancel()

        if len(levels) > 1:
            samples = guider.sample(noise, samples, sampler, levels, denoise_mask=noise_mask, callback=tick,
                                    seed=_seed(request.seed, f"clip {film.memory.latents_done}")).to("cpu")
            noise = torch.zeros_like(noise)  # the second model goes on from what the first has left
        done += len(levels) - 1
    return samples.to(torch.float32)


def _sample_svd(film: _Film) -> torch.Tensor:
    """[1, 4, frames, h, w]: Stable Video Diffusion denoises pictures, one per frame, and reads no text."""
    request, recipe, count = film.request, film.recipe, overlap_frames(film.latents)
    pooled = request.clip_vision.encode_image(film.anchor_frame).image_embeds.unsqueeze(0)
    image = film.encode(film.start.frames)
    facts = {"motion_bucket_id": SVD_MOTION_BUCKET, "fps": int(recipe.fps), "augmentation_level": 0.0}
    conds = [[[pooled, {**facts, "concat_latent_image": image}]],
             [[torch.zeros_like(pooled), {**facts, "concat_latent_image": torch.zeros_like(image)}]]]
    first = film.memory.latents_done * 4 - overlap_frames(film.start.dropped) if film.start.dropped else 0
    noise = noise_at(request.seed, [str(first + i) for i in range(count)], image[:1].shape, 0)
    model = VideoLinearCFGGuidance().patch(request.model, 1.0)[0]
    samples = _run(film, [model], conds, noise, torch.zeros_like(noise), None, _sigmas(model, request, recipe))
    return samples.movedim(0, 1)[None]


def noise_at(seed: int, names: list[str], shape: tuple[int, ...], dim: int) -> torch.Tensor:
    """Noise that depends on (seed, name) alone along dim: a resumed or re-rolled clip draws what it drew before."""
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(_seed(seed, f"latent {name}")))
                      for name in names], dim)


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little") >> 1


def _shifted(model: Any, recipe: LatentRecipe) -> Any:
    """The model with the recipe's shift, unless its own sampling was set by another node."""
    if not recipe.shift or "model_sampling" in model.object_patches:
        return model
    return ModelSamplingSD3().patch(model, recipe.shift)[0]


def _sigmas(model: Any, request: ClipRequest, recipe: LatentRecipe) -> torch.Tensor:
    if request.sigmas is not None:
        return request.sigmas.to("cpu", torch.float32)
    return comfy.samplers.KSampler(model, steps=recipe.steps, device=model.load_device, sampler=recipe.sampler,
                                   scheduler=recipe.scheduler, model_options=model.model_options).sigmas.cpu()


def _raw(film: _Film, latents: int) -> int:
    """Entries along the time axis: latents, or frames where the VAE leaves time alone (SVD)."""
    if film.recipe.family != "svd":
        return latents
    return overlap_frames(latents) if latents else 0


def _make_anchor(film: _Film, raw: torch.Tensor, clean: torch.Tensor, encoded: torch.Tensor | None) -> Anchor:
    if film.start.frames is not None:
        frame = film.start.frames[0]
    else:
        frame = film.request.vae.decode(raw[:, :, :1]).reshape(-1, film.height, film.width, 3)[0]
    first = None if encoded is None else film.request.model.model.process_latent_in(encoded)[0]
    return make_anchor(clean[0], frame, first)


def _result(film: _Film, raw: torch.Tensor, clean: torch.Tensor, anchor: Anchor) -> ClipResult:
    dropped, memory = _raw(film, film.start.dropped), film.memory
    kept = frames_to_keep(memory.spec)
    shown = latents_of(kept) + DECODE_CONTEXT
    tail = raw[:, :, -shown:] if film.recipe.family != "svd" else raw[0, :, -kept:].movedim(1, 0)
    frames = film.request.vae.decode(tail).reshape(-1, film.height, film.width, 3)
    latent = {"samples": raw[:, :, dropped:], "first_latent": memory.latents_done, "fps": memory.spec.fps}
    if dropped:
        latent["context_samples"] = raw[:, :, :dropped]
    after = remember(memory, clean[0, :, dropped:], frames, anchor)
    return ClipResult(latent, after, _report(film))


def _report(film: _Film) -> str:
    recipe, start, spec = film.recipe, film.start, film.memory.spec
    frames = overlap_frames(film.latents)
    seen = "text alone" if start.frames is None else f"{len(start.frames)} frames"
    begun = "the clip before" if start.is_continued else "the film's first frame" if start.is_anchored else "its start"
    parts = [f"Clip {film.memory.clips_done + 1}: {frames} frames sampled ({recipe.label}), begun with {seen} from "
             f"{begun}" + (", led by the film's first frame again" if start.is_continued and start.is_anchored else "")
             + f"; {overlap_frames(start.dropped) if start.dropped else 0} of them trimmed."]
    if frames > recipe.frames:
        parts.append(f"That is longer than the {recipe.frames} frames it was trained on.")
    if recipe.clip_vision == "optional" and film.request.clip_vision is None:
        parts.append("No CLIP Vision model was connected: the hero is held by frames alone.")
    parts.append(f"Colours held to the first clip by {spec.colour_hold:g}." if spec.colour_hold else "Colours free.")
    return " ".join(parts)
