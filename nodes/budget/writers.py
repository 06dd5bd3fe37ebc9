"""RAM of what writes video, measured: benchmarks/budget_ram.py."""

from __future__ import annotations

from ..common.types import TEMPORAL_STRIDE
from .coefficients import coefficients

WAN, FLOAT32 = coefficients("wan"), 4


def h264_ram_bytes(area: int) -> int:
    """RAM of x264 at work on frames of so many pixels: its own in 4:2:0, those on their way to it, its tables.

    H.265 and AV1 take more.
    """
    return int(WAN["encoder_frames"] * 1.5 * area + WAN["encoder_bytes"]) + TEMPORAL_STRIDE * 3 * area * FLOAT32


def ffv1_ram_bytes(area: int) -> int:
    """RAM of the lossless writer, with the frames on their way to it."""
    return int(WAN["ffv1_ram_bytes_per_pixel"] * area + WAN["encoder_bytes"])
