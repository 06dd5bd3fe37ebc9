"""The chunk loop as a ComfyUI SAMPLER: one clip of a causal checkpoint on a MODEL of any loader."""

from __future__ import annotations

import math
import traceback
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.model_management import total_ram
from comfy.patcher_extension import WrappersMP

from ..common.compat import model_facts
from ..common.digest import patcher_key
from ..common.errors import message
from ..common.progress import SILENT, Progress
from ..common.types import Geometry, MemoryBlock, MemorySpec, ModelFacts, Preset, VideoMemory
from ..memory.kv_cache import kv_bytes, recall_bytes
from ..memory.shelf import RAM_SHARE, Shelf
from ..memory.state import (
    begin_clip,
    begin_scene,
    caches,
    end_clip,
    prompt_tokens,
    view,
)
from .bridge_hook import NEGATIVE, POSITIVE, MemoryHook
from .bridge_retreat import Retreat
from .bridge_room import enlarged
from .chunk_loop import (
    Caches,
    Clip,
    ClipModel,
    Held,
    Keep,
    Noise,
    count_forwards,
    no_way,
    rebuilt_together,
    sample_clip,
    seeded_noise,
)
from .chunk_loop import Retreat as ChunkRetreat
from .positions import local_positions
from .prefetch import SLOTS
from .unfinished import Unfinished

KEY = "videomemory"
SHELF = Shelf()  # of this process; counts the K/V at rest of every memory that is still held somewhere


class MemorySampler(comfy.samplers.Sampler):
    """A SAMPLER that runs the chunk loop inside one outer sampling call, so that the model is loaded once per clip."""

    def __init__(self, hook: MemoryHook, memory: VideoMemory, clip: Clip, progress: Progress,
                 has_negative: bool, retreat: ChunkRetreat = no_way, keep: Keep | None = None) -> None:
        self.hook, self.memory, self.clip, self.keep = hook, memory, clip, keep
        self.progress, self.has_negative, self.retreat = progress, has_negative, retreat

    def sample(self, model_wrap: Any, sigmas: torch.Tensor, extra_args: dict, callback: Any, noise: torch.Tensor,
               latent_image: Any = None, denoise_mask: Any = None, disable_pbar: bool = False) -> torch.Tensor:
        """Called by the guider; its noise only carries the device and the shape, every chunk draws its own."""
        device, hook = noise.device, self.hook

        def forward(x: torch.Tensor, sigma: float, memory: VideoMemory) -> torch.Tensor:
            self._show(memory)
            return model_wrap(x, torch.full((1,), sigma, device=device), **extra_args)

        def denoise(x: torch.Tensor, sigma: float, memory: VideoMemory, clean: int) -> torch.Tensor:
            hook.clean = clean
            hook.collect()
            return forward(x, sigma, memory)

        def encode(x0: torch.Tensor, memory: VideoMemory, precisions: tuple[str | None, ...],
                   prompt: torch.Tensor | None) -> tuple[Caches, ...]:
            hook.clean = 0
            hook.collect(precisions, prompt)
            forward(x0, 0.0, memory)
            positive, negative = hook.caches(POSITIVE), hook.caches(NEGATIVE)
            hook.collect()
            return tuple(zip(positive, negative or (None,) * len(positive), strict=True))

        model = ClipModel(denoise, encode, device, self.has_negative)
        told = {} if callback is None else {
            "preview": lambda i, x, x0: callback(i, x0, x, sigmas.shape[0] - 1)}
        if self.keep is not None:
            told["keep"] = self.keep
        held = Held(self._on(device))  # not as an argument: Python 3.11 holds those of a call with ** to its end
        samples = sample_clip(model, held, self.clip, self.progress, retreat=self.retreat, **told)
        self.memory = held.memory
        return samples.to(device)

    def _show(self, memory: VideoMemory) -> None:
        """What the next forward sees."""
        blocks = view(memory, self.clip.prompt)
        negative = tuple(block.negative_kv for block in blocks) if self.has_negative else ()
        self.hook.look_at(tuple(block.kv for block in blocks), negative,
                          *local_positions(blocks, memory.cuts, self.clip.preset.shot_gap))

    def _on(self, device: torch.device) -> VideoMemory:
        """The memory with the K/V in view where they are read."""
        self.hook.rests_in_ram = self.memory.spec.placement == "ram"
        if self.hook.rests_in_ram:
            return self.memory

        def moved(block: MemoryBlock) -> MemoryBlock:
            kv = None if block.kv is None else block.kv.to(device)
            unused = block.negative_kv is None or not self.has_negative
            return replace(block, kv=kv, negative_kv=block.negative_kv if unused else block.negative_kv.to(device))

        return replace(self.memory, blocks=tuple(map(moved, self.memory.blocks)))


