"""Which attributes of a custom node's own object are settings: what may change while it samples is none."""

from __future__ import annotations

import dataclasses
import dis
import inspect
import types
from collections.abc import Iterator
from typing import Any

import numpy
import torch

CORE = ("comfy", "comfy_extras", "comfy_api", "nodes", "k_diffusion", __name__.partition(".nodes.")[0].split(".")[0])
DEPTH = 2  # of objects that such an object was made with
PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.Tensor, numpy.ndarray)


def is_core(kind: type) -> bool:
    """Whether ComfyUI or this pack defines it."""
    return _root(kind) in CORE


def _root(kind: type) -> str:
    return str(kind.__module__).split(".")[0]  # a class made by hand may have none


def settings(value: Any, depth: int = DEPTH) -> dict[str, Any]:
    """The attributes that __init__ was given and no other method sets.

    Lists and dicts are left out, for they may be filled while it samples, and so are dataclasses that are not frozen.
    """
    kind = type(value)
    if dataclasses.is_dataclass(kind) and not kind.__dataclass_params__.frozen:
        return {}
    if depth < 0 or is_core(kind) or str(kind.__module__).startswith("torch._"):
        return {}
    held, changing, found = getattr(value, "__dict__", {}), changed(kind), {}
    for name in _given(kind):
        if name in held and name not in changing:
            one = held[name]
            inner = {} if _plain(one) or isinstance(one, torch.nn.Module) else settings(one, depth - 1)
            found.update({name: one} if _plain(one) else {name: inner} if inner else {})
    return found


def changed(kind: type) -> set[str]:
    """The attributes that methods of a custom node's class set on their object, __init__ left out."""
    names: set[str] = set()
    for base in kind.__mro__:
        if is_core(base) or _root(base) == "torch":
            continue
        for name, method in vars(base).items():
            if name != "__init__" and isinstance(method, types.FunctionType):
                code = inspect.unwrap(method).__code__
                names.update(_set_on(code, *code.co_varnames[:1]))
    return names


def rebound(code: types.CodeType) -> set[str]:
    """The variables of the functions around it that a function sets anew, as one that counts does."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    return names.union(*(rebound(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(_plain, value)))


def _given(kind: type) -> set[str]:
    """The attributes to which __init__ gives an argument, or that are named as one."""
    try:
        arguments = set(inspect.signature(kind.__init__).parameters)
    except (TypeError, ValueError):  # not written in Python
        return set()
    code = getattr(inspect.unwrap(kind.__init__), "__code__", None)
    if code is None:
        return arguments
    owner = [*code.co_varnames[:1]]
    return arguments | {name for name, loaded in _sets(code)
                        if loaded[-1:] == owner and arguments.intersection(loaded[-2:-1])}


def _set_on(code: types.CodeType, owner: str = "") -> Iterator[str]:
    """Attributes that the code, or a function inside it, sets; not where it plainly sets them on another variable."""
    for name, loaded in _sets(code):
        if not loaded or loaded[-1] == owner:
            yield name
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _set_on(inner, owner)


def _sets(code: types.CodeType) -> Iterator[tuple[str, list]]:
    """Each attribute that the code sets, with the names that it loads just before: last a value and its owner."""
    loaded: list = []
    for step in dis.get_instructions(code):
        if step.opname == "STORE_ATTR":
            yield step.argval, loaded
        if step.opname.startswith("LOAD_"):
            loaded = [*loaded, *(step.argval if isinstance(step.argval, tuple) else [step.argval])]
        elif step.opname != "EXTENDED_ARG":
            loaded = []
