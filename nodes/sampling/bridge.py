"""How a rolling memory meets ComfyUI's unmodified WanModel, through public hooks alone.

One DIFFUSION_MODEL wrapper per run installs, for each forward: a block patch per layer, which gives the attention its
layer and the chunk its place after the memory, and an attention override (remembered keys and values in front of the
chunk's own). No block code is written again; a MODEL from any loader works.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP

from ..common.compat import model_facts, patcher_key
from ..common.errors import message
from ..common.progress import SILENT, Progress
from ..common.types import Geometry, ModelFacts, Preset, VideoMemory
from ..memory.kv_cache import BlockKV, LayerKV, kv_bytes, pack_layer
from ..memory.state import begin_clip, end_clip, is_sink
from .chunk_loop import ClipModel, Noise, sample_clip, seeded_noise
from .positions import rotate, unrotate
from .strategy import ClipRequest, ClipResult

KEY = "videomemory"


@dataclass
class MemoryHook:
    """The state of one forward: what is remembered, and whether this forward's clean K/V are collected.

    remembered: the blocks' caches in position order, already on the device or not. latents: how many they are.
    precision: format for collecting, or None when this forward only reads. rests_in_ram: collected layers leave the
    device one by one. whole_timesteps: as in Preset. collected: one LayerKV per layer, in order, after a collecting
    forward.
    """

    remembered: tuple[BlockKV, ...] = ()
    latents: int = 0
    precision: str | None = None
    rests_in_ram: bool = False
    whole_timesteps: bool = False
    collected: list[LayerKV] = field(default_factory=list)

    def __call__(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor,
                 clip_fea: Any = None, time_dim_concat: Any = None, transformer_options: dict | None = None,
                 **kwargs: Any) -> torch.Tensor:
        """The DIFFUSION_MODEL wrapper; x [1, C, n, h, w]."""
        if x.shape[0] != 1:
            raise ValueError(message("Clip Sampler samples one film at a time", f"a batch of {x.shape[0]}", "batch 1",
                                     "Use a single, un-combined positive conditioning."))
        if self.precision is not None and self.collected:
            raise ValueError(message("Clip Sampler follows one prompt at a time", "several combined ones",
                                     "one conditioning, or several with timestep ranges of their own",
                                     "Write one prompt for the clip instead of combining conditionings."))
        if time_dim_concat is not None:
            raise ValueError(message("Clip Sampler: the conditioning adds frames to the chunk", "time_dim_concat",
                                     "a conditioning of text alone", "Take the subject images out of it."))
        options = dict(transformer_options or {})
        model = executor.class_obj
        tables = _rotations(model, x, self.latents, options)
        replaced = dict(options.get("patches_replace") or {})
        layers = dict(replaced.get("dit") or {})
        for layer in range(len(model.blocks)):
            name = ("double_block", layer)
            layers[name] = self._block_patch(layer, *tables, layers.get(name))
        replaced["dit"] = layers
        options["patches_replace"] = replaced
        if self.whole_timesteps:
            timestep = timestep.floor()
        return executor(x, timestep, context, clip_fea, None, options, **kwargs)

    def _block_patch(self, layer: int, memory_table: torch.Tensor, table: torch.Tensor, previous: Any) -> Any:
        def patch(args: dict, extra: dict) -> dict:
            options = dict(args["transformer_options"])
            options["optimized_attention_override"] = self._override(
                layer, memory_table, table, options.get("optimized_attention_override"))
            args = {**args, "pe": table, "transformer_options": options}
            return previous(args, extra) if previous else extra["original_block"](args)

        return patch

    def _override(self, layer: int, memory_table: torch.Tensor, table: torch.Tensor, previous: Any) -> Any:
        """The attention of one block: its first call is self-attention, the later ones are cross-attention."""
        calls = 0

        def override(func: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            attend = (lambda *a, **kw: previous(func, *a, **kw)) if previous else func
            if calls > 1:
                return attend(q, k, v, heads, **kwargs)
            if self.precision is not None:
                self._collect(unrotate(_by_head(k, heads), table), _by_head(v, heads))
            if self.remembered:
                k, v = self._recall(layer, k, v, memory_table)
            return attend(q, k, v, heads, **kwargs)

        return override

    def _collect(self, k: torch.Tensor, v: torch.Tensor) -> None:
        kept = pack_layer(k, v, self.precision)
        self.collected.append(kept.to("cpu") if self.rests_in_ram else kept)

    def _recall(self, layer: int, k: torch.Tensor, v: torch.Tensor,
                table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's K (turned to its position) and V with the chunk's own behind: [B, memory + S, heads * head_dim].

        Filled block by block, so that beside the result only one block is ever unpacked.
        """
        remembered = table.shape[1]
        shape = (k.shape[0], remembered + k.shape[1], k.shape[2])
        all_k, all_v = k.new_empty(shape), v.new_empty(shape)
        all_k[:, remembered:], all_v[:, remembered:] = k, v
        start = 0
        for block in self.remembered:
            past_k, past_v = block.layers[layer].unpack(k.dtype, k.device)
            stop = start + past_k.shape[1]
            all_k[:, start:stop] = rotate(past_k, table[:, start:stop]).flatten(2)
            all_v[:, start:stop] = past_v.flatten(2)
            start = stop
        return all_k, all_v


