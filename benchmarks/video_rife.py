"""RIFE: seconds per frame beside vs-rife and ComfyUI-Frame-Interpolation, and quality on held-out frames of real video.

    python benchmarks/video_rife.py --comfyui PATH [--vsrife DIR] [--frame-interpolation DIR] [--media FILE ...]
        [--rife46 FILE] [--frames 6] [--triplets 8] [--sizes 1280x720 1920x1088] [--json RESULT]

Speed: all implementations make the same frames with the same weights (4.26, the pack's), one after the other in one
run, float16 on a card and float32 on a CPU; the time is from frames in RAM to frames in RAM. Every implementation is
driven as its own node or filter drives it: vs-rife encodes every frame once, ComfyUI-Frame-Interpolation's node both
frames of every pair. DIR: vs-rife's package folder `vsrife`; a checkout of ComfyUI-Frame-Interpolation. Nothing of
them is part of this pack; without them only ours is measured.
Quality: every middle frame of evenly spaced triplets is made from its neighbours and compared with what was filmed
(PSNR, SSIM of luma); triplets without motion or with a cut are skipped. OpenCV's DIS flow is compared where `cv2` can
be imported. Without --media there is no quality part, and the speed part runs on noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from video_others import others_for
from video_quality import quality_rows
from video_setup import device_line, import_pack, read_media, result_head

SPEED = ("implementation", "size", "frames_per_s", "seconds_median", "seconds_best", "cpu_s", "largest_difference")
QUALITY = ("method", "media", "gap", "triplets", "psnr_db", "ssim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), required="COMFYUI_PATH" not in os.environ)
    parser.add_argument("--vsrife", type=Path, help="the folder vsrife of the package vsrife 5.7.0")
    parser.add_argument("--frame-interpolation", type=Path, help="a checkout of ComfyUI-Frame-Interpolation")
    parser.add_argument("--rife46", type=Path, help="weights of RIFE 4.6, for the quality part")
    parser.add_argument("--media", type=Path, nargs="*", default=[], help="video files")
    parser.add_argument("--frames", type=int, default=6, help="frames to make per implementation and size")
    parser.add_argument("--triplets", type=int, default=8, help="held-out frames per video and gap, 0 for none")
    parser.add_argument("--sizes", nargs="*", default=["1280x720", "1920x1088"])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    import_pack(options.comfyui)
    result = result_head()
    print(device_line(result))
    result["speed"] = [row for size in options.sizes for row in speed_rows(options, size)]
    print_table(SPEED, result["speed"])
    if options.media and options.triplets:
        result["quality"] = quality_rows(options.media, options.triplets, options.rife46)
        print_table(QUALITY, result["quality"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def speed_rows(options: argparse.Namespace, size: str) -> list[dict]:
    """One row per implementation. They take turns, frame by frame, so that a busy machine is busy for all of them."""
    width, height = map(int, size.split("x"))
    frames = stream_of(options.media[0] if options.media else None, width, height, options.frames + 2)
    makers = {"this pack": ours(width, height), **others_for(options.vsrife, options.frame_interpolation)}
    seconds = {name: [] for name in makers}
    cpu = dict.fromkeys(makers, 0.0)
    first: dict[str, torch.Tensor] = {}
    for name, make in makers.items():  # warm up, and the first frame to compare
        first[name] = make(frames[0], frames[1])
    for pair in itertools.pairwise(frames[1:]):
        for name, make in makers.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            make(*pair)
            seconds[name].append(time.perf_counter() - started)
            cpu[name] += time.process_time() - cpu_started
    return [{"implementation": name, "size": size, "frames_per_s": len(seconds[name]) / sum(seconds[name]),
             "seconds_median": statistics.median(seconds[name]), "seconds_best": min(seconds[name]),
             "cpu_s": cpu[name] / len(seconds[name]),
             "largest_difference": float((first[name] - first["this pack"]).abs().max())} for name in makers]


def ours(width: int, height: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Through the node's own model management, one frame at a time, as a film at twice its rate needs them."""
    from pack.nodes.interpolation.between import Between
    from pack.nodes.interpolation.bridge import load_interpolator
    from pack.nodes.interpolation.weights import BUNDLED

    stream = load_interpolator(BUNDLED, "full").stream(width, height, 1)
    return lambda first, second: stream([Between(first, second, 0.5)])[0]


def stream_of(media: Path | None, width: int, height: int, count: int) -> list[torch.Tensor]:
    """Consecutive frames [H, W, 3] uint8 of the video, scaled to the size, or noise."""
    if media is None:
        return [torch.randint(0, 256, (height, width, 3), dtype=torch.uint8) for _ in range(count)]
    return read_media(media, count, (width, height))


def print_table(columns: tuple[str, ...], rows: list[dict]) -> None:
    cells = [[f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in columns]
             for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]
    for line in [list(columns), *cells]:
        print(" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print()


if __name__ == "__main__":
    main()
