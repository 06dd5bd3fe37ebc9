"""Out of memory in the middle of a clip: give something up, and go on from the last finished chunk."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import comfy.model_management as mm
import torch

from ..budget.retreat import OFFLOAD_STEP, step_down
from ..common.compat import model_facts, other_models_bytes
from ..common.progress import Progress
from ..common.types import MemorySpec
from ..memory.state import stored_anew, trimmed
from .bridge_hook import MemoryHook
from .chunk_loop import Held


class Retreat:
    """First what other models hold on the device, then one thing after another.

    profile, pinned: of the plan, which say in what order, and what may not be given up. offloaded_bytes: of
    weights that went to RAM.
    """

    def __init__(self, profile: str, progress: Progress, pinned: Collection[str] = ()) -> None:
        self.profile, self.progress, self.pinned = profile, progress, frozenset(pinned)
        self.offloaded_bytes, self._is_stuck = 0, False

    def __call__(self, patcher: Any, hook: MemoryHook, held: Held) -> bool:
        """A chunk_loop.Retreat of this MODEL and its hook."""
        device = patcher.load_device
        hook.clear()
        mm.soft_empty_cache()
        if other_models_bytes(device, patcher):
            mm.free_memory(mm.get_total_memory(device), device, keep_loaded=_own(patcher))
            self.progress.say("memory ran out: other models were moved away, going on from the last chunk")
            return True
        less = step_down(held.memory.spec, self.profile, model_facts(patcher).head_dim, self.pinned,
                         not self._is_stuck and _can_offload(patcher))
        if less is None:
            return False
        if less.kind == "offload":
            freed = _offload(patcher)
            self.offloaded_bytes, self._is_stuck = self.offloaded_bytes + freed, freed <= 0
        self.progress.say(f"memory ran out: {less.words} from here on, going on from the last chunk")
        hook.rests_in_ram = less.spec.placement == "ram"
        with torch.no_grad():
            _store_anew(held, less.spec)
        mm.soft_empty_cache()
        return True


def _store_anew(held: Held, spec: MemorySpec) -> None:
    """One chunk after the other, so that the old form of each is freed before the next one's new form is made."""
    held.memory = trimmed(held.memory, spec)
    for start in [block.start for block in (*held.memory.blocks, *held.memory.archive)]:
        held.memory = stored_anew(held.memory, start)


def _own(patcher: Any) -> list[Any]:
    """ComfyUI's entries for this model."""
    return [loaded for loaded in mm.current_loaded_models
            if loaded.model is not None and loaded.model.model is patcher.model]


def _can_offload(patcher: Any) -> bool:
    """Whether more than a quarter of the weights lies where it takes VRAM."""
    is_away = patcher.load_device != patcher.offload_device
    return is_away and any(loaded.model_loaded_memory() > 2 * _step_bytes(patcher) for loaded in _own(patcher))


def _offload(patcher: Any) -> int:
    """An eighth of the weights goes to RAM, as ComfyUI does it when another model needs the room; bytes."""
    return sum(int(loaded.model.partially_unload(loaded.model.offload_device, _step_bytes(patcher)))
               for loaded in _own(patcher))


def _step_bytes(patcher: Any) -> int:
    return int(OFFLOAD_STEP * patcher.model_size())


def retreat_note(before: MemorySpec, after: MemorySpec, offloaded_bytes: int = 0) -> str:
    """What a clip gave up while it was sampled, or ""."""
    fields = ("precision", "placement", "window_latents")
    changed = [f"{name.split('_')[0]} {getattr(before, name)} became {getattr(after, name)}" for name in fields
               if getattr(before, name) != getattr(after, name)]
    given_up = [f"{', '.join(changed)} (of the memory)"] if changed else []
    if offloaded_bytes:
        given_up.append(f"{offloaded_bytes / 2**30:.2f} GB more of the model rest in RAM")
    if not given_up:
        return ""
    return (f" Memory ran out while this clip was sampled: {' and '.join(given_up)}, and it went on from "
            f"the last finished chunk.{' The clips after it keep that.' if changed else ''}")
