"""Decode of full-size Wan VAEs with random weights: peak memory, time and PSNR, ours beside ComfyUI's own two.

    python benchmarks/video_decode.py --comfyui PATH [--vae wan22 wan21] [--sizes 1280x704 1920x1088] [--latents 6]
        [--json RESULT]

untiled: ComfyUI's VAEDecode, what all others are compared with. core tiled: its VAEDecodeTiled as the node stands
there (512 pixels, overlap 64; 128 and 32 without CUDA). streamed: frames leave as they come; "ram" keeps the caches
there. tiles: ours, exact. Seconds are the fastest of three. Peak is VRAM on CUDA (weights included, the result on the
CPU); without it, by how much the resident memory of the process grew, which hangs on what ran before. A way that runs
out of memory says so. Without CUDA the VAEs and the pictures are small, and only the PSNR means anything.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from video_setup import device_line, import_pack, result_head

CUDA = torch.cuda.is_available()
KINDS = {"wan22": (48, 16, 160), "wan21": (16, 8, 96)}  # latent channels, stride, base channels of ComfyUI's module
SMALL_DIM = 16  # base channels without CUDA
REPEATS = 3
TILES_PX = (512, 384, 256)
COLUMNS = (("vae", "{}"), ("size", "{}"), ("way", "{}"), ("seconds", "{:.2f}"), ("times_untiled", "{:.2f}"),
           ("peak_gib", "{:.2f}"), ("psnr_db", "{:.1f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), required="COMFYUI_PATH" not in os.environ)
    parser.add_argument("--vae", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="*", default=["1280x704", "1920x1088"] if CUDA else ["256x160"])
    parser.add_argument("--latents", type=int, default=6 if CUDA else 3, help="of the clip: 4n - 3 frames")
    parser.add_argument("--tiles", type=int, nargs="*", default=TILES_PX if CUDA else (128,), help="pixels")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    import_pack(options.comfyui)
    result = {**result_head(), "latents": options.latents,
              "base_channels": {kind: base_channels(kind) for kind in options.vae}, "rows": []}
    print(device_line(result))
    print(f"{4 * options.latents - 3} frames, random weights, base channels {result['base_channels']}"
          + ("" if CUDA else " (small: there is no CUDA here)"))
    print(" | ".join(name for name, _ in COLUMNS))
    for kind in options.vae:
        vae = build_vae(kind)
        for size in options.sizes:
            for row in measure_size(kind, vae, tuple(map(int, size.split("x"))), options):
                result["rows"].append(row)
                print(" | ".join("-" if row[name] is None else form.format(row[name]) for name, form in COLUMNS),
                      flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure_size(kind: str, vae: object, size: tuple[int, int], options: argparse.Namespace) -> Iterator[dict]:
    """A row per way to decode; the first is the one that all others are compared with."""
    channels, stride = KINDS[kind][:2]
    samples = torch.randn(1, channels, options.latents, size[1] // stride, size[0] // stride,
                          generator=torch.Generator().manual_seed(0))
    wanted = seconds = None
    for way, decode in ways(vae, stride, options.tiles).items():
        decode(samples[:, :, :2])  # kernels are chosen, weights loaded
        row = {"vae": kind, "size": "x".join(map(str, size)), "way": way, "seconds": None, "times_untiled": None,
               "peak_gib": None, "psnr_db": None}
        try:
            with Peak() as peak:
                row["seconds"], frames = fastest(decode, samples)
            row["peak_gib"] = peak.bytes / 2**30
        except torch.OutOfMemoryError:
            frames, row["way"] = None, f"{way}: out of memory"
        if way == "untiled":
            wanted, seconds = frames, row["seconds"]
        elif frames is not None and wanted is not None:
            row["times_untiled"], row["psnr_db"] = row["seconds"] / seconds, psnr(frames, wanted)
        yield row


def fastest(decode: Callable[[torch.Tensor], torch.Tensor], samples: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of the fastest of a few decodes, and the frames of the last."""
    seconds, frames = [], None
    for _ in range(REPEATS):
        del frames
        began = time.perf_counter()
        frames = decode(samples)
        seconds.append(time.perf_counter() - began)
    return min(seconds), frames


