"""One clip of a causal checkpoint as Clip Sampler asks for it: its start image, its sampling, what is said of it."""

from __future__ import annotations

import math
from typing import Any

import comfy.utils
import torch

from ..common.compat import model_facts
from ..common.digest import patcher_key
from ..common.errors import message
from ..common.types import Preset, VideoMemory
from ..memory.state import begin_scene, film_digest, hash_prompt, prompt_tokens
from .bridge import sample_with_memory
from .bridge_retreat import Retreat, retreat_note
from .clip_notes import rebuilt_note, retrieved_note
from .strategy import LATENT_ONLY, ClipRequest, ClipResult, begins_scene
from .unfinished import Unfinished


def sample_rolling(request: ClipRequest) -> ClipResult:
    """One clip of a causal checkpoint: the strategy "rolling" of Clip Sampler."""
    memory, preset, latents = request.memory, request.preset, request.latents
    given, is_cut = _start_latent(request), begins_scene(request)
    did = _memory_notes(request, is_cut)
    retreat = Retreat(request.profile, request.progress, request.pinned)
    unfinished = _unfinished(request, given, is_cut)
    try:
        samples, after = sample_with_memory(
            request.model, memory, request.positive, preset, request.geometry, latents, request.seed, request.progress,
            negative=request.negative, cfg=request.cfg, given=given, is_cut=is_cut, room_bytes=request.room_bytes,
            retreat=retreat, unfinished=unfinished)
    except torch.OutOfMemoryError as error:
        raise unfinished.ran_out(error) from error
    unfinished.forget()
    did += unfinished.note()
    given_up = retreat_note(memory.spec, after.spec, retreat.offloaded_bytes)
    report = _report(memory, preset, latents) + did + given_up + _notes(request, is_cut and after.cuts > memory.cuts)
    is_as_planned = not (unfinished.taken_up or given_up)
    return ClipResult(clip_latent(request.model, samples, memory), after, report, is_as_planned)


def _unfinished(request: ClipRequest, given: torch.Tensor | None, is_cut: bool) -> Unfinished:
    """Where this clip's finished chunks are kept, by all that they are made from."""
    has_negative = not math.isclose(request.cfg, 1.0)
    made_from = [film_digest(request.memory), request.geometry, request.latents, request.seed, request.cfg, given,
                 is_cut, request.positive, request.negative if has_negative else None, request.model]
    return Unfinished(request.kept_in, made_from, request.memory.spec)


def _report(before: VideoMemory, preset: Preset, latents: int) -> str:
    spec = before.spec
    seen = sum(block.length for block in before.blocks)
    return (f"Clip {before.clips_done + 1}: {latents} latents in chunks of {spec.chunk_latents}, "
            f"{len(preset.sigmas) - 1} steps + 1 clean pass per chunk. It began with {seen} of at most "
            f"{spec.capacity_latents} remembered latents ({spec.sink_latents} from the start of the film), stored as "
            f"{spec.precision} in {spec.placement.upper()}.")


def _memory_notes(request: ClipRequest, is_cut: bool) -> str:
    """What is made again and what is brought back for this clip; known before it is sampled."""
    memory, prompt = request.memory, request.positive[0][0]
    if is_cut:
        memory = begin_scene(memory, keep_window=request.preset.shot_gap > 0)
    rebuilt = rebuilt_note(memory, patcher_key(request.model), hash_prompt(prompt), not math.isclose(request.cfg, 1.0))
    found = retrieved_note(memory, prompt_tokens(prompt))
    return "".join(f" {note}" for note in (rebuilt, found) if note)


def _notes(request: ClipRequest, was_cut: bool) -> str:
    """What else was done, one sentence each."""
    notes, chunk = [], request.preset.chunk
    if not math.isclose(request.cfg, 1.0):
        notes.append(f"CFG {request.cfg:g}: every forward was made for both prompts, with a memory for each.")
    if request.start_image is not None:
        notes.append("The start image became the film's first latent" + (
            " and was committed by one clean pass." if chunk == 1 else ", held clean while its chunk was denoised."))
    if was_cut and request.preset.shot_gap:
        notes.append(f"Scene cut: {request.preset.shot_gap} latents of distance to what lies before it.")
    elif was_cut:
        notes.append("Scene cut: only what the film began with stayed in view (this checkpoint knows no cuts).")
    unused = [name for name in LATENT_ONLY if getattr(request, name) is not None]
    if unused:
        notes.append(f"Not used, because they serve latent memory alone: {', '.join(unused)}.")
    return "".join(f" {note}" for note in notes)


def _start_latent(request: ClipRequest) -> torch.Tensor | None:
    """The start image as the film's first latent, [1, C, 1, h, w] normalised; ValueError where there is no place."""
    if request.start_image is None:
        return None
    if request.memory.latents_done:
        raise ValueError(message("Clip Sampler: a start image belongs to the beginning of a film",
                                 f"a memory of {request.memory.clips_done} clips", "the film's first clip",
                                 "Disconnect start_image here, or begin a new film."))
    if request.vae is None:
        raise ValueError(message("Clip Sampler: a start image has to be encoded", "no VAE", "the model's VAE",
                                 "Connect the VAE that also decodes the film."))
    geometry, stride = request.geometry, model_facts(request.model).spatial_stride
    image = request.start_image[:1, ..., :3].movedim(-1, 1)
    image = comfy.utils.common_upscale(image, geometry.width * stride, geometry.height * stride, "bilinear", "center")
    latent = request.vae.encode(image.movedim(1, -1))
    if tuple(latent.shape[1:]) != (geometry.channels, 1, geometry.height, geometry.width):
        raise ValueError(message("Clip Sampler: this VAE does not belong to the model",
                                 f"a start latent of {tuple(latent.shape[1:])}",
                                 f"{(geometry.channels, 1, geometry.height, geometry.width)}",
                                 "Load the VAE of the same model family."))
    return request.model.model.process_latent_in(latent).to("cpu", torch.float32)


def clip_latent(model: Any, samples: torch.Tensor, before: VideoMemory) -> dict[str, Any]:
    """The LATENT of one clip: its samples, its place and rate, and the latents before it as decoding context."""
    latent = {"samples": samples, "first_latent": before.latents_done, "fps": before.spec.fps}
    if before.tail is not None:
        context = model.model.process_latent_out(before.tail.unsqueeze(0))
        latent["context_samples"] = context.to("cpu", torch.float32)
    return latent
