"""Makes reference_rollout.safetensors: fixed noise and prompts, and what the reference sampler makes of them.

    python make_reference.py FOLDER OUT.safetensors [--seed 2025]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from sample import CLIP_CHUNKS, Memory, decode, load, rollout, sigmas
from torch import Tensor
from world import LATENT_SHAPE

PROMPTS = (
    "a blue circle hero with a green hat walks right in the forest",
    "the hero walks left in the snow",
    "the hero walks right in the desert",
)
CHUNKS = CLIP_CHUNKS * len(PROMPTS)
EULER_STEPS, RENOISE_STEPS = 8, 4


def make_reference(folder: Path, seed: int = 2025) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the reference file, computed with the checkpoint in `folder`."""
    dit, vae, text_encoder = load(folder)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(CHUNKS, 1, *LATENT_SHAPE, generator=generator)
    fresh = torch.randn(CHUNKS, RENOISE_STEPS - 1, 1, *LATENT_SHAPE, generator=generator)
    prompts = [(text_encoder.encode(prompt), None) for prompt in PROMPTS]
    texts = [prompt for prompt in prompts for _ in range(CLIP_CHUNKS)]

    euler = rollout(dit, texts, noise, sigmas(EULER_STEPS))
    renoise = rollout(dit, texts, noise, sigmas(RENOISE_STEPS), fresh_noise=fresh)
    window_only = rollout(dit, texts, noise, sigmas(EULER_STEPS), Memory(sink=0, window=2))
    with torch.no_grad():
        text = dit.text(texts[0][0])
        velocity, _ = dit.forward_chunk(noise[0], 1000.0, text, [])
        _, clean = dit.forward_chunk(euler[:, :, : LATENT_SHAPE[1]], 0.0, text, [])
    pixels = decode(vae, euler[:, :, : LATENT_SHAPE[1] * CLIP_CHUNKS])
    tensors = {
        "noise": noise[:, 0],
        "renoise": fresh[:, :, 0],
        "latents_euler8": euler[0],
        "latents_renoise4": renoise[0],
        "latents_euler8_window_only": window_only[0],
        "velocity_chunk0_t1000": velocity[0],
        "chunk0_clean_k_layer0": clean[0][0][0],
        "chunk0_clean_v_layer0": clean[0][1][0],
        "chunk0_clean_k_last": clean[-1][0][0],
        "chunk0_clean_v_last": clean[-1][1][0],
        "text_embedding_prompt0": texts[0][0][0, :15],
        "pixels_clip0_frame12": pixels[0, 12],
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, _metadata(text_encoder.token_ids, seed)


def _metadata(token_ids: Callable[[str], list[int]], seed: int) -> dict[str, str]:
    return {
        "prompts": json.dumps(PROMPTS),
        "chunks_per_clip": str(CLIP_CHUNKS),
        "sigmas_euler8": json.dumps(sigmas(EULER_STEPS)),
        "sigmas_renoise4": json.dumps(sigmas(RENOISE_STEPS)),
        "memory": "sink=1 chunk, window=2 chunks, keys cached without RoPE, positions contiguous in the cache",
        "latent_space": "normalised (ComfyUI Wan21.process_in); process_out before the VAE",
        "dtype": "float32 on CPU, weights fp16->fp32",
        "token_ids": json.dumps([token_ids(prompt) for prompt in PROMPTS]),
        "torch": torch.__version__,
        "seed": str(seed),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=2025)
    arguments = parser.parse_args()
    tensors, metadata = make_reference(arguments.folder, arguments.seed)
    save_file(tensors, arguments.out, metadata=metadata)
