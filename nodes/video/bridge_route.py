"""What the film strip in the graph editor asks the server: the clips of a run, pictures, how they go together."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from ..common.compat import output_places
from .encode import read_frames
from .manifest import Take
from .places import SUBFOLDER, run_path, run_root
from .run_folder import RunFolder
from .scores import ClipFile, Score, drift_score, join_score

RUN, FRAME, SCORES = "/videomemory/run", "/videomemory/frame", "/videomemory/scores"
SHOWN_FRAME = 8  # the first ones after a hard cut may still show the scene before
WIDTH = 192  # of a picture, pixels
Result = TypeVar("Result")
_THREADS = ThreadPoolExecutor(2, "videomemory_film")  # checksums would fill the server's own, which send its files
_ASKED: dict[tuple[Any, ...], asyncio.Future[Any]] = {}


def add_routes() -> None:
    """Register the routes with ComfyUI's server, where there is one."""
    from server import PromptServer  # not importable outside ComfyUI's main program

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(RUN)(get_run)
        server.routes.get(FRAME)(get_frame)
        server.routes.get(SCORES)(get_scores)


async def get_run(request: web.Request) -> web.Response:
    """?name= -> {"clips": [...]}; 404 with a sentence for a run that cannot be read. Writes nothing."""
    try:
        takes = await asyncio.to_thread(newest_takes, request.query.get("name", ""))
    except (ValueError, RuntimeError) as error:
        return web.json_response({"clips": [], "message": str(error)}, status=404)
    return web.json_response({"clips": [take_json(take) for take in takes.values()]})


async def get_frame(request: web.Request) -> web.Response:
    """?name=&clip= -> a JPEG of that clip; 404 where it has no frames (yet)."""
    try:
        name, clip = request.query.get("name", ""), int(request.query.get("clip", ""))
        picture = await _in_turn(picture_of, name, clip)
    except (ValueError, RuntimeError, KeyError, OSError):
        raise web.HTTPNotFound from None
    return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": "no-cache"})


async def get_scores(request: web.Request) -> web.Response:
    """?name= -> {"scores": [...]}, one per finished clip; 404 with a sentence for a run that cannot be read."""
    try:
        scores = await _in_turn(scores_of, request.query.get("name", ""))
    except (ValueError, RuntimeError, OSError) as error:
        return web.json_response({"scores": [], "message": str(error)}, status=404)
    return web.json_response({"scores": scores})


async def _in_turn(work: Callable[..., Result], *given: Any) -> Result:
    """What work(*given) returns, made by the pack's own threads; who asks the same meanwhile gets the same answer."""
    key = (work.__name__, *given)
    if key not in _ASKED:
        _ASKED[key] = asyncio.get_running_loop().run_in_executor(_THREADS, work, *given)
        _ASKED[key].add_done_callback(lambda _: _ASKED.pop(key))
    return await asyncio.shield(_ASKED[key])  # a page that is closed takes the answer from nobody else


def newest_takes(run_name: str) -> dict[int, Take]:
    """By clip: the finished take, else the newest; ValueError for a name that is none."""
    found: dict[int, Take] = {}
    for take in _folder(run_name).takes():
        known = found.get(take.index)
        if known is None or (take.status == "done", take.take) > (known.status == "done", known.take):
            found[take.index] = take
    return found


def picture_of(run_name: str, clip: int) -> bytes:
    """A JPEG of that clip; KeyError without such a clip or its frames, RuntimeError where these are damaged.

    The clip's checksum is not compared: it takes its time, and a picture does no harm.
    """
    stored = newest_takes(run_name)[clip].files["video"]
    return jpeg_of(_folder(run_name).path / stored.name, stored.sha256)


def take_json(take: Take) -> dict[str, Any]:
    """seconds: what sampling and decoding took. picture: changes when the clip's frames do, "" without frames."""
    video = take.files.get("video")
    return {"index": take.index, "take": take.take, "status": take.status, "note": take.note, "frames": take.frames,
            "fps": take.fps, "seconds": take.seconds, "picture": video.sha256[:16] if video else ""}


def scores_of(run_name: str) -> list[dict[str, Any]]:
    """Of every finished clip its index, "join" with the clip before and "drift" from the film's first clip.

    Each is None where one of its two clips is not there, cannot be read or has another size, else a scores.Score as a
    dict.
    """
    clips, scores = clip_files(run_name), []
    for index, clip in clips.items():
        join = _score(join_score, clips.get(index - 1), clip)
        drift = _score(drift_score, clips.get(0) if index else None, clip)
        scores.append({"index": index, "join": join, "drift": drift})
    return scores


def _score(measure: Callable[[ClipFile, ClipFile], Score], before: ClipFile | None,
           clip: ClipFile) -> dict[str, Any] | None:
    if before is not None:
        with contextlib.suppress(RuntimeError):  # damaged, or of two sizes: the other clips have their scores
            return asdict(measure(before, clip))
    return None


def clip_files(run_name: str) -> dict[int, ClipFile]:
    """The finished clips whose frames are as they were saved."""
    run, found = _folder(run_name), {}
    for index, take in newest_takes(run_name).items():
        if take.status == "done":
            with contextlib.suppress(ValueError, RuntimeError, OSError):  # without frames, damaged, held by somebody
                path = run.file(take, "video")
                key = f"{take.digest} {take.video_key}"
                found[index] = ClipFile(index, path, key, take.frames, take.fps, take.cuts)
    return found


@lru_cache(maxsize=64)
def jpeg_of(path: Path, _sha256: str) -> bytes:
    from PIL import Image

    frames = list(islice(read_frames(path), SHOWN_FRAME + 1))
    image = Image.fromarray(frames[-1].numpy())
    image.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return written.getvalue()


def _folder(run_name: str) -> RunFolder:
    return RunFolder(run_path(run_root(*output_places(SUBFOLDER)), run_name))
