"""What is there: the card as the driver sees it (NVML), system memory, disk.

Everything is optional. What cannot be seen becomes a sentence in `unseen`, never an exception: the gate works with
less, and says so. torch's and ComfyUI's own view of the card is added by bridge.py.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

GIB = 2**30


@dataclass(frozen=True)
class CardView:
    """NVML's view of one card, bytes of the whole card. others_bytes: held by other processes, None = not told."""

    name: str
    total_bytes: int
    free_bytes: int
    used_bytes: int
    others_bytes: int | None = None


@dataclass(frozen=True)
class Machine:
    """What the planner may count on, bytes.

    unified: the device computes in system memory (CPU), so that VRAM and RAM are one purse. vram_available_bytes: free
    on the device, or held by models that ComfyUI can move off. vram_reserved_bytes: what ComfyUI keeps free of that.
    disk_free_bytes: None where unknown. unseen: what could not be looked at, in words.
    """

    device: str
    unified: bool
    vram_total_bytes: int
    vram_available_bytes: int
    vram_reserved_bytes: int
    ram_total_bytes: int
    ram_available_bytes: int
    disk_free_bytes: int | None = None
    card: CardView | None = None
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """What a plan may use, bytes. unified: as in Machine. disk_bytes: None where unknown. text: where it comes from."""

    vram_bytes: int
    ram_bytes: int
    unified: bool
    disk_bytes: int | None
    text: str


def see_card(uuid: str | None, nvml: ModuleType | None = None) -> tuple[CardView | None, str]:
    """The card with this UUID through NVML (with or without "GPU-"), or None and the reason in words.

    Without a UUID the only card is taken; of several, none. nvml: the pynvml module, imported where it is not given.
    """
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError:
            return None, "NVML: the package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except Exception as error:  # NVMLError's classes are made at run time; any of them means the same here
        return None, f"NVML: the driver does not answer ({error})"
    try:
        return _view(nvml, uuid)
    except Exception as error:
        return None, f"NVML: the card could not be read ({error})"
    finally:
        nvml.nvmlShutdown()


def see_ram() -> tuple[int, int, str]:
    """(total, available, "") bytes of system memory, or (0, 0, reason)."""
    try:
        import psutil

        memory = psutil.virtual_memory()
    except (ImportError, OSError) as error:
        return 0, 0, f"system memory ({error})"
    return int(memory.total), int(memory.available), ""


def see_disk(folder: str | os.PathLike) -> tuple[int | None, str]:
    """(free bytes of the disk that holds `folder`, ""), or (None, reason). The folder need not exist yet."""
    path = Path(folder).absolute()
    existing = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    try:
        return int(shutil.disk_usage(existing).free), ""
    except OSError as error:
        return None, f"free disk of {path} ({error.strerror})"


def _view(nvml: ModuleType, uuid: str | None) -> tuple[CardView | None, str]:
    cards = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if uuid is not None:
        cards = [card for card in cards if _plain_uuid(nvml.nvmlDeviceGetUUID(card)) == _plain_uuid(uuid)]
    if len(cards) != 1:
        return None, f"NVML: {len(cards)} cards match the one that ComfyUI uses"
    memory, name = nvml.nvmlDeviceGetMemoryInfo(cards[0]), nvml.nvmlDeviceGetName(cards[0])
    view = CardView(_text(name), int(memory.total), int(memory.free), int(memory.used))
    try:
        others = _others_bytes(nvml, cards[0])
    except Exception as error:  # a card may tell its sizes but not its processes
        return view, f"NVML: memory of other processes ({error})"
    if others is None:
        return view, "NVML: memory of other processes (this driver does not tell it)"
    return CardView(view.name, view.total_bytes, view.free_bytes, view.used_bytes, others), ""


def _others_bytes(nvml: ModuleType, card: object) -> int | None:
    """Bytes held by processes other than this one; None where the driver hides them (Windows' display driver model)."""
    found = [*nvml.nvmlDeviceGetComputeRunningProcesses(card), *nvml.nvmlDeviceGetGraphicsRunningProcesses(card)]
    used = {process.pid: process.usedGpuMemory for process in found if process.pid != os.getpid()}
    return None if None in used.values() else sum(used.values())


def _plain_uuid(uuid: str | bytes) -> str:
    return _text(uuid).lower().removeprefix("gpu-")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
