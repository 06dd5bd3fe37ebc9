"""Films of causal checkpoints on tiny random models, and the same films by the rules alone.

The reference knows no memory: for every noise level of every chunk the whole film goes through ComfyUI's WanModel in
one forward, clean chunks at timestep 0 and the newest one noisy. In every layer each chunk attends to the chunks that
its recipe lets it see, turned to where it sees them, in plain torch.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch

HEIGHT, WIDTH, TEXT = 4, 6, 4096
HEADS, HEAD_DIM, LAYERS = 2, 128, 2
TOKENS = HEIGHT * WIDTH // 4  # per latent
DRAWS = 9  # of noise, per chunk


@dataclass(frozen=True)
class Film:
    """preset: a name, or "custom". spec: of its memory, beyond the preset. cuts: chunks before which a scene is cut."""

    preset: str
    chunks: int
    spec: tuple[tuple[str, object], ...] = ()
    cuts: tuple[int, ...] = ()


FILMS = {
    "toyworld": Film("toyworld", 6),
    "toyworld, cut": Film("toyworld", 6, cuts=(4,)),
    "longlive_1": Film("longlive_1", 6),
    "longlive_2": Film("longlive_2", 5),
    "longlive_2, cuts": Film("longlive_2", 6, cuts=(2, 4)),
    "longlive_2, cuts and pins": Film("longlive_2", 8, (("prompt_change", "pin"),), cuts=(1, 4)),
    "self_forcing": Film("self_forcing", 9),
    "causal_forcing": Film("causal_forcing", 9),
    "causal_forcing_framewise": Film("causal_forcing_framewise", 23),
    "custom": Film("custom", 8, (("prompt_change", "pin"),), cuts=(3,)),
}


def recipe(film: Film):
    from pack.nodes.sampling.presets import PRESETS, custom_preset

    if film.preset == "custom":
        return custom_preset("Mine", 12, 2, 2, 6, "1.0, 0.7, 0.3", solver="euler", pin=2, shot_gap=3)
    return PRESETS[film.preset]


def empty(film: Film, **options):
    from pack.nodes.memory.state import empty_memory
    from pack.nodes.sampling.presets import memory_spec

    custom = recipe(film) if film.preset == "custom" else None
    return empty_memory(memory_spec(film.preset, custom=custom, **{**dict(film.spec), **options}))


@functools.cache
def model(channels: int, dtype: torch.dtype = torch.float32):
    """A MODEL of core's class, random weights with norms around 1 as trained ones have, on the CPU."""
    import comfy.model_patcher
    from comfy import supported_models

    config = supported_models.WAN22_T2V if channels == 48 else supported_models.WAN21_T2V
    config = config({**config.unet_config, "image_model": "wan2.1", "model_type": "t2v", "dim": HEADS * HEAD_DIM,
                     "ffn_dim": 512, "num_heads": HEADS, "num_layers": LAYERS, "in_dim": channels,
                     "out_dim": channels})
    config.set_inference_dtype(dtype, None)
    made = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.diffusion_model.named_parameters():
        is_gain = name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight"))
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.06 + is_gain)
    return comfy.model_patcher.ModelPatcher(made.eval(), torch.device("cpu"), torch.device("cpu"))


def channels_of(film: Film) -> int:
    return 48 if film.preset == "longlive_2" else 16


