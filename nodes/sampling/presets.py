"""Recipes of the causal checkpoints: how many latents at a time, which noise levels, which solver, how much memory.

Sources: Self-Forcing, Causal-Forcing, LongLive 1 and 2 (their inference configurations), and the model card of the
bundled toy world. Noise levels are written out because the shift that ComfyUI stores with the model (8 for Wan 2.1)
is not the one these checkpoints were distilled with (5): sigma(u) = s*u / (1 + (s-1)*u).
"""

from __future__ import annotations

from ..common.errors import message
from ..common.types import MemorySpec, Preset


def shifted(levels: tuple[float, ...], shift: float) -> tuple[float, ...]:
    """Flow-matching noise levels warped by shift, with the final 0 appended."""
    return (*(shift * u / (1 + (shift - 1) * u) for u in levels), 0.0)


_FOUR_STEPS = shifted((1.0, 0.75, 0.5, 0.25), 5.0)

PRESETS: dict[str, Preset] = {
    "toyworld": Preset("Toy world (bundled demo)", 8, 3, 3, 6, shifted(tuple(1 - i / 8 for i in range(8)), 3.0),
                       "renoise", "this pack's tests"),
    "longlive_2": Preset("LongLive 2.0 (Wan 2.2 TI2V-5B)", 24, 8, 8, 16, (0.99980, 0.93727, 0.83306, 0.62469, 0.0),
                         "unipc", "published configuration, weights not run here", whole_timesteps=True),
    "longlive_1": Preset("LongLive 1.0 (Wan 2.1 1.3B)", 16, 3, 3, 6, _FOUR_STEPS, "renoise",
                         "published configuration, weights not run here"),
    "self_forcing": Preset("Self-Forcing (Wan 2.1 1.3B)", 16, 3, 0, 18, _FOUR_STEPS, "renoise",
                           "published configuration, weights not run here"),
    "causal_forcing": Preset("Causal-Forcing, chunk-wise (Wan 2.1 1.3B)", 16, 3, 0, 18, _FOUR_STEPS, "renoise",
                             "published configuration, weights not run here"),
    "causal_forcing_framewise": Preset("Causal-Forcing, frame-wise (Wan 2.1 1.3B)", 16, 1, 0, 20, _FOUR_STEPS,
                                       "renoise", "published configuration, weights not run here"),
}


def find_preset(name: str) -> Preset:
    """The preset of that name; raises ValueError naming the known ones."""
    if name not in PRESETS:
        raise ValueError(message("Persistent Memory: unknown checkpoint preset", name, ", ".join(PRESETS),
                                 "Choose the checkpoint that your MODEL comes from."))
    return PRESETS[name]


def memory_spec(name: str, window_s: float = 0.0, sink_s: float = -1.0, precision: str = "model",
                placement: str = "vram") -> MemorySpec:
    """A spec for the named preset; seconds are rounded up to whole chunks, 0 (window) and -1 (sink) mean as trained."""
    preset = find_preset(name)

    def latents(seconds: float) -> int:
        chunks = -(-seconds * preset.fps / 4 // preset.chunk)
        return int(chunks) * preset.chunk

    return MemorySpec(
        preset=name,
        fps=float(preset.fps),
        chunk_latents=preset.chunk,
        sink_latents=preset.sink if sink_s < 0 else latents(sink_s),
        window_latents=preset.window if window_s <= 0 else latents(window_s),
        precision=precision,
        placement=placement,
    )
