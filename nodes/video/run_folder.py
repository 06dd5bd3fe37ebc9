"""The run folder: where a film's clips are kept, so that a kill at any moment costs at most the clip in flight.

    <output>/videomemory/<run name>/
        manifest.json                     readable by a person; the only truth about what is finished
        clip_000.latents.safetensors      samples, context_samples, first_latent
        clip_000.memory.safetensors       the VIDEO_MEMORY after the clip
        clip_000.mkv                      its frames, lossless (FFV1)
        clip_000.take2.latents...         a re-roll of the clip, until and after it replaces the first take

Order of a save: latents, memory, video; the manifest says "latents", "memory", "done" after each. Every file is written
to `<name>.tmp`, flushed to the disk and renamed, and a re-roll gets names of its own, so no file that the manifest
calls finished is ever touched: a take is replaced by one write of the manifest, and only then are its files deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from ..common.errors import message
from ..common.progress import SILENT, Progress
from ..common.types import ClipRecord
from ..interpolation.retime import exact_fps
from .manifest import (
    KINDS,
    STATUSES,
    StoredFile,
    Take,
    flush,
    flush_folder,
    read_manifest,
    record_of,
    write_manifest,
)
from .tiers import COMPRESSED, compress_video

RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
NAME_LENGTH = 80
FINISHED = ("done", "dropped")  # statuses of takes that only a finished one replaces


class RunFolder:
    """The takes of one film on disk. Holds no state: every call reads the manifest, so two handles never disagree."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def takes(self) -> list[Take]:
        """All takes, in clip order; ValueError for a manifest that is not ours, RuntimeError for an unreadable one."""
        return read_manifest(self.path)

    def finished(self, index: int, fingerprint: str, check_sha256: bool = False) -> ClipRecord | None:
        """The finished clip `index` if it was made from `fingerprint` and its files are all there, else None."""
        take = self._find(index, lambda take: take.status == "done" and take.fingerprint == fingerprint)
        return self.record(take) if take and self._intact(take, check_sha256) else None

    def saved(self, index: int, fingerprint: str) -> Take | None:
        """The newest take of clip `index` made from `fingerprint` whose latents are safe, finished or not."""
        take = self._find(index, lambda take: take.fingerprint == fingerprint and "latents" in take.files)
        return take if take and self._intact(take, False) else None

    def is_sampled(self, index: int, fingerprint: str) -> bool:
        """True when the latents of clip `index` from `fingerprint` and the memory after it are safe: no sampling."""
        take = self.saved(index, fingerprint)
        return take is not None and "memory" in take.files

    def newest(self, index: int) -> Take | None:
        """The newest take of clip `index` whose latents are safe: what Load Clip opens."""
        take = self._find(index, lambda take: "latents" in take.files)
        return take if take and self._intact(take, False) else None

    def begin(self, index: int, fingerprint: str, digest: str, video_key: str = "", note: str = "") -> Take:
        """Start a take of clip `index` from these latents, or take up the one that has them (after a kill or a cancel).

        A take of the same digest and video_key keeps its files and its status, "done" included; only its fingerprint
        is renewed. An unfinished take of anything else is given up; a finished one stays valid until this one is done.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        takes = self.takes()
        wanted = (index, digest, video_key)
        for take in takes:
            if (take.index, take.digest, take.video_key) == wanted and self._intact(take, False):
                same = take.fingerprint == fingerprint
                return take if same else self._update(replace(take, fingerprint=fingerprint))
        number = 1 + max((take.take for take in takes if take.index == index), default=0)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        take = Take(index, number, STATUSES[0], fingerprint, digest, now, note, video_key=video_key)
        kept = [t for t in takes if t.index != index or (t.status in FINISHED and self._intact(t, False))]
        self._write([*kept, take])
        self._sweep(index)
        return take

    def put(self, take: Take, kind: str, write: Callable[[Path], object]) -> Take:
        """Write one file of a take: `write(path)` fills a temporary file, which is flushed, renamed and then listed.

        For kind "video" `write` returns the encode.VideoFacts of what it wrote. Whatever it raises passes through and
        the temporary file is removed. Returns the take as listed now.
        """
        return self._put(take, kind, take.file_name(KINDS[kind]), write)

    def _put(self, take: Take, kind: str, name: str, write: Callable[[Path], object]) -> Take:
        temporary = self.path / f"{name}.tmp"
        try:
            made = write(temporary)
            stored = StoredFile(name, temporary.stat().st_size, file_sha256(temporary))
            flush(temporary)
            os.replace(temporary, self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(self.path)
        status = kind if kind in STATUSES and take.status not in FINISHED else take.status
        take = replace(take, status=status, files={**take.files, kind: stored})
        if kind == "video" and made is not None:
            take = replace(take, frames=made.frames, fps=float(made.fps), width=made.width, height=made.height)
        return self._update(take)

    def finish(self, take: Take) -> ClipRecord:
        """Call the take done: from this write on it is the clip, and the files of older takes are deleted."""
        take = replace(take, status="done")
        self._write([*(t for t in self.takes() if t.index != take.index), take])
        self._sweep(take.index)
        return self.record(take)

    def record(self, take: Take) -> ClipRecord:
        """The finished take as other nodes see it."""
        return record_of(self.path, take)

    def file(self, take: Take, kind: str) -> Path:
        """Where the take's file of this kind lies; ValueError when it has none."""
        if kind not in take.files:
            raise ValueError(message(
                f"Clip {take.index} of the run {self.path.name!r} was asked for its {kind}",
                f"a clip that has only {', '.join(take.files)}", "a clip saved with it",
                f"Save the clip again with its {kind} connected, or load it without."))
        return self.path / take.files[kind].name

    def undamaged(self, take: Take, kind: str) -> Path:
        """file(), after its bytes were compared with the manifest; RuntimeError when they have changed.

        For latents: what is decoded from others would replace the finished clip. A memory may hold gigabytes.
        """
        path = self.file(take, kind)
        if not path.is_file() or file_sha256(path) != take.files[kind].sha256:
            raise RuntimeError(message(
                f"Clip {take.index} of the run {self.path.name!r} must be as it was saved",
                f"{path.name} with other bytes", "the bytes that the manifest lists",
                f"Delete {path} and queue again: the clip is made anew."))
        return path

    def compress_videos(self, records: Sequence[ClipRecord], progress: Progress = SILENT) -> int:
        """Keep these clips' frames as H.264 without visible loss; returns the bytes that were freed.

        Each clip changes in one write of the manifest. Clips that were compressed, replaced or damaged since are left
        as they are. `current` tells where the frames are now.
        """
        freed = 0
        for take in self._unchanged(records):
            old = take.files["video"]
            if not old.name.endswith(COMPRESSED):
                freed += old.bytes - self._compress(take, self.path / old.name, progress).bytes
            self._sweep(take.index)
        return freed

    def _compress(self, take: Take, source: Path, progress: Progress) -> StoredFile:
        def write(path: Path) -> None:
            compress_video(source, path, take.frames, exact_fps(take.fps), progress)

        return self._put(take, "video", take.file_name(COMPRESSED), write).files["video"]

    def drop_videos(self, records: Sequence[ClipRecord]) -> int:
        """Delete these clips' frames; latents and memory stay, from which Save Clip decodes them again when asked.

        Clips that were replaced or damaged since are left as they are. Returns the bytes that were freed.
        """
        freed = 0
        for take in self._unchanged(records):
            files = {kind: stored for kind, stored in take.files.items() if kind != "video"}
            self._update(replace(take, status="dropped", files=files))
            freed += take.files["video"].bytes
        for record in records:
            self._sweep(record.index)  # also what a kill has left
        return freed

    def current(self, record: ClipRecord) -> ClipRecord:
        """The record with the file that holds its frames now; RuntimeError when there is none any more."""
        takes = [t for t in self.takes() if (t.index, t.digest) == (record.index, record.digest) and "video" in t.files]
        if not takes:
            raise RuntimeError(message(
                f"The film needs the frames of clip {record.index}", f"none in {self.path}", "the clip as it was saved",
                "Queue again: they are decoded from the clip's latents, or the clip is rendered anew."))
        return self.record(takes[-1])

    def _unchanged(self, records: Sequence[ClipRecord]) -> list[Take]:
        """The finished takes that these records speak of, as far as their frames are what they were."""
        listed = {(take.index, take.digest): take for take in self.takes() if take.status == "done"}
        takes = [listed[key] for record in records if (key := (record.index, record.digest)) in listed]
        return [take for take in takes if self._intact(take, check_sha256=True)]

    def require_writable(self) -> None:
        """RuntimeError when nothing can be written here, so that it is known before anything is sampled."""
        folder = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not os.access(folder, os.W_OK):
            raise RuntimeError(message(
                f"A film needs a folder to write to, {str(self.path)!r}", f"no right to write into {str(folder)!r}",
                "a folder that ComfyUI may write to",
                "Change its rights, or give ComfyUI another --output-directory."))

    def _find(self, index: int, fits: Callable[[Take], bool]) -> Take | None:
        found = [take for take in self.takes() if take.index == index and fits(take)]
        return max(found, key=lambda take: take.take, default=None)

    def _intact(self, take: Take, check_sha256: bool) -> bool:
        for stored in take.files.values():
            path = self.path / stored.name
            if not path.is_file() or path.stat().st_size != stored.bytes:
                return False
            if check_sha256 and file_sha256(path) != stored.sha256:
                return False
        return True

    def _update(self, take: Take) -> Take:
        self._write([take if (t.index, t.take) == (take.index, take.take) else t for t in self.takes()])
        return take

    def _write(self, takes: list[Take]) -> None:
        write_manifest(self.path, takes)

    def _sweep(self, index: int) -> None:
        """Delete the files of clip `index` that the manifest does not list."""
        listed = {stored.name for take in self.takes() for stored in take.files.values()}
        for path in self.path.glob(f"clip_{index:03d}.*"):
            if path.name not in listed:
                with contextlib.suppress(OSError):  # a player holds it open (Windows): the next sweep gets it
                    path.unlink()


def run_path(root: str | Path, run_name: str) -> Path:
    """The run folder `run_name` inside `root`; ValueError for a name that is no plain folder name on every system.

    Characters that Windows refuses become "_"; path separators, reserved device names and an empty name are refused.
    """
    name = run_name.strip().rstrip(". ")
    plain = name and not re.search(r"[/\\]", run_name) and len(name) <= NAME_LENGTH
    if not plain or name.split(".")[0].strip().upper() in RESERVED:
        raise ValueError(message(
            "A run needs a name for its folder", run_name,
            f"a plain folder name of 1 to {NAME_LENGTH} characters without / or \\ and not a device name such as CON",
            'Choose a name such as "my_short".'))
    return Path(root) / re.sub(r'[<>:"|?*\x00-\x1f]', "_", name)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces of 1 MB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
