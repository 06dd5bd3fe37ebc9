"""What a memory holds now: every remembered chunk with its role, bytes by kind and place, and the same in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE, MemoryBlock, VideoMemory
from ..sampling.presets import find_preset
from .drift import latent_distance, statistics_of
from .kv_cache import BlockKV
from .state import CACHES, caches, is_sink, view
from .words import size

ROLES = ("sink", "pinned", "retrieved", "archive", "window")


@dataclass(frozen=True)
class Remembered:
    """One chunk. role: one of ROLES; "retrieved" is out of the window and in view again because its prompt is like the
    newest one, "archive" is out of view and may be brought back. distance: of its latents from the reference, see
    drift."""

    block: MemoryBlock
    role: str
    distance: float = 0.0


def require_memory(memory: VideoMemory | None, node: str) -> None:
    """Raise ValueError for what Save Clip and Load Clip hand on where no memory was saved."""
    if memory is None:
        raise ValueError(message(f"{node} needs a memory", "a clip that was saved or loaded without one",
                                 "Persistent Memory, or the memory after another clip",
                                 "Switch on with_memory on Load Clip, or connect a memory to Save Clip."))


def remembered(memory: VideoMemory) -> tuple[Remembered, ...]:
    """Every chunk in view or in the archive, in the order of the film, as the newest prompt sees them.

    Distances are from the sink or, where there is none, from the oldest chunk (reference_name).
    """
    blocks = _chunks(memory)
    if not blocks:
        return ()
    newest = max(memory.blocks, key=lambda block: block.start).prompt if memory.blocks else None
    in_view = {block.start for block in view(memory, newest)}
    archived = {block.start for block in memory.archive}
    sink = [block.latents for block in blocks if is_sink(memory, block.start)]
    reference = statistics_of(sink or [blocks[0].latents])

    def role(block: MemoryBlock) -> str:
        if is_sink(memory, block.start):
            return "sink"
        if block.is_pinned:
            return "pinned"
        if block.start not in in_view:
            return "archive"
        return "retrieved" if block.start in archived else "window"

    return tuple(Remembered(block, role(block), latent_distance(reference, statistics_of([block.latents])))
                 for block in blocks)


def reference_name(memory: VideoMemory) -> str:
    """What drift is measured from."""
    if find_preset(memory.spec).strategy == "latent":
        return "the film's first clip"
    return "the first seconds kept" if memory.spec.sink_latents else "the oldest chunk remembered"


def sizes(memory: VideoMemory) -> dict[str, int]:
    """Bytes by kind: latents, prompts, pictures, K/V by precision and place (VRAM, RAM, file); none that are 0."""
    anchor = memory.anchor
    blocks = (*memory.blocks, *memory.archive)
    prompts = {id(block.prompt): block.prompt for block in blocks}  # of a clip, shared
    found = {"latents": _bytes([*(block.latents for block in blocks), memory.tail, anchor and anchor.latents]),
             "prompts": _bytes(prompts.values()),
             "pictures": _bytes([memory.overlap, anchor and anchor.frame])}
    for kv in caches(memory):
        name = stored_as(kv)
        found[name] = found.get(name, 0) + kv.nbytes
    return {name: count for name, count in found.items() if count}


def stored_as(kv: BlockKV) -> str:
    """Precision and place of a cache that has layers: "K/V int8 in RAM"."""
    packed = kv.layers[0].k
    place = "file" if kv.in_file else "RAM" if packed.data.device.type == "cpu" else "VRAM"
    return f"K/V {_precision(packed.precision, packed.data.dtype)} in {place}"


def film_seconds(memory: VideoMemory) -> float:
    """Seconds of the film so far."""
    return memory.latents_done * TEMPORAL_STRIDE / memory.spec.fps


def in_words(memory: VideoMemory) -> list[str]:
    """What a memory is and holds, one sentence a line."""
    grid = memory.geometry
    where = (f"{grid.width}x{grid.height} latent pixels of {grid.channels} channels" if grid
             else "no film yet: it takes the size of its first clip")
    key = f"model {memory.model_key[:8]}" if memory.model_key else "no model yet"
    lines = [f"{_count(memory.clips_done, 'clip')}, {film_seconds(memory):.2f} s of film "
             f"({memory.latents_done} latents).",
             f"Made for {find_preset(memory.spec).label}; {where}; {key}."]
    if find_preset(memory.spec).strategy == "latent":
        return [*lines, _pictures_line(memory)]
    return [*lines, _view_line(memory), _kv_line(memory)]


def _chunks(memory: VideoMemory) -> list[MemoryBlock]:
    """In view or to be brought back, oldest first. Without retrieval the archive is there to recache alone."""
    archive = memory.archive if memory.spec.retrieved_latents else ()
    return sorted((*memory.blocks, *archive), key=lambda block: block.start)


def _view_line(memory: VideoMemory) -> str:
    found, parts = remembered(memory), []
    for role in ROLES:
        chunks = [one.block for one in found if one.role == role]
        if chunks:
            seconds = sum(block.length for block in chunks) * TEMPORAL_STRIDE / memory.spec.fps
            parts.append(f"{role} {seconds:.2f} s in {_count(len(chunks), 'chunk')}")
    return f"Remembered: {', '.join(parts) or 'nothing'}."


def _kv_line(memory: VideoMemory) -> str:
    blocks = _chunks(memory)
    ready = sum(_has_kv(block) for block in blocks)
    if not blocks:
        return "There are no keys and values yet."
    held = sum(kv.nbytes for kv in caches(memory))
    if ready == len(blocks):
        return f"Keys and values of all {ready} chunks are in it ({size(held)}): the film goes on bit-equal."
    return (f"Keys and values of {len(blocks) - ready} of {len(blocks)} chunks are not in it: the next Clip Sampler "
            "makes them again from the latents: the same while nothing was forgotten, else close.")


def _pictures_line(memory: VideoMemory) -> str:
    if memory.anchor is None:
        return "Remembered: nothing yet."
    height, width = memory.anchor.frame.shape[:2]
    return (f"Remembered: the film's first frame ({width}x{height}), its colours, and the last {len(memory.overlap)} "
            "frames.")


def _has_kv(block: MemoryBlock) -> bool:
    kv: BlockKV | None = getattr(block, CACHES[0])
    return kv is not None and not kv.is_gone


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _precision(name: str, dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.") if name == "model" else name


def _bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
