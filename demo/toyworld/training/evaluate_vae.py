"""Quality of the VAE on unseen videos: PSNR, and whether the classifier still reads the reconstructions.

    python evaluate_vae.py FOLDER [--videos 14]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from classify import NONE, classify
from render import hero_on_screen, render
from sample import load
from torch import Tensor
from vae import WanVAE
from world import EMPTY, Specs, chunk_of_frame, sample_specs

SEED = 424242
SECOND_CLIP_LATENTS, SECOND_CLIP_FRAMES = slice(6, 12), slice(24, 45)


@torch.no_grad()
def evaluate_vae(vae: WanVAE, videos: int) -> dict[str, float]:
    """Decibels over whole frames, over the hero's pixels, for a clip decoded alone; shares of chunks read rightly."""
    specs = sample_specs(videos, SEED, clip_chunks=2)
    errors: dict[str, list[Tensor]] = {"psnr": [], "psnr_hero": [], "psnr_clip_alone": []}
    read: dict[str, list[bool]] = {}
    for index in range(videos):
        video = specs.video(index)
        pixels = (render(video) * 255).round() / 255
        latents = vae.encode(pixels * 2 - 1)
        decoded = _decode(vae, latents)
        error = (pixels - decoded).pow(2)
        is_hero = (pixels - render(video, hero=False)).abs().amax(2, keepdim=True) > 0.02
        alone = _decode(vae, latents[:, SECOND_CLIP_LATENTS])
        errors["psnr"].append(error.mean()[None])
        errors["psnr_hero"].append(error[is_hero.expand_as(error)])
        errors["psnr_clip_alone"].append((pixels[:, SECOND_CLIP_FRAMES] - alone).pow(2).mean()[None])
        for source, frames in (("rendered", pixels), ("decoded", decoded)):
            _read_chunks(read, source, video, frames[0])
    result = {name: -10 * float(torch.cat(parts).mean().log10()) for name, parts in errors.items()}
    return result | {name: float(np.mean(hits)) for name, hits in read.items()}


def _decode(vae: WanVAE, latents: Tensor) -> Tensor:
    return ((vae.decode(latents) + 1) / 2).clamp(0, 1)


def _read_chunks(read: dict[str, list[bool]], source: str, video: Specs, frames: Tensor) -> None:
    """Append whether the classifier reads each chunk of frames [T, 3, H, W] rightly."""
    chunk_of, on_screen = chunk_of_frame(video.clip.shape[1]), hero_on_screen(video)[0]
    for chunk in range(video.clip.shape[1]):
        here = chunk_of == chunk
        if on_screen[here].all():
            seen = classify(frames[here])
            for part in ("body", "hat", "shape"):
                right = getattr(seen, part) == getattr(video, part)[0]
                read.setdefault(f"{source}_{part}", []).append(bool(right))
        elif video.action[0, video.clip[0, chunk]] == EMPTY:
            read.setdefault(f"{source}_empty", []).append(classify(frames[here]).body == NONE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=14)
    arguments = parser.parse_args()
    print(json.dumps(evaluate_vae(load(arguments.folder)[1], arguments.videos), indent=1))
