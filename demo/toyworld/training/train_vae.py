"""Trains the toy Wan 2.1 VAE and writes toyworld_vae_fp16.safetensors.

Reconstruction (squared and absolute error, weighted towards saturated pixels: the hero), a tiny KL term and noise on
the latents. Decoding may start at any latent, so that clips can be decoded alone. The schedule follows the clock.

    python train_vae.py --out FOLDER [--seconds 240]
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from render import render, to_uint8
from safetensors.torch import load_file, save_file
from torch import Tensor
from vae import LATENT_CHANNELS, WanVAE, fold_latent_scale, normalise_latents
from world import HEIGHT, WIDTH, frames_of_chunks, sample_specs

FILE = "toyworld_vae_fp16.safetensors"
SHORT_CHUNKS, LONG_CHUNKS = 2, 5
WARM_UP_STEPS, STEADY_SHARE, MIN_RATE = 200, 0.25, 0.01
EMA_STEPS, EMA_DECAY = 4, 0.995
NOISY_SHARE, LATER_START_SHARE = 0.7, 0.45  # videos whose latents get noise; videos decoded from a later latent
VALIDATION_SEED = 5_000_000
LOG_SECONDS = 20


@dataclass(frozen=True)
class Phase:
    """A stretch of training with fixed shapes."""

    frames: int
    width: int  # pixels, a multiple of 8: crops first, whole frames later
    batch: int
    decoded_latents: int
    share: float  # of the time


@dataclass(frozen=True)
class VaeTraining:
    """The settings; the defaults made the published file."""

    out: Path
    seconds: float = 240
    steps: int | None = None  # stop earlier, after this many
    resume: Path | None = None
    learning_rate: float = 1.5e-3
    hero_weight: float = 6.0
    kl_weight: float = 2e-5
    latent_noise: float = 0.08
    seed: int = 1
    short_videos: int = 2560
    long_videos: int = 384
    validation_videos: int = 32
    validation_chunks: int = 8
    phases: tuple[Phase, ...] = (Phase(17, 64, 4, 3, 0.62), Phase(21, WIDTH, 4, 6, 0.20), Phase(57, WIDTH, 2, 14, 0.18))


def train_vae(settings: VaeTraining) -> Path:
    """Train until the time or the steps are used up; returns the path of the file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(settings.seed)
    _prefer_speed()
    short = _video_pool(settings.short_videos, SHORT_CHUNKS, 1000 + 777 * settings.seed, device)
    long = _video_pool(settings.long_videos, LONG_CHUNKS, 900000 + 777 * settings.seed, device)
    vae = _new_vae(settings.resume).to(device)
    rate = torch.tensor(1e-5, device=device)  # a tensor, so that a captured graph reads the current value
    cuda = device == "cuda"
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=rate if cuda else 1e-5, betas=(0.9, 0.98), weight_decay=0.0, fused=cuda, capturable=cuda
    )
    average = {key: value.detach().clone() for key, value in vae.state_dict().items()}
    step, phase, started, logged = 0, None, time.time(), time.time()
    while (progress := (time.time() - started) / settings.seconds) < 1 and step != settings.steps:
        if (current := _phase_at(settings.phases, progress)) is not phase:
            phase = current
            source = short if phase.frames <= frames_of_chunks(SHORT_CHUNKS) else long
            trainer = PhaseTrainer(vae, optimizer, phase, settings, source)
            progress = min(1, (time.time() - started) / settings.seconds)  # capturing took time
        _set_rate(optimizer, rate, settings.learning_rate * _schedule(progress, step))
        trainer.run()
        step += 1
        if step % EMA_STEPS == 0:
            decay = min(EMA_DECAY, (1 + step) / (40 + step))
            torch._foreach_lerp_(list(average.values()), _values(vae), 1 - decay)
        if step % 50 == 0 and cuda:
            torch.cuda.synchronize()  # keep the queue short, or the clock means nothing
        if time.time() - logged > LOG_SECONDS:
            logged = time.time()
            print(f"vae step {step} {logged - started:.0f} s {trainer.describe()}", flush=True)
    vae.load_state_dict(average)
    return _finish(vae, settings, step, device)


