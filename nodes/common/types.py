"""The values that travel between rooms: plain, frozen, and free of ComfyUI.

Units: `latents` are latent frames, `frames` are pixel frames, `_px` pixels, `_s` seconds, `_bytes` bytes.
Tensor layouts: latents are [C, T, h, w] inside a memory and [1, C, T, h, w] in a ComfyUI LATENT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

PRECISIONS = ("model", "int8", "4bit")
PLACEMENTS = ("vram", "ram")
PROMPT_CHANGES = ("keep", "recache", "pin")
STRATEGIES = ("rolling", "latent")
TILE_BY_CORE = -1  # instead of a decode tile: ComfyUI chooses it by what is free when it decodes
TEMPORAL_STRIDE = 4  # pixel frames per latent frame of every Wan VAE; the film's first latent holds one frame


@dataclass(frozen=True)
class Preset:
    """One checkpoint's recipe.

    chunk, sink, window: latents. fps: pixel frames per second of the training clips. sigmas: noise levels of a chunk,
    falling to 0. solver: one of solvers.SOLVERS. tested_with: what the numbers come from. whole_timesteps: the model
    was given 1000 x sigma cut to an integer, while the solver used the sigma as it is. strategy: one of STRATEGIES,
    how such a checkpoint remembers ("rolling": keys and values; "latent": frames given as conditions, then chunk is 1
    and sink, window, sigmas and solver mean nothing). pin: latents of a new shot that a scene cut pins. shot_gap:
    latents of rotary distance that every scene cut opens between the chunk and what lies before the cut.
    """

    label: str
    fps: float
    chunk: int
    sink: int
    window: int
    sigmas: tuple[float, ...]
    solver: str
    tested_with: str
    whole_timesteps: bool = False
    strategy: str = "rolling"
    pin: int = 0
    shot_gap: int = 0


@dataclass(frozen=True)
class MemorySpec:
    """How much a memory keeps, and how.

    preset: name of the checkpoint recipe in sampling/presets.py, or "custom": then `custom` is the recipe.
    fps: pixel frames per second that the checkpoint was trained for.
    chunk_latents: latents denoised together. sink_latents, window_latents: clean latents kept from the start of the
    film and from just before the current chunk; multiples of chunk_latents. precision: K/V storage, one of PRECISIONS
    ("model" = the model's compute dtype). placement: where K/V rest between forwards, one of PLACEMENTS.
    prompt_change: what a new prompt does to what is remembered, one of PROMPT_CHANGES. pinned_latents: capacity for the
    beginning of the current shot, held until the next cut (prompt_change "pin"). retrieved_latents: capacity for
    earlier chunks that are brought back because their prompt was like the current one. Both are whole chunks.
    For strategy "latent": overlap_latents, last latents of the clip before that the next one is given; reanchor_clips,
    every how many clips the first frame of the film is given again (0 = never); colour_hold, 0..1, how strongly the
    colours of later clips are held to the first one (0 = not at all).
    """

    preset: str
    fps: float
    chunk_latents: int
    sink_latents: int
    window_latents: int
    precision: str = "model"
    placement: str = "vram"
    prompt_change: str = "keep"
    pinned_latents: int = 0
    retrieved_latents: int = 0
    custom: Preset | None = None
    overlap_latents: int = 1
    reanchor_clips: int = 0
    colour_hold: float = 0.0

    @property
    def capacity_latents(self) -> int:
        """Clean latents that a chunk may attend to."""
        return self.sink_latents + self.pinned_latents + self.retrieved_latents + self.window_latents

    @property
    def window_s(self) -> float:
        return self.window_latents * TEMPORAL_STRIDE / self.fps


@dataclass(frozen=True)
class Geometry:
    """The latent grid of a film: channels, height, width in latent pixels. A memory belongs to exactly one."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class MemoryBlock:
    """One committed chunk of a film.

    start: absolute index of its first latent. latents: [C, n, h, w] float32 on the CPU, normalised as the model sees
    them. shot: running number of the prompt it was made under. kv: the derived cache (memory.kv_cache.BlockKV), or
    None where it must be rebuilt from the latents. negative_kv: the same under the negative prompt, where CFG is used.
    prompt_hash: digest of its prompt. is_pinned: held until the next cut. cuts: scene cuts of the film before it.
    prompt: its prompt's tokens [n, D] float32 without padding, shared by the chunks of a clip, or None: it is found by
    them (memory.retrieval), and rebuilt K/V are made under them (under others, the hero that they named is lost).
    text: its prompt in words, "" where the conditioning does not tell.
    """

    start: int
    latents: torch.Tensor
    shot: int = 0
    kv: object | None = None
    negative_kv: object | None = None
    prompt_hash: str = ""
    is_pinned: bool = False
    cuts: int = 0
    prompt: torch.Tensor | None = None
    text: str = ""

    @property
    def length(self) -> int:
        return int(self.latents.shape[1])


@dataclass(frozen=True)
class Anchor:
    """How the film began, for checkpoints whose memory is latent.

    latents: [C, n, h, w] float32 on the CPU, normalised, the first latents of the film (the first one is one frame).
    frame: the first frame, uint8 [H, W, 3] sRGB. mean, std: float32 [C], per channel over the first clip's latents, to
    which colours are held.
    """

    latents: torch.Tensor
    frame: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True)
