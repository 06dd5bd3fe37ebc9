"""Clips that are kept but seldom read: their lossless frames as H.264, at about half the size and no visible loss.

H.264 in RGB (libx264rgb) at a fixed quantiser: no colour is converted, so every reader gives back the same colours.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..common.errors import message
from ..common.progress import SILENT, Progress
from .encode import read_frames

COMPRESSED = ".h264.mkv"  # ending of a compressed clip's file
QP = 12  # 49.6 dB on moving noise, 52 % of FFV1's size (640x352, 24 frames)


def compress_video(source: Path, target: Path, frames: int, fps: Fraction, progress: Progress = SILENT) -> None:
    """Write the `frames` frames of `source` as H.264 in Matroska; RuntimeError when it has another number of them."""
    count = 0
    with av.open(str(target), "w", format="matroska") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"qp": str(QP), "preset": "medium"})
        stream.pix_fmt, stream.time_base = "rgb24", 1 / fps
        for frame in read_frames(source):
            progress.check_cancel()
            if not count:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.numpy()), format="rgb24")
            picture.pts, picture.time_base = count, 1 / fps
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode(None))
    if count != frames:
        raise RuntimeError(message(f"A clip is compressed as a whole, {frames} frames", f"{count} frames in {source}",
                                   "the clip as Save Clip left it", "Delete the file and render the clip again."))
