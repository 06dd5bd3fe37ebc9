"""The run folder's manifest: which takes of which clips there are, which files belong to them, and their checksums.

One JSON file that a person can read. A Take is one attempt at one clip; the run folder decides what happens to it.
Beside the files of every take lies its card, the take's entry in the manifest once more (clip_000.json): should the
manifest be lost, the cards are the film.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..common.disk import discard, patiently
from ..common.errors import message
from ..common.types import ClipRecord

FORMAT = "videomemory-run"
VERSION = 2
READ_VERSIONS = (1, 2)  # 1 knew no seconds
MANIFEST = "manifest.json"
CARD = ".json"
KINDS = {"latents": ".latents.safetensors", "memory": ".memory.safetensors", "video": ".mkv"}
STATUSES = ("started", "latents", "memory", "done", "dropped")
FINISHED = ("done", "dropped")  # only a finished take replaces these; dropped: its frames are to be decoded again


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
    line for people (the clip's prompt). seconds: what sampling and decoding took. cuts: see types.ClipRecord.
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
    seconds: float = 0.0
    cuts: int = 0

    def file_name(self, suffix: str) -> str:
        """The name that a file of this take has in the run folder."""
        return f"clip_{self.index:03d}{f'.take{self.take}' if self.take > 1 else ''}{suffix}"


def read_manifest(folder: Path) -> list[Take]:
    """All takes, in clip order; ValueError for a manifest that is not ours, RuntimeError for an unreadable one."""
    try:
        text = patiently((folder / MANIFEST).read_text, encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeError(_refusal(folder, f"an error ({error})")) from error
    try:
        return _takes_of(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_refusal(folder, f"something else ({error})")) from error


def write_manifest(folder: Path, takes: list[Take]) -> None:
    """Replace the manifest in one step."""
    clips = [asdict(take) for take in sorted(takes, key=lambda take: (take.index, take.take))]
    _write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, "run_name": folder.name, "clips": clips})


def write_card(folder: Path, take: Take) -> None:
    """Replace a take's card in one step; to be done before the manifest says the same."""
    _write_json(folder / take.file_name(CARD), {"format": FORMAT, "version": VERSION, "clips": [asdict(take)]})


def recover(folder: Path) -> str:
    """Make a lost or illegible manifest anew from the cards; a sentence about it, "" where there was nothing to do.

    A manifest that is JSON, ours or not, is left alone. The files that the cards list are checked when they are used.
    """
    if _is_json(folder / MANIFEST):
        return ""
    takes = [take for path in sorted(folder.glob(f"clip_*{CARD}")) for take in _read_card(path)]
    if not takes:
        return ""
    write_manifest(folder, takes)
    clips = len({take.index for take in takes})
    return f"The manifest of {folder} was lost; it was made anew from the cards of {clips} clip{'s' * (clips > 1)}."


def _is_json(path: Path) -> bool:
    try:
        json.loads(patiently(path.read_bytes))
        return True
    except PermissionError:
        return True  # somebody holds it: it may well be whole
    except (OSError, ValueError):
        return False


def _read_card(path: Path) -> list[Take]:
    try:
        return _takes_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # not a card, or illegible too: that take is lost


def _write_json(path: Path, document: dict) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        flush(temporary)
        patiently(os.replace, temporary, path)
    finally:
        discard(temporary)
    flush_folder(path.parent)


def flush(path: Path) -> None:
    """Make a file's bytes durable."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Make the rename itself durable; Windows has no handle for that and needs none."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def record_of(folder: Path, take: Take) -> ClipRecord:
    """The finished take as other nodes see it."""
    return ClipRecord(take.index, str(folder), take.files["latents"].name, take.files["video"].name, take.frames,
                      take.fps, take.width, take.height, take.digest, take.cuts)


def _refusal(folder: Path, got: str) -> str:
    return message(
        f"The run folder {str(folder)!r} needs a manifest of this pack", got,
        f"{MANIFEST} with format {FORMAT!r}, version {' or '.join(map(str, READ_VERSIONS))}",
        "Nothing in the folder was changed: move the folder away, or use another run name.")


def _takes_of(text: str) -> list[Take]:
    document = json.loads(text)
    if document["format"] != FORMAT or document["version"] not in READ_VERSIONS:
        raise KeyError(f"format {document['format']!r} version {document['version']!r}")
    return [_take_from_json(entry) for entry in document["clips"]]


def _take_from_json(entry: dict) -> Take:
    files = {kind: StoredFile(**stored) for kind, stored in entry["files"].items()}
    plain = all(Path(stored.name).name == stored.name for stored in files.values())
    if entry["status"] not in STATUSES or not plain:
        raise ValueError(f"clip {entry['index']!r}")
    return Take(**{**entry, "files": files})