class MemorySampler(comfy.samplers.Sampler):
    """A SAMPLER that runs the chunk loop inside one outer sampling call, so that the model is loaded once per clip."""

    def __init__(self, hook: MemoryHook, memory: VideoMemory, preset: Preset, latents: int, noise: Noise,
                 progress: Progress) -> None:
        self.hook, self.memory, self.preset = hook, memory, preset
        self.latents, self.noise, self.progress = latents, noise, progress

    def sample(self, model_wrap: Any, sigmas: torch.Tensor, extra_args: dict, callback: Any, noise: torch.Tensor,
               latent_image: Any = None, denoise_mask: Any = None, disable_pbar: bool = False) -> torch.Tensor:
        """Called by the guider; its noise only carries the device and the shape, every chunk draws its own."""
        device = noise.device

        def forward(x: torch.Tensor, sigma: float, memory: VideoMemory, precision: str | None) -> torch.Tensor:
            self.hook.remembered = tuple(block.kv for block in memory.blocks)
            self.hook.latents = sum(block.length for block in memory.blocks)
            self.hook.rests_in_ram = memory.spec.placement == "ram"
            self.hook.precision, self.hook.collected = precision, []
            return model_wrap(x, torch.full((1,), sigma, device=device), **extra_args)

        def encode(x0: torch.Tensor, memory: VideoMemory) -> BlockKV:
            forward(x0, 0.0, memory, _block_precision(memory))
            return BlockKV(tuple(self.hook.collected))

        model = ClipModel(lambda x, sigma, memory: forward(x, sigma, memory, None), encode, device)
        preview = None if callback is None else lambda i, x, x0: callback(i, x0, x, sigmas.shape[0] - 1)
        memory = replace(self.memory, blocks=tuple(
            block if block.kv is None or self.memory.spec.placement == "ram"
            else replace(block, kv=block.kv.to(device)) for block in self.memory.blocks))
        samples, self.memory = sample_clip(model, memory, self.preset, self.latents, self.noise, self.progress, preview)
        return samples.to(device)


def sample_with_memory(model: Any, memory: VideoMemory, positive: list, preset: Preset, geometry: Geometry,
                       latents: int, seed: int, progress: Progress = SILENT,
                       noise: Noise | None = None) -> tuple[torch.Tensor, VideoMemory]:
    """Sample one clip on a MODEL of any loader.

    latents: whole chunks. Returns (samples [1, C, latents, h, w] un-normalised as a LATENT holds them, new memory).
    noise replaces the seeded noise, for reproducing published rollouts.
    """
    facts = model_facts(model)
    _check_inputs(model)
    memory = begin_clip(memory, geometry, patcher_key(model), positive[0][0])
    shape = (1, geometry.channels, preset.chunk, geometry.height, geometry.width)
    hook = MemoryHook(whole_timesteps=preset.whole_timesteps)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, hook)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _reserve(facts, memory, geometry, preset))
    sampler = MemorySampler(hook, memory, preset, latents, noise or seeded_noise(seed, shape), progress)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(positive, [])
    guider.set_cfg(1.0)
    empty = torch.zeros((1, geometry.channels, latents, geometry.height, geometry.width))
    steps = latents // preset.chunk * len(preset.sigmas)
    callback = latent_preview.prepare_callback(patched, steps)
    samples = guider.sample(empty, empty, sampler, torch.ones(steps + 1), callback=callback, seed=seed)
    return samples.to("cpu", torch.float32), end_clip(sampler.memory, memory)


