"""Trains the toy Wan DiT by block-causal teacher forcing and writes toyworld_dit_fp16.safetensors.

Flow matching: noisy = (1 - sigma) * clean + sigma * noise, target noise - clean, sigma from a shifted uniform, drawn
per chunk. The remembered clean chunks get a little noise, because memory is slightly wrong at test time. The schedule
follows the clock; `--progress FROM TO` says which part of the whole training this leg is.

    python train_dit.py --out FOLDER --vae FILE --text-encoder FILE [--seconds 500] [--resume FOLDER/state_model.pt]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from dit import WanDiT
from render import render, to_uint8
from safetensors.torch import load_file, save_file
from teacher_forcing import forward_block, memory_slots, velocity
from text_encoder import TextEncoder, embed_captions
from torch import Tensor
from vae import WanVAE, normalise_latents
from world import CHUNK_LATENTS, caption_table, chunk_captions, sample_specs

FILE, STATE_FILE = "toyworld_dit_fp16.safetensors", "state_model.pt"
MEMORIES = ((1, 2, 0.68), (1, 1, 0.10), (0, 2, 0.10), (0, 3, 0.07), (1, 0, 0.05))  # sink, window, share of the videos
MEMORY_NOISE, MEMORY_NOISE_SHARE = 0.12, 0.6
VALIDATION_SEED, VALIDATION_SIGMAS = 700_000_000, (0.3, 0.6, 0.9)
WARM_UP_STEPS, STEADY_SHARE, MIN_RATE = 300, 0.5, 0.01
EMA_DECAY = 0.999
LOG_SECONDS = 25


@dataclass(frozen=True)
class DitTraining:
    """The settings; the defaults made the published file (in three legs)."""

    out: Path
    vae: Path
    text_encoder: Path
    seconds: float = 200
    steps: int | None = None  # stop earlier, after this many
    resume: Path | None = None  # STATE_FILE of an earlier leg, beside its FILE
    progress: tuple[float, float] = (0.0, 1.0)
    seed: int = 1
    videos: int = 16000
    validation_videos: int = 256
    chunks: int = 8  # per video
    batch: int = 64
    learning_rate: float = 8e-4
    shift: float = 3.0
    layers: int = 6
    feed_forward_dim: int = 960
    compile: bool = True  # on CUDA


@dataclass(frozen=True)
class Videos:
    """Encoded training data."""

    latents: Tensor  # [n, chunks, 16, 3, h, w], normalised
    captions: Tensor  # [n, chunks] row of the caption table


def train_dit(settings: DitTraining) -> Path:
    """Train until the time or the steps are used up; returns the path of the file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(settings.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    vae = WanVAE.from_state_dict(load_file(settings.vae)).to(device).eval()
    videos = encode_videos(vae, settings.videos, settings.chunks, 10_000_000 * settings.seed, device)
    validation = encode_videos(vae, settings.validation_videos, settings.chunks, VALIDATION_SEED, device)
    model = WanDiT(feed_forward_dim=settings.feed_forward_dim, layers=settings.layers).to(device)
    used = torch.cat([videos.captions, validation.captions]).unique()
    loss = FlowLoss(model, settings, used)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    first_step = _resume(settings.resume, model, average, device) if settings.resume else 0
    step = _optimise(model, loss, videos, average, first_step, settings)
    state = {"model": {key: value.half().cpu() for key, value in model.state_dict().items()}, "step": step}
    print("validation, raw:", validate(loss, validation))
    model.load_state_dict(average)
    print("validation, average:", validate(loss, validation), flush=True)
    settings.out.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.half().contiguous().cpu() for key, value in average.items()}
    save_file(tensors, settings.out / FILE, metadata={"format": "pt"})
    torch.save(state, settings.out / STATE_FILE)
    return settings.out / FILE


@torch.no_grad()
def encode_videos(vae: WanVAE, videos: int, chunks: int, seed: int, device: str, batch: int = 32) -> Videos:
    """Render and encode; latents are kept in bfloat16 on CUDA, float32 on the CPU."""
    rows, latents, captions = caption_table()[1], [], []
    for start in range(0, videos, batch):
        specs = sample_specs(min(batch, videos - start), seed + start, chunks)
        pixels = to_uint8(render(specs, device)) / 127.5 - 1
        with _autocast(device):
            encoded = normalise_latents(vae.encode(pixels).float())  # [b, 3*chunks, 16, h, w]
        encoded = encoded.unflatten(1, (chunks, CHUNK_LATENTS)).transpose(2, 3)
        latents.append(encoded.to(_storage_dtype(device)))
        captions.append(torch.from_numpy(chunk_captions(specs, rows)))
    return Videos(torch.cat(latents), torch.cat(captions).to(device))