def ways(vae: object, stride: int, tiles: tuple[int, ...]) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """name -> samples [1, C, T, h, w] to frames [n, H, W, 3] on the CPU."""
    from pack.nodes.common.progress import SILENT
    from pack.nodes.video.bridge_decode import decode_frames

    def ours(tile_px: int, parked: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda samples: torch.cat(list(decode_frames(vae, samples, None, tile_px, SILENT, parked)))

    side, overlap = (512, 64) if CUDA else (128, 32)  # the node's own pixels; smaller for small pictures
    core_tiles = {"tile_x": side // stride, "tile_y": side // stride, "overlap": overlap // stride,
                  "tile_t": 64 // 4, "overlap_t": 8 // 4}
    return {
        "untiled": lambda samples: vae.decode(samples)[0].cpu(),
        "core tiled": lambda samples: vae.decode_tiled(samples, **core_tiles)[0].cpu(),
        "streamed": ours(0), "streamed, ram": ours(0, True),
        **{f"tiles {px}": ours(px) for px in tiles}, **{f"tiles {px}, ram": ours(px, True) for px in tiles},
    }


def base_channels(kind: str) -> int:
    return KINDS[kind][2] if CUDA else SMALL_DIM


def build_vae(kind: str) -> object:
    """ComfyUI's VAE object around a module of random weights that keep the size of what passes through them."""
    import comfy.model_patcher
    import comfy.sd
    from comfy.ldm.wan import vae as wan21
    from comfy.ldm.wan import vae2_2 as wan22

    channels, stride, dim = KINDS[kind]
    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0,
             "temperal_downsample": [False, True, True]}
    dim = dim if CUDA else SMALL_DIM
    sizes = {"dim": dim, "dec_dim": dim} if kind == "wan22" and not CUDA else {"dim": dim}
    module = (wan22.WanVAE if kind == "wan22" else wan21.WanVAE)(z_dim=channels, **sizes, **shape)
    fill(module)
    if CUDA or kind == "wan21":
        return comfy.sd.VAE(sd=module.state_dict())
    made = comfy.sd.VAE(sd=filled_wan21(wan21, shape).state_dict())  # core knows Wan 2.2's in its full size alone
    made.first_stage_model = module.to(made.vae_dtype).eval()
    made.patcher = comfy.model_patcher.ModelPatcher(module, made.device, torch.device("cpu"))
    made.latent_channels, made.upscale_ratio = channels, (made.upscale_ratio[0], stride, stride)
    made.upscale_index_formula, made.size = (4, stride, stride), None
    return made


def filled_wan21(wan21: types.ModuleType, shape: dict) -> torch.nn.Module:
    module = wan21.WanVAE(dim=SMALL_DIM, z_dim=16, **shape)
    fill(module)
    return module


def fill(module: torch.nn.Module) -> None:
    """Normal weights by fan-in; the last layer is quieter, so that few values are cut off at black and white."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and not name.endswith("gamma"):
            fan_in = parameter[0].numel()
            loud = 0.3 if name.startswith("decoder.head") else 1.0
            parameter.data = torch.randn(parameter.shape, generator=generator) * (loud / fan_in**0.5)
        else:
            parameter.data = torch.ones(parameter.shape) if name.endswith("gamma") else torch.zeros(parameter.shape)


class Peak:
    """The most VRAM that was allocated inside (CUDA), or by how much the process grew (looked at every 5 ms)."""

    bytes = 0

    def __enter__(self) -> Peak:
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._before, self._stop = rss_bytes(), threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if CUDA:
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, rss_bytes() - self._before)


def rss_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def psnr(frames: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal to noise of frames in 0..1, in dB; 200 where they are equal."""
    squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(frames, wanted, strict=True))
    return 200.0 if squares == 0 else float(-10 * torch.log10(torch.tensor(squares / frames.numel())))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
