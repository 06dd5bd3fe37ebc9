"""How remembered keys and values meet ComfyUI's unmodified WanModel, through public hooks alone.

One DIFFUSION_MODEL wrapper per run installs, for each forward: a block patch per layer, which gives the attention its
layer and the chunk its place after the memory, and an attention override (remembered keys and values in front of the
chunk's own). No block code is written again; a MODEL from any loader works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..common.errors import message
from ..memory.kv_cache import BlockKV, LayerKV, pack_layer
from .positions import rotate, runs, unrotate
from .prefetch import LayerPrefetch

POSITIVE, NEGATIVE = 0, 1  # as ComfyUI numbers them in cond_or_uncond


@dataclass
class MemoryHook:
    """The state of one forward: what is remembered, and which of this forward's clean K/V are collected.

    remembered: the caches of the blocks in view under the positive prompt, in position order; negative: the same under
    the negative one. positions: rotary position of each of their latents. start: that of the chunk's first latent.
    precisions: the formats in which a collecting forward stores its chunks (None: this chunk is not stored); empty in a
    forward that only reads. rests_in_ram: K/V come from RAM layer by layer, and collected ones go there.
    clean: latents at the start of the chunk that are given (their timestep is 0). whole_timesteps: as in Preset.
    prompt: tokens [n, D] that stand in for the positive prompt of a collecting forward, or None.
    collected: per kind of prompt the collected layers by their number, one dict per chunk.
    """

    remembered: tuple[BlockKV, ...] = ()
    negative: tuple[BlockKV, ...] = ()
    positions: tuple[int, ...] = ()
    start: int = 0
    precisions: tuple[str | None, ...] = ()
    rests_in_ram: bool = False
    clean: int = 0
    whole_timesteps: bool = False
    prompt: torch.Tensor | None = None
    collected: dict[int, list[dict[int, LayerKV]]] = field(default_factory=dict)
    _prefetches: dict[tuple[int, ...], LayerPrefetch] = field(default_factory=dict)

    def look_at(self, remembered: tuple[BlockKV, ...], negative: tuple[BlockKV, ...], positions: tuple[int, ...],
                start: int) -> None:
        """Show these blocks to the next forwards."""
        now, then = (*remembered, None, *negative), (*self.remembered, None, *self.negative)
        if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
            self._prefetches = {}
        self.remembered, self.negative, self.positions, self.start = remembered, negative, positions, start

    def collect(self, precisions: tuple[str | None, ...] = (), prompt: torch.Tensor | None = None) -> None:
        """Store the next forward's chunks in these formats, read under this prompt; without any, only read."""
        self.precisions, self.prompt, self.collected = precisions, prompt, {}

    def caches(self, kind: int) -> tuple[BlockKV, ...]:
        """What the last collecting forward stored under that kind of prompt."""
        return tuple(BlockKV(tuple(layers[i] for i in sorted(layers)))
                     for layers in self.collected.get(kind, []) if layers)

    def clear(self) -> None:
        """Hold nothing any more: the hook outlives its run in the clone of the MODEL."""
        self.look_at((), (), (), 0)
        self.collect()

    def __call__(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor,
                 clip_fea: Any = None, time_dim_concat: Any = None, transformer_options: dict | None = None,
                 **kwargs: Any) -> torch.Tensor:
        """The DIFFUSION_MODEL wrapper; x [B, C, n, h, w] with one row per kind of prompt, in any order."""
        options = dict(transformer_options or {})
        kinds = tuple(options.get("cond_or_uncond") or (POSITIVE,))
        self._check(kinds, x.shape[0], time_dim_concat)
        tables = _rotations(executor.class_obj, x, self.positions, self.start, options)
        replaced = dict(options.get("patches_replace") or {})
        layers = dict(replaced.get("dit") or {})
        for layer in range(len(executor.class_obj.blocks)):
            name = ("double_block", layer)
            layers[name] = self._block_patch(layer, kinds, *tables, layers.get(name))
        replaced["dit"] = layers
        options["patches_replace"] = replaced
        if self.whole_timesteps:
            timestep = timestep.floor()
        if self.clean:
            timestep = timestep.reshape(-1, 1).repeat(1, x.shape[2])  # [B, n]
            timestep[:, :self.clean] = 0
        out = executor(x, timestep, self._prompted(context, kinds), clip_fea, None, options, **kwargs)
        self._check_collected(len(executor.class_obj.blocks))
        return out

    def _check(self, kinds: tuple[int, ...], batch: int, time_dim_concat: Any) -> None:
        if len(set(kinds)) < len(kinds) or (self.precisions and any(kind in self.collected for kind in kinds)):
            raise ValueError(message("Clip Sampler follows one prompt at a time", "several combined ones",
                                     "one conditioning, or several with timestep ranges of their own",
                                     "Write one prompt for the clip instead of combining conditionings."))
        if batch != len(kinds):
            raise ValueError(message("Clip Sampler samples one film at a time", f"a batch of {batch}", "batch 1",
                                     "Use a single, un-combined positive conditioning."))
        if time_dim_concat is not None:
            raise ValueError(message("Clip Sampler: the conditioning adds frames to the chunk", "time_dim_concat",
                                     "a conditioning of text alone", "Take the subject images out of it."))
        for kind in kinds if self.precisions else ():
            self.collected[kind] = [{} for _ in self.precisions]

    def _check_collected(self, blocks: int) -> None:
        """Raise ValueError where a block of the model has handed out no K/V: the next chunks could not attend in it."""
        stored = [layers for chunks in self.collected.values()
                  for precision, layers in zip(self.precisions, chunks, strict=True) if precision is not None]
        missing = next((block for block in range(blocks) if any(block not in layers for layers in stored)), None)
        if missing is not None:
            raise ValueError(message("Clip Sampler remembers what every block of the model attends to",
                                     f"no keys and values of block {missing}", f"all blocks, 0 to {blocks - 1}",
                                     f"Another node skips block {missing} or replaces the attention: disconnect it."))

    def _prompted(self, context: torch.Tensor, kinds: tuple[int, ...]) -> torch.Tensor:
        """context [B, L, D] with `prompt` in its positive row; as it is where that is of another text encoder."""
        if self.prompt is None or self.prompt.shape[-1] != context.shape[-1]:
            return context
        length = max(context.shape[1], len(self.prompt))
        rows = [self.prompt.to(context) if kind == POSITIVE else row for kind, row in zip(kinds, context, strict=True)]
        return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])

    def _block_patch(self, layer: int, kinds: tuple[int, ...], memory_table: torch.Tensor, table: torch.Tensor,
                     previous: Any) -> Any:
        def patch(args: dict, extra: dict) -> dict:
            options = dict(args["transformer_options"])
            options["optimized_attention_override"] = self._override(
                layer, kinds, memory_table, table, options.get("optimized_attention_override"))
            args = {**args, "pe": table, "transformer_options": options}
            return previous(args, extra) if previous else extra["original_block"](args)

        return patch

    def _override(self, layer: int, kinds: tuple[int, ...], memory_table: torch.Tensor, table: torch.Tensor,
                  previous: Any) -> Any:
        """The attention of one block: its first call is self-attention, the later ones are cross-attention."""
        calls = 0

        def override(func: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            attend = (lambda *a, **kw: previous(func, *a, **kw)) if previous else func
            if calls > 1:
                return attend(q, k, v, heads, **kwargs)
            if self.precisions:
                self._collect(layer, kinds, unrotate(_by_head(k, heads), table), _by_head(v, heads))
            if self.remembered:
                k, v = self._recall(layer, kinds, k, v, memory_table)
            return attend(q, k, v, heads, **kwargs)

        return override

    def _collect(self, layer: int, kinds: tuple[int, ...], k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v [B, S, H, D] of this layer; S is a whole number of tokens per chunk."""
        parts = len(self.precisions)
        for row, kind in enumerate(kinds):
            chunks = zip(self.precisions, k[row:row + 1].chunk(parts, 1), v[row:row + 1].chunk(parts, 1),
                         self.collected[kind], strict=True)
            for precision, chunk_k, chunk_v, layers in chunks:
                if precision is not None:
                    kept = pack_layer(chunk_k, chunk_v, precision)
                    layers[layer] = kept.to("cpu") if self.rests_in_ram else kept

    def _recall(self, layer: int, kinds: tuple[int, ...], k: torch.Tensor, v: torch.Tensor,
                table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's K (turned to its position) and V with the chunk's own behind: [B, memory + S, heads * head_dim].

        Filled block by block, so that beside the result only one block is ever unpacked.
        """
        remembered = table.shape[1]
        shape = (k.shape[0], remembered + k.shape[1], k.shape[2])
        all_k, all_v = k.new_empty(shape), v.new_empty(shape)
        all_k[:, remembered:], all_v[:, remembered:] = k, v
        for row, blocks in enumerate(self._layer_of(layer, kinds, k.device)):
            start = 0
            for block in blocks:
                past_k, past_v = block.unpack(k.dtype, k.device)
                stop = start + past_k.shape[1]
                all_k[row, start:stop] = rotate(past_k, table[:, start:stop]).flatten(2)[0]
                all_v[row, start:stop] = past_v.flatten(2)[0]
                start = stop
        return all_k, all_v

    def _layer_of(self, layer: int, kinds: tuple[int, ...], device: torch.device) -> list[tuple[LayerKV, ...]]:
        """For each row of the batch, this layer of all remembered blocks."""
        rows = [self.negative if kind == NEGATIVE else self.remembered for kind in kinds]
        if not self.rests_in_ram:
            return [tuple(block.layers[layer] for block in blocks) for blocks in rows]
        if kinds not in self._prefetches:
            self._prefetches[kinds] = LayerPrefetch([block for blocks in rows for block in blocks], device)
        arrived = self._prefetches[kinds].layer(layer)
        each = len(self.remembered)
        return [arrived[row * each:(row + 1) * each] for row in range(len(rows))]


def _rotations(model: Any, x: torch.Tensor, positions: tuple[int, ...], start: int,
               options: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation tables of the remembered latents at their positions, and of the chunk that begins at `start`.

    From the model's own embedder, so that a RoPE scale holds across the joins (it spreads positions before the shift,
    so each run's start is scaled here), and in float32: the model itself counts in its compute dtype, and bfloat16
    cannot tell neighbours above 256 apart.
    """
    chunk = tuple(range(start, start + x.shape[2]))
    scale = (options.get("rope_options") or {}).get("scale_t", 1.0)
    whole = torch.cat([
        model.rope_encode(length, x.shape[-2], x.shape[-1], t_start=first * scale, device=x.device,
                          dtype=torch.float32, transformer_options=options)
        for first, length in runs((*positions, *chunk))], 1)
    remembered = whole.shape[1] // (len(positions) + len(chunk)) * len(positions)
    return whole[:, :remembered], whole[:, remembered:]


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1))  # [B, S, H, D]
