"""Memory Report's content: a tile per remembered chunk or frame, drift from the film's beginning, and all in words.

Pictures are made one chunk at a time by a callable and shrunk at once: a long memory takes the room of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..common.progress import SILENT, Progress
from ..common.types import TEMPORAL_STRIDE, Anchor, MemoryBlock, VideoMemory
from ..sampling.presets import find_preset
from .contents import Remembered, film_seconds, in_words, reference_name, remembered, sizes, stored_as
from .drift import colour_distance, direction, latent_distance, mean_lab, statistics_of
from .sheet import MAX_TILES, Sheet, Tile, evenly, thumbnail
from .words import RESTING, size

FrameOf = Callable[[torch.Tensor], torch.Tensor]  # latents [C, n, h, w] of a chunk -> one frame [H, W, 3] float 0..1

HONEST = ("A new scene changes these numbers as much as drift does: compare chunks of one scene. Who is in the picture "
          "is not measured.")


def memory_report(memory: VideoMemory, frame_of: FrameOf, shows_colours: bool, notes: tuple[str, ...] = (),
                  progress: Progress = SILENT) -> tuple[Sheet, str]:
    """(what to draw, the report as text).

    frame_of: as FrameOf; called for one chunk at a time. shows_colours: whether its frames are decoded ones, whose
    colours mean something. notes: sentences from outside, on the model for instance.
    """
    is_latent = find_preset(memory.spec).strategy == "latent"
    tiles, words = _frame_tiles(memory) if is_latent else _chunk_tiles(memory, frame_of, shows_colours, progress)
    found = sizes(memory)
    lines = [*in_words(memory), *([_drift_line(tiles, memory, words), HONEST] if tiles else []), *notes]
    count = len(remembered(memory))
    if count > MAX_TILES:
        lines.append(f"{MAX_TILES} of {count} chunks are shown.")
    if not (is_latent or shows_colours) and tiles:
        lines.append("Pictures are previews of the latents: connect the VAE for real ones and for colour drift.")
    grid = memory.geometry
    sheet = Sheet(
        title=f"Remembered after clip {memory.clips_done} ({film_seconds(memory):.1f} s of film)",
        subtitle=f"{find_preset(memory.spec).label}" + (f", {grid.width}x{grid.height} latent pixels" if grid else ""),
        film_s=film_seconds(memory), tiles=tiles, reference=reference_name(memory),
        sizes=tuple((name, count, size(count)) for name, count in found.items()),
        notes=tuple(lines[2:]))
    return sheet, "\n".join([*lines, *_size_lines(memory, found), *_table(tiles)])


def _chunk_tiles(memory: VideoMemory, frame_of: FrameOf, shows_colours: bool,
                 progress: Progress) -> tuple[tuple[Tile, ...], str]:
    """The tiles, and in which direction the newest chunk's colour went."""
    found = evenly(remembered(memory))
    pictures, labs = [], []
    for i, one in enumerate(found):
        progress.check_cancel()
        frame = frame_of(one.block.latents)
        pictures.append(thumbnail(frame))
        labs.append(mean_lab(frame) if shows_colours else None)
        progress.update(i + 1, len(found))
    if not found:
        return (), ""
    first = [lab for one, lab in zip(found, labs, strict=True) if one.role == "sink"] or labs[:1]
    start = torch.stack(first).mean(0) if shows_colours else None
    tiles = tuple(_tile(memory, one, picture, None if start is None else colour_distance(start, lab))
                  for one, picture, lab in zip(found, pictures, labs, strict=True))
    newest = max(range(len(found)), key=lambda i: found[i].block.start)
    return tiles, direction(start, labs[newest]) if start is not None else ""


def _tile(memory: VideoMemory, one: Remembered, picture: torch.Tensor, colour: float | None) -> Tile:
    second, block = TEMPORAL_STRIDE / memory.spec.fps, one.block
    kv = block.kv
    stored = "no K/V" if kv is None or kv.is_gone else f"K/V {size(kv.nbytes)}"
    return Tile(picture, one.role, block.start * second, (block.start + block.length) * second,
                f"shot {block.shot + 1}, {stored}", one.distance, colour, _stored(block), block.text)


def _stored(block: MemoryBlock) -> str:
    """How a chunk's keys and values are held, with those of the negative prompt."""
    held = [kv for kv in (block.kv, block.negative_kv) if kv is not None and not kv.is_gone]
    if not held:
        return "no K/V: made again from the latents"
    return f"{stored_as(held[0])}, {size(sum(kv.nbytes for kv in held))}"


def _frame_tiles(memory: VideoMemory) -> tuple[tuple[Tile, ...], str]:
    """Tiles of a latent memory: the film's first frame, and the last frames, which the next clip begins with."""
    if memory.anchor is None:
        return (), ""
    start, frame_s, end = mean_lab(memory.anchor.frame), 1 / memory.spec.fps, film_seconds(memory)
    tiles = [Tile(thumbnail(memory.anchor.frame), "anchor", 0.0, frame_s, "the film's first frame", 0.0, 0.0,
                  f"picture and latents, {size(_anchor_bytes(memory.anchor))}")]
    statistics = memory.anchor.mean, memory.anchor.std
    newest = None if memory.tail is None else latent_distance(statistics, statistics_of([memory.tail]))
    count = len(memory.overlap)
    for i, frame in enumerate(memory.overlap):
        at = end - (count - i) * frame_s
        tiles.append(Tile(thumbnail(frame), "overlap", at, at + frame_s, f"{i + 1} of {count} before the next clip",
                          newest if i == count - 1 else None, colour_distance(start, mean_lab(frame)),
                          f"picture, {size(frame.nbytes)}", memory.text))
    return tuple(tiles), direction(start, mean_lab(memory.overlap[-1]))


def _anchor_bytes(anchor: Anchor) -> int:
    return anchor.frame.nbytes + anchor.latents.nbytes


def _drift_line(tiles: tuple[Tile, ...], memory: VideoMemory, words: str) -> str:
    newest = max(tiles, key=lambda tile: tile.end_s)
    parts = [] if newest.distance is None else [f"latents {newest.distance:.2f}"]
    if newest.colour is not None:
        parts.append(f"colour {newest.colour:.1f}" + (f" ({words})" if words else ""))
    return f"Drift of the newest from {reference_name(memory)}: {', '.join(parts)}."


def _size_lines(memory: VideoMemory, found: dict[str, int]) -> list[str]:
    lines = ["", *(f"{name}: {size(count)}" for name, count in found.items())]
    if any(name.startswith("K/V") for name in found):
        lines.append(f"Keys and values in view are {RESTING[memory.spec.placement]}.")
    return lines if found else []


def _table(tiles: tuple[Tile, ...]) -> list[str]:
    if not tiles:
        return []
    rows = ["", "seconds | role | what | drift of latents | drift of colour"]
    rows += [f"{tile.start_s:.2f} - {tile.end_s:.2f} | {tile.role} | {tile.caption} | {_number(tile.distance, 3)} | "
             f"{_number(tile.colour, 1)}" for tile in tiles]
    return rows


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
