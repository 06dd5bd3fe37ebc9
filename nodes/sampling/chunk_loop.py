"""One clip of a causal model: chunk after chunk, each denoised with the memory in view and then committed to it.

Pure algorithm (Self-Forcing, arXiv 2506.08009, section 3; CausVid): the model is two callables, so that the loop can be
tested without one.

    denoise(x, sigma, memory) -> x0     one forward at this noise level, attending to the memory
    encode(x0, memory) -> BlockKV       one forward at timestep 0 that hands out the chunk's clean keys and values

x, x0: [1, C, n, h, w] in the model's normalised space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..common.progress import SILENT, Progress
from ..common.types import Preset, VideoMemory
from ..memory.state import commit
from .solvers import Draw, make_solver

Denoise = Callable[[torch.Tensor, float, VideoMemory], torch.Tensor]
Encode = Callable[[torch.Tensor, VideoMemory], object]
Noise = Callable[[int], Draw]
Preview = Callable[[int, torch.Tensor, torch.Tensor], None]  # (forward, x, x0)


def _nothing(_i: int, _x: torch.Tensor, _x0: torch.Tensor) -> None:
    return None


@dataclass(frozen=True)
class ClipModel:
    """What the loop needs of a model: its two forwards, and where and how tensors must lie."""

    denoise: Denoise
    encode: Encode
    device: torch.device


def sample_clip(model: ClipModel, memory: VideoMemory, preset: Preset, latents: int, noise: Noise,
                progress: Progress = SILENT, preview: Preview | None = None) -> tuple[torch.Tensor, VideoMemory]:
    """Sample `latents` latent frames after the memory's last one.

    noise(chunk_index) gives the chunk's own source of noise: its first draw is the start, later draws re-noise.
    latents must be whole chunks. Returns ([1, C, latents, h, w] normalised float32 on the CPU, the new memory).
    """
    memory = rebuild(model, memory, progress)
    chunks = latents // preset.chunk
    forwards = len(preset.sigmas)  # of one chunk: the solver's steps and the clean pass
    done = []
    for c in range(chunks):
        progress.say(f"clip {memory.clips_done + 1}, chunk {c + 1} of {chunks}")

        def tick(i: int, x: torch.Tensor, x0: torch.Tensor, before: int = c * forwards) -> None:
            progress.update(before + i + 1, chunks * forwards)
            if preview is not None:
                preview(before + i, x, x0)

        draw = noise(memory.latents_done // preset.chunk)
        x0 = sample_chunk(model, memory, preset, draw, progress, tick)
        progress.check_cancel()
        memory = commit(memory, x0[0], model.encode(x0, memory))
        tick(forwards - 1, x0, x0)
        done.append(x0.to("cpu", torch.float32))
    return torch.cat(done, 2), memory


def sample_chunk(model: ClipModel, memory: VideoMemory, preset: Preset, draw: Draw, progress: Progress = SILENT,
                 tick: Preview = _nothing) -> torch.Tensor:
    """Denoise one chunk from pure noise; returns x0 [1, C, n, h, w] float32 on the model's device."""
    x = draw().to(model.device, torch.float32)
    solver = make_solver(preset.solver, preset.sigmas, draw)
    for i, sigma in enumerate(preset.sigmas[:-1]):
        progress.check_cancel()
        x0 = model.denoise(x, sigma, memory)
        x = solver.step(i, x, x0)
        tick(i, x, x0)
    return x


def rebuild(model: ClipModel, memory: VideoMemory, progress: Progress = SILENT) -> VideoMemory:
    """The memory with every missing K/V cache made again from its latents, oldest chunk first.

    Close to the original, not equal to it: the oldest chunks no longer see what was forgotten since, and every chunk is
    read under the current prompt (LongLive 1 does the same at a prompt switch).
    """
    if all(block.kv is not None for block in memory.blocks):
        return memory
    blocks: list = []
    for block in memory.blocks:
        progress.check_cancel()
        so_far = replace(memory, blocks=tuple(blocks), latents_done=block.start)  # as when it was made
        x0 = block.latents.unsqueeze(0).to(model.device)
        blocks.append(block if block.kv is not None else replace(block, kv=model.encode(x0, so_far)))
    return replace(memory, blocks=tuple(blocks))


def seeded_noise(seed: int, shape: tuple[int, ...]) -> Noise:
    """Noise that depends on (seed, absolute chunk) alone, so that a resumed film equals an unbroken one.

    Drawn on the CPU in float32: the same numbers on every device.
    """

    def for_chunk(chunk: int) -> Draw:
        digest = hashlib.blake2b(f"{seed}/{chunk}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return lambda: torch.randn(shape, generator=generator)

    return for_chunk
