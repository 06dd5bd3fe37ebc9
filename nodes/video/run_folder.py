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
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from ..common.errors import message
from ..common.types import ClipRecord

FORMAT = "videomemory-run"
VERSION = 1
MANIFEST = "manifest.json"
KINDS = {"latents": ".latents.safetensors", "memory": ".memory.safetensors", "video": ".mkv"}
STATUSES = ("started", "latents", "memory", "done")
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
NAME_LENGTH = 80


@dataclass(frozen=True)
class StoredFile:
    """One file of a take: its name inside the run folder, size and checksum."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Take:
    """One attempt at one clip, as the manifest lists it.

    fingerprint: what the clip was made from, given by the caller. digest: sha256 of the latents and their context.
    video_key: what besides the latents decides the frames and the memory (VAE, tiling, fps, the memory's spec). note: a
    line for people (the clip's prompt).
    """

    index: int
    take: int
    status: str
    fingerprint: str
    digest: str
    created: str
    note: str
    files: dict[str, StoredFile] = field(default_factory=dict)
    video_key: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0


class RunFolder:
    """The takes of one film on disk. Holds no state: every call reads the manifest, so two handles never disagree."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def takes(self) -> list[Take]:
        """All takes, in clip order; ValueError for a manifest that is not ours, RuntimeError for an unreadable one."""
        path = self.path / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise RuntimeError(self._refusal(f"an error ({error})")) from error
        try:
            document = json.loads(text)
            if (document["format"], document["version"]) != (FORMAT, VERSION):
                raise KeyError(f"format {document['format']!r} version {document['version']!r}")
            return [_take_from_json(entry) for entry in document["clips"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(self._refusal(f"something else ({error})")) from error

    def _refusal(self, got: str) -> str:
        return message(
            f"The run folder {str(self.path)!r} needs a manifest of this pack", got,
            f"{MANIFEST} with format {FORMAT!r}, version {VERSION}",
            "Nothing in the folder was changed: move the folder away, or use another run name.")

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
        kept = [t for t in takes if t.index != index or (t.status == "done" and self._intact(t, False))]
        self._write([*kept, take])
        self._sweep(index)
        return take

    def put(self, take: Take, kind: str, write: Callable[[Path], object]) -> Take:
        """Write one file of a take: `write(path)` fills a temporary file, which is flushed, renamed and then listed.

        For kind "video" `write` returns the encode.VideoFacts of what it wrote. Whatever it raises passes through and
        the temporary file is removed. Returns the take as listed now.
        """
        name = f"clip_{take.index:03d}{f'.take{take.take}' if take.take > 1 else ''}{KINDS[kind]}"
        temporary = self.path / f"{name}.tmp"
        try:
            made = write(temporary)
            stored = StoredFile(name, temporary.stat().st_size, file_sha256(temporary))
            _flush(temporary)
            os.replace(temporary, self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(self.path)
        status = kind if kind in STATUSES and take.status != "done" else take.status
        take = replace(take, status=status, files={**take.files, kind: stored})
        if kind == "video":
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
        return ClipRecord(
            take.index, str(self.path), take.files["latents"].name, take.files["video"].name,
            take.frames, take.fps, take.width, take.height, take.digest)

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
        clips = [asdict(take) for take in sorted(takes, key=lambda take: (take.index, take.take))]
        document = {"format": FORMAT, "version": VERSION, "run_name": self.path.name, "clips": clips}
        temporary = self.path / f"{MANIFEST}.tmp"
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _flush(temporary)
        os.replace(temporary, self.path / MANIFEST)
        _flush_folder(self.path)

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


def _take_from_json(entry: dict) -> Take:
    files = {kind: StoredFile(**stored) for kind, stored in entry["files"].items()}
    plain = all(Path(stored.name).name == stored.name for stored in files.values())
    if entry["status"] not in STATUSES or not plain:
        raise ValueError(f"clip {entry['index']!r}")
    return Take(**{**entry, "files": files})


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Make the rename itself durable; Windows has no handle for that and needs none."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
