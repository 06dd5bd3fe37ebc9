"""What a clip did with its memory before it began, in words: keys and values made again, and chunks brought back."""

from __future__ import annotations

import torch

from ..common.types import TEMPORAL_STRIDE, MemoryBlock, VideoMemory
from ..memory.state import is_sink, view


def rebuilt_note(memory: VideoMemory, model_key: str, prompt_hash: str, has_negative: bool) -> str:
    """One sentence per reason, or "".

    memory: as the clip found it, a scene cut already applied. model_key, prompt_hash: of the clip. has_negative:
    whether it is sampled under a negative prompt too. The same rules as memory.state.begin_clip and chunk_loop.rebuild.
    """
    blocks = (*memory.blocks, *(memory.archive if memory.spec.retrieved_latents else ()))
    if memory.model_key and memory.model_key != model_key:
        return _sentence(len(blocks), "because the model, a LoRA or the quantisation differs from what made them")
    lost = [block for block in blocks if not _is_there(block, "kv")]
    kept = [block for block in blocks if _is_there(block, "kv")]
    notes = [_sentence(len(lost), "because the memory came without them (saved without, or out of RAM)")]
    if memory.spec.prompt_change == "recache" and prompt_hash != memory.prompt_hash:
        in_view = {block.start for block in memory.blocks if not is_sink(memory, block.start)}
        notes.append(_sentence(sum(block.start in in_view for block in kept), "under the new prompt (recache)"))
        kept = [block for block in kept if block.start not in in_view]
    if has_negative:
        lacking = sum(not _is_there(block, "negative_kv") for block in kept)
        notes.append(_sentence(lacking, "because the negative prompt was not used before"))
    return " ".join(filter(None, notes))


def retrieved_note(memory: VideoMemory, prompt: torch.Tensor | None) -> str:
    """Which seconds of the film the clip's prompt (its tokens) brings back into view, or ""."""
    archived, second = {block.start for block in memory.archive}, TEMPORAL_STRIDE / memory.spec.fps
    found = [block for block in view(memory, prompt) if block.start in archived]
    if not found:
        return ""
    spans = (f"{block.start * second:.1f} to {(block.start + block.length) * second:.1f} s" for block in found)
    return f"Its prompt brought back {', '.join(spans)} of the film."


def _is_there(block: MemoryBlock, name: str) -> bool:
    kv = getattr(block, name)
    return kv is not None and not kv.is_gone


def _sentence(chunks: int, why: str) -> str:
    if not chunks:
        return ""
    return f"K/V of {chunks} chunk{'s' if chunks > 1 else ''} were rebuilt from latents {why}."
