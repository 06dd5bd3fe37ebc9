"""Out of memory in the middle of a clip: give something up, and go on from the last finished chunk."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch

from ..budget.retreat import step_down
from ..common.compat import model_facts, other_models_bytes
from ..common.progress import Progress
from ..common.types import MemorySpec, VideoMemory
from ..memory.state import with_spec
from .bridge_hook import MemoryHook


class Retreat:
    """A chunk_loop.Retreat: first what other models hold on the device, then one thing of the memory after another.

    profile: of the plan, which says in what order.
    """

    def __init__(self, patcher: Any, hook: MemoryHook, profile: str, progress: Progress) -> None:
        self.patcher, self.hook, self.profile, self.progress = patcher, hook, profile, progress

    def __call__(self, memory: VideoMemory) -> VideoMemory | None:
        device = self.patcher.load_device
        self.hook.clear()
        mm.soft_empty_cache()
        if other_models_bytes(device, self.patcher):
            own = [loaded for loaded in mm.current_loaded_models
                   if loaded.model is not None and loaded.model.model is self.patcher.model]
            mm.free_memory(mm.get_total_memory(device), device, keep_loaded=own)
            self.progress.say("memory ran out: other models were moved away, going on from the last chunk")
            return memory
        less = step_down(memory.spec, self.profile, model_facts(self.patcher).head_dim)
        if less is None:
            return None
        spec, words = less
        self.progress.say(f"memory ran out: {words} from here on, going on from the last chunk")
        self.hook.rests_in_ram = spec.placement == "ram"
        with torch.no_grad():
            return with_spec(memory, spec)


def retreat_note(before: MemorySpec, after: MemorySpec) -> str:
    """What a clip gave up while it was sampled, or ""."""
    fields = ("precision", "placement", "window_latents")
    changed = [f"{name.split('_')[0]} {getattr(before, name)} became {getattr(after, name)}" for name in fields
               if getattr(before, name) != getattr(after, name)]
    if not changed:
        return ""
    return (f" Memory ran out while this clip was sampled: {', '.join(changed)} (of the memory), and it went on from "
            "the last finished chunk. The clips after it keep that.")
