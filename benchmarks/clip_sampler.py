"""Films of the toy world made by the pack's own nodes' code inside a real ComfyUI, in this process, on the CPU."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
TOYWORLD = ROOT / "demo" / "toyworld"
CLIP_LATENTS = 6  # two chunks, three seconds

FilmMaker = Callable[[list[str], int, bool], list[np.ndarray]]


def film_maker(comfyui: Path) -> FilmMaker:
    """`generate_film(texts, seed, carry_memory)` through Clip Sampler's and Save Clip's logic; one clip per text.

    Returns uint8 [T, 80, 128, 3] per clip: 21 frames for the first, 24 for the others, as the demo film has them.
    """
    start(comfyui)
    import comfy.sd
    import comfy.utils
    from pack.nodes.common.progress import SILENT
    from pack.nodes.common.types import Geometry
    from pack.nodes.loading.bridge import load_diffusion_model
    from pack.nodes.loading.bridge_text import load_text_encoder
    from pack.nodes.memory.state import empty_memory, forget
    from pack.nodes.sampling.bridge import sample_with_memory
    from pack.nodes.sampling.bridge_rolling import clip_latent
    from pack.nodes.sampling.presets import PRESETS, memory_spec
    from pack.nodes.video.bridge import decode_frames

    model = load_diffusion_model(str(TOYWORLD / "toyworld_dit_fp16.safetensors"), "original")[0]
    encoder = load_text_encoder(str(TOYWORLD / "toyworld_te_fp16.safetensors"), "original")[0]
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(TOYWORLD / "toyworld_vae_fp16.safetensors")))

    @torch.inference_mode()
    def generate(texts: list[str], seed: int, carry_memory: bool) -> list[np.ndarray]:
        memory, clips = empty_memory(memory_spec("toyworld")), []
        for text in texts:
            before = memory if carry_memory else forget(memory)
            prompt = encoder.encode_from_tokens_scheduled(encoder.tokenize(text))
            samples, memory = sample_with_memory(model, before, prompt, PRESETS["toyworld"], Geometry(16, 10, 16),
                                                 CLIP_LATENTS, seed)
            latent = clip_latent(model, samples, before)
            frames = torch.cat(list(decode_frames(vae, samples, latent.get("context_samples"), 0, SILENT)))
            clips.append((frames * 255).round().byte().numpy())
        return clips

    return generate


def start(comfyui: Path) -> None:
    """ComfyUI importable, on the CPU; the pack as package `pack`, its root never on sys.path."""
    sys.path.insert(0, str(comfyui))
    argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = argv
    for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