class PhaseTrainer:
    """One phase's optimisation step; on CUDA it is captured once as a graph and replayed."""

    def __init__(
        self, vae: WanVAE, optimizer: torch.optim.Optimizer, phase: Phase, settings: VaeTraining, source: Tensor
    ) -> None:
        self.vae, self.optimizer, self.phase, self.settings, self.source = vae, optimizer, phase, settings, source
        device = source.device
        self.pixels = torch.zeros(phase.batch, phase.frames, 3, HEIGHT, phase.width, dtype=torch.uint8, device=device)
        self.start = torch.zeros(phase.batch, dtype=torch.long, device=device)  # first decoded latent
        self.latent = torch.arange(phase.decoded_latents, device=device)
        self.frame = torch.arange(4 * phase.decoded_latents - 3, device=device)
        self.video = torch.arange(phase.batch, device=device)[:, None]
        self.statistics = torch.zeros(4, device=device)  # squared error, KL, gradient norm, std of the latents
        self.graph = self._capture() if device.type == "cuda" else None

    def run(self) -> None:
        """Draw a batch and take one step."""
        self._draw_batch()
        if self.graph is not None:
            self.graph.replay()
        else:
            self.optimizer.zero_grad(set_to_none=True)
            self._step()

    def describe(self) -> str:
        """The last step in words."""
        error, kl, norm, std = self.statistics.tolist()
        return f"PSNR {-10 * math.log10(error / 4):.2f} dB KL {kl:.2f} gradient {norm:.2f} latent std {std:.2f}"

    def _draw_batch(self) -> None:
        phase, source, device = self.phase, self.source, self.source.device
        index = torch.randint(len(source), (phase.batch,), device=device)
        first = int(torch.randint(source.shape[1] - phase.frames + 1, (1,)))
        left = 8 * int(torch.randint((WIDTH - phase.width) // 8 + 1, (1,)))
        self.pixels.copy_(source[index][:, first : first + phase.frames, :, :, left : left + phase.width])
        last_start = (phase.frames + 3) // 4 - phase.decoded_latents
        later = torch.rand(phase.batch, device=device) < LATER_START_SHARE
        self.start.copy_(later * torch.randint(0, last_start + 1, (phase.batch,), device=device))

    def _step(self) -> None:
        pixels = self.pixels.float() / 127.5 - 1  # [B, T, 3, H, W]
        enabled = pixels.is_cuda
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False):
            mean, log_variance = self.vae.moments(pixels)
            mean, log_variance = mean.float(), log_variance.float().clamp(-10, 4)
            output = self.vae.decode(self._pick_latents(self._add_noise(mean, log_variance))).float()
        target = pixels[self.video, 4 * self.start[:, None] + self.frame]
        error = output - target
        chroma = (target.amax(2, keepdim=True) - target.amin(2, keepdim=True)) / 2  # 0..1
        weight = 1 + self.settings.hero_weight * chroma
        reconstruction = ((error.pow(2) + 0.3 * error.abs()) * weight).mean() / weight.mean()
        kl = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).mean()
        (reconstruction + self.settings.kl_weight * kl).backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.vae.parameters()), 1.0, foreach=True)
        self.optimizer.step()
        parts = (error.detach().pow(2).mean(), kl.detach(), norm.detach(), mean.detach().std())
        self.statistics = torch.stack(parts)

    def _add_noise(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        std = (0.5 * log_variance).exp().clamp(min=self.settings.latent_noise)
        noise = torch.randn_like(mean) * std
        return mean + noise * (torch.rand(len(mean), 1, 1, 1, 1, device=mean.device) < NOISY_SHARE)

    def _pick_latents(self, latents: Tensor) -> Tensor:
        """The decoded stretch of every video, [B, t, 16, h, w] -> [B, decoded_latents, 16, h, w], as a product."""
        chosen = self.start[:, None, None] + self.latent[:, None]
        one_hot = (chosen == torch.arange(latents.shape[1], device=latents.device)).to(latents.dtype)
        return torch.bmm(one_hot, latents.flatten(2)).unflatten(-1, latents.shape[2:])

    def _capture(self) -> torch.cuda.CUDAGraph:
        self._draw_batch()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.optimizer.zero_grad(set_to_none=True)
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph


def _prefer_speed() -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 5
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def _video_pool(videos: int, chunks: int, seed: int, device: str, batch: int = 64) -> Tensor:
    """Rendered videos, uint8 [n, T, 3, H, W]."""
    starts = range(0, videos, batch)
    specs = [sample_specs(min(batch, videos - start), seed + start, chunks) for start in starts]
    return torch.cat([to_uint8(render(part, device)) for part in specs])


def _new_vae(resume: Path | None) -> WanVAE:
    vae = WanVAE()
    with torch.no_grad():
        vae.conv1.bias[LATENT_CHANNELS:] = -4.0  # start with little noise: log variance -4
    if resume:
        vae.load_state_dict({key: value.float() for key, value in load_file(resume).items()})
    return vae


def _phase_at(phases: tuple[Phase, ...], progress: float) -> Phase:
    end = 0.0
    for phase in phases:
        end += phase.share
        if progress < end:
            return phase
    return phases[-1]


def _schedule(progress: float, step: int) -> float:
    """Warm-up, a steady quarter, then a cosine; 0..1."""
    warm = min(1, (step + 1) / WARM_UP_STEPS)
    if progress < STEADY_SHARE:
        return warm
    decay = 0.5 * (1 + math.cos((progress - STEADY_SHARE) / (1 - STEADY_SHARE) * math.pi))
    return warm * max(MIN_RATE, decay)


def _set_rate(optimizer: torch.optim.Optimizer, rate: Tensor, value: float) -> None:
    rate.fill_(value)
    for group in optimizer.param_groups:
        group["lr"] = rate if rate.is_cuda else value


def _values(vae: WanVAE) -> list[Tensor]:
    return [value.detach() for value in vae.state_dict().values()]


@torch.no_grad()
def _finish(vae: WanVAE, settings: VaeTraining, step: int, device: str) -> Path:
    """Fold the latents' scale in, write the file and print how good the file is."""
    videos, chunks = settings.validation_videos, settings.validation_chunks
    pixels = _video_pool(videos, chunks, VALIDATION_SEED, device, batch=8).float() / 127.5 - 1
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        latents = torch.cat([vae.encode(part).float() for part in pixels.split(4)])
        fold_latent_scale(vae, latents.mean((0, 1, 3, 4)), latents.std((0, 1, 3, 4)))
        tensors = {key: value.half().contiguous().cpu() for key, value in vae.state_dict().items()}
        settings.out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, settings.out / FILE, metadata={"format": "pt"})
        vae.load_state_dict({key: value.float() for key, value in tensors.items()})
        latents = torch.cat([vae.encode(part).float() for part in pixels.split(4)])
        decoded = torch.cat([vae.decode(part).float().clamp(-1, 1) for part in latents.split(4)])
    normal = normalise_latents(latents)
    off = normal.mean((0, 1, 3, 4)).abs().max().item()
    psnr = -10 * torch.log10(((decoded - pixels) / 2).pow(2).mean()).item()
    print(f"VAE done after {step} steps: PSNR {psnr:.2f} dB, largest channel mean {off:.4f} (should be 0)", flush=True)
    return settings.out / FILE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=VaeTraining.seconds)
    parser.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--resume", type=Path, help="VAE file to go on from")
    parser.add_argument("--seed", type=int, default=VaeTraining.seed)
    train_vae(VaeTraining(**vars(parser.parse_args())))
