"""Recipes of ordinary checkpoints, which remember by frames given as conditions.

Sources of the numbers: the inference configurations of Wan 2.1 and 2.2 (wan/configs, generate.py), VACE, SVI 2.0 Pro
(whose sampling is Wan 2.2's), HunyuanVideo-I2V, HunyuanVideo 1.5; for SVD, ComfyUI's example. No weights were run here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common.types import Preset

COLOUR_HOLD = 0.3  # gentle: a third of the drift of each clip is taken back


@dataclass(frozen=True)
class LatentRecipe:
    """How an ordinary checkpoint is sampled, and in which form it is given what came before.

    family: one of latent_strategy.FAMILIES, or "svd". model: (family, kind) that ModelFacts must say. fps: pixel frames
    per second. frames: length of the clips it was trained on. shift: of the noise levels, 0 = as the model comes.
    boundary: noise level below which the low noise model of a pair samples, 0 = no pair. overlap, max_overlap,
    min_overlap: latents. needs_start: it cannot begin from text. reanchors: it can be given the film's first frame
    again (others always have it, or have no place for it). clip_vision: "" = not used, "optional" or "needed".
    """

    label: str
    family: str
    model: tuple[str, str]
    fps: float
    frames: int
    steps: int
    cfg: float
    shift: float
    sampler: str = "uni_pc"
    scheduler: str = "simple"
    boundary: float = 0.0
    overlap: int = 1
    max_overlap: int = 4
    needs_start: bool = True
    reanchors: bool = True
    clip_vision: str = ""
    min_overlap: int = 1


LATENT_RECIPES: dict[str, LatentRecipe] = {
    "wan22_ti2v_5b": LatentRecipe("Wan 2.2 TI2V-5B", "ti2v", ("wan", "ti2v"), 24, 121, 50, 5.0, 5.0,
                                  needs_start=False),
    "wan21_i2v_14b": LatentRecipe("Wan 2.1 I2V 14B", "i2v", ("wan", "i2v"), 16, 81, 40, 5.0, 5.0,
                                  clip_vision="optional"),
    "wan22_i2v_14b": LatentRecipe("Wan 2.2 I2V A14B (high and low noise)", "i2v", ("wan", "i2v"), 16, 81, 40, 3.5, 5.0,
                                  boundary=0.9),
    "wan21_vace": LatentRecipe("Wan 2.1 VACE 1.3B or 14B", "vace", ("wan", "vace"), 16, 81, 50, 5.0, 16.0, overlap=3,
                               needs_start=False, reanchors=False),
    "wan22_svi_pro": LatentRecipe("Wan 2.2 I2V A14B with the SVI 2.0 Pro LoRAs", "svi", ("wan", "i2v"), 16, 81, 40, 3.5,
                                  5.0, boundary=0.9, overlap=2, reanchors=False, min_overlap=2),
    "hunyuan_i2v": LatentRecipe("HunyuanVideo I2V (v1, concat)", "frames", ("hunyuan", "i2v"), 24, 129, 50, 1.0, 7.0,
                                "euler"),
    "hunyuan_i2v_v2": LatentRecipe("HunyuanVideo I2V (v2, replace)", "hunyuan_v2", ("hunyuan", "t2v"), 24, 129, 50, 1.0,
                                   7.0, "euler", max_overlap=1, reanchors=False),
    "hunyuan15_i2v": LatentRecipe("HunyuanVideo 1.5 I2V", "hunyuan15", ("hunyuan15", "i2v"), 24, 121, 50, 6.0, 7.0,
                                  "euler", clip_vision="optional"),
    "svd": LatentRecipe("Stable Video Diffusion XT", "svd", ("svd", "i2v"), 6, 25, 20, 2.5, 0.0, "euler", "karras",
                        max_overlap=1, reanchors=False, clip_vision="needed"),
}

LATENT_PRESETS: dict[str, Preset] = {
    name: Preset(recipe.label, recipe.fps, 1, 0, 0, (), "", "published configuration, weights not run here",
                 strategy="latent")
    for name, recipe in LATENT_RECIPES.items()
}
