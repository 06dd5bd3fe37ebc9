"""Every node of the pack, in menu order."""

from __future__ import annotations

from .memory import nodes as memory
from .prompts import nodes as prompts
from .sampling import nodes as sampling

NODE_CLASSES: list = [*memory.NODES, *sampling.NODES, *prompts.NODES]
