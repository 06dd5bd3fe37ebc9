"""The card as the driver sees it (NVML): all of it, whoever uses it. torch sees only itself.

Everything is optional: what cannot be read, or cannot be true, becomes a sentence. On Windows the driver tells no
sizes per process; what is used and is nobody's known then counts as the desktop's where the card drives a screen.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType

MISMATCH = 0.1  # by how much NVML and torch may differ about the size of one card


@dataclass(frozen=True)
class Process:
    """Another process on the card. bytes: None where the driver does not tell. is_desktop: it only draws."""

    pid: int
    name: str
    bytes: int | None
    is_desktop: bool


@dataclass(frozen=True)
class CardView:
    """NVML's view of one card, bytes of the whole card.

    others_bytes: held by processes that compute, other than this one. desktop_bytes: by those that only draw. None =
    not told. processes: both kinds, those that hold most first. drives_screen: None = not told.
    """

    name: str
    total_bytes: int
    free_bytes: int
    used_bytes: int
    others_bytes: int | None = None
    desktop_bytes: int | None = None
    processes: tuple[Process, ...] = ()
    drives_screen: bool | None = None


def see_card(uuid: str | None, nvml: ModuleType | None = None, total_bytes: int = 0,
             own_bytes: int = 0) -> tuple[CardView | None, str]:
    """The card with this UUID through NVML (with or without "GPU-"), or None and the reason in words.

    Without a UUID the only card is taken; of several, none. nvml: the pynvml module, imported where it is not given.
    total_bytes: the card's size as torch knows it, own_bytes: what this process holds there; 0 where unknown.
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
        return _view(nvml, uuid, total_bytes, own_bytes)
    except Exception as error:
        return None, f"NVML: the card could not be read ({error})"
    finally:
        _shut_down(nvml)


def card_free_bytes(card: CardView | None, free: int, cached: int) -> int:
    """What can be allocated: the smaller of torch's view (`free`, `cached` of it kept by its allocator) and NVML's."""
    return free if card is None else min(free, card.free_bytes + cached)


def _shut_down(nvml: ModuleType) -> None:
    try:
        nvml.nvmlShutdown()
    except Exception:  # it died in between: what was read before is told, or why nothing was
        return


def _view(nvml: ModuleType, uuid: str | None, total_bytes: int, own_bytes: int) -> tuple[CardView | None, str]:
    cards = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if uuid is not None:
        cards = [card for card in cards if _plain_uuid(nvml.nvmlDeviceGetUUID(card)) == _plain_uuid(uuid)]
    if len(cards) != 1:
        return None, f"NVML: {len(cards)} cards match the one that ComfyUI uses"
    memory, name = nvml.nvmlDeviceGetMemoryInfo(cards[0]), _text(nvml.nvmlDeviceGetName(cards[0]))
    total, free, used = int(memory.total), int(memory.free), int(memory.used)
    if not 0 <= max(free, used) <= total or (total_bytes and abs(total - total_bytes) > MISMATCH * total_bytes):
        return None, (f"NVML: its numbers of {name} cannot be true ({free} of {total} bytes free, {used} used, torch "
                      f"knows {total_bytes or 'no'} bytes), so they were not used")
    screen = _drives_screen(nvml, cards[0])
    view = CardView(name, total, free, used, drives_screen=screen)
    try:
        processes = _processes(nvml, cards[0])
    except Exception as error:  # a card may tell its sizes but not its processes
        return view, f"NVML: memory of other processes ({error})"
    others, desktop = (_sum(process.bytes for process in processes if process.is_desktop is is_desktop)
                       for is_desktop in (False, True))
    if desktop is None or (not desktop and screen):
        rest = used - own_bytes - (others or 0)
        desktop = max(0, rest) if screen else None
    view = CardView(name, total, free, used, others, desktop, processes, screen)
    hidden = any(process.bytes is None for process in processes)
    return view, "NVML: memory of other processes (this driver does not tell it)" if hidden else ""


def _processes(nvml: ModuleType, card: object) -> tuple[Process, ...]:
    """All but this one; a process that computes and draws counts as one that computes."""
    drawing = {process.pid: process for process in nvml.nvmlDeviceGetGraphicsRunningProcesses(card)}
    computing = {process.pid: process for process in nvml.nvmlDeviceGetComputeRunningProcesses(card)}
    found = [Process(pid, _process_name(nvml, pid), None if one.usedGpuMemory is None else int(one.usedGpuMemory),
                     pid not in computing) for pid, one in {**drawing, **computing}.items() if pid != os.getpid()]
    return tuple(sorted(found, key=lambda process: -(process.bytes or 0)))


def _process_name(nvml: ModuleType, pid: int) -> str:
    try:
        path = _text(nvml.nvmlSystemGetProcessName(pid))
    except Exception:  # another user's process, or one that has just ended
        return f"process {pid}"
    return PurePath(path.replace("\\", "/")).name.split(" ")[0] or f"process {pid}"


def _drives_screen(nvml: ModuleType, card: object) -> bool | None:
    try:
        return bool(nvml.nvmlDeviceGetDisplayActive(card))
    except Exception:  # headless cards and virtual machines do not tell
        return None


def _sum(sizes: object) -> int | None:
    sizes = list(sizes)
    return None if None in sizes else sum(sizes)


def _plain_uuid(uuid: str | bytes) -> str:
    return _text(uuid).lower().removeprefix("gpu-")


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
