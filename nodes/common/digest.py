"""Digests of what ComfyUI hands over: equal in every session for what samples the same, without importing ComfyUI.

Of a custom node's own objects their settings count (foreign.py). What cannot be looked into without being guessed at
(the rest of them, lists that a function keeps) counts by its name alone; where a wrong match would be worse than none,
by itself, in this session (in_session).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import secrets
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy
import torch

from .foreign import changed, is_core, rebound, settings

DEPTH = 8  # of objects inside objects that are looked at
SAMPLED = 16  # values of a weight
_TOKENS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_COUNTER = itertools.count(secrets.randbits(62))  # no number of an earlier session


def patcher_key(model: Any) -> str:
    """A digest of what a MODEL computes with: every weight by name, shape and sample, its LoRA patches and its options.

    The same file gives the same key in every session (ComfyUI's own patches_uuid is random), another LoRA, strength,
    quantisation, shift or setting of a patch gives another. It does not depend on whether the model is loaded: weights
    into which ComfyUI has baked a LoRA are read from its backup, modules that other nodes exchange while it is loaded
    are those from before, and the sampling module counts only as a patch. Cheap: 16 values per tensor. Takes a MODEL,
    or the patcher of a VAE or CLIP.
    """
    return _hexdigest(_Look(False).patcher(model))


def clip_key(clip: Any) -> str:
    """A digest of what a CLIP encodes with: patcher_key, and what its own settings differ in from the defaults."""
    held = {name: getattr(clip, name, None) for name in ("layer_idx", "tokenizer_options")}
    set_to = {name: value for name, value in held.items() if value not in (None, {})}
    key = patcher_key(clip.patcher)
    return value_key([key, set_to]) if set_to else key


def value_key(value: Any, in_session: bool = False) -> str:
    """A digest of an input of a node: equal in every session for what samples the same.

    Tensors count by their bytes; MODELs and what has a patcher as in patcher_key; functions by name, defaults and what
    they close over; conditionings, samplers and the like by what they hold. in_session: what cannot be looked into is
    equal only to itself, and only as long as this process lives.
    """
    return _hexdigest(_Look(in_session).pieces(value, DEPTH))


def _hexdigest(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece + b";")
    return digest.hexdigest()[:32]


def _collect(module: torch.nn.Module, backup: dict[str, Any], name: str, parts: dict[int, tuple]) -> None:
    """The modules and their names, without those that object patches put in while the model is loaded."""
    before = backup.get(name)
    module = before if isinstance(before, torch.nn.Module) else module
    if id(module) in parts:
        return
    parts[id(module)] = (name, module)
    for inner, child in module.named_children():
        _collect(child, backup, f"{name}.{inner}".lstrip("."), parts)


def _weights(parts: dict[int, tuple]) -> dict[str, torch.Tensor]:
    """Not the state dict: GGUF layers give away placeholders there. Of tied weights the first."""
    found = [(f"{name}.{inner}".lstrip("."), weight) for kind in ("named_parameters", "named_buffers")
             for name, part in parts.values() for inner, weight in getattr(part, kind)(recurse=False)]
    first = {id(weight): name for name, weight in reversed(found)}
    return {name: weight for name, weight in found if first[id(weight)] == name}


class _Look:
    """One walk through a value. in_session: as in value_key."""

    def __init__(self, in_session: bool) -> None:
        self.in_session, self.inside_model = in_session, False
        self.path: list[int] = []  # what is being looked at, against circles
        self.parts: set[int] = set()  # ids of the models' modules

    def pieces(self, value: Any, depth: int) -> Iterator[bytes]:
        if isinstance(value, (int, float, complex, str, bytes, type(None), torch.dtype)):
            yield repr(value).encode()
        elif isinstance(value, torch.device):
            yield b"a device"
        elif isinstance(value, torch.Tensor):
            yield from self.tensor(value)
        elif isinstance(value, numpy.ndarray):
            yield f"{value.shape}{value.dtype}".encode() + value.tobytes()
        elif depth < 0 or id(value) in self.path:
            yield b"..."
        else:
            self.path.append(id(value))
            yield from self.inside(value, depth - 1)
            self.path.pop()

    def inside(self, value: Any, depth: int) -> Iterator[bytes]:
        if isinstance(value, dict):
            yield f"{len(value)} keys".encode()
            for key in sorted(value, key=str):
                yield str(key).encode()
                yield from self.pieces(value[key], depth)
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield f"{len(value)} values".encode()
            for inner in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value):
                yield from self.pieces(inner, depth)
        elif hasattr(value, "patches") and hasattr(value, "model"):
            yield from self.patcher(value)
        elif hasattr(value, "patcher"):
            yield from self.patcher(value.patcher)
        elif isinstance(value, functools.partial):
            yield from self.pieces([value.func, value.args, value.keywords], depth)
        elif hasattr(value, "__qualname__"):
            yield from self.function(value, depth)
        else:
            yield from self.thing(value, depth)

    def tensor(self, value: torch.Tensor) -> Iterator[bytes]:
        yield f"{tuple(value.shape)}{value.dtype}".encode()
        flat = value.detach().reshape(-1)
        if self.inside_model:
            flat = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED]
            yield bytes(flat.to("cpu", copy=True).double().numpy().tobytes())
        else:
            yield flat.to("cpu").contiguous().view(torch.uint8).numpy().tobytes()

    def patcher(self, model: Any) -> Iterator[bytes]:
        was, self.inside_model = self.inside_model, True
        parts: dict[int, tuple] = {}
        _collect(model.model, model.object_patches_backup, "", parts)
        self.parts.update(parts)
        weights = _weights(parts)
        for name in sorted(weights):
            if not name.startswith("model_sampling.") and ".side_path_" not in name:  # a loaded LoRA counts as a patch
                yield name.encode()
                yield from self.tensor(model.backup[name].weight if name in model.backup else weights[name])
        for part in ("patches", "object_patches", "model_options", "wrappers"):
            yield part.encode()
            yield from self.pieces(getattr(model, part), DEPTH)
        self.inside_model = was

    def function(self, value: Any, depth: int) -> Iterator[bytes]:
        """Functions, methods and classes."""
        yield value.__qualname__.encode()
        if isinstance(value, types.MethodType):
            yield from self.pieces(value.__self__, depth)
            value = value.__func__
        if not isinstance(value, types.FunctionType):
            return
        yield from self.pieces([value.__defaults__, value.__kwdefaults__], depth)
        counted = rebound(value.__code__)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                held = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            if name in counted or isinstance(held, (list, dict, set)):  # may change while it samples
                yield from self.opaque(held)
            else:
                yield from self.pieces(held, depth)

    def thing(self, value: Any, depth: int) -> Iterator[bytes]:
        """Any other object: of ComfyUI's and our own classes what they hold, and so of inputs that are no model."""
        yield type(value).__qualname__.encode()
        if isinstance(value, torch.nn.Module):
            if id(value) not in self.parts:  # those count by their weights, and patches leave things on them
                yield from self.module(value, depth)
        elif not self.inside_model or is_core(type(value)):
            held = vars(value) if hasattr(value, "__dict__") else getattr(value, "weights", None)
            yield from self.pieces(held, depth)
        else:
            yield from self.settings(value)
            yield from self.opaque(value)

    def module(self, value: torch.nn.Module, depth: int) -> Iterator[bytes]:
        kind = type(value)
        held = {**dict(value.named_parameters(recurse=False)), **dict(value.named_buffers(recurse=False))}
        ours = any(map(is_core, kind.__mro__))
        if ours:
            held.update({name: one for name, one in vars(value).items()
                         if isinstance(one, (int, float, str)) and name not in changed(kind)})
        yield from self.pieces(held, depth)
        if not ours:
            yield from self.settings(value)

    def settings(self, value: Any) -> Iterator[bytes]:
        found = settings(value)
        if found:
            was, self.inside_model = self.inside_model, False  # every byte: prompts differ in a few rows only
            yield from self.pieces(found, DEPTH)
            self.inside_model = was

    def opaque(self, value: Any) -> Iterator[bytes]:
        if not self.in_session:
            return
        try:
            yield f"#{_TOKENS.setdefault(value, next(_COUNTER))}".encode()
        except TypeError:  # lists and the like: equal to nothing
            yield f"#{next(_COUNTER)}".encode()
