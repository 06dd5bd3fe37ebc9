"""The run folder: where a film's clips are kept, so that a kill at any moment costs at most the clip in flight.

    <output>/videomemory/<run name>/      (or another root, see places.py)
        manifest.json                     readable by a person; the only truth about what is finished
        clip_000.latents.safetensors      samples, context_samples, first_latent
        clip_000.memory.safetensors       the VIDEO_MEMORY after the clip
        clip_000.mkv                      its frames, lossless (FFV1), or clip_000.h264.mkv, compressed
        clip_000.json                     its entry in the manifest once more
        clip_000.take2.latents...         a re-roll of the clip, until and after it replaces the first take
        run.lock                          who writes here (lock.py)

Order of a save: latents, memory, video; the manifest says "latents", "memory", "done" after each. Every file is written
to `<name>.tmp`, flushed to the disk and renamed, and a re-roll gets names of its own, so no file that the manifest
calls finished is ever touched: a take is replaced by one write of the manifest, and only then are its files deleted.
Files are trusted as seen.py says. What of a take is damaged counts as not there: it is made again, the rest is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from ..common.disk import discard, patiently
from ..common.errors import message
from ..common.progress import SILENT, Progress
from ..common.types import ClipRecord
from ..interpolation.retime import exact_fps
from .lock import LOCKS
from .manifest import (
    CARD,
    FINISHED,
    KINDS,
    STATUSES,
    StoredFile,
    Take,
    flush,
    flush_folder,
    read_manifest,
    record_of,
    recover,
    write_card,
    write_manifest,
)
from .places import run_path, run_root
from .seen import SEEN, SeenFiles, file_sha256
from .tiers import COMPRESSED, compress_video


class RunFolder:
    """The takes of one film on disk. Holds no state: every call reads the manifest, so two handles never disagree."""

    def __init__(self, path: str | Path, seen: SeenFiles = SEEN) -> None:
        self.path, self.seen = Path(path), seen

    def takes(self) -> list[Take]:
        """All takes, in clip order; ValueError for a manifest that is not ours, RuntimeError for an unreadable one."""
        return read_manifest(self.path)

    def finished(self, index: int, fingerprint: str) -> ClipRecord | None:
        """The finished clip `index` if it was made from `fingerprint` and its files are what they were, else None."""
        take = self._find(index, lambda take: take.status == "done" and take.fingerprint == fingerprint)
        return self.record(take) if take and self.intact(take) == take.files else None

    def saved(self, index: int, fingerprint: str) -> Take | None:
        """The newest take of clip `index` made from `fingerprint` whose latents are safe, finished or not."""
        return self._find(index, lambda take: take.fingerprint == fingerprint and "latents" in self.intact(take))

    def is_sampled(self, index: int, fingerprint: str, with_memory: bool = True) -> bool:
        """True when the latents of clip `index` from `fingerprint` and, where one is asked for, the memory after it are
        safe: no sampling."""
        take = self.saved(index, fingerprint)
        return take is not None and (not with_memory or "memory" in self.intact(take))

    def newest(self, index: int) -> Take | None:
        """The newest take of clip `index` that has latents, whatever they look like: what Load Clip opens."""
        return self._find(index, lambda take: "latents" in take.files)

    def fingerprints(self, index: int) -> list[str]:
        """What the takes of clip `index` were made from: the finished one first, then the newest."""
        takes = [take for take in self.takes() if take.index == index]
        return [take.fingerprint for take in sorted(takes, key=lambda t: (t.status not in FINISHED, -t.take))]

    def seconds(self) -> list[float]:
        """What each clip of the film took to make, of those that know."""
        return [take.seconds for take in self.takes() if take.seconds]

    def harm(self, index: int, fingerprint: str) -> str:
        """What became of files of the newest take from `fingerprint`, and what is done about it; "" if all is well."""
        take = self._find(index, lambda take: take.fingerprint == fingerprint)
        bad = {kind: stored.name for kind, stored in take.files.items() if not self._is_intact(stored)} if take else {}
        if not bad:
            return ""
        found = [f"{name} {'had changed on the disk' if (self.path / name).exists() else 'was gone'}"
                 for name in bad.values()]
        only_frames = set(bad) == {"video"}
        done = "the frames were decoded again from the latents" if only_frames else "the clip was rendered again"
        return f"{' and '.join(found)}, so {done}."

    def intact(self, take: Take) -> dict[str, StoredFile]:
        """The files of a take that are there and have the bytes that were written."""
        return {kind: stored for kind, stored in take.files.items() if self._is_intact(stored)}

    def begin(self, index: int, fingerprint: str, digest: str, video_key: str = "", note: str = "") -> Take:
        """Start a take of clip `index` from these latents, or take up the one that has them (after a kill or a cancel).

        A take of the same digest and video_key keeps its files, as far as they are intact, and its status, "done"
        included; only its fingerprint is renewed. An unfinished take of anything else is given up; a finished one stays
        valid until this one is done.
        """
        take = self._find(index, lambda take: (take.digest, take.video_key) == (digest, video_key))
        if take and take.fingerprint == fingerprint and self.intact(take) == take.files:
            return take  # nothing is written, also where nothing could be
        with LOCKS.hold(self.path):
            if take:
                return self._take_up(take, fingerprint)
            takes = self.takes()
            number = 1 + max((take.take for take in takes if take.index == index), default=0)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            take = Take(index, number, STATUSES[0], fingerprint, digest, now, note, video_key=video_key)
            self._write([t for t in takes if t.index != index or t.status in FINISHED], take)
            self._sweep(index)
            return take

    def rename(self, index: int, old: str, new: str) -> None:
        """Say of the take of clip `index` made from `old` that it was made from `new`: it is kept by choice."""
        with LOCKS.hold(self.path):
            self._update(replace(self.saved(index, old), fingerprint=new))

    def put(self, take: Take, kind: str, write: Callable[[Path], object]) -> Take:
        """Write one file of a take: `write(path)` fills a temporary file, which is flushed, renamed and then listed.

        For kind "video" `write` returns the encode.VideoFacts of what it wrote. Whatever it raises passes through and
        the temporary file is removed. Returns the take as listed now.
        """
        return self._put(take, kind, take.file_name(KINDS[kind]), write)

    def finish(self, take: Take, seconds: float = 0.0, cuts: int = 0) -> ClipRecord:
        """Call the take done: from this write on it is the clip, and the files of older takes are deleted.

        seconds: what it took to make it, 0 = not known. cuts: scene cuts of its memory.
        """
        with LOCKS.hold(self.path):
            take = replace(take, status="done", seconds=seconds or take.seconds, cuts=cuts or take.cuts)
            self._write([t for t in self.takes() if t.index != take.index], take)
            self._sweep(take.index)
        return self.record(take)

    def record(self, take: Take) -> ClipRecord:
        """The finished take as other nodes see it."""
        return record_of(self.path, take)

    def file(self, take: Take, kind: str) -> Path:
        """Where the take's file of this kind lies, its bytes compared with the manifest (see seen.py).

        ValueError when the take has none, RuntimeError when it has changed: what is made from it would be wrong.
        """
        if kind not in take.files:
            raise ValueError(message(
                f"Clip {take.index} of the run {self.path.name!r} was asked for its {kind}",
                f"a clip that has only {', '.join(take.files)}", "a clip saved with it",
                f"Save the clip again with its {kind} connected, or load it without."))
        path = self.path / take.files[kind].name
        if not self._is_intact(take.files[kind]):
            raise RuntimeError(message(
                f"Clip {take.index} of the run {self.path.name!r} must be as it was saved",
                f"{path.name} with other bytes" if path.exists() else f"no {path.name}",
                "the bytes that the manifest lists", "Render the clip again: queue the workflow that made it."))
        return path

    def compress_videos(self, records: Sequence[ClipRecord], progress: Progress = SILENT) -> int:
        """Keep these clips' frames as H.264 without visible loss; returns the bytes that were freed.

        Each clip changes in one write of the manifest. Clips that were compressed, replaced or damaged since are left
        as they are. `current` tells where the frames are now.
        """
        freed = 0
        with LOCKS.hold(self.path):
            for take in self._unchanged(records):
                old = take.files["video"]
                new = old if old.name.endswith(COMPRESSED) else self._compress(take, self.path / old.name, progress)
                self._sweep(take.index)
                freed += 0 if (self.path / old.name).exists() else old.bytes - new.bytes
        return freed

    def drop_videos(self, records: Sequence[ClipRecord]) -> int:
        """Delete these clips' frames; latents and memory stay, from which Save Clip decodes them again when asked.

        Clips that were replaced or damaged since are left as they are. Returns the bytes that were freed.
        """
        dropped = []
        with LOCKS.hold(self.path):
            for take in self._unchanged(records):
                files = {kind: stored for kind, stored in take.files.items() if kind != "video"}
                self._update(replace(take, status="dropped", files=files))
                dropped.append(take.files["video"])
            for record in records:
                self._sweep(record.index)  # also what a kill has left
        return sum(stored.bytes for stored in dropped if not (self.path / stored.name).exists())

    def current(self, record: ClipRecord) -> ClipRecord:
        """The record with the file that holds its frames now; RuntimeError when there is none any more.

        Then the folder counts as changed, and the next prompt makes the frames again.
        """
        take = self._find(record.index, lambda take: take.digest == record.digest and "video" in self.intact(take))
        if take is None:
            self.seen.missed(self.path / record.video_file)
            raise RuntimeError(message(
                f"The film needs the frames of clip {record.index}", f"none that are as they were in {self.path}",
                "the clip as it was saved",
                "Queue again: they are decoded from the clip's latents, or the clip is rendered anew."))
        return self.record(take)

    def _compress(self, take: Take, source: Path, progress: Progress) -> StoredFile:
        def write(path: Path) -> None:
            compress_video(source, path, take.frames, exact_fps(take.fps), progress)

        return self._put(take, "video", take.file_name(COMPRESSED), write).files["video"]

    def _unchanged(self, records: Sequence[ClipRecord]) -> list[Take]:
        """The finished takes that these records speak of, as far as their frames are what they were."""
        listed = {(take.index, take.digest): take for take in self.takes() if take.status == "done"}
        takes = [listed[key] for record in records if (key := (record.index, record.digest)) in listed]
        return [take for take in takes if "video" in self.intact(take)]

    def _take_up(self, take: Take, fingerprint: str) -> Take:
        files, status = self.intact(take), take.status
        if files != take.files:
            made = "memory" if "memory" in files else "latents" if "latents" in files else STATUSES[0]
            status = "dropped" if status in FINISHED else made
        return self._update(replace(take, fingerprint=fingerprint, files=files, status=status))

    def _put(self, take: Take, kind: str, name: str, write: Callable[[Path], object]) -> Take:
        with LOCKS.hold(self.path):
            temporary = self.path / f"{name}.tmp"
            try:
                made = write(temporary)
                stored = StoredFile(name, temporary.stat().st_size, file_sha256(temporary))
                flush(temporary)
                patiently(os.replace, temporary, self.path / name)
            finally:
                discard(temporary)
            flush_folder(self.path)
            self.seen.wrote(self.path / name, stored.sha256)
            status = kind if kind in STATUSES and take.status not in FINISHED else take.status
            take = replace(take, status=status, files={**take.files, kind: stored})
            if kind == "video" and made is not None:
                take = replace(take, frames=made.frames, fps=float(made.fps), width=made.width, height=made.height)
            return self._update(take)

    def _is_intact(self, stored: StoredFile) -> bool:
        return self.seen.is_intact(self.path / stored.name, stored)

    def _find(self, index: int, fits: Callable[[Take], bool]) -> Take | None:
        takes = sorted((take for take in self.takes() if take.index == index), key=lambda take: -take.take)
        return next((take for take in takes if fits(take)), None)

    def _update(self, take: Take) -> Take:
        self._write([t for t in self.takes() if (t.index, t.take) != (take.index, take.take)], take)
        return take

    def _write(self, others: list[Take], take: Take) -> None:
        write_card(self.path, take)
        write_manifest(self.path, [*others, take])

    def _sweep(self, index: int) -> None:
        """Delete the files of clip `index` that the manifest does not list."""
        takes = self.takes()
        listed = {stored.name for take in takes for stored in take.files.values()}
        listed |= {take.file_name(CARD) for take in takes}
        for path in self.path.glob(f"clip_{index:03d}.*"):
            if path.name not in listed:
                self.seen.removed(path)
                discard(path)  # where a player holds it open (Windows) the next sweep gets it


def open_folder(output: str, named: Sequence[str], run_name: str) -> RunFolder:
    """The run folder of this name (made when something is saved), its manifest made anew if it was lost.

    output: ComfyUI's output folder. named: the user's own places for run folders (places.run_root).
    """
    run = RunFolder(run_path(run_root(output, named), run_name))
    sentence = recover(run.path)
    if sentence:
        run.seen.tell(run.path, sentence)
    return run
