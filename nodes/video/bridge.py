"""A LATENT and a VAE as ComfyUI hands them over -> frames -> a clip in the run folder, and back."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import comfy.model_management as mm
import torch
from safetensors import SafetensorError

from ..budget.watch import watched
from ..common.compat import other_models_bytes, output_places, user_folder
from ..common.digest import patcher_key
from ..common.errors import message
from ..common.progress import Progress
from ..common.types import ClipRecord, RenderPlan, VideoMemory
from ..memory.files import load_memory, rest_on_file, save_memory
from ..memory.state import placed
from .bridge_decode import decode_frames, frames_of_latents, is_exact_in_tiles, ways_to_decode
from .clip_files import latent_digest, load_latent, save_latent
from .encode import write_ffv1
from .lock import LOCKS
from .places import SUBFOLDER
from .run_folder import RunFolder, Take, open_folder

NATIVE_FPS = {48: 24.0}  # by latent channels: Wan 2.2 TI2V was trained at 24 fps, every 16-channel Wan at 16
OTHER_FPS = 16.0


def open_run(run_name: str) -> RunFolder:
    """The run folder of this name, where ComfyUI's settings say."""
    return open_folder(*output_places(SUBFOLDER), run_name)


def running_prompt() -> str:
    """The id of the prompt that ComfyUI's server is executing; "" outside a server."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    queue = getattr(getattr(server, "instance", None), "prompt_queue", None)
    running = queue.get_current_queue()[0] if queue is not None else []
    return str(running[0][1]) if running else ""


def reserve_clip(run: RunFolder, index: int, node: str | None, fingerprint: str) -> None:
    """Keep the run folder to this process while the prompt runs, so that it is known before anything is sampled.

    RuntimeError when it cannot be written to or another process renders there; ValueError when another node of the
    graph makes this clip too.
    """
    try:
        LOCKS.keep(run.path, running_prompt)
    except OSError as error:
        raise RuntimeError(message(
            f"A film needs a folder to write to, {str(run.path)!r}", f"the error {error}",
            "a folder that ComfyUI may write to", "Change its rights, or give ComfyUI another --output-directory."
        )) from error
    LOCKS.claim(run.path, index, node or "", fingerprint, running_prompt())


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
    _check_samples(latent, vae)
    fps, digest = clip_fps(memory, plan, latent), latent_digest(latent)
    news = [*run.seen.news(run.path), *filter(None, [run.harm(index, fingerprint or digest)])]
    take = run.begin(index, fingerprint or digest, digest, _video_key(vae, memory, plan, fps), note)
    if "latents" not in take.files:
        take = run.put(take, "latents", lambda path: save_latent({**latent, "fps": fps}, path))
    if memory is not None and "memory" not in take.files:
        take = run.put(take, "memory", lambda path: save_memory(memory, path))
        rest_on_file(memory, run.file(take, "memory"))
    if "video" in take.files:
        made = run.record(take) if take.status == "done" else run.finish(take)
        return made, " ".join([f"Clip {index} was in {run.path} already; nothing was decoded.", *news])
    started = time.monotonic()
    others = partial(other_models_bytes, vae.device, vae.patcher)
    with watched(plan, "decode", vae.device, user_folder(), others) as watch:
        take, way = _put_video(run, take, vae, latent, fps, plan, progress)
        watch.follows_plan = not way
    made = run.finish(take, latent.get("seconds", 0.0) + time.monotonic() - started, memory.cuts if memory else 0)
    size = f"{made.width}x{made.height} at {fps:g} fps"
    said = filter(None, (*way, watch.sentence, *news))
    return made, " ".join([f"Clip {index}: {made.frames} frames, {size}, in {run.path}.", *said])


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
    latent = load_latent(run.file(take, "latents"))
    return latent, load_memory(run.file(take, "memory")) if with_memory else None


def clip_fps(memory: VideoMemory | None, plan: RenderPlan | None, latent: dict[str, Any]) -> float:
    """Frames per second of a clip: the memory's, the plan's, the loaded clip's, or what such models were trained at."""
    source = memory or plan
    return source.spec.fps if source else latent.get("fps", NATIVE_FPS.get(latent["samples"].shape[1], OTHER_FPS))


def resume_clip(run: RunFolder, index: int, fingerprint: str, keeps: str,
                plan: RenderPlan | None) -> tuple[dict, VideoMemory | None]:
    """The LATENT of a clip that is safe in the folder and the memory saved after it, if any, where the plan wants it.

    A clip that the folder holds under `keeps` alone is kept, and from now on was made from `fingerprint`.
    """
    if keeps and not run.is_sampled(index, fingerprint, with_memory=False):
        run.rename(index, keeps, fingerprint)
    with_memory = run.is_sampled(index, fingerprint)
    latent, memory = load_clip(run, index, with_memory, fingerprint)
    return latent, placed(memory, plan.spec.placement) if plan and memory else memory


def _video_key(vae: Any, memory: VideoMemory | None, plan: RenderPlan | None, fps: float) -> str:
    """What besides the latents decides what is saved. Exact tiles do not, and neither does where K/V rest."""
    tile_px = 0 if plan is None or is_exact_in_tiles(vae) else plan.decode_tile_px
    spec = placed(memory, "").spec if memory else None
    return hashlib.sha256(f"{patcher_key(vae.patcher)} {tile_px} {fps} {spec}".encode()).hexdigest()[:32]


def _put_video(run: RunFolder, take: Take, vae: Any, latent: dict[str, Any], fps: float, plan: RenderPlan | None,
               progress: Progress) -> tuple[Take, list[str]]:
    """Decode as planned, in smaller tiles each time that memory runs out; the take and a sentence about that."""
    samples, context = latent["samples"], latent.get("context_samples")
    total = frames_of_latents(vae, samples.shape[2], 0 if context is None else context.shape[2])

    def frames(tile_px: int | None, parked: bool) -> Iterator[torch.Tensor]:
        done = 0
        for piece in decode_frames(vae, samples, context, tile_px, progress, parked):
            yield piece
            done += len(piece)
            progress.update(done, total)

    ways = ways_to_decode(plan)
    for number, way in enumerate(ways):
        try:
            take = run.put(take, "video", lambda path, way=way: write_ffv1(path, frames(*way), fps))
            return take, [f"Memory ran out: decoded in tiles of {way[0]} px instead."] if number else []
        except mm.OOM_EXCEPTION:
            pass  # leave the block first: its traceback keeps the tensors that did not fit
        mm.soft_empty_cache()
    raise RuntimeError(message(
        f"Clip {take.index} has to be decoded", f"too little memory even for tiles of {ways[-1][0]} px",
        "a little more", "Close other programs and queue again: its latents are saved, nothing is sampled again."))


@contextlib.contextmanager
def disk_errors(node: str, folder: str | Path) -> Iterator[None]:
    """Say a full disk or a folder without rights in one sentence: RuntimeError instead of the library's own words."""
    try:
        yield
    except (OSError, SafetensorError, av.FFmpegError) as error:
        raise RuntimeError(message(
            f"{node} has to write into {str(folder)!r}", f"the error {error}", "a folder with room and with rights",
            "Make room, or give ComfyUI another --output-directory, and queue again: finished clips are kept."
        )) from error


def _check_samples(latent: dict[str, Any], vae: Any) -> None:
    """ValueError unless a clip's latents are one video's, fit the VAE and what lies before them."""
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
