"""What is there: system memory, disks, and all of it together with the card as one Machine.

Everything is optional. What cannot be seen becomes a sentence in `unseen`, never an exception: the gate works with
less, and says so. The card is looked at in probe_card.py; torch's and ComfyUI's own view is added by bridge.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .probe_card import CardView

GIB = 2**30
WRITE_BYTES = 32 * 2**20  # written and flushed to measure a disk: a tenth of a second on a slow one


@dataclass(frozen=True)
class RamView:
    """System memory, bytes. swap_free_bytes: of the pagefile."""

    total_bytes: int = 0
    available_bytes: int = 0
    swap_free_bytes: int = 0


@dataclass(frozen=True)
class DiskView:
    """A folder's disk. name: "output" or "temp". free_bytes, write_bytes_s (measured): None where unknown."""

    name: str
    free_bytes: int | None
    write_bytes_s: float | None = None


@dataclass(frozen=True)
class Machine:
    """What the planner may count on, bytes.

    unified: the device computes in system memory (CPU), so that VRAM and RAM are one purse. vram_available_bytes: free
    on the device, or held by models that ComfyUI can move off. vram_reserved_bytes: what ComfyUI keeps free of that.
    disk_free_bytes: of the output folder, None where unknown. unseen: what could not be looked at, in words. held: what
    ComfyUI has on the device now, as (model, bytes). name: of the device, for people.
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
    swap_free_bytes: int = 0
    disks: tuple[DiskView, ...] = ()
    held: tuple[tuple[str, int], ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Budget:
    """What a plan may use, bytes. unified: as in Machine. disk_bytes: None where unknown. text: where it comes from."""

    vram_bytes: int
    ram_bytes: int
    unified: bool
    disk_bytes: int | None
    text: str


def see_ram() -> tuple[RamView, str]:
    """System memory and its pagefile, or zeros and the reason."""
    try:
        import psutil

        memory = psutil.virtual_memory()
    except (ImportError, OSError) as error:
        return RamView(), f"system memory ({error})"
    try:
        swap, reason = int(psutil.swap_memory().free), ""
    except (OSError, RuntimeError) as error:
        swap, reason = 0, f"pagefile ({error})"
    return RamView(int(memory.total), int(memory.available), swap), reason


def see_disk(name: str, folder: str | os.PathLike, measure: bool = False) -> tuple[DiskView, str]:
    """Free bytes of the disk that holds `folder` and, where that is asked for, how fast it writes; or why not.

    The folder need not exist yet.
    """
    path = Path(folder).absolute()
    existing = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    try:
        free = int(shutil.disk_usage(existing).free)
    except OSError as error:
        return DiskView(name, None), f"free disk of {path} ({error.strerror})"
    if not measure:
        return DiskView(name, free), ""
    if free < 4 * WRITE_BYTES:
        return DiskView(name, free), f"write speed of {path} (it is full)"
    try:
        return DiskView(name, free, measure_write(existing)), ""
    except OSError as error:
        return DiskView(name, free), f"write speed of {path} ({error.strerror})"


def measure_write(folder: Path, size: int = WRITE_BYTES) -> float:
    """Bytes a second of writing `size` random bytes into a new file of the folder and flushing them; it is deleted."""
    block = os.urandom(2**20)  # zeros would be compressed away by some disks
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return size / max(time.perf_counter() - started, 1e-6)
