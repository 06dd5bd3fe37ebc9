"""Recipes of the causal checkpoints: how many latents at a time, which noise levels, which solver, how much memory.

Sources: Self-Forcing, Causal-Forcing, LongLive 1 and 2 (their inference configurations), and the model card of the
bundled toy world. Noise levels are written out because the shift that ComfyUI stores with the model (8 for Wan 2.1)
is not the one these checkpoints were distilled with (5): sigma(u) = s*u / (1 + (s-1)*u).
"""

from __future__ import annotations

from itertools import pairwise

from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE, MemorySpec, Preset
from .latent_presets import COLOUR_HOLD, LATENT_PRESETS, LATENT_RECIPES
from .solvers import SOLVERS

CUSTOM = "custom"
MAX_CHUNK = 64  # latents; ComfyUI's own AR sampler allows as many


def shifted(levels: tuple[float, ...], shift: float) -> tuple[float, ...]:
    """Flow-matching noise levels warped by shift, with the final 0 appended."""
    return (*(shift * u / (1 + (shift - 1) * u) for u in levels), 0.0)


_FOUR_STEPS = shifted((1.0, 0.75, 0.5, 0.25), 5.0)

PRESETS: dict[str, Preset] = {
    "toyworld": Preset("Toy world (bundled demo)", 8, 3, 3, 6, shifted(tuple(1 - i / 8 for i in range(8)), 3.0),
                       "renoise", "this pack's tests"),
    "longlive_2": Preset("LongLive 2.0 (Wan 2.2 TI2V-5B)", 24, 8, 8, 16, (0.99980, 0.93727, 0.83306, 0.62469, 0.0),
                         "unipc", "published configuration, weights not run here", whole_timesteps=True, pin=8,
                         shot_gap=8),
    "longlive_1": Preset("LongLive 1.0 (Wan 2.1 1.3B)", 16, 3, 3, 6, _FOUR_STEPS, "renoise",
                         "published configuration, weights not run here"),
    "self_forcing": Preset("Self-Forcing (Wan 2.1 1.3B)", 16, 3, 0, 18, _FOUR_STEPS, "renoise",
                           "published configuration, weights not run here"),
    "causal_forcing": Preset("Causal-Forcing, chunk-wise (Wan 2.1 1.3B)", 16, 3, 0, 18, _FOUR_STEPS, "renoise",
                             "published configuration, weights not run here"),
    "causal_forcing_framewise": Preset("Causal-Forcing, frame-wise (Wan 2.1 1.3B)", 16, 1, 0, 20, _FOUR_STEPS,
                                       "renoise", "published configuration, weights not run here"),
    **LATENT_PRESETS,
}


def find_preset(asked: MemorySpec | str) -> Preset:
    """The recipe of a memory, or of that name; raises ValueError naming the known ones."""
    if isinstance(asked, MemorySpec):
        if asked.preset == CUSTOM and asked.custom is not None:
            return asked.custom
        asked = asked.preset
    if asked == CUSTOM:
        raise ValueError(message("Persistent Memory: the checkpoint is custom", "no recipe",
                                 "a Custom Checkpoint Recipe",
                                 "Connect Custom Checkpoint Recipe, or choose a checkpoint from the list."))
    if asked not in PRESETS:
        raise ValueError(message("Persistent Memory: unknown checkpoint preset", asked, ", ".join(PRESETS),
                                 "Choose the checkpoint that your MODEL comes from."))
    return PRESETS[asked]