class VideoMemory:
    """What the model remembers of the film so far. Immutable: a sampler returns a new one that shares old blocks.

    geometry and model_key are None/"" until the first clip begins. blocks: sink first, then window, oldest first.
    latents_done, clips_done: how much of the film exists (more than what is remembered). origin: the latent at which
    the memory began (0, or where it was told to forget). shot, prompt_hash, text: running number and digest of the
    newest prompt, and the prompt in words.
    tail: the last latents of the film, [C, n, h, w] float32 normalised, as decoding context for the next clip.
    archive: chunks that have left sink and window and may be retrieved, oldest first; without retrieval, where a new
    prompt recaches, the last one that left, without its K/V. anchor, overlap: for strategy "latent"; overlap: the last
    frames of the film, uint8 [n, H, W, 3] sRGB. cuts: scene cuts of the film so far.
    """

    spec: MemorySpec
    geometry: Geometry | None = None
    model_key: str = ""
    blocks: tuple[MemoryBlock, ...] = ()
    latents_done: int = 0
    clips_done: int = 0
    origin: int = 0
    shot: int = -1
    prompt_hash: str = ""
    tail: torch.Tensor | None = None
    archive: tuple[MemoryBlock, ...] = ()
    anchor: Anchor | None = None
    overlap: torch.Tensor | None = None
    cuts: int = 0
    text: str = ""


class Scene(NamedTuple):
    """A stretch of the film: from start_s (inclusive) to end_s (exclusive), seconds, and what happens in it."""

    start_s: float
    end_s: float
    text: str


class PromptTimeline(NamedTuple):
    """Who is in the film and what happens when: plain data, JSON-able, hashable for ComfyUI's cache.

    identity: the hero's full description. scenes: ordered, gapless. reanchor_s: the identity is named again in the
    first clip that starts at or after every multiple of this (0 = only in the first clip). clip_s: length of a clip.
    clip_texts: the resolved prompt of every clip.
    """

    identity: str
    hero: str
    scenes: tuple[Scene, ...]
    reanchor_s: float
    clip_s: float
    clip_texts: tuple[str, ...]

    @property
    def clip_count(self) -> int:
        return len(self.clip_texts)


@dataclass(frozen=True)
class ModelFacts:
    """What the cost model and the sampler must know of a MODEL, read from its real modules.

    family: "wan", "hunyuan", "hunyuan15", "svd" or "ltx" (of the last four only sizes are read: 0 where unknown).
    kind: what a clip can begin with, "t2v", "i2v", "ti2v" or "vace". patch: (t, h, w) patch size. spatial_stride:
    pixels per latent pixel. weight_bytes: what ComfyUI will place on the device.
    dtype_bytes: bytes per value of the compute dtype.
    """

    family: str
    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    patch: tuple[int, int, int]
    latent_channels: int
    spatial_stride: int
    weight_bytes: int
    dtype_bytes: int
    kind: str = "t2v"

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class PhaseCost:
    """Predicted peaks of one phase ("text", "sampling", "decode", "interpolation", "encode"), in bytes.

    parts: what vram_bytes is made of, as (name, bytes); they add up to it. "fragmentation" is what the allocator holds
    beyond what is live.
    """

    phase: str
    vram_bytes: int
    ram_bytes: int = 0
    disk_bytes: int = 0
    parts: tuple[tuple[str, int], ...] = ()

    @property
    def live_bytes(self) -> int:
        """What tensors take at the peak (torch.cuda.max_memory_allocated)."""
        return self.vram_bytes - dict(self.parts).get("fragmentation", 0)


@dataclass(frozen=True)
class RenderPlan:
    """What the VRAM Budget Gate decided, and why.

    clip_latents: latents per clip, a multiple of the chunk. spec: the fitted memory. decode_tile_px: 0 decodes whole
    frames, TILE_BY_CORE as ComfyUI chooses. interpolation_batch: frame pairs per RIFE call. budget_bytes: VRAM planned
    with (RAM on a CPU). phases: predicted peaks. decisions: one plain sentence per decision. decode_caches_in_ram: the
    decoder's caches rest in RAM. weights_in_ram_bytes: what of the model rests in RAM while it samples. profile: what
    is given up first. model: whom it was made for, None where that is not known. card: the name of the device that it
    was made on. pinned: steps of the ladder that the user has forbidden.
    """

    width: int
    height: int
    clip_latents: int
    spec: MemorySpec
    decode_tile_px: int
    interpolation_batch: int
    budget_bytes: int
    phases: tuple[PhaseCost, ...]
    decisions: tuple[str, ...]
    decode_caches_in_ram: bool = False
    weights_in_ram_bytes: int = 0
    profile: str = "balanced"
    model: ModelFacts | None = None
    card: str = ""
    pinned: tuple[str, ...] = ()

    @property
    def clip_s(self) -> float:
        return self.clip_latents * TEMPORAL_STRIDE / self.spec.fps


@dataclass(frozen=True)
class ClipRecord:
    """One finished clip in a run folder. Paths are relative to `folder`, the run folder.

    frames: pixel frames in video_file, decoding context already removed. digest: sha256 of the clip's latents. cuts:
    scene cuts of the film up to and with the one that this clip may begin with, 0 where its memory knows of none.
    """

    index: int
    folder: str
    latents_file: str
    video_file: str
    frames: int
    fps: float
    width: int
    height: int
    digest: str
    cuts: int = 0


@dataclass(frozen=True)
class VideoClips:
    """The clips of one film in order, as Save Clip hands them on."""

    records: tuple[ClipRecord, ...] = ()
