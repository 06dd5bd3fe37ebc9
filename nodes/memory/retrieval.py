"""Which earlier chunks are brought back because their prompt was like the current one.

Longer than trained: no public checkpoint has a contiguous 16 s window, but a chunk of long ago may take a place inside
the trained budget. It is found by its prompt, whose tokens every chunk keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch.nn.functional import normalize

from ..common.types import MemoryBlock

ARCHIVE_CHUNKS = 16  # chunks out of view that may be brought back; their K/V rest in RAM


def nearest(blocks: Iterable[MemoryBlock], prompt: torch.Tensor, latents: int) -> tuple[MemoryBlock, ...]:
    """Up to `latents` latents of whole blocks whose prompt is most like this one [n, D], oldest first; ties: newest.

    Blocks without a prompt, or of another text encoder, come last.
    """
    blocks = tuple(blocks)
    known = {id(block.prompt): block.prompt for block in blocks}  # the chunks of a clip share theirs
    scores = {key: likeness(prompt, other) for key, other in known.items()}
    ranked = sorted(blocks, key=lambda block: (scores[id(block.prompt)], block.start), reverse=True)
    found: list[MemoryBlock] = []
    for block in ranked:
        if sum(one.length for one in found) + block.length <= latents:
            found.append(block)
    return tuple(sorted(found, key=lambda block: block.start))


def likeness(prompt: torch.Tensor, other: torch.Tensor | None) -> float:
    """How much of a prompt [n, D] is said in another one [m, D], -1 to 1; -2 where they cannot be compared.

    The mean over its tokens of the best cosine with a token of the other (late interaction: Khattab and Zaharia 2020,
    ColBERT, arXiv 2004.12832): a hero's name counts however much else the other prompt tells, where a cosine of whole
    prompts is decided by the words that all prompts share. In steps of 1e-4: rounding must not decide between equals.
    """
    if other is None or other.shape[-1] != prompt.shape[-1] or not (len(prompt) and len(other)):
        return -2.0
    cosines = normalize(prompt, dim=-1) @ normalize(other, dim=-1).T  # [n, m]
    return round(float(cosines.amax(1).mean()), 4)


def thinned(blocks: Iterable[MemoryBlock], limit: int = ARCHIVE_CHUNKS) -> tuple[MemoryBlock, ...]:
    """At most `limit` blocks, oldest first: the oldest of the prompt that has most goes, so that no prompt is lost
    while another has two."""
    kept = sorted(blocks, key=lambda block: block.start)
    while len(kept) > limit:
        count = Counter(block.shot for block in kept)
        most = max(count.values())
        kept.remove(next(block for block in kept if count[block.shot] == most))
    return tuple(kept)
