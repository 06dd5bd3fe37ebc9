"""A LATENT and a VAE as ComfyUI hands them over -> frames -> a clip in the run folder, and back."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..common.compat import patcher_key
from ..common.errors import message
from ..common.progress import Progress
from ..common.types import TEMPORAL_STRIDE, ClipRecord, RenderPlan, VideoMemory
from ..memory.files import load_memory, rest_on_file, save_memory
from ..memory.state import placed
from .decode import CONTEXT_LATENTS, frame_count, stream_decode, wan_decoder_traits
from .encode import write_ffv1
from .run_folder import RunFolder, Take, run_path
from .tiles import stream_decode_tiled

SUBFOLDER = "videomemory"
RESCUE_TILE_PX = 384  # after running out of memory with whole frames or larger tiles
NATIVE_FPS = {48: 24.0}  # by latent channels: Wan 2.2 TI2V was trained at 24 fps, every 16-channel Wan at 16
OTHER_FPS = 16.0


def open_run(run_name: str) -> RunFolder:
    """The run folder of this name in ComfyUI's output folder (made when the first clip is saved)."""
    return RunFolder(run_path(Path(folder_paths.get_output_directory()) / SUBFOLDER, run_name))


def save_clip(
    run: RunFolder,
    index: int,
    latent: dict[str, Any],
    vae: Any,
    memory: VideoMemory | None,
    plan: RenderPlan | None,
    fingerprint: str,
    progress: Progress,
    note: str = "",
) -> tuple[ClipRecord, str]:
    """Put clip `index` into the run folder: latents, memory, then its decoded frames; returns it and a report.

    What the folder already holds for the same latents is kept, so a cancel while decoding costs only the decode.
    fingerprint "": the digest of the latents stands for it. note: a line for people in the manifest.
    """
    samples, context = _checked_samples(latent, vae), latent.get("context_samples")
    tile_px = plan.decode_tile_px if plan else 0
    fps = clip_fps(memory, plan, latent)
    digest = latent_digest(latent)
    spec = placed(memory, "").spec if memory else None  # where K/V rest changes nothing that is saved
    made_with = f"{patcher_key(vae.patcher)} {tile_px} {fps} {spec}"
    key = hashlib.sha256(made_with.encode()).hexdigest()[:32]
    take = run.begin(index, fingerprint or digest, digest, key, note)
    if "latents" not in take.files:
        take = run.put(take, "latents", lambda path: _save_latent({**latent, "fps": fps}, path))
    if memory is not None and "memory" not in take.files:
        take = run.put(take, "memory", lambda path: save_memory(memory, path))
        rest_on_file(memory, run.file(take, "memory"))
    if take.status == "done":
        return run.record(take), f"Clip {index} was in {run.path} already; nothing was decoded."
    rescue = ""
    try:
        take = _put_video(run, take, vae, samples, context, tile_px, fps, progress)
    except mm.OOM_EXCEPTION:
        rescue = f" Whole frames did not fit: decoded in tiles of {RESCUE_TILE_PX} px instead."
    if rescue:  # outside the except block, whose traceback keeps the tensors that did not fit
        mm.soft_empty_cache()
        take = _put_video(run, take, vae, samples, context, RESCUE_TILE_PX, fps, progress)
    made = run.finish(take)
    size = f"{made.width}x{made.height} at {fps:g} fps"
    return made, f"Clip {index}: {made.frames} frames, {size}, in {run.path}.{rescue}"


def load_clip(run: RunFolder, index: int, with_memory: bool,
              fingerprint: str = "") -> tuple[dict, VideoMemory | None]:
    """The LATENT of clip `index` and, where asked for, the memory after it; ValueError when there is no such clip.

    fingerprint: only a clip made from exactly this; "" takes the newest.
    """
    take = run.saved(index, fingerprint) if fingerprint else run.newest(index)
    if take is None:
        known = sorted({take.index for take in run.takes() if "latents" in take.files})
        raise ValueError(message(
            f"Load Clip: the run {run.path.name!r} needs a saved clip {index}", "none",
            f"clip {', '.join(map(str, known))}" if known else "a run in which Save Clip has saved clips",
            "Check the run name and the clip's number; the first clip is 0."))
    latent = _load_latent(run.undamaged(take, "latents"))
    return latent, load_memory(run.file(take, "memory")) if with_memory else None


def decode_frames(
    vae: Any, samples: torch.Tensor, context: torch.Tensor | None, tile_px: int, progress: Progress
) -> Iterator[torch.Tensor]:
    """Yield a clip's frames [n, H, W, 3] float32 0..1 on the CPU as soon as they exist.

    samples [1, C, T, h, w] un-normalised, as in a LATENT; context: the latents before them, of which the last
    CONTEXT_LATENTS are decoded and dropped. tile_px > 0 decodes in tiles of that side. Any VAE but Wan's is decoded by
    ComfyUI, in one piece and behind all of its context.
    """
    module = vae.first_stage_model
    if wan_decoder_traits(module) is None:
        yield from _decode_by_core(vae, samples, context, tile_px)
        return
    stride = vae.spacial_compression_decode()
    tile = tile_px // stride if tile_px else max(samples.shape[3:])
    shape = (1, samples.shape[1], 1, min(tile, samples.shape[3]), min(tile, samples.shape[4]))
    mm.load_models_gpu([vae.patcher], memory_required=vae.memory_used_decode(shape, vae.vae_dtype))
    latents = samples.to(vae.device, vae.vae_dtype)
    if context is not None:
        context = context[:, :, -CONTEXT_LATENTS:].to(latents)
    if tile_px:
        pieces = stream_decode_tiled(module, latents, context, tile, progress.check_cancel)
    else:
        pieces = stream_decode(module, latents, context, progress.check_cancel)
    for frames in pieces:
        yield frames.cpu()


