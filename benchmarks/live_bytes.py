"""What lives at once while modules of tensors without data run: for tests and for budget_trace.py."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Follows the storages of all tensors without data made inside; `peak` is the most that lived at once.

    Ignores `known`. What is copied to the CPU leaves: memory without a value stands for it, and does not count.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.kept = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}
        self.seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        tree_map_only(torch.Tensor, self._count, out)
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if tensor.is_meta and key not in self.kept and key not in self.seen:
            self.live += size
            self.seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        return tensor

    def _drop(self, key: int, size: int) -> None:
        self.live -= size
        del self.seen[key]
