"""Spatial memory: what is still there on return, how the cloud grows, and what a read and a write cost.

    python benchmarks/spatial.py --comfyui PATH [--parts walk cost formulas] [--chunks 1 4 16] [--size 320x192]
        [--cost-size 1280x704] [--json RESULT]

walk: a film goes through the synthetic room (spatial_room.py, exact depth and cameras) and back. A chunk is 33
frames, one of them shared with the chunk before. The sampler is ideal: it copies what the memory shows and fills holes
with the truth, the encoding of the rendered frame by the demo's real VAE; so what is measured is what the memory loses,
reading what was written from readings. On the way back: the root mean square error over that of the truth, with the
memory (holes filled with the last latent before the chunk), of its known part alone, and without it, where every latent
is taken to be that last latent. known: coverage on the way back. MB: the cloud after the film.

cost: one write of a chunk's 9 latents and one read of 9, against an RGB cloud: a write of the same 9 pictures, a read
of 33 and their VAE encoding. Clouds are stored alike (float16 features). The VAE is Wan 2.2's with random weights, in
its full size on CUDA, small elsewhere: there the encoding is far too cheap, and only reads and writes mean anything.

formulas: what nodes/spatial says that a place takes, for docs/places.md. MB are 2^20 bytes, GB 10^9.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

import torch
from full_size import stand_in_for_missing
from spatial_room import render

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TOYWORLD_VAE = ROOT / "demo" / "toyworld" / "toyworld_vae_fp16.safetensors"
FPS, FOV, CHUNK_LATENTS = 16.0, 70.0, 9
PARTS = ("walk", "cost", "formulas")
VAE_STRIDE, VAE_CHANNELS, SMALL_DIM = 16, 48, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), required="COMFYUI_PATH" not in os.environ)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=["walk", "cost"])
    parser.add_argument("--chunks", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--size", default="320x192", help="of the walk")
    parser.add_argument("--cost-size", default="1280x704" if CUDA else "640x352")
    parser.add_argument("--bound-mb", type=float, default=0.25, help="of the walk's bounded cloud")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    start_comfyui(options.comfyui)
    result = {"device": device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    print(", ".join((result["device"], f"torch {result['torch']}", result["date"])))
    if "walk" in options.parts:
        result["walk"] = {"size": options.size, "bound_mb": options.bound_mb, "rows": measure_walks(options)}
    if "cost" in options.parts:
        result["cost"] = {"size": options.cost_size, "rows": measure_cost(options)}
    if "formulas" in options.parts:
        result["formulas"] = print_formulas()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def print_formulas() -> dict[str, str]:
    """What the room says that a place takes at 1280x704 on Wan 2.2 TI2V-5B: shapes, compared with real tensors in
    tests/spatial/test_costs.py and tests/budget/test_place.py."""
    from pack.nodes.budget.place import place_of
    from pack.nodes.common.types import ModelFacts
    from pack.nodes.spatial.costs import mirage_bytes, mirage_latents, read_bytes, update_bytes
    from pack.nodes.spatial.requests import MB
    from pack.nodes.spatial.values import point_bytes

    facts = ModelFacts("wan", 30, 24, 128, 14336, (1, 2, 2), VAE_CHANNELS, VAE_STRIDE, 0, 2, "ti2v")
    width, height, one = 1280, 704, point_bytes(VAE_CHANNELS)
    grid = height // VAE_STRIDE, width // VAE_STRIDE
    picture, points = grid[0] * grid[1], 64 * MB // one
    beside = mirage_bytes(9, picture // 4, facts.dim, facts.dtype_bytes)
    branch = [f"{place_of(None, facts, weights).branch_bytes / 1e9:.1f}"
              for weights in ("original", "int8", "nf4_int8", "nf4")]
    written = update_bytes(points, VAE_CHANNELS, 31, *grid, width * height)
    rows = {
        "a picture in the cloud": f"{picture:,} points, {one} bytes each: {picture * one / MB:.1f} MB",
        "budget of 64 MB": f"{points:,} points",
        "reading 31 latents out of 64 MB": f"{read_bytes(points, VAE_CHANNELS, 31, *grid) / MB:.0f} MB of RAM",
        "writing 31 latents behind 64 MB": f"{written / MB:.0f} MB of RAM",
        "Mirage's branch: original, int8, nf4_int8, nf4": f"{', '.join(branch)} GB",
        "Mirage's chunk of 9 latents": f"a forward of {mirage_latents(9)} latents, and {beside / MB:.0f} MB beside it"}
    print("formulas at 1280x704, Wan 2.2 TI2V-5B (on every device)")
    for name, value in rows.items():
        print(f"{name} | {value}")
    return rows


def measure_walks(options: argparse.Namespace) -> list[dict]:
    """A row per film length and bound."""
    import comfy.sd
    import comfy.utils

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(TOYWORLD_VAE)))
    width, height = map(int, options.size.split("x"))
    print(f"walk at {options.size}; error on the way back, relative\n"
          "chunks | bound MB | with memory | known part | without | known | MB | points")
    rows = []
    for chunks in options.chunks:
        film = Film(vae, chunks, width, height)
        for bound_mb in (None, options.bound_mb):
            row = {"chunks": chunks, "bound_mb": bound_mb, **walk(film, bound_mb)}
            rows.append(row)
            print(f"{chunks} | {bound_mb or '-'} | {row['with_memory']:.4f} | {row['known_part']:.4f} | "
                  f"{row['without']:.4f} | {row['coverage']:.1%} | {row['mb']:.3f} | {row['points']}", flush=True)
    return rows


@dataclass
class Film:
    """The walk: its path, and what its cameras truly see, encoded once."""

    vae: object
    chunks: int
    width: int
    height: int
    views: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        from pack.nodes.spatial.cameras import path_from_text

        far = f"key {-min(0.2 * self.chunks, 2.0):g} 0 {min(0.1 * self.chunks, 1.0):g} {min(12 * self.chunks, 150)} 0"
        seconds = self.chunks * (CHUNK_LATENTS - 1) * 4 / FPS / 2
        self.path = path_from_text(f"{far} in {seconds:g}\nback", self.width, self.height, FPS, FOV)

    def look(self, frames: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents [C, T, h, w], depth [T, H, W])"""
        for frame in set(frames) - set(self.views):
            picture, depth = render(self.path.poses[frame], self.path.intrinsics[frame], self.width, self.height)
            latent = self.vae.encode(picture[None]).float().cpu()
            self.views[frame] = latent.reshape(latent.shape[1], *latent.shape[-2:]), depth
        latents, depths = zip(*(self.views[frame] for frame in frames), strict=True)
        return torch.stack(latents, 1), torch.stack(depths)


