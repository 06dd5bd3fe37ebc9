"""One clip of a causal model: chunk after chunk, each denoised with the memory in view and then committed to it.

Pure algorithm (Self-Forcing, arXiv 2506.08009, section 3; CausVid): the model is two callables, so that the loop can be
tested without one.

    denoise(x, sigma, memory, clean) -> x0         one forward at this noise level, attending to the memory; the first
                                                   `clean` latents of x are given, not noisy
    encode(x0, memory, precisions, prompt)         one forward at timestep 0 over whole chunks, which hands out the
        -> caches                                  clean (K/V, negative K/V or None) of each, stored in these formats
                                                   (None: of this chunk nothing is stored or handed out); under this
                                                   prompt [n, D], or under the clip's own where it is None

x, x0: [1, C, n, h, w] in the model's normalised space.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..common.progress import SILENT, Progress
from ..common.types import MemoryBlock, Preset, VideoMemory
from ..memory.state import commit, is_sink
from .finite import finite
from .solvers import Draw, make_solver

Caches = tuple[object, object | None]
Denoise = Callable[[torch.Tensor, float, VideoMemory, int], torch.Tensor]
Encode = Callable[[torch.Tensor, VideoMemory, tuple[str | None, ...], torch.Tensor | None], tuple[Caches, ...]]
Noise = Callable[[int], Draw]
Preview = Callable[[int, torch.Tensor, torch.Tensor], None]  # (forward, x, x0)
Retreat = Callable[["Held"], bool]  # out of memory: puts less in place of the memory; False = no way
Keep = Callable[[torch.Tensor], None]  # the clip's finished chunks so far, [1, C, n, h, w] normalised


def _nothing(_i: int, _x: torch.Tensor, _x0: torch.Tensor) -> None:
    return None


def _keep_nothing(_finished: torch.Tensor) -> None:
    return None


def no_way(_held: Held) -> bool:
    """The Retreat of whoever cannot give anything up."""
    return False


@dataclass
class Held:
    """The memory at work. Nothing else may hold it meanwhile: what it gives up has to be freed at once."""

    memory: VideoMemory


@dataclass(frozen=True)
class ClipModel:
    """What the loop needs of a model: its two forwards, where tensors must lie, whether a negative prompt is used."""

    denoise: Denoise
    encode: Encode
    device: torch.device
    has_negative: bool = False


@dataclass(frozen=True)
class Clip:
    """What is to be made. latents: whole chunks. noise(chunk index) gives the chunk's own source of noise: its first
    draw is the start, later draws re-noise. given: [1, C, n, h, w] normalised, the first latents of the film, or None.
    prompt: its prompt's tokens (memory.state.prompt_tokens), or None. finished: [1, C, n, h, w] normalised, the clip's
    first chunks where they were made before and are only committed, or None."""

    preset: Preset
    latents: int
    noise: Noise
    given: torch.Tensor | None = None
    prompt: torch.Tensor | None = None
    finished: torch.Tensor | None = None

    @property
    def chunks(self) -> int:
        return self.latents // self.preset.chunk

    def known(self, c: int) -> torch.Tensor | None:
        """What of chunk c is there already, [1, C, n, h, w]: all of it, its first latents, or None."""
        n = self.preset.chunk
        if self.finished is not None and self.finished.shape[2] >= (c + 1) * n:
            return self.finished[:, :, c * n:(c + 1) * n]
        return self.given if c == 0 else None


def count_forwards(clip: Clip, memory: VideoMemory, has_negative: bool) -> int:
    """Forwards of the model that sample_clip will make."""
    known = map(clip.known, range(clip.chunks))
    sampled = sum(one is None or one.shape[2] < clip.preset.chunk for one in known)
    steps = sampled * (len(clip.preset.sigmas) - 1)
    return len(rebuilt_together(memory, has_negative)) + steps + clip.chunks


def sample_clip(model: ClipModel, held: Held, clip: Clip, progress: Progress = SILENT, preview: Preview = _nothing,
                retreat: Retreat = no_way, keep: Keep = _keep_nothing) -> torch.Tensor:
    """Sample the clip after the memory's last latent; held: that memory, afterwards the one after the clip.

    retreat: asked each time that the device runs out of memory; the chunk that failed is then made again from its own
    noise, and finished ones are kept. keep: told after every new chunk but the last one, for a clip that breaks off all
    the same. Returns [1, C, latents, h, w] normalised float32 on the CPU.
    """
    total, made = count_forwards(clip, held.memory, model.has_negative), 0

    def tick(_i: int, x: torch.Tensor, x0: torch.Tensor) -> None:
        nonlocal made
        made += 1
        progress.update(min(made, total), total)
        preview(min(made, total) - 1, x, x0)

    _holding_out(lambda memory: (rebuild(model, memory, progress, tick), None), held, retreat)
    done, kept = [], 0 if clip.finished is None else clip.finished.shape[2]
    for c in range(clip.chunks):
        progress.say(f"clip {held.memory.clips_done + 1}, chunk {c + 1} of {clip.chunks}")
        done.append(_holding_out(partial(_make_chunk, model, clip, clip.known(c), progress, tick), held, retreat))
        if c + 1 < clip.chunks and (c + 1) * clip.preset.chunk > kept:
            keep(torch.cat(done, 2))
    return torch.cat(done, 2)


def _make_chunk(model: ClipModel, clip: Clip, given: torch.Tensor | None, progress: Progress, tick: Preview,
                memory: VideoMemory) -> tuple[VideoMemory, torch.Tensor]:
    """The memory after the next chunk, and the chunk [1, C, n, h, w] float32 on the CPU."""
    preset = clip.preset
    if given is not None and given.shape[2] == preset.chunk:
        x0 = given.to(model.device, torch.float32)
    else:
        x0 = sample_chunk(model, memory, preset, clip.noise(memory.latents_done // preset.chunk), progress, tick, given)
        x0 = finite(x0, "Clip Sampler")
    progress.check_cancel()
    (kv, negative_kv), = model.encode(x0, memory, (_precision(memory, memory.latents_done),), None)
    memory = commit(memory, x0[0], kv, negative_kv, clip.prompt)
    tick(0, x0, x0)
    return memory, x0.to("cpu", torch.float32)


def _holding_out(make: Callable[[VideoMemory], tuple[VideoMemory, torch.Tensor | None]], held: Held,
                 retreat: Retreat) -> torch.Tensor | None:
    """make(memory), again with less each time that the device runs out of memory."""
    while True:
        try:
            held.memory, made = make(held.memory)
            return made
        except torch.cuda.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that did not fit
            if not retreat(held):
                raise


def sample_chunk(model: ClipModel, memory: VideoMemory, preset: Preset, draw: Draw, progress: Progress = SILENT,
                 tick: Preview = _nothing, given: torch.Tensor | None = None) -> torch.Tensor:
    """Denoise one chunk from pure noise; returns x0 [1, C, n, h, w] float32 on the model's device.

    given: its first latents, put back before every step and after the last one (LongLive 2, image to video).
    """
    x = draw().to(model.device, torch.float32)
    solver = make_solver(preset.solver, preset.sigmas, draw)
    clean = 0 if given is None else given.shape[2]
    for i, sigma in enumerate(preset.sigmas[:-1]):
        progress.check_cancel()
        x = _with_given(x, given)
        x0 = model.denoise(x, sigma, memory, clean)
        x = solver.step(i, x, x0)
        tick(i, x, x0)
    return _with_given(x, given)


def rebuild(model: ClipModel, memory: VideoMemory, progress: Progress = SILENT,
            tick: Preview = _nothing) -> VideoMemory:
    """The memory with every missing K/V cache made again from its latents.

    Chunk by chunk, oldest first, each under the prompt that it was made under: equal to the original while nothing has
    been forgotten, close to it later, when the oldest chunks no longer see what lay before them. Where the spec says
    "recache", what follows the sink goes through the model in one forward under the current prompt, in which its chunks
    see each other both ways, together with the chunk that fell out of the window last, whose K/V are not stored
    (LongLive 1 at a prompt switch).
    """
    in_view = {block.start for block in memory.blocks}
    for read in rebuilt_together(memory, model.has_negative):
        progress.check_cancel()
        stored = tuple(block for block in read if block.start in in_view) or read
        earlier = tuple(block for block in memory.blocks if block.start < read[0].start)
        so_far = replace(memory, blocks=earlier, archive=(), latents_done=read[0].start, cuts=read[0].cuts)
        x0 = torch.cat([block.latents for block in read], 1).unsqueeze(0).to(model.device)
        only_read = (None,) * (len(read) - len(stored))
        recaches = memory.spec.prompt_change == "recache" and not is_sink(memory, stored[0].start)
        made = model.encode(x0, so_far, (*only_read, *(_precision(memory, block.start) for block in stored)),
                            None if recaches else stored[0].prompt)
        caches = {block.start: pair for block, pair in zip(stored, made, strict=True)}
        memory = replace(memory, blocks=_with_caches(memory.blocks, caches),
                         archive=_with_caches(memory.archive, caches))
        tick(0, x0, x0)
    return memory


def rebuilt_together(memory: VideoMemory, has_negative: bool) -> list[tuple[MemoryBlock, ...]]:
    """The chunks without K/V, oldest first, in the groups that go through the model in one forward.

    A group that is recached begins with the chunk that fell out of the window last, which is only read.
    """
    readable = (*memory.blocks, *(memory.archive if memory.spec.retrieved_latents else ()))
    lacking = sorted((block for block in readable
                      if block.kv is None or (has_negative and block.negative_kv is None)), key=lambda one: one.start)
    if memory.spec.prompt_change != "recache":
        return [(block,) for block in lacking]
    in_view = {block.start for block in memory.blocks}
    together = [block for block in lacking if block.start in in_view and not is_sink(memory, block.start)]
    alone = [(block,) for block in lacking if block.start not in in_view or is_sink(memory, block.start)]
    return [*alone, (*_fell_out_before(memory, together[0]), *together)] if together else alone


def _fell_out_before(memory: VideoMemory, first: MemoryBlock) -> tuple[MemoryBlock, ...]:
    """The chunk of the same scene that lay just before this one, where the memory still has its latents."""
    return tuple(block for block in memory.archive
                 if block.start + block.length == first.start and block.cuts == first.cuts)


def _with_caches(blocks: tuple[MemoryBlock, ...], caches: dict[int, Caches]) -> tuple[MemoryBlock, ...]:
    return tuple(replace(block, kv=caches[block.start][0], negative_kv=caches[block.start][1])
                 if block.start in caches else block for block in blocks)


def _with_given(x: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    return x if given is None else torch.cat((given.to(x), x[:, :, given.shape[2]:]), 2)


def _precision(memory: VideoMemory, start: int) -> str:
    """The sink is read for the whole film: it keeps 8 bits where the rest has 4."""
    return "int8" if memory.spec.precision == "4bit" and is_sink(memory, start) else memory.spec.precision


def seeded_noise(seed: int, shape: tuple[int, ...]) -> Noise:
    """Noise that depends on (seed, absolute chunk) alone, so that a resumed film equals an unbroken one.

    Drawn on the CPU in float32: the same numbers on every device.
    """

    def for_chunk(chunk: int) -> Draw:
        digest = hashlib.blake2b(f"{seed}/{chunk}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return lambda: torch.randn(shape, generator=generator)

    return for_chunk
