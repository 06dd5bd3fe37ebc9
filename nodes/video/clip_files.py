"""A clip's latents as a safetensors file.

Tensors: `samples` and, behind the first clip, `context_samples`, float32 [1, C, T, h, w], un-normalised as in a LATENT;
first_latent and fps are in the header.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

TENSORS = ("samples", "context_samples")


def latent_digest(latent: dict[str, Any]) -> str:
    """sha256 over everything in a LATENT that decides the clip's frames."""
    digest = hashlib.sha256(str(latent.get("first_latent", 0)).encode())
    for name in TENSORS:
        if latent.get(name) is not None:
            value = latent[name].detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.numpy())
    return digest.hexdigest()


def save_latent(latent: dict[str, Any], path: Path) -> None:
    """Write a LATENT that has "fps"."""
    names = [name for name in TENSORS if latent.get(name) is not None]
    tensors = {name: latent[name].detach().to("cpu", torch.float32).contiguous() for name in names}
    facts = {"format": "pt", "first_latent": str(latent.get("first_latent", 0)), "fps": repr(latent["fps"])}
    save_file(tensors, str(path), metadata=facts)


def load_latent(path: Path) -> dict[str, Any]:
    """The LATENT that save_latent wrote, in RAM: other nodes may change it, and Windows deletes no mapped file."""
    with safe_open(str(path), framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no __iter__)
        facts = file.metadata()
    return {**tensors, "first_latent": int(facts["first_latent"]), "fps": float(facts["fps"])}