class FlowLoss:
    """The flow-matching loss of a batch of videos, with the prompts in use embedded beforehand."""

    def __init__(self, model: WanDiT, settings: DitTraining, used: Tensor) -> None:
        self.model, self.shift, self.chunks, self.device = model, settings.shift, settings.chunks, used.device.type
        device, captions = self.device, caption_table()[0]
        encoder = TextEncoder(load_file(settings.text_encoder), device)
        texts = [captions[row] for row in used.tolist()]
        self.text, self.text_bias = embed_captions(encoder, texts, _storage_dtype(device))
        self.row = torch.zeros(len(captions), dtype=torch.long, device=device)  # of a caption in self.text
        self.row[used] = torch.arange(len(used), device=device)
        slots = [memory_slots(settings.chunks, sink, window) for sink, window, _ in MEMORIES]
        self.slots = torch.stack(slots).to(device)  # [memories, chunks, 3]
        self.shares = torch.tensor([share for _, _, share in MEMORIES], device=device)
        self.run_block: Callable = forward_block
        if device == "cuda" and settings.compile:
            self.run_block = torch.compile(forward_block)

    def training(self, latents: Tensor, captions: Tensor) -> Tensor:
        """Random noise levels, memories and memory noise -> mean loss."""
        batch, device = len(latents), self.device
        u = torch.rand(batch, self.chunks, device=device)
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        clean = latents.float()
        noise = torch.randn(clean.shape, device=device)
        memory = torch.multinomial(self.shares, batch, replacement=True)
        strength = MEMORY_NOISE * torch.rand(batch, self.chunks, 1, 1, 1, 1, device=device)
        strength = strength * (torch.rand(batch, 1, 1, 1, 1, 1, device=device) < MEMORY_NOISE_SHARE)
        remembered = clean + strength * torch.randn_like(clean)
        return self._per_chunk(clean, remembered, noise, sigma, captions, memory, self.run_block).mean()

    def validation(self, latents: Tensor, captions: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
        """One noise level, the standard memory, no memory noise -> loss per chunk [chunks], summed over videos."""
        clean = latents.float()
        noise = torch.randn(clean.shape, device=self.device, generator=generator)
        levels = torch.full((len(clean), self.chunks), sigma, device=self.device)
        memory = torch.zeros(len(clean), dtype=torch.long, device=self.device)
        return self._per_chunk(clean, clean, noise, levels, captions, memory, forward_block).sum(0)

    def _per_chunk(
        self,
        clean: Tensor,
        remembered: Tensor,
        noise: Tensor,
        sigma: Tensor,
        captions: Tensor,
        memory: Tensor,
        run_block: Callable,
    ) -> Tensor:
        level = sigma[:, :, None, None, None, None]
        noisy = (1 - level) * clean + level * noise
        rows = self.row[captions]
        text = (self.text[rows], self.text_bias[rows])
        with _autocast(self.device):
            predicted = velocity(self.model, remembered, noisy, sigma, text, self.slots[memory], run_block)
        return (predicted.float() - (noise - clean)).pow(2).mean((2, 3, 4, 5))


@torch.no_grad()
def validate(loss: FlowLoss, videos: Videos) -> str:
    """The validation loss in words: the first chunk, which has no memory, and the mean of the rest."""
    generator = torch.Generator(device=loss.device).manual_seed(0)
    words = []
    for sigma in VALIDATION_SIGMAS:
        batches = zip(videos.latents.split(64), videos.captions.split(64), strict=True)
        total = sum(loss.validation(latents, captions, sigma, generator) for latents, captions in batches)
        mean = total / len(videos.latents)
        words.append(f"sigma {sigma}: first {mean[0]:.4f} rest {mean[1:].mean():.4f}")
    return ", ".join(words)


def _optimise(
    model: WanDiT, loss: FlowLoss, videos: Videos, average: dict[str, Tensor], first_step: int, settings: DitTraining
) -> int:
    """Train `model` and its moving `average` in place; returns the number of the last step."""
    optimizer = _optimizer(model, settings.learning_rate)
    count, device = len(videos.latents), videos.latents.device
    step, taken, started, logged = first_step, 0, time.time(), time.time()
    while (elapsed := time.time() - started) < settings.seconds and taken != settings.steps:
        begin, end = settings.progress
        rate = settings.learning_rate * _schedule(begin + (end - begin) * elapsed / settings.seconds, taken)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(count, (settings.batch,), device=device)
        value = loss.training(videos.latents[chosen], videos.captions[chosen])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, taken = step + 1, taken + 1
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        current = [tensor.detach() for tensor in model.state_dict().values()]
        torch._foreach_lerp_(list(average.values()), current, 1 - decay)
        if time.time() - logged > LOG_SECONDS:
            logged = time.time()
            print(f"dit step {step} {logged - started:.0f} s rate {rate:.1e} loss {value.item():.4f}", flush=True)
    return step


def _optimizer(model: WanDiT, rate: float) -> torch.optim.AdamW:
    """AdamW; only matrices and kernels decay."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.dim() > 1 and "modulation" not in name].append(parameter)
    options = [{"params": groups[True], "weight_decay": 0.01}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(options, lr=rate, betas=(0.9, 0.98), fused=torch.cuda.is_available())


def _schedule(progress: float, taken: int) -> float:
    """Warm-up in every leg (Adam's moments start anew), steady for the first half, then a cosine; 0..1."""
    warm = min(1, (taken + 1) / WARM_UP_STEPS)
    if progress < STEADY_SHARE:
        return warm
    return warm * max(MIN_RATE, 0.5 * (1 + math.cos(math.pi * (progress - STEADY_SHARE) / (1 - STEADY_SHARE))))


def _resume(path: Path, model: WanDiT, average: dict[str, Tensor], device: str) -> int:
    """Load an earlier leg's raw weights into `model` and its average into `average`; returns its step."""
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict({key: value.float() for key, value in state["model"].items()})
    for key, value in load_file(path.with_name(FILE)).items():
        average[key].copy_(value)
    return state["step"]


def _storage_dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _autocast(device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--out", "--vae", "--text-encoder"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=DitTraining.seconds)
    parser.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--resume", type=Path, help=f"{STATE_FILE} of an earlier leg")
    parser.add_argument("--progress", type=float, nargs=2, default=DitTraining.progress, metavar=("FROM", "TO"))
    parser.add_argument("--seed", type=int, default=DitTraining.seed)
    parser.add_argument("--videos", type=int, default=DitTraining.videos)
    train_dit(DitTraining(**vars(parser.parse_args())))