@functools.cache
def noise(channels: int, chunk: int, chunks: int) -> torch.Tensor:
    """[chunks, draws, 1, C, chunk, h, w]"""
    shape = (chunks, DRAWS, 1, channels, chunk, HEIGHT, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@functools.cache
def text(seed: int = 3) -> torch.Tensor:
    return torch.randn(1, 12, TEXT, generator=torch.Generator().manual_seed(seed))


def draws(film: Film):
    made = noise(channels_of(film), recipe(film).chunk, film.chunks)
    return lambda chunk: iter(made[chunk]).__next__


def clip(film: Film, memory, chunks: int, is_cut: bool = False, **options):
    """One clip of Clip Sampler's code: (latents [1, C, n, h, w] normalised, memory after it)."""
    from pack.nodes.common.types import Geometry
    from pack.nodes.sampling.bridge import sample_with_memory

    preset, channels = recipe(film), channels_of(film)
    options = {"noise": draws(film)} | options
    with torch.inference_mode():
        samples, after = sample_with_memory(model(channels), memory, [[text(), {}]], preset,
                                            Geometry(channels, HEIGHT, WIDTH), chunks * preset.chunk, 0,
                                            is_cut=is_cut, **options)
        return model(channels).model.process_latent_in(samples), after


def ours(film: Film, memory=None):
    """The whole film, a clip from every cut to the next; and the memory after it."""
    memory, clips = empty(film) if memory is None else memory, []
    for start, stop in itertools.pairwise((0, *film.cuts, film.chunks)):
        latents, memory = clip(film, memory, stop - start, is_cut=start > 0)
        clips.append(latents)
    return torch.cat(clips, 2), memory


def seen(film: Film, chunk: int) -> tuple[list[int], list[int]]:
    """(earlier chunks that a chunk sees, in order; the position of each of their latents and of its own).

    The rules: the first chunks of the film (sink); where shots are pinned, the first ones of the newest shot once they
    are made; the newest others, as many as fit. Without a shot gap a cut leaves the sink alone. Positions count up
    through what is seen, and every cut in between opens the gap.
    """
    preset, spec = recipe(film), empty(film).spec
    size = preset.chunk
    sink, capacity = spec.sink_latents // size, spec.capacity_latents // size
    begun = [cut for cut in film.cuts if cut < chunk]
    pins = range(begun[-1], begun[-1] + spec.pinned_latents // size) if begun and spec.pinned_latents else ()
    past = [c for c in range(chunk) if preset.shot_gap or c < sink or not any(c < cut <= chunk for cut in film.cuts)]
    fixed = [c for c in past if c < sink or c in pins]
    others = [c for c in past if c not in fixed]
    room = capacity - sink - len([c for c in fixed if c >= sink])
    visible = sorted([*fixed, *others[len(others) - min(room, len(others)):]])
    return visible, places(film, visible, chunk)


def places(film: Film, visible: list[int], chunk: int) -> list[int]:
    """The position of every latent of the visible chunks and of the chunk behind them."""
    preset = recipe(film)
    cuts = [sum(cut <= c for cut in film.cuts) for c in (*visible, chunk)]
    return [i * preset.chunk + preset.shot_gap * (cut - cuts[0]) + step for i, cut in enumerate(cuts)
            for step in range(preset.chunk)]


@functools.cache
def reference(film: Film) -> torch.Tensor:
    """The whole film by the rules, [1, C, n, h, w]."""
    done: list[torch.Tensor] = []
    for chunk in range(film.chunks):
        done.append(reference_chunk(film, chunk, done))
    return torch.cat(done, 2)


@torch.inference_mode()
def reference_chunk(film: Film, chunk: int, done: list[torch.Tensor], see=seen) -> torch.Tensor:
    """One chunk after those that are done. see: which chunks are seen where, by the rules unless told otherwise."""
    from pack.nodes.sampling.solvers import make_solver

    preset, wan, draw = recipe(film), model(channels_of(film)).model.diffusion_model, draws(film)(chunk)
    x, solver = draw(), make_solver(preset.solver, preset.sigmas, draw)
    for i, sigma in enumerate(preset.sigmas[:-1]):
        time = torch.tensor(sigma) * 1000
        time = time.floor() if preset.whole_timesteps else time
        flow = forward(wan, [*done, x], time, [see(film, c) for c in range(chunk + 1)], preset.chunk)
        x = solver.step(i, x, x - sigma * flow)
    return x


def forward(wan, chunks: list[torch.Tensor], time: torch.Tensor, rules: list, size: int) -> torch.Tensor:
    """The newest chunk's output of one forward of the whole film."""
    x = torch.cat(chunks, 2)
    times = torch.zeros(1, x.shape[2])
    times[:, -size:] = time
    unturned = torch.eye(2).expand(1, x.shape[2] * TOKENS, 1, HEAD_DIM // 2, 2, 2)

    def patch(args, extra):
        options = {**args["transformer_options"], "optimized_attention_override": Attention(rules, size)}
        return extra["original_block"]({**args, "pe": unturned, "transformer_options": options})

    layers = {("double_block", i): patch for i in range(LAYERS)}
    return wan(x, times, text(), transformer_options={"patches_replace": {"dit": layers}})[:, :, -size:]


class Attention:
    """One block's attention: the first call is over the film's own tokens, the later ones over text."""

    def __init__(self, rules: list, size: int) -> None:
        self.rules, self.tokens, self.calls = rules, size * TOKENS, 0

    def __call__(self, func, q, k, v, heads, **kwargs):
        self.calls += 1
        if self.calls > 1:
            return func(q, k, v, heads, **kwargs)
        q, k, v = (x.unflatten(-1, (heads, -1)).split(self.tokens, 1) for x in (q, k, v))
        return torch.cat([self.attend(chunk, q, k, v) for chunk in range(len(q))], 1)

    def attend(self, chunk: int, q, k, v):
        visible, positions = self.rules[chunk]
        keys, values = (torch.cat([*(x[c] for c in visible), x[chunk]], 1) for x in (k, v))
        query = turned(q[chunk], positions[-self.tokens // TOKENS:])
        found = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (query, turned(keys, positions), values)))
        return found.transpose(1, 2).flatten(2)


def turned(x: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """x [1, S, H, D] with each latent's tokens turned to its position: rotary embedding over time, rows and columns."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT // 2), torch.arange(WIDTH // 2), indexing="ij")
    grid = [torch.tensor(positions).repeat_interleave(TOKENS),
            rows.flatten().repeat(len(positions)), columns.flatten().repeat(len(positions))]
    sizes = (HEAD_DIM - 4 * (HEAD_DIM // 6), 2 * (HEAD_DIM // 6), 2 * (HEAD_DIM // 6))
    angles = torch.cat([place[:, None].double() / 10000 ** (torch.arange(0, size, 2).double() / size)
                        for place, size in zip(grid, sizes, strict=True)], 1)  # [S, D/2]
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2).to(x.dtype)

