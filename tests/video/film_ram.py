"""Run by test_film_ram.py in a process of its own: makes a film of so many clips and prints its peak RAM in MB.

    python film_ram.py PACK FOLDER CODEC CLIPS

Every clip is FOLDER/clip.mkv, CLIP_FRAMES frames of 160x96 at 8 frames per second. They go through everything that a
film goes through: read, joins evened out, interpolated to twice the rate, encoded.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

CLIP_FRAMES = 200


def main(pack: str, folder: str, codec: str, clips: int) -> None:
    for name, path in (("pack", pack), ("pack.nodes", f"{pack}/nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [path]
    import psutil
    import torch
    from pack.nodes.common.progress import Progress
    from pack.nodes.common.types import ClipRecord
    from pack.nodes.interpolation.seams import difference_motion
    from pack.nodes.video.encode import write_mp4
    from pack.nodes.video.stream import Tally, film_frames, plan_film

    class Blend:
        batch, motion = 2, staticmethod(difference_motion)

        def __call__(self, tasks: list) -> list[torch.Tensor]:
            return [torch.lerp(first.float(), second.float(), t) / 255 for first, second, t in tasks]

    process, peak = psutil.Process(), 0

    def look(done: int, total: int) -> None:
        nonlocal peak
        if done % 50 == 0:
            peak = max(peak, process.memory_info().rss)

    record = ClipRecord(0, folder, "", "clip.mkv", CLIP_FRAMES, 8.0, 160, 96, "")
    plan = plan_film([record] * clips, 16.0, 1)
    frames = film_frames(plan, Blend(), Progress(update=look), Tally(), "smooth")
    facts = write_mp4(Path(folder) / f"{codec}.mp4", frames, plan.target_fps, codec=codec)
    sys.stdout.write(f"{facts.frames} {peak / 1e6}\n")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
