"""What a concession costs in time, as a share: estimates from arithmetic, for a card of the 3060 class.

Floating-point work of one forward, the bytes that it brings over the bus, and the area that tiles decode twice; the
speeds are coefficients of data/wan.json. Real times are learned on the card (learned.py).
"""

from __future__ import annotations

from .coefficients import coefficients
from .cost_model import Job, decoded_side, memory_bytes, tokens_per_latent, units_of

WAN = coefficients("wan")
HIDDEN_SHARE = 0.9  # of copying that hides behind computing (sampling.prefetch brings the next layer meanwhile)


def forward_flops(job: Job) -> float:
    """Floating-point operations of one forward: 2 per parameter and token, 4 per query, key and channel."""
    facts, spec = job.facts, job.spec
    per_latent = tokens_per_latent(facts, job.width, job.height)
    tokens = units_of(facts, job.forward_latents) * per_latent
    if facts.family != "wan":  # its layers are not read
        return tokens * 2.0 * coefficients(facts.family)["parameters"]
    keys = tokens + (0 if job.is_latent else spec.capacity_latents * per_latent)
    parameters = facts.layers * facts.dim * (8 * facts.dim + 2 * facts.ffn_dim)  # two attentions and a feed-forward
    return tokens * (2.0 * parameters + 4.0 * keys * facts.dim * facts.layers)


def ram_share(job: Job) -> float:
    """Time that a forward loses because the memory comes from RAM, as a share of it."""
    moved = job.prompts * memory_bytes(job, job.spec.capacity_latents) / WAN["bus_bytes_per_second"]
    return _unhidden(moved, forward_flops(job) / WAN["flops_per_second"])


def offload_share(job: Job) -> float:
    """Time that a forward loses because a part of the weights comes from RAM: they are waited for."""
    return job.offload_bytes / WAN["bus_bytes_per_second"] / (forward_flops(job) / WAN["flops_per_second"])


def tile_share(job: Job) -> float:
    """Time that decoding loses because neighbouring tiles compute their margins twice."""
    if job.decode_tile_px <= 0:
        return 0.0
    whole = 1.0
    for side in (job.width, job.height):
        decoded = decoded_side(job, side)
        margin = decoded - min(side, job.decode_tile_px)
        whole *= max(1.0, -(-side // job.decode_tile_px) * (min(side, job.decode_tile_px) + margin) / side)
    return whole - 1


def percent(share: float) -> str:
    """A share as people say it."""
    if share < 0.01:
        return "under 1 %"
    return f"about {share * 100:.0f} %" if share < 1 else f"about {share:.1f} times the"


def _unhidden(moved_s: float, computed_s: float) -> float:
    return max(moved_s - computed_s, (1 - HIDDEN_SHARE) * moved_s) / computed_s