def sample_with_memory(model: Any, memory: VideoMemory, positive: list, preset: Preset, geometry: Geometry,
                       latents: int, seed: int, progress: Progress = SILENT, noise: Noise | None = None,
                       negative: list | None = None, cfg: float = 1.0, given: torch.Tensor | None = None,
                       is_cut: bool = False, room_bytes: int = 0, retreat: Retreat | None = None,
                       unfinished: Unfinished | None = None) -> tuple[torch.Tensor, VideoMemory]:
    """Sample one clip on a MODEL of any loader.

    latents: whole chunks. noise replaces the seeded noise, for reproducing published rollouts. given: the film's first
    latents, normalised. retreat: what to give up when memory runs out. unfinished: where finished chunks are kept.
    Returns (samples [1, C, latents, h, w] un-normalised as a LATENT holds them, new memory). While it runs K/V of this
    one memory lie on the device; afterwards, also after Cancel or an error, none do.
    """
    has_negative = not math.isclose(cfg, 1.0)
    _check_inputs(model, has_negative and not negative)
    if is_cut:
        memory = begin_scene(memory, keep_window=preset.shot_gap > 0)
    text = positive[0][1].get("videomemory_text", "")  # of Prompt for Clip
    memory = begin_clip(memory, geometry, patcher_key(model), positive[0][0], text)
    shape = (1, geometry.channels, preset.chunk, geometry.height, geometry.width)
    whole = (1, geometry.channels, latents, *shape[3:])
    clip = Clip(preset, latents, noise or seeded_noise(seed, shape), given, prompt_tokens(positive[0][0]),
                unfinished and unfinished.chunks(whole))
    hook = MemoryHook(whole_timesteps=preset.whole_timesteps)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, hook)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY,
                                 _reserve(model_facts(model), memory, geometry, preset.chunk, 1 + has_negative,
                                          room_bytes))
    sampler = MemorySampler(hook, memory, clip, progress, has_negative,
                            no_way if retreat is None else partial(retreat, patched, hook),
                            None if unfinished is None else _keeper(unfinished, progress))
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(positive, negative if has_negative else [])
    guider.set_cfg(cfg)
    samples = _run(guider, sampler, torch.zeros(whole), seed)
    after = end_clip(sampler.memory, memory)
    SHELF.put(caches(after), int(RAM_SHARE * total_ram * 2**20), folder_paths.get_temp_directory())
    return samples.to("cpu", torch.float32), after


def _keeper(unfinished: Unfinished, progress: Progress) -> Keep:
    def keep(finished: torch.Tensor) -> None:
        failure = unfinished.keep(finished, f"its first {finished.shape[2]} latents")
        if failure:
            progress.say(failure)

    return keep


def _run(guider: Any, sampler: MemorySampler, empty: torch.Tensor, seed: int) -> torch.Tensor:
    """The guider's sampling, which leaves no K/V behind on the device: not in the hook, and not in the frames that an
    exception keeps alive as long as somebody looks at its traceback."""
    steps = count_forwards(sampler.clip, sampler.memory, sampler.has_negative)
    callback = latent_preview.prepare_callback(guider.model_patcher, steps)
    try:
        return guider.sample(empty, empty, sampler, torch.ones(steps + 1), callback=callback, seed=seed)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        sampler.hook.clear()


def _check_inputs(model: Any, lacks_negative: bool) -> None:
    """Raise ValueError for CFG without a negative prompt, for EasyCache and LazyCache (both compare a forward with the
    one before, which may be of another chunk or size), and for models that take an image beside the latents (I2V): its
    frames belong to one clip length."""
    if lacks_negative:
        raise ValueError(message("Clip Sampler: CFG needs a negative prompt", "none", "a conditioning, or cfg 1",
                                 "Connect negative (an empty prompt will do), or set cfg to 1."))
    cache = model.model_options.get("transformer_options", {}).get("easycache")
    if cache is not None:
        name = getattr(cache, "name", "EasyCache")
        raise ValueError(message(f"Clip Sampler: {name} cannot follow a clip made in chunks", f"a MODEL with {name}",
                                 "a MODEL without it", f"Disconnect {name}."))
    channels = model.model.diffusion_model.in_dim, model.model.diffusion_model.out_dim
    if channels[0] != channels[1]:
        raise ValueError(message("Clip Sampler needs a causal text-to-video model",
                                 f"one with {channels[0]} channels in and {channels[1]} out",
                                 "as many in as out (LongLive, Self-Forcing, the toy world)",
                                 "Load the checkpoint that the memory's preset names."))


def _reserve(facts: ModelFacts, memory: VideoMemory, geometry: Geometry, chunk: int, kinds: int,
             least_bytes: int = 0) -> Any:
    """A PREPARE_SAMPLING wrapper: ComfyUI estimates the longest forward (not the clip), and beside it what it cannot
    know of: the memory on the device. At least what was planned, so that as much of the model stays in RAM."""
    tokens = -(-geometry.height // facts.patch[1]) * -(-geometry.width // facts.patch[2])
    size = device_bytes(memory.spec, facts, tokens, chunk, kinds)
    forward = max(chunk, *(sum(block.length for block in read) for read in rebuilt_together(memory, kinds > 1)), 0)

    def wrapper(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        shape = [noise_shape[0], noise_shape[1], chunk, *noise_shape[3:]]
        per_latent = max(1.0, model.memory_required(shape) / chunk)
        shape[2] = forward + int(-(-size // per_latent))
        return executor(model, enlarged(model, shape, least_bytes), conds, *args, **kwargs)

    return wrapper


def device_bytes(spec: MemorySpec, facts: ModelFacts, tokens: int, chunk: int, kinds: int) -> int:
    """The most that the memory of a clip takes on the device: its K/V, and one layer of them on its way to attention.

    tokens: per latent. kinds: of prompts, 2 with CFG. In VRAM all K/V and those of the chunk that is being committed,
    in RAM the slots of sampling.prefetch and one layer of that chunk.
    """

    def bytes_of(latents: int, precision: str) -> int:
        return kv_bytes(facts.layers, facts.heads, facts.head_dim, latents * tokens, precision, facts.dtype_bytes)

    sink = "int8" if spec.precision == "4bit" else spec.precision
    others = spec.capacity_latents - spec.sink_latents
    kept, committed = bytes_of(spec.sink_latents, sink) + bytes_of(others, spec.precision), bytes_of(chunk, sink)
    if spec.placement == "ram":
        kept, committed = SLOTS * kept // facts.layers, committed // facts.layers
    recalled = recall_bytes(facts.heads, facts.head_dim, spec.capacity_latents * tokens, chunk * tokens,
                            facts.dtype_bytes, spec.precision == "model" and spec.placement == "vram", kinds)
    return kinds * (kept + committed) + recalled
