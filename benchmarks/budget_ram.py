"""What writing video takes of RAM and of the disk, beside what the budget gate predicts. Needs no card.

    python benchmarks/budget_ram.py [--sizes 640x352 1280x704 1920x1088] [--frames 96] [--json RESULT]

The node's own writers, each row a process of its own: FFV1 as Save Clip writes a clip, H.264 as Assemble Short writes
the film. Frames are a moving smooth pattern, and the same with noise of 5 %, which nothing compresses; they are float32
and made one by one (one frame of them counts with what was measured). grown: by how much the process grew, looked at
every 20 ms. predicted: what nodes/budget/writers.py says. The coefficients of nodes/budget/data/wan.json marked
budget_ram.py come from here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch
from video_rife import print_table
from video_setup import device_line, import_pack, result_head

MIB, FPS, LOOK_S = 2**20, Fraction(24), 0.02
COLUMNS = ("writer", "frames", "size", "grown_mb", "predicted_mb", "bytes_per_pixel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["640x352", "1280x704", "1920x1088"])
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", nargs=3, metavar=("WRITER", "PICTURE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    import_pack()
    if options.row:
        print(json.dumps(measure(*options.row, options.frames)))
        return
    result = {**result_head(), "frames": options.frames, "rows": []}
    print(device_line(result))
    for writer in ("ffv1", "h264"):
        for picture in ("smooth", "noise"):
            for size in options.sizes:
                done = subprocess.run([sys.executable, __file__, "--frames", str(options.frames), "--row", writer,
                                       picture, size], capture_output=True, text=True, check=True)
                result["rows"].append({"writer": writer, "frames": picture, "size": size, **json.loads(done.stdout)})
    print_table(COLUMNS, result["rows"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(writer: str, picture: str, size: str, count: int) -> dict:
    """One file written by one process."""
    import psutil
    from pack.nodes.budget.writers import ffv1_ram_bytes, h264_ram_bytes
    from pack.nodes.video.encode import write_ffv1, write_mp4

    width, height = map(int, size.split("x"))
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(LOOK_S):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film"
        made = moving(width, height, count, picture == "noise")
        if writer == "ffv1":
            write_ffv1(path, (frame[None] for frame in made), FPS)
        else:
            write_mp4(path, made, FPS, 18)
        size_bytes = path.stat().st_size
    done.set()
    thread.join()
    predicted = {"ffv1": ffv1_ram_bytes, "h264": h264_ram_bytes}[writer](width * height)
    return {"grown_mb": round((peak[0] - before) / MIB), "predicted_mb": round(predicted / MIB),
            "bytes_per_pixel": round(size_bytes / (width * height * count), 3)}


def moving(width: int, height: int, count: int, noisy: bool) -> Iterator[torch.Tensor]:
    """A pattern that drifts by a pixel a frame, [H, W, 3] float32."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 16 + 8, width // 16 + 8, generator=generator)
    pattern = torch.nn.functional.interpolate(coarse, size=(height + 128, width + 128), mode="bicubic")[0]
    pattern = pattern.clamp(0, 1).movedim(0, -1)
    for i in range(count):
        frame = pattern[i % 128:i % 128 + height, i % 128:i % 128 + width].contiguous()
        if noisy:
            frame.add_(torch.empty_like(frame).normal_(0, 0.05, generator=generator)).clamp_(0, 1)
        yield frame


if __name__ == "__main__":
    main()
