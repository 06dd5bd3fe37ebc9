"""Operations on VIDEO_MEMORY, each returning a new value: empty, commit, view, forget, checks and sizes.

A memory keeps, oldest first and none twice, the chunks of the sink (the first `sink_latents` since its origin), those
pinned at the beginning of the current shot, and the window (the last ones). Places for pins and for retrieval that are
empty lengthen the window. What falls out is dropped whole (its latents are in the clip files) or, where the spec has
places for retrieval, kept in the archive. A memory that recaches keeps there the latents of the chunk that fell out
last: LongLive 1 reads it once more, together with the window.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from ..common.errors import message
from ..common.types import (
    PLACEMENTS,
    PRECISIONS,
    PROMPT_CHANGES,
    Geometry,
    MemoryBlock,
    MemorySpec,
    VideoMemory,
)
from .kv_cache import repacked
from .retrieval import nearest, thinned

TAIL_LATENTS = 8  # latents of the film's end that travel with the memory; decoding uses at most as many as context
CACHES = ("kv", "negative_kv")  # of a block


def empty_memory(spec: MemorySpec) -> VideoMemory:
    """A memory of nothing; raises ValueError when the spec is not consistent."""
    check_spec(spec)
    return VideoMemory(spec=spec)


def check_spec(spec: MemorySpec) -> None:
    """Raise ValueError unless every choice is known and sink, pins, retrieval and window are whole chunks."""
    for name, allowed in (("precision", PRECISIONS), ("placement", PLACEMENTS), ("prompt_change", PROMPT_CHANGES)):
        if getattr(spec, name) not in allowed:
            raise ValueError(message(f"Persistent Memory: unknown {name}", getattr(spec, name), ", ".join(allowed),
                                     f"Choose another {name}."))
    for name in ("sink_latents", "pinned_latents", "retrieved_latents", "window_latents"):
        latents = getattr(spec, name)
        if latents < 0 or latents % spec.chunk_latents:
            raise ValueError(message(f"Persistent Memory: {name} must be whole chunks of the checkpoint", latents,
                                     f"multiples of {spec.chunk_latents}",
                                     "Change the seconds, or take 0 (as trained)."))


def commit(memory: VideoMemory, latents: torch.Tensor, kv: object | None, negative_kv: object | None = None,
           prompt: torch.Tensor | None = None) -> VideoMemory:
    """The memory after one more chunk of the film: latents [C, n, h, w] normalised, kv its cache (or None).

    negative_kv: the same under the negative prompt. prompt: its prompt's tokens (prompt_tokens).
    """
    latents = latents.detach().to("cpu", torch.float32)
    block = MemoryBlock(memory.latents_done, latents, max(memory.shot, 0), kv, negative_kv, memory.prompt_hash,
                        cuts=memory.cuts, prompt=prompt, text=memory.text)
    tail = latents if memory.tail is None else torch.cat((memory.tail, latents), 1)
    memory = replace(memory, latents_done=memory.latents_done + block.length, tail=tail[:, -TAIL_LATENTS:].clone())
    blocks = _pin(memory, block)
    sink, pins, others = _roles(memory, blocks)
    newest = _newest(others, memory.spec.capacity_latents - memory.spec.sink_latents - _length(pins))
    return _keep(memory, blocks, {kept.start for kept in (*sink, *pins, *newest)})


def view(memory: VideoMemory, prompt: torch.Tensor | None = None) -> tuple[MemoryBlock, ...]:
    """The chunks that the next one attends to, in position order, which is the order of the film; none twice.

    At most spec.capacity_latents. The places for retrieval hold the chunks whose prompt is most like this one (tokens
    as of prompt_tokens), out of the archive and of what lengthens the window otherwise.
    """
    if prompt is None or not memory.spec.retrieved_latents or not memory.archive:
        return memory.blocks
    sink, pins, others = _roles(memory, memory.blocks)
    places = memory.spec.retrieved_latents
    window = _newest(others, memory.spec.capacity_latents - memory.spec.sink_latents - _length(pins) - places)
    beyond = others[: len(others) - len(window)]
    found = nearest((*memory.archive, *beyond), prompt, places)
    return tuple(sorted((*sink, *pins, *found, *window), key=lambda block: block.start))


def is_sink(memory: VideoMemory, start: int) -> bool:
    """Whether the chunk that starts at this absolute latent belongs to the sink."""
    return start - memory.origin < memory.spec.sink_latents


def forget(memory: VideoMemory) -> VideoMemory:
    """The same place in the film with nothing remembered: the next chunk becomes a new sink."""
    return replace(memory, blocks=(), archive=(), origin=memory.latents_done, anchor=None, overlap=None)


def placed(memory: VideoMemory, placement: str) -> VideoMemory:
    """The same memory with its K/V resting elsewhere: what it holds does not change."""
    return replace(memory, spec=replace(memory.spec, placement=placement))


def trimmed(memory: VideoMemory, spec: MemorySpec) -> VideoMemory:
    """The memory under a spec of another precision, placement or window, for the same checkpoint.

    A shorter window loses its oldest chunks; K/V stay as they are until stored_anew.
    """
    check_spec(spec)
    memory = replace(memory, spec=spec)
    sink, pins, others = _roles(memory, memory.blocks)
    newest = _newest(others, spec.capacity_latents - spec.sink_latents - _length(pins))
    return _keep(memory, memory.blocks, {kept.start for kept in (*sink, *pins, *newest)})


def stored_anew(memory: VideoMemory, start: int) -> VideoMemory:
    """The memory with the K/V of the chunk that starts there as its spec stores them, made without the model.

    K/V that shall rest in RAM are there afterwards.
    """
    spec = memory.spec
    precision = "int8" if spec.precision == "4bit" and is_sink(memory, start) else spec.precision

    def stored(block: MemoryBlock) -> MemoryBlock:
        if block.start != start:
            return block
        found = {name: getattr(block, name) for name in CACHES if getattr(block, name) is not None}
        block = replace(block, **{name: kv if kv.is_gone else repacked(kv, precision) for name, kv in found.items()})
        return _at_rest(block) if spec.placement == "ram" else block

    return replace(memory, blocks=tuple(map(stored, memory.blocks)), archive=tuple(map(stored, memory.archive)))


def begin_scene(memory: VideoMemory, keep_window: bool) -> VideoMemory:
    """The memory as the first clip after a scene cut may use it: the cut counted, the window dropped or kept.

    LongLive 2 was trained with the frames before the cut in view (pushed away by a gap in position); other checkpoints
    would go on with the old scene, so that only the sink is kept for them. At the start of a film nothing is cut.
    """
    if memory.latents_done == memory.origin:
        return memory
    kept = {block.start for block in memory.blocks if keep_window or is_sink(memory, block.start)}
    return replace(_keep(memory, memory.blocks, kept), cuts=memory.cuts + 1, shot=memory.shot + 1)


def begin_clip(memory: VideoMemory, geometry: Geometry, model_key: str, prompt: object, text: str = "") -> VideoMemory:
    """The memory as the next clip may use it: bound to the geometry and the model, the shot counted on a new prompt.

    Dropped, to be rebuilt from the latents: K/V that had to leave RAM (memory.shelf), those made by another model
    (other weights, other LoRA) and, on a new prompt where the spec says "recache", those of all chunks in view but the
    sink (LongLive 1, which protects its sink too). text: the prompt in words. Raises ValueError when the memory belongs
    to a film of another size.
    """
    if memory.geometry is not None and memory.geometry != geometry:
        raise ValueError(message(
            "Clip Sampler: this memory belongs to a film of another size or model",
            f"{geometry.width}x{geometry.height} latent pixels of {geometry.channels} channels",
            f"{memory.geometry.width}x{memory.geometry.height} of {memory.geometry.channels}",
            "Keep one size for the whole film, or start from a new Persistent Memory."))
    blocks, archive = tuple(map(_without_gone, memory.blocks)), tuple(map(_without_gone, memory.archive))
    prompt_hash = hash_prompt(prompt)
    is_new = prompt_hash != memory.prompt_hash
    if memory.model_key and memory.model_key != model_key:
        blocks, archive = tuple(map(_without_kv, blocks)), tuple(map(_without_kv, archive))
    elif is_new and memory.spec.prompt_change == "recache":
        blocks = tuple(block if is_sink(memory, block.start) else _without_kv(block) for block in blocks)
    return replace(memory, geometry=geometry, model_key=model_key, blocks=blocks, archive=archive,
                   shot=memory.shot + is_new, prompt_hash=prompt_hash, text=text)


def end_clip(memory: VideoMemory, before: VideoMemory) -> VideoMemory:
    """The memory after a finished clip: counted, its caches resting in RAM (bits unchanged).

    Chunks that `before`, the memory that the clip began with, holds already are shared with it, not copied again.
    """
    is_as_before = memory.spec.precision == before.spec.precision  # else it was stored anew while memory was short
    at_rest = {block.start: block for block in (*before.blocks, *before.archive)} if is_as_before else {}

    def rested(block: MemoryBlock) -> MemoryBlock:
        known = at_rest.get(block.start)
        return replace(block, **{name: (known and getattr(known, name)) or getattr(block, name).to("cpu")
                                 for name in CACHES if getattr(block, name) is not None})

    return replace(memory, blocks=tuple(map(rested, memory.blocks)), archive=tuple(map(rested, memory.archive)),
                   clips_done=memory.clips_done + 1)


def memory_bytes(memory: VideoMemory) -> tuple[int, int]:
    """(bytes of the latents, bytes of the K/V caches) that the value holds now."""
    blocks = (*memory.blocks, *memory.archive)
    latents = sum(block.latents.nbytes for block in blocks) + (0 if memory.tail is None else memory.tail.nbytes)
    return latents, sum(kv.nbytes for kv in caches(memory))


def caches(memory: VideoMemory) -> tuple[object, ...]:
    """Every BlockKV that the value holds: of chunks in view and in the archive, positive and negative."""
    found = (getattr(block, name) for block in (*memory.blocks, *memory.archive) for name in CACHES)
    return tuple(kv for kv in found if kv is not None and not kv.is_gone)


def film_digest(memory: VideoMemory) -> str:
    """A digest of what the memory holds of the film, latents and pictures, however and wherever its K/V are stored."""
    digest = hashlib.sha256(repr((memory.latents_done, memory.origin)).encode())
    for block in memory.blocks:
        digest.update(f"{block.start}".encode())
        digest.update(block.latents.contiguous().numpy().tobytes())
    anchor = () if memory.anchor is None else (memory.anchor.latents, memory.anchor.frame)
    for tensor in (memory.tail, memory.overlap, *anchor):  # what the next clip is decoded behind, or begins with
        if tensor is not None:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_prompt(prompt: object) -> str:
    """A short digest of a conditioning tensor [.., tokens, dim]: the same text gives the same digest."""
    if not isinstance(prompt, torch.Tensor):
        return ""
    return hashlib.sha256(prompt.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()[:16]


def prompt_tokens(prompt: object) -> torch.Tensor | None:
    """The tokens of a conditioning tensor [.., n, D] as [n, D] float32 on the CPU, without the zeros behind them."""
    if not isinstance(prompt, torch.Tensor):
        return None
    tokens = prompt.detach().to("cpu", torch.float32).flatten(0, -2)
    used = tokens.abs().amax(-1).nonzero()
    return tokens[: int(used.max()) + 1 if len(used) else 0].clone()


def _pin(memory: VideoMemory, block: MemoryBlock) -> tuple[MemoryBlock, ...]:
    """The blocks with a new one, pinned where it belongs to the beginning of a shot; pins of the shot before it fall.

    LongLive 2: only the newest cut is pinned, and not before its first chunk is done. The first shot has the sink.
    """
    blocks, spec = memory.blocks, memory.spec
    if spec.prompt_change != "pin" or block.shot == 0 or is_sink(memory, block.start):
        return *blocks, block
    held = [pin for pin in blocks if pin.is_pinned and pin.shot == block.shot]
    if _length(held) + block.length > spec.pinned_latents:
        return *blocks, block
    freed = (replace(pin, is_pinned=False) if pin.is_pinned and pin.shot != block.shot else pin for pin in blocks)
    return *freed, replace(block, is_pinned=True)


def _keep(memory: VideoMemory, blocks: tuple[MemoryBlock, ...], starts: set[int]) -> VideoMemory:
    """The memory with those of the blocks that start there in view, the others dropped or archived."""
    out, archive = [block for block in blocks if block.start not in starts], memory.archive
    if out and memory.spec.retrieved_latents:
        archive = thinned((*archive, *map(_at_rest, out)))
    elif out and memory.spec.prompt_change == "recache":
        archive = (_without_kv(out[-1]),)
    return replace(memory, blocks=tuple(block for block in blocks if block.start in starts), archive=archive)


def _at_rest(block: MemoryBlock) -> MemoryBlock:
    """An archived chunk's caches take no VRAM."""
    return replace(block, **{name: getattr(block, name).to("cpu") for name in CACHES if getattr(block, name)})


def _without_gone(block: MemoryBlock) -> MemoryBlock:
    """The block with None for a cache that the shelf had no room for: it will be rebuilt."""
    return replace(block, **{name: None for name in CACHES if getattr(block, name) and getattr(block, name).is_gone})


def _without_kv(block: MemoryBlock) -> MemoryBlock:
    return replace(block, kv=None, negative_kv=None)


def _roles(memory: VideoMemory, blocks: tuple[MemoryBlock, ...]) -> tuple[list[MemoryBlock], ...]:
    """(sink, pins, others), each oldest first."""
    roles: tuple[list[MemoryBlock], ...] = ([], [], [])
    for block in blocks:
        roles[0 if is_sink(memory, block.start) else 1 if block.is_pinned else 2].append(block)
    return roles


def _newest(blocks: list[MemoryBlock], latents: int) -> list[MemoryBlock]:
    """The last of these blocks that fit into so many latents."""
    first = len(blocks)
    while first and blocks[first - 1].length <= latents:
        first -= 1
        latents -= blocks[first].length
    return blocks[first:]


def _length(blocks: list[MemoryBlock]) -> int:
    return sum(block.length for block in blocks)
