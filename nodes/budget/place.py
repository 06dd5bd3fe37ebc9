"""What a remembered place adds to a clip: RAM for its cloud, and Mirage's branch on the card where that samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.errors import message
from ..common.types import ModelFacts
from ..loading.codecs import WEIGHTS
from ..loading.files import TensorHeader
from ..loading.formats import Checkpoint
from ..spatial.branch import BLOCKS, FAMILY, PATCH, branch_bytes
from ..spatial.costs import mirage_bytes, mirage_latents, read_bytes, update_bytes
from ..spatial.values import point_bytes
from .shapes import linear_shapes, wan_block_shapes

NO_BRANCH = "none"
BRANCHES = (NO_BRANCH, *WEIGHTS)
CONTEXT = 96  # channels of what Mirage's branch is given
LAYERS_PER_BLOCK = 2


@dataclass(frozen=True)
class Place:
    """points, channels: of the cloud as it is before the clip. branch_bytes: weights of a Mirage branch, 0 = none."""

    points: int
    channels: int
    branch_bytes: int = 0


def place_of(memory: Any, facts: ModelFacts, branch: str = NO_BRANCH) -> Place | None:
    """The place of a SPATIAL_MEMORY (None = no place) with Mirage's branch in weights of this kind, one of BRANCHES.

    ValueError for a branch beside another model than it is trained on.
    """
    if memory is None and branch == NO_BRANCH:
        return None
    if branch != NO_BRANCH and facts.kind != "ti2v":
        raise ValueError(message("VRAM Budget Gate: a Mirage branch for this MODEL",
                                 f"a {facts.family} {facts.kind} model", "Wan 2.2 TI2V-5B, which it is trained on",
                                 "Set Mirage branch to none."))
    points, channels = (0, facts.latent_channels) if memory is None else (len(memory), memory.channels)
    return Place(points, channels, 0 if branch == NO_BRANCH else branch_bytes(_branch(facts), branch))


def place_latents(place: Place, latents: int) -> int:
    """Latents of the longest forward of a clip of so many."""
    return mirage_latents(latents) if place.branch_bytes else latents


def place_ram_bytes(place: Place, latents: int, height: int, width: int, stride: int) -> int:
    """The cloud, and reading or writing a clip on a latent grid. stride: pixels per latent pixel, of the depth."""
    cloud, shape = place.points * point_bytes(place.channels), (latents, height, width)
    return cloud + max(read_bytes(place.points, place.channels, *shape),
                       update_bytes(place.points, place.channels, *shape, height * width * stride**2))


def place_card_bytes(place: Place, facts: ModelFacts, latents: int, tokens_per_latent: int) -> int:
    """Activations of a Mirage branch beside the model's; 0 without one."""
    if not place.branch_bytes:
        return 0
    return mirage_bytes(latents, tokens_per_latent, facts.dim, facts.dtype_bytes)


def branch_shapes(facts: ModelFacts) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of a branch trained on this model."""
    yield f"{PATCH}weight", (facts.dim, CONTEXT, *facts.patch)
    yield f"{PATCH}bias", (facts.dim,)
    for i in range(facts.layers // LAYERS_PER_BLOCK):
        yield from wan_block_shapes(f"{BLOCKS}{i}.", facts.dim, facts.ffn_dim)
        for name in ("after_proj",) if i else ("before_proj", "after_proj"):
            yield from linear_shapes(f"{BLOCKS}{i}.{name}", facts.dim, facts.dim)


def _branch(facts: ModelFacts) -> Checkpoint:
    headers = {name: TensorHeader(name, torch.bfloat16, shape, 2 * torch.Size(shape).numel())
               for name, shape in branch_shapes(facts)}
    return Checkpoint(Path("branch"), FAMILY, headers, {})