def clip_fps(memory: VideoMemory | None, plan: RenderPlan | None, latent: dict[str, Any]) -> float:
    """Frames per second of a clip: the memory's, the plan's, the loaded clip's, or what such models were trained at."""
    source = memory or plan
    return source.spec.fps if source else latent.get("fps", NATIVE_FPS.get(latent["samples"].shape[1], OTHER_FPS))


def latent_digest(latent: dict[str, Any]) -> str:
    """sha256 over everything in a LATENT that decides the clip's frames."""
    digest = hashlib.sha256(str(latent.get("first_latent", 0)).encode())
    for name in ("samples", "context_samples"):
        if latent.get(name) is not None:
            value = latent[name].detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.numpy())
    return digest.hexdigest()


def _put_video(
    run: RunFolder, take: Take, vae: Any, samples: torch.Tensor, context: torch.Tensor | None, tile_px: int,
    fps: float, progress: Progress,
) -> Take:
    def frames() -> Iterator[torch.Tensor]:
        done, total = 0, TEMPORAL_STRIDE * samples.shape[2]
        for piece in decode_frames(vae, samples, context, tile_px, progress):
            yield piece
            done += len(piece)
            progress.update(min(done, total), total)

    return run.put(take, "video", lambda path: write_ffv1(path, frames(), fps))


def _decode_by_core(vae: Any, samples: torch.Tensor, context: torch.Tensor | None,
                    tile_px: int) -> Iterator[torch.Tensor]:
    """In one piece; a VAE of pictures (SVD's) has one frame per latent, a causal one 4 behind the first."""
    is_video, drop = vae.latent_dim == 3, 0
    if context is not None:
        drop = frame_count(context.shape[2], 0) if is_video else context.shape[2]
        samples = torch.cat((context.to(samples), samples), 2)
    if not is_video:
        samples = samples[0].movedim(1, 0)
    if tile_px:
        tile = max(8, tile_px // vae.spacial_compression_decode())
        images = vae.decode_tiled(samples, tile_x=tile, tile_y=tile, overlap=tile // 4)
    else:
        images = vae.decode(samples)
    yield from images.reshape(-1, 1, *images.shape[-3:])[drop:].float().cpu()


@contextlib.contextmanager
def disk_errors(node: str, folder: str | Path) -> Iterator[None]:
    """Say a full disk or a folder without rights in one sentence: RuntimeError instead of the library's own words."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RuntimeError(message(
            f"{node} has to write into {str(folder)!r}", f"the error {error}", "a folder with room and with rights",
            "Make room, or give ComfyUI another --output-directory, and queue again: finished clips are kept."
        )) from error


def _checked_samples(latent: dict[str, Any], vae: Any) -> torch.Tensor:
    """The clip's latents; ValueError unless they are one video's, fit the VAE and what lies before them."""
    samples, context = latent["samples"], latent.get("context_samples")
    if samples.ndim != 5 or samples.shape[0] != 1:
        raise ValueError(message(
            "Save Clip needs the latents of one video, [1, C, T, h, w]", f"the shape {list(samples.shape)}",
            "a batch of one video", "Set the batch size to 1, and use a video model's latents."))
    if samples.shape[1] != vae.latent_channels:
        raise ValueError(message(
            "Save Clip needs latents that its VAE can decode", f"latents with {samples.shape[1]} channels",
            f"{vae.latent_channels} channels", "Connect the VAE that belongs to the model of these latents."))
    if context is not None and (context.shape[1], *context.shape[3:]) != (samples.shape[1], *samples.shape[3:]):
        raise ValueError(message(
            "Save Clip decodes the latents before the clip along with it", f"{list(context.shape)} before a clip of "
            f"{list(samples.shape)}", "the same channels, height and width",
            "Connect Clip Sampler directly: a node between them changed only the clip."))
    return samples


def _save_latent(latent: dict[str, Any], path: Path) -> None:
    names = [name for name in ("samples", "context_samples") if latent.get(name) is not None]
    tensors = {name: latent[name].detach().to("cpu", torch.float32).contiguous() for name in names}
    facts = {"format": "pt", "first_latent": str(latent.get("first_latent", 0)), "fps": repr(latent["fps"])}
    save_file(tensors, str(path), metadata=facts)


def _load_latent(path: Path) -> dict[str, Any]:
    with safe_open(str(path), framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no __iter__)
        facts = file.metadata()
    return {**tensors, "first_latent": int(facts["first_latent"]), "fps": float(facts["fps"])}
