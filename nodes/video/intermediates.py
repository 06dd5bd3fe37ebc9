"""A film's clips around its assembly: where their frames lie now, and what becomes of them afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..common.progress import Progress
from ..common.types import ClipRecord
from .run_folder import RunFolder

INTERMEDIATES = ("keep", "compress", "delete")


def located(records: Sequence[ClipRecord]) -> tuple[ClipRecord, ...]:
    """The records with the files that hold their frames now; RuntimeError when a clip has lost them."""
    return tuple(RunFolder(record.folder).current(record) for record in records)


def settle(records: Sequence[ClipRecord], choice: str, progress: Progress) -> str:
    """Keep, compress or delete the frames of clips whose film is finished; a sentence for the report.

    Latents and memories stay in any case. The film is safe already: a disk that refuses is reported, not raised.
    """
    if choice == "keep":
        return ""
    freed = 0
    try:
        for folder, group in itertools.groupby(sorted(records, key=lambda record: record.folder),
                                               key=lambda record: record.folder):
            run, clips = RunFolder(folder), list(group)
            freed += run.compress_videos(clips, progress) if choice == "compress" else run.drop_videos(clips)
    except OSError as error:
        return f" The clips' frames could not all be dealt with ({error}): {freed / 1e6:.1f} MB freed."
    done = "compressed without visible loss" if choice == "compress" else "deleted; their latents stay"
    return f" The clips' frames were {done}: {freed / 1e6:.1f} MB freed."
