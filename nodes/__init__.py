"""Every node of the pack, in menu order."""

from __future__ import annotations

from .loading import nodes as loading
from .memory import nodes as memory
from .prompts import nodes as prompts
from .sampling import nodes as sampling

NODE_CLASSES: list = [*loading.NODES, *memory.NODES, *sampling.NODES, *prompts.NODES]
