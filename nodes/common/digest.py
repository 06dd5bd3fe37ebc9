"""Digests of what ComfyUI hands over: equal in every session for what samples the same, without importing ComfyUI."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

DEPTH = 6  # of objects inside objects that are looked at


def patcher_key(model: Any) -> str:
    """A digest of what a MODEL computes with: every weight by name, shape and sample, its LoRA patches and its options.

    The same file gives the same key in every session (ComfyUI's own patches_uuid is random), another LoRA, strength or
    quantisation gives another. It does not depend on whether the model is loaded: weights into which ComfyUI has baked
    a LoRA are read from its backup, and the sampling module, which other nodes exchange while it is loaded, counts only
    as a patch. Of options and patches numbers count by value and functions by name. Cheap: 16 values per tensor. Takes
    a MODEL, or a VAE's or CLIP's patcher.
    """
    digest = hashlib.sha256()
    # not the state dict: GGUF layers give away placeholders there
    weights = dict([*model.model.named_parameters(), *model.model.named_buffers()])
    for name in sorted(weights):
        if not name.startswith("model_sampling.") and ".side_path_" not in name:  # a loaded LoRA counts as a patch
            _digest_tensor(digest, name, model.backup[name].weight if name in model.backup else weights[name])
    for part in ("patches", "object_patches", "model_options", "wrappers"):
        _digest_part(digest, part, getattr(model, part))
    return digest.hexdigest()[:32]


def value_key(value: Any) -> str:
    """A digest of an input of a node: equal in every session for what samples the same.

    Tensors count by their bytes; MODELs and what has a patcher by patcher_key; functions by name; conditionings,
    samplers and the like by what they hold.
    """
    digest = hashlib.sha256()
    for piece in _pieces(value, DEPTH):
        digest.update(piece)
    return digest.hexdigest()[:32]


def _digest_tensor(digest: Any, name: str, tensor: Any) -> None:
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // 16)][:16].to("cpu", copy=True)
    digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
    digest.update(bytes(sample.double().numpy().tobytes()))


def _digest_part(digest: Any, name: str, part: Any) -> None:
    """Numbers by value, tensors by sample, functions and other objects by name; a LoRA's adapter by its weights."""
    if hasattr(part, "detach"):
        _digest_tensor(digest, name, part)
    elif isinstance(part, dict):
        for key in sorted(part, key=str):
            _digest_part(digest, f"{name}.{key}", part[key])
    elif isinstance(part, (tuple, list)):
        for i, inner in enumerate(part):
            _digest_part(digest, f"{name}.{i}", inner)
    elif hasattr(part, "weights"):
        _digest_part(digest, f"{name}.{type(part).__name__}", part.weights)
    elif isinstance(part, (int, float, str, type(None))):
        digest.update(f"{name}={part}".encode())
    else:
        digest.update(f"{name}={getattr(part, '__qualname__', type(part).__qualname__)}".encode())


def _pieces(value: Any, depth: int) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{tuple(value.shape)}{value.dtype}".encode()
        yield value.detach().to("cpu").reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield f"{key}=".encode()
            yield from _pieces(value[key], depth - 1)
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)}:".encode()
        for inner in value:
            yield from _pieces(inner, depth - 1)
    elif isinstance(value, (int, float, str, bool, type(None))):
        yield repr(value).encode()
    elif hasattr(value, "patches"):
        yield patcher_key(value).encode()
    elif hasattr(value, "patcher"):
        yield patcher_key(value.patcher).encode()
    else:
        yield getattr(value, "__qualname__", type(value).__qualname__).encode()
        if depth > 0 and hasattr(value, "__dict__") and not hasattr(value, "__qualname__"):
            yield from _pieces(vars(value), depth - 1)
