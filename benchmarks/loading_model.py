"""The diffusion model that loading.py measures: one step of it, and its Linears exchanged for other people's."""

from __future__ import annotations

from collections.abc import Callable

import torch

CUDA = torch.cuda.is_available()


def packable(file: str) -> list[str]:
    """The Linears that our loader packs in this file."""
    from pack.nodes.loading import formats, plan

    checkpoint = formats.read_checkpoint(file, formats.DIFFUSION_MODELS)
    return [name.removesuffix(".weight") for name in plan.plan_layers(checkpoint).quantize]


def place(model: object, linears: dict[str, torch.nn.Module]) -> None:
    """Put these Linears into the model, by name."""
    for name, linear in linears.items():
        parent, _, field = name.rpartition(".")
        setattr(model.model.diffusion_model.get_submodule(parent), field, linear)


def compute_dtype(model: object) -> torch.dtype:
    from pack.nodes.common import compat

    return compat.compute_dtype(model)


def forward(model: object, device: torch.device, options: dict, latents: int) -> Callable[[], torch.Tensor]:
    """One step over so many latent frames."""
    inner, dtype = model.model.diffusion_model, compute_dtype(model)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, options["channels"], latents, *options["grid"], generator=generator).to(device, dtype)
    text = torch.randn(1, 512, 4096, generator=generator).to(device, dtype)
    timestep = torch.tensor([500.0], device=device)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        return inner(x, timestep, text)

    return step


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()
