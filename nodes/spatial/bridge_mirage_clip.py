"""One chunk of a film as Mirage makes it: references by overlap, preceding latents, the place, UniPC.

Source: arXiv 2606.09828 and its authors' code (mirage_pipeline.py): 9 latents per chunk, the first of them the picture
or the last latent of the chunk before; two preceding latents, at most four references; 20 steps of UniPC at shift 5
from pure noise, no guidance. Their cloud grows without end and keeps what every frame saw at its time; here that is
found again from the frames that points came from, which is the same while nothing was merged away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import latent_preview
import torch

from ..common.progress import Progress
from ..common.types import TEMPORAL_STRIDE
from ..sampling.finite import finite
from ..sampling.solvers import UniPC
from .bridge_mirage import Surroundings, with_branch
from .cloud import Reading, read
from .references import PRECEDING, choose_references, visible_cells
from .requests import film_frames
from .values import CameraPath, SpatialMemory

SHIFT, FIRST_SIGMA = 5.0, 0.999


@dataclass(frozen=True)
class ChunkRequest:
    """start: [1, C, 1, h, w] un-normalised, the chunk's first latent. film: [1, C, N, h, w], all latents so far, N may
    be 0; latent j was seen by the camera of frame 4 j. latents: of the chunk, and of every chunk before."""

    model: Any
    branch: Any
    vae: Any
    positive: list
    memory: SpatialMemory
    path: CameraPath
    start: torch.Tensor
    film: torch.Tensor
    seed: int
    latents: int
    steps: int
    progress: Progress

    @property
    def first_frame(self) -> int:
        return TEMPORAL_STRIDE * max(0, self.film.shape[2] - 1)


def sample_chunk(request: ChunkRequest) -> tuple[torch.Tensor, Reading, tuple[int, ...]]:
    """([1, C, T, h, w] un-normalised with the given first latent, what was read, which film latents were references)"""
    frames = film_frames(request.first_frame, request.latents)
    reading = read(request.memory, request.path, frames)
    chosen = _references(request, frames)
    normalised = request.model.model.process_latent_in
    film, start = normalised(request.film), normalised(request.start)
    beside = range(max(0, film.shape[2] - 1 - PRECEDING), max(0, film.shape[2] - 1))
    place = _place(request, reading, beside)
    around = Surroundings(place, film[:, :, list(chosen)], film[:, :, list(beside)])
    samples = _sample(request, with_branch(request.model, request.branch, around), start)
    return torch.cat((request.start, samples[:, :, 1:]), 2), reading, chosen


def schedule(steps: int) -> tuple[float, ...]:
    """The noise levels of the authors' scheduler, steps + 1, falling to 0."""
    levels = [FIRST_SIGMA * (1 - i / steps) for i in range(steps)]
    return (*(SHIFT * level / (1 + (SHIFT - 1) * level) for level in levels), 0.0)


def as_of(memory: SpatialMemory, frame: int) -> SpatialMemory:
    """What the memory knew when the film was at a frame."""
    known = memory.frames <= frame
    return replace(memory, points=memory.points[known], features=memory.features[known], frames=memory.frames[known],
                   confidence=memory.confidence[known])


def _references(request: ChunkRequest, frames: tuple[int, ...]) -> tuple[int, ...]:
    """Latents of the film whose cameras saw most of what the chunk's cameras see."""
    step = request.latents - 1
    history = {}
    for j in range(request.film.shape[2]):
        then = as_of(request.memory, TEMPORAL_STRIDE * step * (_chunk(j, step) + 1))
        history[j] = visible_cells(then, request.path, (TEMPORAL_STRIDE * j,))
    return choose_references(visible_cells(request.memory, request.path, frames), history)


def _chunk(latent: int, step: int) -> int:
    """The chunk in which a latent of the film was made; the first chunk has one more."""
    return max(0, latent - 1) // step


def _place(request: ChunkRequest, reading: Reading, beside: range) -> torch.Tensor:
    """[1, channels, T + P, h, w] normalised: the target's place, then that of the preceding as it was read for them."""
    inner, step, channels = request.model.model, request.latents - 1, request.branch.model.channels
    scenes = [_scene(inner, reading)]
    for j in beside:
        then = as_of(request.memory, TEMPORAL_STRIDE * step * _chunk(j, step))
        scenes.append(_scene(inner, read(then, request.path, (TEMPORAL_STRIDE * j,))))
    return place_of(torch.cat(scenes, 2), channels, lambda frames: inner.process_latent_in(
        request.vae.encode(torch.ones(frames, request.path.height, request.path.width, 3)).to("cpu", torch.float32)))


def place_of(scene: torch.Tensor, channels: int, encode_white: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """[1, channels, n, h, w] of a scene [1, 48, n, h, w] that is 0 in holes, in the layout of a branch.

    channels: one of CONTEXTS. encode_white: frames -> the normalised latents of a white film. Source: the authors'
    build_vace_context (train.py): an odd channel says where all others are 0.
    """
    place = scene
    if channels >= 2 * scene.shape[1]:
        place = torch.cat((scene, encode_white(TEMPORAL_STRIDE * (scene.shape[2] - 1) + 1)), 1)
    if channels > place.shape[1]:
        place = torch.cat((place, (~place.ne(0).any(1, keepdim=True)).to(place)), 1)
    return place


def _scene(inner: Any, reading: Reading) -> torch.Tensor:
    scene = inner.process_latent_in(reading.latents[None])
    return torch.where(reading.holes, torch.zeros(()), scene)


def _sample(request: ChunkRequest, model: Any, start: torch.Tensor) -> torch.Tensor:
    sigmas = schedule(request.steps)
    shape = (1, start.shape[1], request.latents, *start.shape[3:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(request.seed))
    preview = latent_preview.prepare_callback(model, request.steps)

    def denoise(model_of: Any, x: torch.Tensor, _levels: torch.Tensor, extra_args: dict | None = None,
                callback: Any = None, disable: bool | None = None) -> torch.Tensor:
        given, solver = start.to(x), UniPC(sigmas, lambda: x)
        x = x / sigmas[0]  # pure noise, as the authors begin
        for i in range(request.steps):
            x = torch.cat((given, x[:, :, 1:]), 2)
            x0 = model_of(x, torch.full((len(x),), sigmas[i], device=x.device), **(extra_args or {}))
            callback({"i": i, "denoised": x0, "x": x, "sigma": sigmas[i]})
            x = solver.step(i, x, x0)
        return torch.cat((given, x[:, :, 1:]), 2)

    def tick(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        preview(step, x0, x, total)
        request.progress.check_cancel()

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(request.positive, [])
    guider.set_cfg(1.0)
    made = guider.sample(noise, torch.zeros(shape), comfy.samplers.KSAMPLER(denoise), torch.tensor(sigmas),
                         callback=tick, seed=request.seed).to("cpu", torch.float32)
    return finite(made, "Mirage Clip Sampler")
