"""The picture of a memory: the film as a bar, one thumbnail per remembered chunk, drift, and bytes. Pillow only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

WIDTH, MARGIN, GAP, COLUMNS = 1200, 28, 14, 5
TILE = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
MAX_TILES = 60  # of a longer memory every so many chunks is shown
HEAD, CAPTION, BAR, LEAD = 26, 66, 30, 28
PALE = 0.5  # what is out of view fades to white by this
INK, FAINT, TRACK, PAPER = (28, 28, 32), (120, 120, 128), (226, 226, 230), (255, 255, 255)
COLOURS = {  # by role, and by kind of bytes
    "sink": (205, 120, 0), "anchor": (205, 120, 0), "pinned": (160, 50, 150), "retrieved": (20, 135, 85),
    "window": (35, 95, 190), "overlap": (35, 95, 190), "archive": (140, 150, 145),
}
MEANINGS = {
    "sink": "kept for ever", "anchor": "how the film began", "pinned": "how this shot began",
    "retrieved": "brought back, its prompt is like the newest", "window": "the last seconds",
    "overlap": "the next clip begins with these", "archive": "out of view, may be brought back",
}
SIZES = ((90, 90, 100), (35, 95, 190), (205, 120, 0), (20, 135, 85), (160, 50, 150), (120, 140, 130))
FULL_DISTANCE, FULL_COLOUR = 0.5, 20.0  # full length of the drift bars, unless a chunk needs more


@dataclass(frozen=True)
class Tile:
    """One remembered chunk or frame. picture: uint8 [h, w, 3]. start_s, end_s: its place in the film. caption: a line.
    distance, colour: drift from the reference (memory.drift), None where it is not known. stored: precision, place and
    size of what is held. prompt: in words, "" where nobody told it."""

    picture: torch.Tensor
    role: str
    start_s: float
    end_s: float
    caption: str = ""
    distance: float | None = None
    colour: float | None = None
    stored: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class Sheet:
    """Everything on the picture. film_s: length of the film so far. reference: what drift is measured from.
    sizes: bytes by kind as (name, bytes, in words). notes: lines under everything."""

    title: str
    subtitle: str
    film_s: float
    tiles: tuple[Tile, ...]
    reference: str = ""
    sizes: tuple[tuple[str, int, str], ...] = ()
    notes: tuple[str, ...] = field(default=())


def draw_sheet(sheet: Sheet) -> torch.Tensor:
    """[1, height, 1200, 3] float32, 0..1; as high as its tiles need."""
    image = Image.new("RGB", (WIDTH, _height(sheet)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 20), sheet.title, fill=INK, font=_font(28))
    draw.text((MARGIN, 58), sheet.subtitle, fill=FAINT, font=_font(16))
    y = _draw_film(draw, sheet, 96)
    y = _draw_tiles(image, draw, sheet, y + 14)
    y = _draw_sizes(draw, sheet, y)
    for line in _wrapped(draw, sheet.notes):
        draw.text((MARGIN, y), line, fill=INK, font=_font(16))
        y += 23
    return torch.from_numpy(np.asarray(image).copy())[None].float() / 255


def thumbnail(frame: torch.Tensor) -> torch.Tensor:
    """A frame [H, W, 3], float 0..1 or uint8, as wide as a tile of the sheet: uint8 [h, w, 3]."""
    pixels = frame if frame.dtype == torch.uint8 else (frame.float().clamp(0, 1) * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels.cpu().contiguous().numpy())
    height = max(1, round(TILE * frame.shape[0] / frame.shape[1]))
    return torch.from_numpy(np.asarray(image.resize((TILE, height), Image.Resampling.LANCZOS)).copy())


def evenly(items: tuple, limit: int = MAX_TILES) -> tuple:
    """At most so many of the items, the first and the last among them, evenly spread."""
    if len(items) <= limit:
        return items
    return tuple(items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit))


def _draw_film(draw: ImageDraw.ImageDraw, sheet: Sheet, y: int) -> int:
    """The film from its beginning to now, with what is remembered in colour; returns the y below the legend."""
    left, right = MARGIN, WIDTH - MARGIN
    draw.rectangle((left, y, right, y + BAR), fill=TRACK)
    across = (right - left) / max(sheet.film_s, 1e-6)
    for tile in sheet.tiles:
        x = left + across * tile.start_s
        draw.rectangle((x, y, max(x + 3, left + across * tile.end_s - 1), y + BAR), fill=COLOURS[tile.role])
    step = _nice(sheet.film_s / 8)
    for i in range(int(sheet.film_s / step + 1e-6) + 1 if sheet.film_s else 0):
        x = left + across * i * step
        draw.line((x, y + BAR, x, y + BAR + 5), fill=FAINT)
        anchor = "la" if i == 0 else "ra" if x > right - 12 else "ma"
        draw.text((x, y + BAR + 7), f"{i * step:g} s", fill=FAINT, font=_font(14), anchor=anchor)
    y, x = y + BAR + 34, left
    roles = [role for role in COLOURS if any(tile.role == role for tile in sheet.tiles)]
    for colour, text in [*((COLOURS[role], f"{role}: {MEANINGS[role]}") for role in roles),
                         (TRACK, "grey: forgotten" if sheet.tiles else "nothing is remembered")]:
        width = 22 + draw.textlength(text, font=_font(15))
        if x + width > right:
            x, y = left, y + 24
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=colour)
        draw.text((x + 20, y), text, fill=INK, font=_font(15))
        x += width + 22
    return y + 24


def _draw_tiles(image: Image.Image, draw: ImageDraw.ImageDraw, sheet: Sheet, y: int) -> int:
    height = _picture_height(sheet)
    if sheet.tiles:
        draw.text((MARGIN, y), f"One picture for each, in the order of the film. Bars: how far it is from "
                               f"{sheet.reference} (drift).", fill=FAINT, font=_font(15))
        y += LEAD
    scales = [max(full, *(getattr(tile, name) or 0 for tile in sheet.tiles)) if sheet.tiles else full
              for name, full in (("distance", FULL_DISTANCE), ("colour", FULL_COLOUR))]
    for i, tile in enumerate(sheet.tiles):
        x, top = MARGIN + i % COLUMNS * (TILE + GAP), y + i // COLUMNS * (HEAD + height + CAPTION)
        colour = COLOURS[tile.role]
        draw.rectangle((x, top, x + TILE - 1, top + HEAD + height + 2), fill=colour)
        draw.text((x + 8, top + HEAD / 2), tile.role, fill=PAPER, font=_font(16), anchor="lm")
        draw.text((x + TILE - 8, top + HEAD / 2), _span(tile), fill=PAPER, font=_font(15), anchor="rm")
        picture = Image.fromarray(tile.picture.numpy()).resize((TILE - 6, height), Image.Resampling.BICUBIC)
        if tile.role == "archive":
            picture = Image.blend(picture, Image.new("RGB", picture.size, PAPER), PALE)
        image.paste(picture, (x + 3, top + HEAD))
        draw.text((x, top + HEAD + height + 7), tile.caption, fill=FAINT, font=_font(13))
        for row, (name, value) in enumerate((("latents", tile.distance), ("colour", tile.colour))):
            if value is not None:
                _drift_bar(draw, x, top + HEAD + height + 25 + 16 * row, name, value, scales[row], colour)
    rows = -(-len(sheet.tiles) // COLUMNS)
    return y + rows * (HEAD + height + CAPTION)


def _drift_bar(draw: ImageDraw.ImageDraw, x: int, y: int, name: str, value: float, full: float,
               colour: tuple[int, int, int]) -> None:
    left, right = x + 54, x + TILE - 44
    draw.text((x, y), name, fill=FAINT, font=_font(13))
    draw.rectangle((left, y + 4, right, y + 11), fill=TRACK)
    draw.rectangle((left, y + 4, left + (right - left) * min(1.0, value / full), y + 11), fill=colour)
    draw.text((x + TILE, y), f"{value:.2f}" if name == "latents" else f"{value:.1f}", fill=INK, font=_font(13),
              anchor="ra")


def _draw_sizes(draw: ImageDraw.ImageDraw, sheet: Sheet, y: int) -> int:
    total = sum(count for _, count, _ in sheet.sizes)
    if not total:
        return y + 6
    left, right = MARGIN, WIDTH - MARGIN
    draw.text((left, y + 6), "bytes", fill=FAINT, font=_font(15))
    x, y = float(left), y + 28
    for i, (_, count, _) in enumerate(sheet.sizes):
        width = (right - left) * count / total
        draw.rectangle((x, y, x + width, y + 16), fill=SIZES[i % len(SIZES)])
        x += width
    x, y = left, y + 24
    for i, (name, _, words) in enumerate(sheet.sizes):
        text = f"{name}: {words}"
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=SIZES[i % len(SIZES)])
        draw.text((x + 18, y), text, fill=INK, font=_font(15))
        x += 18 + draw.textlength(text, font=_font(15)) + 26
    return y + 34


def _height(sheet: Sheet) -> int:
    """Found by drawing on nothing: text wraps."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows = -(-len(sheet.tiles) // COLUMNS)
    y = _draw_film(draw, sheet, 96) + 14 + bool(rows) * LEAD + rows * (HEAD + _picture_height(sheet) + CAPTION)
    return _draw_sizes(draw, sheet, y) + 23 * len(_wrapped(draw, sheet.notes)) + 20


def _picture_height(sheet: Sheet) -> int:
    ratios = [tile.picture.shape[0] / tile.picture.shape[1] for tile in sheet.tiles]
    return max(1, round((TILE - 6) * ratios[0])) if ratios else 0


def _span(tile: Tile) -> str:
    if tile.end_s - tile.start_s < 0.05:
        return f"{tile.start_s:.2f} s"
    return f"{tile.start_s:.1f} - {tile.end_s:.1f} s"


def _nice(step: float) -> float:
    """The next of 0.5, 1, 2, 5, 10, 20, 50, ... seconds."""
    power = 10.0 ** math.floor(math.log10(max(step, 0.05)))
    return max(0.5, next(power * unit for unit in (1, 2, 5, 10) if power * unit >= step - 1e-9))


def _wrapped(draw: ImageDraw.ImageDraw, notes: tuple[str, ...]) -> list[str]:
    lines = []
    for note in notes:
        line = ""
        for word in note.split():
            if draw.textlength(f"{line} {word}", font=_font(16)) > WIDTH - 2 * MARGIN:
                lines, line = [*lines, line], word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)
