"""Decode a Wan clip in spatial tiles that equal the whole frame: no seams at any size, at the VRAM of one tile.

What looks at the whole frame in the decoder, the attention of its low-resolution middle block, runs whole and is cheap
(1/64 or 1/256 of the pixels). Everything after it is convolutions and runs tile by tile. A tile is computed with a
margin as wide as the remaining convolutions can see; what lies beyond the margin cannot change the tile. The margin
shrinks from layer to layer, so that the expensive last layers work on little more than the tile. At the edges of the
frame there is no margin: there the decoder's own zero padding is what the whole frame would have had.

Every tile is decoded through the whole clip (its caches are causal in time) into one buffer of the clip's frames on the
CPU; the last tile completes the frames one after the other. The other order, all tiles of a frame first, would carry
every tile's caches to RAM and back for every latent: 3.6 KB per pixel against 6 bytes per pixel and frame here.

Layouts: latents [1, C, T, h, w], frames [n, H, W, 3] float32 in 0..1.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator

import torch

from ..common.progress import SILENT
from ..common.types import TEMPORAL_STRIDE
from .decode import WanDecoderTraits, calls_of, frame_count, frames_of, joined, new_caches, require_traits

Span = tuple[int, int]  # [start, stop)


@torch.no_grad()
def stream_decode_tiled(
    vae: torch.nn.Module,
    latents: torch.Tensor,
    context: torch.Tensor | None,
    tile_latents: int,
    check_cancel: Callable[[], None] = SILENT.check_cancel,
    parked: bool = False,
) -> Iterator[torch.Tensor]:
    """Yield the frames of `latents` at most four at a time, decoded in tiles; arguments as decode.stream_decode.

    tile_latents: side of a tile in latent pixels. Equals stream_decode up to the rounding of other convolution sizes
    and of the buffer (16 bits a value). The first frames leave as soon as the last tile has them.
    """
    traits = require_traits(vae, latents)
    film = latents if context is None else torch.cat([context.to(latents), latents], dim=2)
    total = frame_count(latents.shape[2], 0 if context is None else context.shape[2])
    middle = _run_middle(vae, traits, film, check_cancel)
    scale = _scale(vae.decoder) * traits.patch
    height, width = film.shape[3:]
    tiles = list(itertools.product(tile_spans(height, tile_latents), tile_spans(width, tile_latents)))
    buffer = torch.empty(total if len(tiles) > 1 else 0, height * scale, width * scale, 3, dtype=torch.int16)
    for number, (rows, columns) in enumerate(tiles, 1):
        area = (slice(None), *(slice(start * scale, stop * scale) for start, stop in (rows, columns)))
        start, drop = 0, frame_count(film.shape[2], 0) - total
        for frames in _decode_tile(vae, traits, middle, rows, columns, film, check_cancel, parked):
            new = frames[drop:]
            drop = max(0, drop - len(frames))
            stop = start + len(new)
            if number < len(tiles):
                buffer[start:stop][area] = _write(new)
            elif len(new):
                yield from _completed(buffer[start:stop], new, area)
            start = stop


def _completed(buffered: torch.Tensor, last: torch.Tensor, area: tuple[slice, ...]) -> Iterator[torch.Tensor]:
    """The frames whose last tile has come, at most four at a time: what the buffer holds of them, and that tile."""
    if not len(buffered):  # there is one tile
        yield from last.split(TEMPORAL_STRIDE)
        return
    for first in range(0, len(last), TEMPORAL_STRIDE):
        frames = _read(buffered[first : first + TEMPORAL_STRIDE])
        frames[area] = last[first : first + TEMPORAL_STRIDE].cpu()
        yield frames


def tiled_buffer_bytes(frames: int, height: int, width: int) -> int:
    """RAM that stream_decode_tiled holds for a clip's frames, 16 bits a value."""
    return frames * height * width * 3 * 2


def middle_bytes(latents: int, height: int, width: int, channels: int, dtype_bytes: int) -> int:
    """RAM that stream_decode_tiled holds for the middle block's output; channels: of the decoder's first layer."""
    return latents * height * width * channels * dtype_bytes