def walk(film: Film, bound_mb: float | None) -> dict:
    """There and back; the way back is the second half of the frames."""
    from pack.nodes.spatial.bound import bound
    from pack.nodes.spatial.cloud import Look, read, write
    from pack.nodes.spatial.requests import MB, film_frames
    from pack.nodes.spatial.values import empty_memory

    last, depth = film.look((0,))
    memory = write(empty_memory(last.shape[0], *last.shape[2:]), Look(last, depth, (0,)), film.path)
    scores: list[dict] = []
    for chunk in range(film.chunks):
        frames = film_frames(chunk * (CHUNK_LATENTS - 1) * 4, CHUNK_LATENTS)
        wanted, depth = film.look(frames)
        reading = read(memory, film.path, frames, DEVICE)
        made = torch.where(reading.holes, wanted, reading.latents)
        scores += [score(reading, wanted, last[:, 0], t) for t, frame in enumerate(frames)
                   if t > 0 and frame > (len(film.path) - 1) // 2]
        memory = write(memory, Look(made[:, 1:], depth[1:], frames[1:]), film.path)
        memory = memory if bound_mb is None else bound(memory, int(bound_mb * MB))
        last = made[:, -1:]
    means = {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}
    errors = {name: (means[name] / means["truth"]) ** 0.5 for name in ("with_memory", "known_part", "without")}
    return {**errors, "coverage": means["known"], "mb": memory.nbytes / MB, "points": len(memory)}


def score(reading: object, wanted: torch.Tensor, last: torch.Tensor, t: int) -> dict:
    """Mean squares of one frame on the way back; last: [C, h, w]. A frame without a known part has no error there."""
    known, truth = ~reading.holes[t], wanted[:, t]
    shown = torch.where(known, reading.latents[:, t], last)
    part = (reading.latents[:, t] - truth)[:, known]
    squares = {"with_memory": shown - truth, "without": last - truth, "truth": truth}
    return {**{name: float(value.square().mean()) for name, value in squares.items()},
            "known": float(known.float().mean()), "known_part": float(part.square().mean()) if part.numel() else 0.0}


def measure_cost(options: argparse.Namespace) -> list[dict]:
    """One write and one read, latent and RGB, in one run."""
    from pack.nodes.spatial.cameras import path_from_text
    from pack.nodes.spatial.requests import MB, film_frames

    width, height = map(int, options.cost_size.split("x"))
    path = path_from_text("truck 0.3 in 2", width, height, FPS, FOV)
    frames = film_frames(0, CHUNK_LATENTS)
    views = [render(path.poses[frame], path.intrinsics[frame], width, height) for frame in frames]
    pictures, depth = (torch.stack(column) for column in zip(*views, strict=True))
    latents = torch.randn(VAE_CHANNELS, len(frames), height // VAE_STRIDE, width // VAE_STRIDE)
    rows = [{"way": "latent", **one_cost(latents, depth, frames, frames, path)},
            {"way": "rgb", **one_cost(pictures.permute(3, 0, 1, 2), depth, frames, tuple(range(len(path))), path)}]
    rows[0]["encode_s"] = 0.0
    rows[1]["encode_s"] = encode_seconds(len(path), width, height)
    print(f"cost at {options.cost_size}\nway | write s | read s | encode s | total s | cloud MB")
    for row in rows:
        row["total_s"] = row["write_s"] + row["read_s"] + row["encode_s"]
        print(f"{row['way']} | {row['write_s']:.3f} | {row['read_s']:.3f} | {row['encode_s']:.3f} | "
              f"{row['total_s']:.3f} | {row['bytes'] / MB:.2f}", flush=True)
    latent, rgb = rows
    print(f"rgb / latent: time {rgb['total_s'] / latent['total_s']:.1f}x, without encoding "
          f"{(rgb['write_s'] + rgb['read_s']) / latent['total_s']:.1f}x, memory {rgb['bytes'] / latent['bytes']:.1f}x"
          + ("" if CUDA else " (the VAE is small: there is no CUDA here)"))
    return rows


def one_cost(features: torch.Tensor, depth: torch.Tensor, written: tuple[int, ...], seen: tuple[int, ...],
             path: object) -> dict:
    """Seconds of a write and of a read of what was written, the better of two; bytes of the cloud."""
    from pack.nodes.spatial.cloud import Look, read, write
    from pack.nodes.spatial.values import empty_memory

    channels, _, height, width = features.shape
    look, memory = Look(features, depth, written), empty_memory(channels, height, width)
    write_s = best_of(2, lambda: write(memory, look, path))
    full = write(memory, look, path)
    return {"write_s": write_s, "read_s": best_of(2, lambda: read(full, path, seen, DEVICE)), "bytes": full.nbytes}


def encode_seconds(frames: int, width: int, height: int) -> float:
    """Of a clip by Wan 2.2's VAE with random weights."""
    from comfy.ldm.wan.vae2_2 import WanVAE

    sizes = {} if CUDA else {"dim": SMALL_DIM, "dec_dim": SMALL_DIM}
    vae = WanVAE(z_dim=VAE_CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], dropout=0.0,
                 temperal_downsample=[False, True, True], **{"dim": 160, **sizes})
    vae = vae.to(DEVICE, torch.float16 if CUDA else torch.float32).eval()
    clip = torch.zeros(1, 3, frames, height, width, device=DEVICE, dtype=next(vae.parameters()).dtype)
    return best_of(2 if CUDA else 1, lambda: vae.encode(clip))


def best_of(times: int, work: object) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def start_comfyui(comfyui: str) -> None:
    """ComfyUI and the pack importable, without the pack's own __init__."""
    stand_in_for_missing()
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0]] + ([] if CUDA else ["--cpu"])
    import comfy.options

    comfy.options.enable_args_parsing()
    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]


def device_name() -> str:
    if CUDA:
        return torch.cuda.get_device_name()
    processor = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"CPU, {processor or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    with torch.inference_mode():
        main()