def memory_spec(name: str, window_s: float = 0.0, sink_s: float = -1.0, precision: str = "model",
                placement: str = "vram", prompt_change: str = "keep", pinned_s: float = -1.0,
                retrieved_s: float = 0.0, custom: Preset | None = None, overlap_latents: int = 0,
                reanchor_clips: int = 0, colour_hold: float = -1.0) -> MemorySpec:
    """A spec for the named preset, or for `custom` under the name "custom".

    Seconds are rounded up to whole chunks; 0 (window) and -1 (sink, pinned) mean as trained; pins are of
    use with prompt_change "pin" alone. As trained, pins and retrieved chunks take their places from the window.
    overlap_latents 0 and colour_hold -1: as the recipe says; both, and reanchor_clips, serve latent memory alone.
    """
    preset = find_preset(name if custom is None else MemorySpec(CUSTOM, 0, 1, 0, 0, custom=custom))

    latent = LATENT_RECIPES.get(name) if custom is None else None

    def latents(seconds: float) -> int:
        chunks = -(-seconds * preset.fps / TEMPORAL_STRIDE // preset.chunk)
        return int(chunks) * preset.chunk

    trained_pin = preset.pin if prompt_change == "pin" else 0
    pinned = trained_pin if pinned_s < 0 else latents(pinned_s)
    retrieved = latents(retrieved_s)
    trained_window = min(preset.window, max(preset.chunk, preset.window - pinned - retrieved))
    return MemorySpec(
        preset=name if custom is None else CUSTOM,
        fps=float(preset.fps),
        chunk_latents=preset.chunk,
        sink_latents=preset.sink if sink_s < 0 else latents(sink_s),
        window_latents=trained_window if window_s <= 0 else latents(window_s),
        precision=precision,
        placement=placement,
        prompt_change=prompt_change,
        pinned_latents=pinned,
        retrieved_latents=retrieved,
        custom=custom,
        overlap_latents=overlap_latents or (latent.overlap if latent else 1),
        reanchor_clips=reanchor_clips,
        colour_hold=colour_hold if colour_hold >= 0 else COLOUR_HOLD if latent else 0.0,
    )


def custom_preset(label: str, fps: float, chunk: int, sink: int, window: int, sigmas: str = "", steps: int = 4,
                  shift: float = 5.0, solver: str = "renoise", whole_timesteps: bool = False, pin: int = 0,
                  shot_gap: int = 0) -> Preset:
    """A recipe for a causal checkpoint that is not in the list.

    chunk, sink, window, pin, shot_gap: latents. sigmas: noise levels as text ("1.0, 0.9375, 0.8333, 0.625"; a final 0
    is added); when empty, `steps` even levels warped by `shift` are used, as Self-Forcing does. Raises ValueError for
    what no checkpoint can mean.
    """
    if not 1 <= chunk <= MAX_CHUNK:
        raise _refused("the chunk", chunk, f"1 to {MAX_CHUNK} latents", "Take the checkpoint's frames per block.")
    for name, latents in (("sink", sink), ("window", window), ("pin", pin)):
        if latents < 0 or latents % chunk:
            raise _refused(f"the {name}", latents, f"0 or multiples of the chunk, {chunk}", f"Round the {name}.")
    if fps <= 0:
        raise _refused("frames per second", fps, "more than 0", "Take the rate of the training clips: 16 or 24.")
    if shot_gap < 0:
        raise _refused("the gap at a cut", shot_gap, "0 or more latents", "Take 0 unless it was trained with one.")
    if solver not in SOLVERS:
        raise _refused("the solver", solver, ", ".join(SOLVERS), "renoise is Self-Forcing's, unipc LongLive 2's.")
    levels = _levels_from_text(sigmas) if sigmas.strip() else _even_levels(steps, shift)
    return Preset(label or "Custom", fps, chunk, sink, window, levels, solver, "the user's own recipe",
                  whole_timesteps=whole_timesteps, pin=pin, shot_gap=shot_gap)


def _even_levels(steps: int, shift: float) -> tuple[float, ...]:
    if not 1 <= steps <= 100:
        raise _refused("steps", steps, "1 to 100", "Take the checkpoint's solver steps per chunk.")
    if shift <= 0:
        raise _refused("the shift", shift, "more than 0", "Causal Wan checkpoints were distilled with 5.")
    return shifted(tuple(1 - i / steps for i in range(steps)), shift)


def _levels_from_text(text: str) -> tuple[float, ...]:
    allowed, remedy = "falling numbers from 1 to above 0, such as 1.0, 0.9375, 0.8333, 0.625", "Correct the list."
    try:
        levels = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise _refused("sigmas", text, allowed, remedy) from None
    levels = levels[:-1] if levels[-1:] == [0.0] else levels
    falling = all(a > b for a, b in pairwise(levels))
    if not (levels and falling and levels[0] <= 1 and levels[-1] > 0):
        raise _refused("sigmas", text, allowed, remedy)
    return (*levels, 0.0)


def _refused(what: str, got: object, allowed: str, do: str) -> ValueError:
    return ValueError(message(f"Custom Checkpoint Recipe: {what} cannot be used", got, allowed, do))
