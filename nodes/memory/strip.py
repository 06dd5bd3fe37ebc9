"""What the memory strip in the graph editor shows: every chunk of a sheet as plain data, its picture by file name."""

from __future__ import annotations

from collections.abc import Sequence

from .sheet import MEANINGS, Sheet

STRIP = "videomemory_strip"  # the key in the node's ui output


def strip_of(sheet: Sheet, pictures: Sequence[dict]) -> dict:
    """{"title", "sizes": ["K/V int8 in RAM: 3.2 MB", ...], "chunks": [...]}, ready for JSON.

    pictures: one per tile, as ComfyUI's /view is asked for it. A chunk has role, means, start_s, end_s, stored, prompt,
    distance, colour and picture.
    """
    chunks = []
    for tile, picture in zip(sheet.tiles, pictures, strict=True):
        facts = {key: value for key, value in vars(tile).items() if key not in ("picture", "caption")}
        chunks.append({**facts, "means": MEANINGS[tile.role], "picture": dict(picture)})
    return {"title": sheet.title, "sizes": [f"{name}: {words}" for name, _, words in sheet.sizes], "chunks": chunks}
