"""Which earlier chunks are brought back because their prompt was like the current one.

Longer than trained: no public checkpoint has a contiguous 16 s window, but a chunk of long ago may take a place inside
the trained budget. It is found by prompt: every chunk keeps its conditioning as one vector, the topic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from ..common.types import MemoryBlock

ARCHIVE_CHUNKS = 16  # chunks out of view that may be brought back; their K/V rest in RAM


def topic_of(conditioning: torch.Tensor) -> torch.Tensor:
    """The prompt as one vector: the mean of its tokens, [.., tokens, D] -> [D] float32 of length 1 on the CPU.

    Rows of zeros are padding (Wan's text encoder zeroes them). A prompt of nothing but padding gives zeros.
    """
    tokens = conditioning.detach().to("cpu", torch.float32).flatten(0, -2)
    return torch.nn.functional.normalize(tokens[tokens.abs().amax(-1) > 0].sum(0), dim=0)


def nearest(blocks: Iterable[MemoryBlock], topic: torch.Tensor, latents: int) -> tuple[MemoryBlock, ...]:
    """Up to `latents` latents of whole blocks whose topic is nearest to this one [D], oldest first; ties: the newest.

    Blocks without a topic, or of another text encoder, come last.
    """
    ranked = sorted(blocks, key=lambda block: (_likeness(block, topic), block.start), reverse=True)
    found: list[MemoryBlock] = []
    for block in ranked:
        if sum(one.length for one in found) + block.length <= latents:
            found.append(block)
    return tuple(sorted(found, key=lambda block: block.start))


def thinned(blocks: Iterable[MemoryBlock], limit: int = ARCHIVE_CHUNKS) -> tuple[MemoryBlock, ...]:
    """At most `limit` blocks, oldest first: the oldest of the prompt that has most goes, so that no prompt is lost
    while another has two."""
    kept = sorted(blocks, key=lambda block: block.start)
    while len(kept) > limit:
        count = Counter(block.shot for block in kept)
        most = max(count.values())
        kept.remove(next(block for block in kept if count[block.shot] == most))
    return tuple(kept)


def _likeness(block: MemoryBlock, topic: torch.Tensor) -> float:
    """Cosine, in steps of 1e-4: rounding must not decide between equal prompts."""
    if block.topic is None or block.topic.shape != topic.shape:
        return -2.0
    return round(float(block.topic @ topic), 4)
