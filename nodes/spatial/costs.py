"""What a place costs: RAM of a read and of a write, and what Mirage's surroundings add to a forward on the card.

Clouds lie, are read and are written in RAM; the card sees only what was read, as part of the clip. The factors were
traced on this room's own functions and on ComfyUI's modules (tests/spatial/test_costs.py). For the weights of a branch
see branch.branch_bytes.
"""

from __future__ import annotations

from .references import MOST, PRECEDING
from .values import point_bytes

FLOAT16, FLOAT32 = 2, 4
SEEN_BYTES = 52  # per point, on its way into a camera
MERGED_BYTES, KEPT_BYTES = 62, 8  # per point on its way into cells, and beside the merged cloud
CHECKED_BYTES = 9  # per depth value: a copy of it, and what is asked of it
SINGLE_BYTES = 4096  # numbers that stand alone
BESIDE_HIDDEN = 2.4  # hidden states that a branch and its surroundings keep beside a plain forward


def read_bytes(points: int, channels: int, latents: int, height: int, width: int) -> int:
    """RAM of reading so many latents of a grid out of a cloud, the result included and the cloud not."""
    grid = height * width
    pictures = 2 * latents * grid * (channels + 1) * FLOAT32
    return SINGLE_BYTES + points * SEEN_BYTES + pictures + grid * (channels * (FLOAT16 + FLOAT32) + SEEN_BYTES)


def update_bytes(points: int, channels: int, latents: int, height: int, width: int, pixels: int) -> int:
    """RAM of writing so many latents behind a cloud of `points` and merging it, the cloud that goes in not included.

    pixels: of a frame of depth.
    """
    new = latents * height * width
    grown = (points + new) * point_bytes(channels)
    merging = grown + (points + new) * max(MERGED_BYTES, point_bytes(channels) + KEPT_BYTES)
    return SINGLE_BYTES + max(CHECKED_BYTES * latents * pixels, grown + 2 * new * point_bytes(channels), merging)


def mirage_latents(latents: int) -> int:
    """Latents of the longest forward of a chunk: the target, its references and what came before it."""
    return latents + MOST + PRECEDING


def mirage_bytes(latents: int, tokens_per_latent: int, dim: int, dtype_bytes: int) -> int:
    """VRAM that the branch and the surroundings of a chunk take beside a plain forward of mirage_latents, without
    weights."""
    return int(BESIDE_HIDDEN * (latents + PRECEDING) * tokens_per_latent * dim * dtype_bytes)
