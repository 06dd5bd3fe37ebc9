"""Operations on VIDEO_MEMORY, each returning a new value: empty, commit, forget, checks and sizes.

A memory keeps the chunks of the sink (the first `sink_latents` since its origin) and of the window (the last
`window_latents`), oldest first, none twice. What falls out of both is dropped whole: its latents are in the clip files.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from ..common.errors import message
from ..common.types import PLACEMENTS, PRECISIONS, Geometry, MemoryBlock, MemorySpec, VideoMemory

TAIL_LATENTS = 8  # latents of the film's end that travel with the memory; decoding uses at most as many as context


def empty_memory(spec: MemorySpec) -> VideoMemory:
    """A memory of nothing; raises ValueError when the spec is not consistent."""
    check_spec(spec)
    return VideoMemory(spec=spec)


def check_spec(spec: MemorySpec) -> None:
    """Raise ValueError unless precision and placement are known and sink and window are whole chunks."""
    for name, allowed in (("precision", PRECISIONS), ("placement", PLACEMENTS)):
        if getattr(spec, name) not in allowed:
            raise ValueError(message(f"Persistent Memory: unknown {name}", getattr(spec, name), ", ".join(allowed),
                                     f"Choose another {name}."))
    for name in ("sink_latents", "window_latents"):
        latents = getattr(spec, name)
        if latents < 0 or latents % spec.chunk_latents:
            raise ValueError(message(f"Persistent Memory: {name} must be whole chunks of the checkpoint", latents,
                                     f"multiples of {spec.chunk_latents}",
                                     "Change the seconds, or take 0 (as trained)."))


def commit(memory: VideoMemory, latents: torch.Tensor, kv: object | None) -> VideoMemory:
    """The memory after one more chunk of the film: latents [C, n, h, w] normalised, kv its cache (or None)."""
    latents = latents.detach().to("cpu", torch.float32)
    block = MemoryBlock(memory.latents_done, latents, max(memory.shot, 0), kv, cuts=memory.cuts)
    done = memory.latents_done + block.length
    tail = latents if memory.tail is None else torch.cat((memory.tail, latents), 1)
    blocks = tuple(b for b in (*memory.blocks, block) if _is_kept(b, memory, done))
    return replace(memory, blocks=blocks, latents_done=done, tail=tail[:, -TAIL_LATENTS:].clone())


def is_sink(memory: VideoMemory, start: int) -> bool:
    """Whether the chunk that starts at this absolute latent belongs to the sink."""
    return start - memory.origin < memory.spec.sink_latents


def forget(memory: VideoMemory) -> VideoMemory:
    """The same place in the film with nothing remembered: the next chunk becomes a new sink."""
    return replace(memory, blocks=(), origin=memory.latents_done)


def placed(memory: VideoMemory, placement: str) -> VideoMemory:
    """The same memory with its K/V resting elsewhere: what it holds does not change."""
    return replace(memory, spec=replace(memory.spec, placement=placement))


def begin_scene(memory: VideoMemory, keep_window: bool) -> VideoMemory:
    """The memory as the first clip after a scene cut may use it: the cut counted, the window dropped or kept.

    LongLive 2 was trained with the frames before the cut in view (pushed away by a gap in position); other checkpoints
    would go on with the old scene, so that only the sink is kept for them. At the start of a film nothing is cut.
    """
    if memory.latents_done == memory.origin:
        return memory
    blocks = tuple(block for block in memory.blocks if keep_window or is_sink(memory, block.start))
    return replace(memory, blocks=blocks, cuts=memory.cuts + 1, shot=memory.shot + 1)


def begin_clip(memory: VideoMemory, geometry: Geometry, model_key: str, prompt: object) -> VideoMemory:
    """The memory as the next clip may use it: bound to the geometry and the model, the shot counted on a new prompt.

    K/V made by another model (other weights, other LoRA) are dropped and will be rebuilt from the latents. Raises
    ValueError when the memory belongs to a film of another size.
    """
    if memory.geometry is not None and memory.geometry != geometry:
        raise ValueError(message(
            "Clip Sampler: this memory belongs to a film of another size or model",
            f"{geometry.width}x{geometry.height} latent pixels of {geometry.channels} channels",
            f"{memory.geometry.width}x{memory.geometry.height} of {memory.geometry.channels}",
            "Keep one size for the whole film, or start from a new Persistent Memory."))
    blocks = memory.blocks
    if memory.model_key and memory.model_key != model_key:
        blocks = tuple(replace(block, kv=None) for block in blocks)
    prompt_hash = hash_prompt(prompt)
    shot = memory.shot + (prompt_hash != memory.prompt_hash)
    return replace(memory, geometry=geometry, model_key=model_key, blocks=blocks, shot=shot, prompt_hash=prompt_hash)


def end_clip(memory: VideoMemory, before: VideoMemory) -> VideoMemory:
    """The memory after a finished clip: counted, its caches resting in RAM (bits unchanged).

    Chunks that `before`, the memory that the clip began with, holds already are shared with it, not copied again.
    """
    at_rest = {block.start: block.kv for block in before.blocks if block.kv is not None}
    blocks = tuple(block if block.kv is None else replace(block, kv=at_rest.get(block.start) or block.kv.to("cpu"))
                   for block in memory.blocks)
    return replace(memory, blocks=blocks, clips_done=memory.clips_done + 1)


def memory_bytes(memory: VideoMemory) -> tuple[int, int]:
    """(bytes of the latents, bytes of the K/V caches) that the value holds now."""
    latents = sum(block.latents.nbytes for block in memory.blocks) + (0 if memory.tail is None else memory.tail.nbytes)
    return latents, sum(block.kv.nbytes for block in memory.blocks if block.kv is not None)


def hash_prompt(prompt: object) -> str:
    """A short digest of a conditioning tensor [.., tokens, dim]: the same text gives the same digest."""
    if not isinstance(prompt, torch.Tensor):
        return ""
    return hashlib.sha256(prompt.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()[:16]


def _is_kept(block: MemoryBlock, memory: VideoMemory, done: int) -> bool:
    in_window = block.start >= done - memory.spec.window_latents
    return in_window or is_sink(memory, block.start)
