"""Encoding: frames per second and size per codec. RAM: what a film takes, 5 to 120 seconds long.

    python benchmarks/video_film.py --comfyui PATH [--media FILE ...] [--frames 48] [--size 1280x720]
        [--lengths 5 15 30 60 120] [--ram-size 1280x704] [--rife-size 256x160] [--json RESULT]

Encode: the same frames by every codec at the same quality (crf 18), through the node's own writer. PSNR is of what the
file gives back, colours subsampled and all. Without --media the frames are a moving pattern.
RAM: a process per film and length assembles clips of 5 seconds from their files, joins smoothed: once at 24 frames per
second without RIFE in --ram-size, once from 16 to 24 with RIFE in --rife-size. Peak resident memory, looked at with
every 20th frame.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from video_rife import print_table
from video_setup import device_line, import_pack, read_media, result_head

ENCODE = ("codec", "media", "frames_per_s", "frames_per_cpu_s", "mbit_per_s", "psnr_db")
RAM = ("film", "seconds", "frames", "peak_ram_mb", "wall_s")
CRF, CLIP_S = 18, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), required="COMFYUI_PATH" not in os.environ)
    parser.add_argument("--media", type=Path, nargs="*", default=[], help="video files")
    parser.add_argument("--frames", type=int, default=48, help="frames to encode; 0 = no encode part")
    parser.add_argument("--size", default="1280x720", help="of the encoded frames")
    parser.add_argument("--lengths", type=int, nargs="*", default=[5, 15, 30, 60, 120], help="seconds of film")
    parser.add_argument("--ram-size", default="1280x704")
    parser.add_argument("--rife-size", default="256x160")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--film", nargs=4, metavar=("SIZE", "RIFE", "SECONDS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    import_pack(options.comfyui)
    if options.film:
        size, with_rife, seconds, folder = options.film
        print(json.dumps(assemble(size, with_rife == "rife", int(seconds), Path(folder))))
        return
    result = result_head()
    print(device_line(result))
    if options.frames:
        result["encode"] = [row for media in options.media or [None] for row in encode_rows(media, options)]
        print_table(ENCODE, result["encode"])
    result["ram"] = [ram_row(options.comfyui, size, rife, seconds) for size, rife in
                     ((options.ram_size, "plain"), (options.rife_size, "rife")) for seconds in options.lengths]
    if result["ram"]:
        print_table(RAM, result["ram"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def encode_rows(media: Path | None, options: argparse.Namespace) -> list[dict]:
    from pack.nodes.video.codecs import CODECS
    from pack.nodes.video.encode import read_frames, write_mp4

    width, height = map(int, options.size.split("x"))
    if media:
        frames = read_media(media, options.frames, (width, height))
    else:
        frames = list(pattern(width, height, options.frames))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            path = Path(folder) / f"{codec}.mp4"
            started, cpu_started = time.perf_counter(), time.process_time()
            write_mp4(path, iter(frames), 24, crf=CRF, codec=codec)
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
            mse = sum(float((made.float() - frame.float()).square().mean())
                      for made, frame in zip(read_frames(path), frames, strict=True)) / len(frames)
            rows.append({"codec": codec, "media": media.name if media else "pattern",
                         "frames_per_s": len(frames) / wall, "frames_per_cpu_s": len(frames) / cpu,
                         "mbit_per_s": path.stat().st_size * 8 / 1e6 * 24 / len(frames),
                         "psnr_db": 10 * math.log10(255**2 / mse)})
    return rows


def pattern(width: int, height: int, count: int) -> Iterator[torch.Tensor]:
    """Waves that move, [H, W, 3] uint8: nothing like a film, but never the same frame twice."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for i in range(count):
        level = 128 + 90 * torch.sin(x / 23 + i / 5) * torch.cos(y / 31 - i / 9)
        yield torch.stack((level, level.flip(0), 255 - level), dim=-1).byte()


def ram_row(comfyui: str, size: str, rife: str, seconds: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--comfyui", comfyui, "--film", size, rife, str(seconds), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The film of {seconds} s failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def assemble(size: str, with_rife: bool, seconds: int, folder: Path) -> dict:
    """Assemble a film of this length in this process; peak_ram_mb includes Python, torch and the network."""
    import psutil
    from pack.nodes.common.progress import Progress
    from pack.nodes.common.types import ClipRecord
    from pack.nodes.interpolation.bridge import load_interpolator
    from pack.nodes.interpolation.weights import BUNDLED
    from pack.nodes.video.encode import write_ffv1, write_mp4
    from pack.nodes.video.stream import Tally, film_frames, plan_film

    (width, height), fps = map(int, size.split("x")), 16.0 if with_rife else 24.0
    frames = int(CLIP_S * fps)
    write_ffv1(folder / "clip.mkv", pattern(width, height, frames), fps)
    record = ClipRecord(0, str(folder), "", "clip.mkv", frames, fps, width, height, "")
    plan = plan_film([record] * max(1, seconds // CLIP_S), 24.0, 1)
    stream = load_interpolator(BUNDLED, "auto").stream(width, height) if with_rife else None
    process, peak, started = psutil.Process(), 0, time.perf_counter()

    def look(done: int, total: int) -> None:
        nonlocal peak
        if done % 20 == 0:
            peak = max(peak, process.memory_info().rss)

    film = film_frames(plan, stream, Progress(update=look), Tally(), "smooth")
    facts = write_mp4(folder / "film.mp4", film, plan.target_fps, crf=CRF)
    return {"film": f"{size} {'RIFE 16 to 24' if with_rife else '24'}", "seconds": seconds, "frames": facts.frames,
            "peak_ram_mb": peak / 1e6, "wall_s": time.perf_counter() - started}


if __name__ == "__main__":
    main()
