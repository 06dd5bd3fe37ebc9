"""The reference sampler: a film chunk by chunk, with the K/V of clean past chunks as memory.

A chunk sees [sink chunks | last `window` chunks | itself]. This is the oracle the pack's own sampler is tested against:
plain, float32, on any device. The renoise step follows Self-Forcing (Huang et al. 2025) and LongLive.

    python sample.py FOLDER OUT.png --texts "a red star hero with a blue hat jumps in the city" "the hero waves"
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from dit import KeyValue, WanDiT
from PIL import Image
from render import to_uint8
from safetensors.torch import load_file
from text_encoder import TextEncoder
from torch import Tensor
from vae import WanVAE, denormalise_latents
from world import LATENT_SHAPE

CLIP_CHUNKS = 2
STEPS, SHIFT = 8, 3.0
Text = tuple[Tensor, Tensor | None]  # embedding [B, tokens, 4096], additive attention bias or None


def sigmas(steps: int = STEPS, shift: float = SHIFT) -> list[float]:
    """The noise levels 1 .. 0 of a shifted linear schedule, steps + 1 numbers."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).tolist()


class Memory:
    """The K/V of the first `sink` and last `window` chunks; `compress` replaces a tensor [B, L, H, D] on the way in."""

    def __init__(self, sink: int = 1, window: int = 2, compress: Callable[[Tensor], Tensor] | None = None) -> None:
        self.sink, self.window, self.compress = sink, window, compress
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.chunks: dict[int, list[KeyValue]] = {}
        self.committed = 0

    def commit(self, chunk: list[KeyValue]) -> None:
        """Remember one more chunk and forget what has left the window."""
        if self.compress:
            chunk = [(self.compress(k), self.compress(v)) for k, v in chunk]
        self.chunks[self.committed] = chunk
        self.committed += 1
        first = self.committed - self.window
        self.chunks = {index: kv for index, kv in self.chunks.items() if index < self.sink or index >= first}

    def slots(self) -> list[list[KeyValue]]:
        """The remembered chunks, oldest first."""
        return list(self.chunks.values())


@torch.no_grad()
def rollout(
    model: WanDiT,
    texts: Sequence[Text],
    noise: Sequence[Tensor],
    levels: list[float],
    memory: Memory | None = None,
    forget_before: Collection[int] = (),
    fresh_noise: Sequence[Sequence[Tensor]] | None = None,
) -> Tensor:
    """Generate one chunk per text and noise tensor [B, 16, 3, h, w] -> normalised latents [B, 16, 3*chunks, h, w].

    `levels` from `sigmas()`. With `fresh_noise[chunk][step]` every step predicts the clean chunk and noises it again;
    without it the steps are Euler's. The memory is emptied before the chunks in `forget_before`.
    """
    memory = memory or Memory()
    out: list[Tensor] = []
    for chunk, start in enumerate(noise):
        if chunk in forget_before:
            memory.reset()
        if chunk == 0 or texts[chunk] is not texts[chunk - 1]:
            text = model.text(texts[chunk][0])
        x, text_bias = start, texts[chunk][1]
        for step, (level, following) in enumerate(pairwise(levels)):
            velocity, _ = model.forward_chunk(x, level * 1000, text, memory.slots(), text_bias)
            if fresh_noise is not None and following > 0:
                x = (1 - following) * (x - level * velocity) + following * fresh_noise[chunk][step]
            else:
                x = x + (following - level) * velocity
        memory.commit(model.forward_chunk(x, 0.0, text, memory.slots(), text_bias)[1])
        out.append(x)
    return torch.cat(out, 2)


def load(folder: Path, device: str = "cpu") -> tuple[WanDiT, WanVAE, TextEncoder]:
    """The three models of a folder with the checkpoint's file names."""
    dit = WanDiT.from_state_dict(load_file(folder / "toyworld_dit_fp16.safetensors"))
    vae = WanVAE.from_state_dict(load_file(folder / "toyworld_vae_fp16.safetensors"))
    text_encoder = TextEncoder(load_file(folder / "toyworld_te_fp16.safetensors"), device)
    return dit.to(device).eval(), vae.to(device).eval(), text_encoder


@torch.no_grad()
def decode(vae: WanVAE, latents: Tensor) -> Tensor:
    """Normalised latents [B, 16, T, h, w] -> pixels [B, 4T-3, 3, 8h, 8w] in 0..1, one continuous decode per video."""
    videos = [vae.decode(denormalise_latents(video[None].transpose(1, 2))) for video in latents]
    return ((torch.cat(videos).float() + 1) / 2).clamp(0, 1)


def film_noise(chunks: int, seed: int, steps: int = STEPS) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The starting noise of every chunk, and the fresh noise of its renoise steps; each [1, 16, 3, 10, 16]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chunks, 1, *LATENT_SHAPE, generator=generator)
    fresh = torch.randn(chunks, steps - 1, 1, *LATENT_SHAPE, generator=generator)
    return list(noise), [list(chunk) for chunk in fresh]


def generate_film(
    models: tuple[WanDiT, WanVAE, TextEncoder], texts: Sequence[str], seed: int, carry_memory: bool = True
) -> list[Tensor]:
    """One clip of two chunks per prompt -> uint8 frames [T, 3, 80, 128] per clip: 21 in the first, 24 in the others.

    `carry_memory=False` forgets everything at every clip. Eight renoise steps, sink 1 and window 2 chunks.
    """
    dit, vae, text_encoder = models
    chunks = CLIP_CHUNKS * len(texts)
    encoded = [chunk for text in texts for chunk in [text_encoder.encode_short(text)] * CLIP_CHUNKS]
    noise, fresh = film_noise(chunks, seed)
    forget_before = () if carry_memory else range(0, chunks, CLIP_CHUNKS)
    latents = rollout(dit, encoded, noise, sigmas(), forget_before=forget_before, fresh_noise=fresh)
    frames = to_uint8(decode(vae, latents)[0])
    clip_frames = 4 * LATENT_SHAPE[1] * CLIP_CHUNKS
    return list(frames.tensor_split(tuple(range(clip_frames - 3, len(frames), clip_frames))))


def contact_sheet(clips: Sequence[Tensor], path: Path, columns: int = 6) -> None:
    """Save a picture with one row per clip, `columns` frames of it evenly spaced."""
    rows = [clip[torch.linspace(0, len(clip) - 1, columns).long()] for clip in clips]  # each [columns, 3, H, W]
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, help="contact sheet, one row per clip")
    parser.add_argument("--texts", nargs="+", required=True, help="one prompt per clip")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    contact_sheet(generate_film(load(arguments.folder), arguments.texts, arguments.seed), arguments.out)