def sample_rolling(request: ClipRequest) -> ClipResult:
    """One clip of a causal checkpoint: the strategy "rolling" of Clip Sampler."""
    memory, preset, latents = request.memory, request.preset, request.latents
    samples, after = sample_with_memory(request.model, memory, request.positive, preset, request.geometry, latents,
                                        request.seed, request.progress)
    return ClipResult(clip_latent(request.model, samples, memory), after, _report(memory, preset, latents))


def _report(before: VideoMemory, preset: Preset, latents: int) -> str:
    spec = before.spec
    seen = sum(block.length for block in before.blocks)
    return (f"Clip {before.clips_done + 1}: {latents} latents in chunks of {spec.chunk_latents}, "
            f"{len(preset.sigmas) - 1} steps + 1 clean pass per chunk. It began with {seen} of at most "
            f"{spec.capacity_latents} remembered latents ({spec.sink_latents} from the start of the film), stored as "
            f"{spec.precision} in {spec.placement.upper()}.")


def _check_inputs(model: Any) -> None:
    """Raise ValueError for models that take an image beside the latents (I2V): its frames belong to one clip length."""
    channels = model.model.diffusion_model.in_dim, model.model.diffusion_model.out_dim
    if channels[0] != channels[1]:
        raise ValueError(message("Clip Sampler needs a causal text-to-video model",
                                 f"one with {channels[0]} channels in and {channels[1]} out",
                                 "as many in as out (LongLive, Self-Forcing, the toy world)",
                                 "Load the checkpoint that the memory's preset names."))


def clip_latent(model: Any, samples: torch.Tensor, before: VideoMemory) -> dict[str, Any]:
    """The LATENT of one clip: its samples, its place and rate, and the latents before it as decoding context."""
    latent = {"samples": samples, "first_latent": before.latents_done, "fps": before.spec.fps}
    if before.tail is not None:
        context = model.model.process_latent_out(before.tail.unsqueeze(0))
        latent["context_samples"] = context.to("cpu", torch.float32)
    return latent


def _rotations(model: Any, x: torch.Tensor, latents: int, options: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation tables of the remembered latents, at positions 0.., and of the chunk behind them.

    From the model's own embedder in one piece, so that a RoPE scale holds across the join, and in float32: the model
    itself counts in its compute dtype, and bfloat16 cannot tell neighbours above 256 apart.
    """
    total = latents + x.shape[2]
    whole = model.rope_encode(total, x.shape[-2], x.shape[-1], device=x.device, dtype=torch.float32,
                              transformer_options=options)
    remembered = whole.shape[1] // total * latents
    return whole[:, :remembered], whole[:, remembered:]


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1))  # [B, S, H, D]


def _block_precision(memory: VideoMemory) -> str:
    """The sink is read for the whole film: it keeps 8 bits where the rest has 4."""
    if memory.spec.precision == "4bit" and is_sink(memory, memory.latents_done):
        return "int8"
    return memory.spec.precision


def _reserve(facts: ModelFacts, memory: VideoMemory, geometry: Geometry, preset: Preset) -> Any:
    """A PREPARE_SAMPLING wrapper: ComfyUI estimates one chunk (not the clip) plus the K/V cache it cannot know of."""
    spec = memory.spec
    tokens = -(-geometry.height // facts.patch[1]) * -(-geometry.width // facts.patch[2])

    def bytes_of(latents: int, precision: str) -> int:
        return kv_bytes(facts.layers, facts.heads, facts.head_dim, latents * tokens, precision, facts.dtype_bytes)

    sink = "int8" if spec.precision == "4bit" else spec.precision
    cache = bytes_of(spec.sink_latents, sink) + bytes_of(spec.window_latents + preset.chunk, spec.precision)
    cache = cache if spec.placement == "vram" else 0

    def wrapper(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        shape = [noise_shape[0], noise_shape[1], preset.chunk, *noise_shape[3:]]
        per_latent = max(1.0, model.memory_required(shape) / preset.chunk)
        shape[2] = preset.chunk + int(-(-cache // per_latent))
        return executor(model, shape, conds, *args, **kwargs)

    return wrapper
