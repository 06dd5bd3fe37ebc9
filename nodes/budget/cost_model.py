"""What a clip costs, phase by phase: peaks of VRAM, RAM and disk in bytes, from shapes and dtypes.

Formulas where torch allocates by name; where they end, the coefficients of data/<family>.json, each of which says
whether it was traced, measured or assumed. tests/budget/test_cost_traced.py follows ComfyUI's own modules and our hook
on tensors without data and compares; benchmarks/budget_accuracy.py measures on a card.

The text encoder's weights count in RAM alone: ComfyUI streams what of them does not fit on the card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..common.types import TEMPORAL_STRIDE, MemorySpec, ModelFacts, PhaseCost
from ..interpolation.rife import interpolation_bytes
from ..memory.kv_cache import kv_bytes
from ..memory.kv_cache import recall_bytes as layer_recall_bytes
from ..memory.latent_memory import frames_to_keep, latents_of
from ..memory.retrieval import ARCHIVE_CHUNKS
from ..sampling.presets import find_preset
from ..video.decode import CONTEXT_LATENTS, frame_count
from ..video.tiles import middle_bytes, tile_spans, tiled_buffer_bytes
from .coefficients import coefficients
from .place import Place, place_card_bytes, place_latents, place_ram_bytes
from .writers import ffv1_ram_bytes, h264_ram_bytes

PHASES = ("text", "sampling", "decode", "interpolation", "encode")
FLOAT32, FLOAT16 = 4, 2

TEXT_TOKENS, TEXT_DIM, TEXT_FFN, TEXT_HEADS = 512, 4096, 10240, 64  # UMT5-XXL, the text encoder of every Wan
WAN = coefficients("wan")
WORKSPACE_BYTES, CONTEXT_BYTES = int(WAN["workspace_bytes"]), int(WAN["context_bytes"])
VAE_KINDS, CORE = ("wan21", "wan22"), "core"
DECODE_VALUES = {kind: WAN[f"{kind}_decode_values"] for kind in VAE_KINDS}
FRAGMENTED = ("memory", "activations", "latents")  # decoding was measured with it
CONDITION_CHANNELS = {"i2v": 20, "vace": 96}  # beside the noisy latents, by kind of model
SCORES_TOKENS = 512  # queries at once of an attention that is not fused (ComfyUI's sub-quadratic one)


@dataclass(frozen=True)
class VaeFacts:
    """What decoding costs depends on. kind: a key of DECODE_VALUES, or "core": ComfyUI decodes it, in tiles of its own
    choice. dim: base channels of the decoder. core_bytes: what ComfyUI estimates for its smallest tile.
    """

    kind: str
    dim: int
    spatial_stride: int
    weight_bytes: int
    dtype_bytes: int
    core_bytes: int = 0


@dataclass(frozen=True)
class Job:
    """One clip to be made: everything the peaks depend on. Sizes in pixels, whole multiples of the model's grid.

    decode_parked: the decoder's caches rest in RAM. offload_bytes: of the weights, that rest in RAM. prompts: 2 with
    CFG. text_bytes: weights of the text encoder, 0 where it is not known. is_fused: the attention keeps no scores.
    learned: (phase, bytes) that phases on this card took more than these formulas say, or less. place: where a clip is
    made in a remembered one; K/V are of no use there.
    """

    facts: ModelFacts
    vae: VaeFacts
    width: int
    height: int
    clip_latents: int
    spec: MemorySpec
    decode_tile_px: int = 0
    interpolation_batch: int = 1
    decode_parked: bool = False
    offload_bytes: int = 0
    prompts: int = 1
    text_bytes: int = 0
    is_fused: bool = True
    learned: tuple[tuple[str, int], ...] = ()
    place: Place | None = None

    @property
    def is_latent(self) -> bool:
        """Whether the memory is frames: then the whole clip goes through the model at once, and there are no K/V."""
        return self.place is not None or find_preset(self.spec).strategy == "latent"

    @property
    def forward_latents(self) -> int:
        """Latents of the longest forward: a chunk, where a new prompt recaches all that follows the sink and the chunk
        before it, or the whole clip with what will be trimmed from it."""
        spec = self.spec
        if not self.is_latent:
            recached = spec.capacity_latents - spec.sink_latents if spec.prompt_change == "recache" else 0
            return recached + spec.chunk_latents
        given = latents_of(frames_to_keep(spec)) if find_preset(spec).strategy == "latent" else 0
        latents = self.clip_latents + given + (self.facts.kind == "vace")  # VACE: and its reference in front
        return latents if self.place is None else place_latents(self.place, latents)


def phase_costs(job: Job) -> tuple[PhaseCost, ...]:
    """The predicted peaks of every phase, in the order of PHASES."""
    costs = (text_cost(job), sampling_cost(job), decode_cost(job), interpolation_cost(job), encode_cost(job))
    learned = dict(job.learned)
    return tuple(_corrected(cost, learned.get(cost.phase, 0)) for cost in costs)


def text_cost(job: Job) -> PhaseCost:
    """Activations of UMT5-XXL on 512 tokens (hidden states, gated feed-forward, scores), and the encoder's weights
    where it is known: ComfyUI streams what of them does not fit."""
    hidden = TEXT_TOKENS * (6 * TEXT_DIM + 3 * TEXT_FFN)
    scores = 3 * TEXT_HEADS * TEXT_TOKENS**2  # scores, position bias, softmax
    return _phase("text", {"weights": 0, "activations": (hidden + scores) * FLOAT32}, ram_bytes=job.text_bytes)


def sampling_cost(job: Job) -> PhaseCost:
    """Weights, memory, and the dearest moment of a forward. The memory rests in RAM between clips in any placement.

    With CFG one forward is counted: ComfyUI runs both prompts in one only where 1.5 times its own estimate is free.
    """
    facts, place = job.facts, job.place
    weights = facts.weight_bytes - job.offload_bytes + (place.branch_bytes if place else 0)
    ram = kept_bytes(job) + _frames_bytes(job) + job.offload_bytes
    beside = 0
    if place:
        grid = job.height // facts.spatial_stride, job.width // facts.spatial_stride
        ram += place_ram_bytes(place, job.clip_latents, *grid, facts.spatial_stride)
        beside = place_card_bytes(place, facts, job.clip_latents, tokens_per_latent(facts, job.width, job.height))
    return _phase("sampling", {
        "weights": weights, "memory": resident_memory_bytes(job),
        "activations": forward_bytes(job) + beside + widest_bytes(facts) + scores_bytes(job),
        "latents": latents_bytes(job), "workspace": WORKSPACE_BYTES}, ram_bytes=ram)


def decode_cost(job: Job) -> PhaseCost:
    """Weights and one call of the streaming decoder, on whole frames or a tile with its margin.

    Tiled, RAM holds the clip's frames and the middle block's output; parked, the decoder's caches too. Disk: what Save
    Clip writes, the memory after the clip (its K/V too), the latents and the frames.
    """
    vae = job.vae
    if vae.kind == CORE:
        frames = TEMPORAL_STRIDE * job.clip_latents * 3 * job.width * job.height
        ram = 2 * frames * FLOAT32 + ffv1_ram_bytes(job.width * job.height)
        return _phase("decode", {"weights": vae.weight_bytes, "decode": vae.core_bytes}, ram,
                      int(frames / 3 * WAN["ffv1_bytes_per_pixel"]) + latents_bytes(job))
    pixels = decoded_side(job, job.width) * decoded_side(job, job.height)
    values = vae.dim * pixels * vae.dtype_bytes
    saved = WAN[f"{vae.kind}_parked_values"] if job.decode_parked else 0
    parked = int(WAN[f"{vae.kind}_cache_values"] * values) if job.decode_parked else 0
    frames, area = frame_count(job.clip_latents, CONTEXT_LATENTS), job.width * job.height
    buffer = _tiled_ram_bytes(job, frames) if job.decode_tile_px else 0
    memory = kept_bytes(job)
    ram = memory + buffer + parked + TEMPORAL_STRIDE * 3 * area * FLOAT32 + ffv1_ram_bytes(area)
    disk = int(frames * area * WAN["ffv1_bytes_per_pixel"]) + latents_bytes(job) + memory
    return _phase("decode", {"weights": vae.weight_bytes, "decode": int((DECODE_VALUES[vae.kind] - saved) * values)},
                  ram, disk)


def interpolation_cost(job: Job) -> PhaseCost:
    """RIFE at the size of the frames; its 24 MB of weights are in the workspace."""
    activations = interpolation_bytes(job.width, job.height, job.interpolation_batch, job.facts.dtype_bytes)
    frames = 2 + job.interpolation_batch
    return _phase("interpolation", {"activations": activations, "workspace": WORKSPACE_BYTES},
                  ram_bytes=frames * 3 * job.width * job.height * FLOAT32)


def encode_cost(job: Job) -> PhaseCost:
    """H.264 on the CPU, streamed."""
    return _phase("encode", {}, h264_ram_bytes(job.width * job.height))


def _phase(phase: str, parts: dict[str, int], ram_bytes: int = 0, disk_bytes: int = 0) -> PhaseCost:
    """parts: what is live at the peak; what the allocator holds beyond it comes on top."""
    beyond = sum(size for name, size in parts.items() if name in FRAGMENTED)
    parts = {name: size for name, size in {**parts, "fragmentation": int(WAN["fragmentation"] * beyond)}.items()
             if size}
    return PhaseCost(phase, sum(parts.values()), ram_bytes, disk_bytes, tuple(parts.items()))


def _corrected(cost: PhaseCost, learned: int) -> PhaseCost:
    if not learned or not cost.parts:
        return cost
    return replace(cost, vram_bytes=cost.vram_bytes + learned, parts=(*cost.parts, ("learned", learned)))


def tokens_per_latent(facts: ModelFacts, width: int, height: int) -> int:
    """Tokens of one latent frame."""
    rows = -(-(height // facts.spatial_stride) // facts.patch[1])
    return rows * -(-(width // facts.spatial_stride) // facts.patch[2])


def memory_bytes(job: Job, latents: int) -> int:
    """K/V of `latents` remembered latents, all layers, as the memory room stores them, chunk by chunk.

    4-bit memories keep the sink in 8 bits. Per value 2 bytes (bf16), 1.0156 (int8) or 0.5625 (4 bits).
    """
    spec = job.spec
    sink = min(latents, spec.sink_latents)
    sink_precision = "int8" if spec.precision == "4bit" else spec.precision
    return (sink // spec.chunk_latents * _chunk_bytes(job, sink_precision)
            + (latents - sink) // spec.chunk_latents * _chunk_bytes(job, spec.precision))


def kept_bytes(job: Job) -> int:
    """K/V of the whole memory in RAM and in its file: those in view and, for retrieval, a full archive."""
    if job.is_latent:
        return 0
    archive = ARCHIVE_CHUNKS * _chunk_bytes(job, job.spec.precision) if job.spec.retrieved_latents else 0
    return job.prompts * (memory_bytes(job, job.spec.capacity_latents) + archive)


def resident_memory_bytes(job: Job) -> int:
    """K/V on the device while sampling: in VRAM all of it and the chunk being committed; in RAM two layers of all of it
    (one is read while the next one arrives, sampling.prefetch) and one of the chunk that is being committed."""
    spec, facts = job.spec, job.facts
    if job.is_latent:
        return 0
    collected = _chunk_bytes(job, "int8" if spec.precision == "4bit" and spec.sink_latents else spec.precision)
    kept = memory_bytes(job, spec.capacity_latents)
    if spec.placement == "vram":
        return job.prompts * (kept + collected)
    return job.prompts * (2 * kept + collected) // facts.layers


def forward_bytes(job: Job) -> int:
    """The dearest moment of one forward, traced: feed-forward, the turning of q and k, storing, or the recall.

    In units of one hidden state (tokens x dim): feed-forward 3 (the block's input, the stream, the normed stream) and
    the wide row twice (before and after its activation); turning 5 and three float32 temporaries; recall 6.5 (input,
    stream, normed stream, q, k, v and small ones) and recall_bytes.
    """
    facts = job.facts
    tokens = units_of(facts, job.forward_latents) * tokens_per_latent(facts, job.width, job.height)
    if facts.family != "wan":  # traced as a whole, in 16 bits
        found = coefficients(facts.family)
        return int((found["bytes_per_token"] * tokens + found["fixed_bytes"]) * facts.dtype_bytes / 2)
    hidden = tokens * facts.dim * facts.dtype_bytes
    wide = FLOAT32 / facts.dtype_bytes  # one float32 temporary, in hidden states
    feed_forward = int(hidden * (WAN["feed_forward_hidden"] + 2 * facts.ffn_dim / facts.dim))
    turning = int(hidden * (WAN["turning_hidden"] + 3 * wide))
    text = TEXT_TOKENS * (2 * TEXT_DIM + 4 * facts.dim) * facts.dtype_bytes
    vace = int(WAN["vace_hidden"] * hidden) if facts.kind == "vace" else 0
    aside = int(tokens * WAN["rotation_bytes_per_token"]) + text + vace
    if job.is_latent:
        return max(feed_forward, turning) + aside
    storing = int(hidden * (WAN["attention_hidden"] + 4 * wide)) if job.spec.precision != "model" else 0
    recall = int(hidden * WAN["attention_hidden"]) + recall_bytes(job)
    return max(feed_forward, turning, storing, recall) + aside


def widest_bytes(facts: ModelFacts) -> int:
    """The widest weight in the compute dtype: it is dequantised or cast for one use."""
    if facts.family != "wan":
        return int(coefficients(facts.family)["widest_linear_values"]) * facts.dtype_bytes
    return facts.dim * max(facts.dim, facts.ffn_dim) * facts.dtype_bytes


def units_of(facts: ModelFacts, latents: int) -> int:
    """What is denoised: latents, or of Stable Video Diffusion frames, 4n-3 of n latents."""
    return TEMPORAL_STRIDE * latents - 3 if facts.family == "svd" else latents


def recall_bytes(job: Job) -> int:
    """Scratch of one layer's remembered K and V on their way into the attention (memory.kv_cache.recall_bytes)."""
    facts, spec = job.facts, job.spec
    per_latent = tokens_per_latent(facts, job.width, job.height)
    as_stored = spec.precision == "model" and spec.placement == "vram"
    return layer_recall_bytes(facts.heads, facts.head_dim, spec.capacity_latents * per_latent,
                              spec.chunk_latents * per_latent, facts.dtype_bytes, as_stored, job.prompts)


def scores_bytes(job: Job) -> int:
    """Scores of an attention that is not fused, for the queries that it takes at once: float32, and their softmax."""
    if job.is_fused or not job.facts.heads:
        return 0
    remembered = 0 if job.is_latent else job.spec.capacity_latents
    keys = (job.forward_latents + remembered) * tokens_per_latent(job.facts, job.width, job.height)
    return 2 * job.facts.heads * SCORES_TOKENS * keys * FLOAT32


def decoded_side(job: Job, side: int) -> int:
    """Pixels of a frame's side that are decoded at once: all of them, or the largest tile with its margin."""
    stride = job.vae.spatial_stride
    if not job.decode_tile_px:
        return side
    tile = max(stop - start for start, stop in tile_spans(side // stride, job.decode_tile_px // stride)) * stride
    return min(side, tile + 2 * int(WAN[f"{job.vae.kind}_tile_margin_px"]))


def _tiled_ram_bytes(job: Job, frames: int) -> int:
    vae, (h, w) = job.vae, (side // job.vae.spatial_stride for side in (job.height, job.width))
    channels = int(WAN[f"{vae.kind}_middle_channels"] * vae.dim)
    middle = middle_bytes(job.clip_latents + CONTEXT_LATENTS, h, w, channels, vae.dtype_bytes)
    return tiled_buffer_bytes(frames, job.height, job.width) + middle


def latents_bytes(job: Job) -> int:
    """Noise, samples, the chunk's x and x0 and a copy of the clip, and the conditions of both prompts; float32."""
    facts, (h, w) = job.facts, (side // job.facts.spatial_stride for side in (job.height, job.width))
    units = units_of(facts, job.forward_latents)
    conditions = 2 * CONDITION_CHANNELS.get(facts.kind, 0) * units if job.is_latent else 0
    return (5 * facts.latent_channels * units_of(facts, job.clip_latents) + conditions) * h * w * FLOAT32


def _frames_bytes(job: Job) -> int:
    """Frames of a clip in RAM on their way into the VAE, for checkpoints that are given all of them."""
    copies = int(WAN.get(f"{job.facts.kind}_frame_copies", 0)) if job.is_latent else 0
    return copies * TEMPORAL_STRIDE * job.forward_latents * 3 * job.width * job.height * FLOAT32


def _chunk_bytes(job: Job, precision: str) -> int:
    facts, tokens = job.facts, job.spec.chunk_latents * tokens_per_latent(job.facts, job.width, job.height)
    return kv_bytes(facts.layers, facts.heads, facts.head_dim, tokens, precision, facts.dtype_bytes)
