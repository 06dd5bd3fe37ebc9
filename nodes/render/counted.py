"""Which inputs of Render Short its film is made from: another value of the rest makes no clip again."""

from __future__ import annotations

from typing import Any

from ..common.types import MemorySpec
from ..sampling.latent_presets import LATENT_RECIPES, LatentRecipe
from ..sampling.strategy import LATENT_ONLY

FOR_ALL = ("negative", "cfg", "model_low_noise", "clip_vision", "sampler", "sigmas")  # inputs of every Clip Sampler
FOR_FIRST = ("start_image",)


def names(spec: MemorySpec, carry_memory: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(inputs of every Clip Sampler, inputs of the first one alone): where no memory is carried, every clip of an
    ordinary checkpoint begins with the start image. Causal ones begin a film with it alone."""
    if carry_memory or spec.preset not in LATENT_RECIPES:
        return FOR_ALL, FOR_FIRST
    return (*FOR_ALL, *FOR_FIRST), ()


def counted(given: dict[str, Any], spec: MemorySpec, model: Any) -> dict[str, Any]:
    """Those of the given inputs that change a film of this memory; cfg is always among them, 0 where it is the usual.

    given: by name, without None. model: the MODEL.
    """
    recipe = LATENT_RECIPES.get(spec.preset)
    usual = recipe.cfg if recipe else 1.0
    cfg = given.get("cfg") or usual
    unused = set(LATENT_ONLY if recipe is None else () if recipe.clip_vision else ("clip_vision",))
    if not _reads_negative(recipe, cfg, given, model):
        unused.add("negative")
    kept = {name: value for name, value in given.items() if name not in unused}
    return {**kept, "cfg": 0.0 if cfg == usual else cfg}


def _reads_negative(recipe: LatentRecipe | None, cfg: float, given: dict[str, Any], model: Any) -> bool:
    """Core leaves the negative prompt out at cfg 1, unless a patch or a sampler (CFG++) asks for it all the same."""
    if recipe is not None and recipe.family == "svd":
        return False
    if cfg != 1 or recipe is None:
        return cfg != 1
    models = [model, *([given["model_low_noise"]] if "model_low_noise" in given else [])]
    return "sampler" in given or any(each.model_options.get("disable_cfg1_optimization") for each in models)