def tile_spans(size: int, tile: int) -> list[Span]:
    """Evenly sized tiles of at most `tile` that cover `size` without overlap."""
    count = math.ceil(size / tile)
    edges = [round(i * size / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def layer_spans(steps: list[list[int]], span: Span, size: int) -> list[Span]:
    """What each layer must be given so that `span` of the last one's output is right, first layer first; then `span`.

    steps: per layer, in order, 0 for a doubling of the resolution or the pixels that a convolution sees to each side.
    span: in pixels of the last layer's output. size: of the first layer's input.
    """
    scale = 2 ** sum(step == 0 for layer in steps for step in layer)
    spans = [span]
    for layer in reversed(steps):
        start, stop = spans[0]
        for step in reversed(layer):
            if step == 0:
                scale //= 2
                start, stop = start // 2, -(-stop // 2)
            else:
                start, stop = max(0, start - step), min(size * scale, stop + step)
        spans.insert(0, (start, stop))
    return spans


def _run_middle(vae: torch.nn.Module, traits: WanDecoderTraits, film: torch.Tensor,
                check_cancel: Callable[[], None]) -> list[torch.Tensor]:
    """The middle block's output for every latent, [1, C, 1, h, w] each, on the CPU."""
    front = _part(vae.decoder, upsamples=torch.nn.Sequential(), head=torch.nn.Sequential())
    caches: list = [None] * traits.cache_slots
    middle = []
    for start, stop in calls_of(film.shape[2], traits, film.shape[3] * film.shape[4]):
        check_cancel()
        out = joined(front(vae.conv2(film[:, :, start:stop]), feat_cache=caches, feat_idx=[0]))
        middle.extend(out.to("cpu").split(1, dim=2))
    return middle


def _decode_tile(vae: torch.nn.Module, traits: WanDecoderTraits, middle: list[torch.Tensor], rows: Span, columns: Span,
                 film: torch.Tensor, check_cancel: Callable[[], None], parked: bool) -> Iterator[torch.Tensor]:
    """The frames of one tile of the whole film, call by call; rows, columns: in latent pixels."""
    decoder, scale = vae.decoder, _scale(vae.decoder)
    layers = list(decoder.upsamples)
    steps = [*map(_steps, layers), _steps(decoder.head)]
    spans = [layer_spans(steps, (start * scale, stop * scale), size)
             for (start, stop), size in ((rows, film.shape[3]), (columns, film.shape[4]))]
    cropped: list[torch.nn.Module] = []
    for i, layer in enumerate(layers):
        doubled = 2 ** steps[i].count(0)
        cropped += [layer, _Crop(*(_within(axis[i + 1], axis[i][0] * doubled) for axis in spans))]
    back = _part(decoder, conv1=_Through(), middle=torch.nn.Sequential(), upsamples=torch.nn.Sequential(*cropped))
    last = _Crop(*(_within(axis[-1], axis[-2][0]) for axis in spans))
    (top, bottom), (left, right) = spans[0][0], spans[1][0]
    caches = new_caches(traits.cache_slots + 1, parked)  # and the pass-through's
    for start, stop in calls_of(film.shape[2], traits, film.shape[3] * film.shape[4]):  # a small tile saves VRAM
        check_cancel()
        piece = torch.cat([part[..., top:bottom, left:right] for part in middle[start:stop]], dim=2).to(film)
        options = {"first_chunk": True} if traits.marks_first and start == 0 else {}
        out = joined(back(piece, feat_cache=caches, feat_idx=[0], **options))
        yield frames_of(last(out), traits.patch)


class _Through(torch.nn.Module):
    """Stands for the decoder's first convolution where the middle block has run already."""

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return x


class _Crop(torch.nn.Module):
    """Cuts off the margin that the layers behind it no longer need."""

    def __init__(self, rows: Span, columns: Span) -> None:
        super().__init__()
        self.area = (..., slice(*rows), slice(*columns))

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return x[self.area]


def _part(decoder: torch.nn.Module, **modules: torch.nn.Module) -> torch.nn.Module:
    """The same decoder, its weights shared, with some of its parts exchanged."""
    part = copy.copy(decoder)
    part._modules = {**decoder._modules, **modules}
    return part


def _steps(layer: torch.nn.Module) -> list[int]:
    """As layer_spans takes them: the layer's doublings and spatial convolutions in the order in which they run."""
    steps = []
    for module in layer.modules():
        if isinstance(module, torch.nn.Upsample):
            steps.append(0)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d) and module.kernel_size[-1] > 1:
            steps.append(module.kernel_size[-1] // 2)
    return steps


def _scale(decoder: torch.nn.Module) -> int:
    """Pixels of the decoder's output per latent pixel, without the patch."""
    return 2 ** sum(_steps(layer).count(0) for layer in decoder.upsamples)


def _within(span: Span, origin: int) -> Span:
    return span[0] - origin, span[1] - origin


def _write(frames: torch.Tensor) -> torch.Tensor:
    """0..1 -> int16, all 65536 steps of it: a float16 of the same size keeps 2000 steps near 1."""
    return (frames * 65535.0 - 32768.0).round().to("cpu", torch.int16)


def _read(buffered: torch.Tensor) -> torch.Tensor:
    return (buffered.float() + 32768.0) / 65535.0
