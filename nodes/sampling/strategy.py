"""Which kind of memory a clip is made with, and everything that a clip is asked with.

Whether a checkpoint is causal cannot be read off its weights (names and shapes are those of the ordinary model), so the
recipe that the memory was made for decides, and the model is only asked whether it can follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import message
from ..common.progress import SILENT, Progress
from ..common.types import Geometry, MemorySpec, ModelFacts, Preset, VideoMemory
from ..prompts.timeline import SCENE_CUT_PREFIX
from .presets import find_preset

LATENT_ONLY = ("model_low_noise", "clip_vision", "sampler", "sigmas")  # of a ClipRequest: of use with latent memory


@dataclass(frozen=True)
class ClipRequest:
    """One clip as Clip Sampler asks for it, whatever the strategy.

    model, model_low_noise: MODELs (the second of a high/low pair, or None). positive, negative: CONDITIONINGs, the
    negative one or None. latents: length of the clip in whole chunks of the memory's spec. start_image: [n, H, W, 3]
    float 0..1, or None. vae: VAE, needed for a start image and for latent memory. is_cut: a new scene begins here.
    cfg: 0 = as the recipe says. clip_vision: CLIP_VISION; sampler, sigmas: SAMPLER and SIGMAS; each of use with latent
    memory only, or None. profile: of the plan, the order in which things are given up when memory runs out.
    room_bytes: what the plan says that a forward takes beside the weights; 0 = ComfyUI's own estimate. pinned: of the
    plan, what may not be given up. kept_in: the folder for what is finished before the whole clip is.
    """

    model: Any
    memory: VideoMemory
    positive: list
    geometry: Geometry
    latents: int
    seed: int
    negative: list | None = None
    cfg: float = 1.0
    start_image: Any = None
    vae: Any = None
    model_low_noise: Any = None
    is_cut: bool = False
    progress: Progress = SILENT
    clip_vision: Any = None
    sampler: Any = None
    sigmas: Any = None
    profile: str = "balanced"
    room_bytes: int = 0
    pinned: tuple[str, ...] = ()
    kept_in: Path = Path()

    @property
    def preset(self) -> Preset:
        return find_preset(self.memory.spec)


@dataclass(frozen=True)
class ClipResult:
    """samples: a LATENT for Save Clip. memory: the memory after the clip. report: sentences on what was done.
    is_as_planned: nothing was given up on the way, and nothing taken up that was there before."""

    samples: dict[str, Any]
    memory: VideoMemory
    report: str
    is_as_planned: bool = True


def choose_strategy(spec: MemorySpec, facts: ModelFacts) -> tuple[str, str]:
    """("rolling" or "latent", the reason as a sentence) for a memory of this spec with this model.

    Raises ValueError where the recipe asks for keys and values of a model that is not of the Wan family.
    """
    preset = find_preset(spec)
    if preset.strategy == "latent":
        return "latent", (f"Latent memory (frames given as conditions), because {preset.label} was trained on whole "
                          f"clips and reads no cached keys and values.")
    if facts.family != "wan":
        raise ValueError(message(f"Clip Sampler: {preset.label} is a recipe for causal Wan models", facts.family,
                                 "a causal Wan checkpoint, or a recipe with latent memory",
                                 "Choose on Persistent Memory the checkpoint that your MODEL comes from."))
    return "rolling", (f"Rolling K/V memory, because {preset.label} was trained to go on from its own keys and values "
                       f"in chunks of {preset.chunk} latents.")


def begins_scene(request: ClipRequest) -> bool:
    """Whether a scene cut lies before this clip: asked for, or written at the beginning of its prompt.

    A conditioning tells its text only where Prompt for Clip made it ("videomemory_text").
    """
    return request.is_cut or str(request.positive[0][1].get("videomemory_text", "")).startswith(SCENE_CUT_PREFIX)
