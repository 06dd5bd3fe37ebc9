"""What the video benchmarks share: the pack without its __init__, the device, frames of a video file."""

from __future__ import annotations

import contextlib
import platform
import sys
import time
import types
from pathlib import Path

import torch
from full_size import stand_in_for_missing

ROOT = Path(__file__).resolve().parents[1]


def import_pack(comfyui: str | None = None) -> None:
    """Make `pack.nodes` importable, and ComfyUI where its folder is given."""
    if comfyui:
        stand_in_for_missing()
        sys.path.insert(0, comfyui)
        sys.argv = [sys.argv[0]] + ([] if torch.cuda.is_available() else ["--cpu"])
        import comfy.options

        comfy.options.enable_args_parsing()
    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]


def result_head() -> dict:
    import av

    return {"device": device_name(), "torch": torch.__version__, "av": av.__version__,
            "date": time.strftime("%Y-%m-%d")}


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    processor = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"CPU, {processor or platform.machine()}, {torch.get_num_threads()} threads"


def device_line(result: dict) -> str:
    return f"{result['device']}, torch {result['torch']}, PyAV {result['av']}, {result['date']}\n"


def read_media(path: Path, count: int, size: tuple[int, int] | None = None, start: int = 0) -> list[torch.Tensor]:
    """`count` frames from `start` on, [H, W, 3] uint8; size: (width, height) to scale to. All there are, if fewer."""
    import av

    frames = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index >= start:
                scaled = frame.reformat(*size, format="rgb24") if size else frame
                frames.append(torch.from_numpy(scaled.to_ndarray(format="rgb24")))
            if len(frames) == count:
                break
    return frames
