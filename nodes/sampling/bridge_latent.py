"""One clip of an ordinary checkpoint on ComfyUI's own samplers: encode what it begins with, sample, trim, remember."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_management as mm
import comfy.utils
import node_helpers
import torch

from ..common.compat import model_facts
from ..common.digest import patcher_key
from ..common.errors import message
from ..common.types import Anchor, VideoMemory
from ..memory.colour import hold_colours
from ..memory.latent_memory import (
    ClipStart,
    clip_start,
    frames_to_keep,
    latents_of,
    make_anchor,
    overlap_frames,
    remember,
)
from ..memory.state import begin_clip, begin_scene, film_digest
from .bridge_latent_checks import check_request
from .bridge_latent_run import Part, cfg_of, noise_at, plan_parts, sample_parts
from .latent_presets import LATENT_RECIPES, LatentRecipe
from .latent_report import ClipFacts, clip_report
from .latent_strategy import FAMILIES, Given, Keys
from .strategy import ClipRequest, ClipResult, begins_scene
from .unfinished import Unfinished

DECODE_CONTEXT = 4  # latents decoded before the last frames: as many as video.decode needs for a join that is not seen
SVD_MOTION_BUCKET = 127


@dataclass(frozen=True)
class _Film:
    """The request with what was derived from it: the recipe, the memory bound to this film, and the clip's start.

    unfinished: where what is sampled is kept. given_up: sentences on what was, while it is sampled.
    """

    request: ClipRequest
    recipe: LatentRecipe
    memory: VideoMemory
    start: ClipStart
    parts: tuple[Part, ...]
    is_cut: bool
    width: int
    height: int
    unfinished: Unfinished
    given_up: list[str] = field(default_factory=list)

    @property
    def latents(self) -> int:
        """Latents of the sampled clip, those that will be dropped included."""
        return self.request.latents + self.start.dropped

    @property
    def dropped(self) -> int:
        """What is dropped along the time axis of the samples: latents, or frames where a latent is one (SVD)."""
        slots = self.start.dropped
        return overlap_frames(slots) if slots and self.recipe.family == "svd" else slots

    @property
    def anchor_frame(self) -> torch.Tensor | None:
        """The film's first frame, [1, H, W, 3]; None before a film that begins from text."""
        if self.memory.anchor is not None:
            return self.memory.anchor.frame[None].float() / 255
        return None if self.start.frames is None else self.start.frames[:1]

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        self.request.progress.check_cancel()
        return self.request.vae.encode(frames[:, :, :, :3]).to("cpu", torch.float32)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[n, H, W, 3]"""
        self.request.progress.check_cancel()
        return self.request.vae.decode(latents).reshape(-1, self.height, self.width, 3)


def sample_latent(request: ClipRequest) -> ClipResult:
    """One clip of an ordinary checkpoint: the strategy "latent" of Clip Sampler."""
    film = _open(request)
    try:
        result = _make(film)
    except mm.OOM_EXCEPTION as error:
        raise film.unfinished.ran_out(error) from error
    film.unfinished.forget()
    return result


def _make(film: _Film) -> ClipResult:
    request = film.request
    inner = request.model.model
    request.progress.say(f"clip {film.memory.clips_done + 1}: {film.latents} latents")
    if film.recipe.family == "svd":
        raw, encoded = _sample_svd(film), None
    else:
        given = _given(film, inner.process_latent_out)
        raw, encoded = _sample(film, FAMILIES[film.recipe.family](given)), given.anchor_latent
    clean = inner.process_latent_in(raw)
    anchor = film.memory.anchor or _make_anchor(film, raw, clean, encoded)
    strength = film.memory.spec.colour_hold
    if strength and film.memory.anchor is not None:
        clean = hold_colours(clean[0], anchor.mean, anchor.std, strength, film.dropped)[None]
        kept = film.dropped + 1  # with their bits
        raw = torch.cat((raw[:, :, :kept], inner.process_latent_out(clean[:, :, kept:])), 2)
    return _result(film, raw, clean, anchor)


def _open(request: ClipRequest) -> _Film:
    """Everything that can be refused is refused here, before anything is encoded."""
    recipe, facts = LATENT_RECIPES[request.memory.spec.preset], model_facts(request.model)
    check_request(request, recipe, facts)
    parts, geometry, key = plan_parts(request, recipe), request.geometry, patcher_key(request.model)
    if request.model_low_noise is not None:
        key = key[:16] + patcher_key(request.model_low_noise)[:16]
    is_cut = begins_scene(request)
    memory = begin_scene(request.memory, keep_window=False) if is_cut else request.memory
    prompt, told = request.positive[0]
    memory = begin_clip(memory, geometry, key, prompt, told.get("videomemory_text", ""))
    width, height = geometry.width * facts.spatial_stride, geometry.height * facts.spatial_stride
    image = request.start_image
    if image is not None:  # as core's nodes do it
        image = comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "bilinear", "center").movedim(1, -1)
        image = image[..., :3].to("cpu", torch.float32)
    start = clip_start(memory, image, is_cut, recipe.reanchors, recipe.family not in ("vace", "svi"))
    if recipe.needs_start and memory.anchor is None and start.frames is None:
        raise ValueError(message(f"Clip Sampler: {recipe.label} begins a film with a picture", "no start image",
                                 "an IMAGE at start_image in the first clip, and after Forget",
                                 "Connect Load Image to start_image."))
    return _Film(request, recipe, memory, start, parts, is_cut, width, height, _unfinished(request, is_cut))


def _unfinished(request: ClipRequest, is_cut: bool) -> Unfinished:
    """By all that the samples are made from."""
    return Unfinished(request.kept_in, [
        film_digest(request.memory), request.geometry, request.latents, request.seed, request.cfg, is_cut,
        request.positive, request.negative, request.start_image, request.vae, request.model, request.model_low_noise,
        request.clip_vision, request.sampler, request.sigmas], request.memory.spec)


def _given(film: _Film, blank: Callable[[torch.Tensor], torch.Tensor]) -> Given:
    memory, start = film.memory, film.start
    latent = motion = None
    if memory.anchor is not None:
        latent = blank(memory.anchor.latents[None])
    elif start.frames is not None:
        latent = film.encode(start.frames[:1])
    if film.recipe.family == "svi" and start.is_continued:
        motion = blank(memory.tail[None, :, -(memory.spec.overlap_latents - 1):])
    return Given(film.request.geometry, film.latents, film.width, film.height, start.frames, film.anchor_frame, latent,
                 motion, film.encode, blank)


def _sample(film: _Film, keys: Keys) -> torch.Tensor:
    """[1, C, N, h, w] un-normalised, float32 on the CPU, without what led the clip."""
    request, recipe, values = film.request, film.recipe, dict(keys.values)
    if recipe.clip_vision and request.clip_vision is not None:
        values["clip_vision_output"] = request.clip_vision.encode_image(film.anchor_frame)
    conds = [node_helpers.conditioning_set_values(node_helpers.conditioning_set_values(cond, values), keys.appended,
                                                  append=True) for cond in (request.positive, request.negative or [])]
    first = film.memory.latents_done - film.dropped
    names = [f"lead {film.memory.clips_done}.{i}" for i in range(keys.lead)]
    names += [str(first + i) for i in range(film.latents)]
    noise = noise_at(request.seed, names, keys.samples[:, :, :1].shape, 2)
    samples = sample_parts(film.parts, request, recipe, conds, noise, keys.samples, keys.noise_mask,
                           film.memory.latents_done, film.unfinished, film.given_up)
    if keys.noise_mask is not None:  # uni_pc ends a little above 0: what was given is put back, as Wan's own code does
        samples = samples * keys.noise_mask + keys.samples * (1.0 - keys.noise_mask)
    return samples[:, :, keys.lead:]


def _sample_svd(film: _Film) -> torch.Tensor:
    """[1, 4, frames, h, w]: Stable Video Diffusion denoises pictures, one per frame, and reads no text."""
    request, count = film.request, overlap_frames(film.latents)
    pooled = request.clip_vision.encode_image(film.anchor_frame).image_embeds.unsqueeze(0)
    image = film.encode(film.start.frames)
    facts = {"motion_bucket_id": SVD_MOTION_BUCKET, "fps": int(film.recipe.fps), "augmentation_level": 0.0}
    conds = [[[pooled, {**facts, "concat_latent_image": image}]],
             [[torch.zeros_like(pooled), {**facts, "concat_latent_image": torch.zeros_like(image)}]]]
    done = film.memory.latents_done
    first = overlap_frames(done) - film.dropped if done else 0
    noise = noise_at(request.seed, [str(first + i) for i in range(count)], image[:1].shape, 0)
    samples = sample_parts(film.parts, request, film.recipe, conds, noise, torch.zeros_like(noise), None, done,
                           film.unfinished, film.given_up)
    return samples.movedim(0, 1)[None]


def _make_anchor(film: _Film, raw: torch.Tensor, clean: torch.Tensor, encoded: torch.Tensor | None) -> Anchor:
    frame = film.decode(raw[:, :, :1])[0] if film.start.frames is None else film.start.frames[0]
    first = None if encoded is None else film.request.model.model.process_latent_in(encoded)[0]
    return make_anchor(clean[0], frame, first)


def _result(film: _Film, raw: torch.Tensor, clean: torch.Tensor, anchor: Anchor) -> ClipResult:
    memory, dropped, is_svd = film.memory, film.dropped, film.recipe.family == "svd"
    kept = frames_to_keep(memory.spec)
    tail = raw[0, :, -kept:].movedim(1, 0) if is_svd else raw[:, :, -(latents_of(kept) + DECODE_CONTEXT):]
    latent = {"samples": raw[:, :, dropped:], "first_latent": memory.latents_done, "fps": memory.spec.fps}
    if dropped:
        latent["context_samples"] = raw[:, :, :dropped]
    after = remember(memory, clean[0, :, dropped:], film.decode(tail), anchor, film.request.latents)
    is_as_planned = not (film.given_up or film.unfinished.taken_up)
    return ClipResult(latent, after, _report(film) + film.unfinished.note(), is_as_planned)


def _report(film: _Film) -> str:
    request, recipe, notes = film.request, film.recipe, [*film.given_up]
    if request.start_image is not None and request.start_image.shape[1:3] != (film.height, film.width):
        height, width = request.start_image.shape[1:3]
        notes.append(f"The start image of {width}x{height} was scaled to {film.width}x{film.height}, and what did not "
                     f"fit was cut off at its edges.")
    if recipe.clip_vision == "optional":
        looks = getattr(request.model.model.diffusion_model, "img_emb", True) is not None
        if request.clip_vision is None:
            notes.append("No CLIP Vision model was connected: the hero is held by frames alone.")
        elif not looks:
            notes.append("This model has no eye for CLIP Vision (Wan 2.2's have none): it was not used.")
    return clip_report(ClipFacts(
        recipe, film.memory, film.start, film.latents, tuple(part.steps for part in film.parts),
        cfg_of(request, recipe), film.is_cut,
        recipe.family == "vace" and film.anchor_frame is not None, tuple(notes)))


