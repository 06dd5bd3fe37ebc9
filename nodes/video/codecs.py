"""The codecs that a film can have, all of them in MP4: H.264, H.265 and AV1.

MP4 for all three, because ComfyUI's editor restores the workflow from it whatever the codec, browsers play it, and the
index can stand in front (an editor that is handed a large file reads only its beginning).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import av

from ..common.errors import message


@dataclass(frozen=True)
class Codec:
    """How a film is encoded. encoder: FFmpeg's name. tag: of the track in MP4; Apple's players want H.265 as "hvc1".

    The user's quality is on H.264's scale, 0 (best) to 51. crf_at_23, crf_step: the encoder's own number for 23, and
    how much it changes per 1. crf_range: what the encoder takes.
    """

    encoder: str
    label: str
    tag: str
    options: Mapping[str, str]
    crf_at_23: float
    crf_step: float
    crf_range: tuple[int, int]

    def crf(self, quality: int) -> int:
        """The encoder's constant rate factor that looks like H.264's at `quality`."""
        lowest, highest = self.crf_range
        return max(lowest, min(highest, round(self.crf_at_23 + self.crf_step * (quality - 23))))


# AV1's scale measured on 32 frames each of an animated film (1280x720) and a camera film (640x272): x264's PSNR of luma
# at 18, 23, 28 (44.5/46.1, 41.5/43.5, 38.5/39.8 dB) is reached by SVT-AV1 at 11/18, 31/31, 49/45; x265's is equal to
# x264's at the same number within 0.4 dB up to 23, and 0.9 dB better at 28.
CODECS = {
    "h264": Codec("libx264", "H.264", "avc1", {"preset": "medium"}, 23, 1, (0, 51)),
    "h265": Codec("libx265", "H.265", "hvc1", {"preset": "medium", "x265-params": "log-level=error"}, 23, 1, (0, 51)),
    "av1": Codec("libsvtav1", "AV1", "av01", {"preset": "8"}, 30.5, 3.2, (1, 63)),
}


def require_encoder(name: str) -> Codec:
    """The codec `name`; ValueError when there is none, or when this PyAV was built without its encoder."""
    here = [known for known, codec in CODECS.items() if _has_encoder(codec)]
    if name not in here:
        why = "which this installation of PyAV cannot encode" if name in CODECS else "which is no codec"
        raise ValueError(message(
            "Assemble Short: codec", f"{name!r}, {why}", ", ".join(here),
            "Choose another codec, or install PyAV from its own packages (pip install av)."))
    return CODECS[name]


def _has_encoder(codec: Codec) -> bool:
    try:
        av.codec.Codec(codec.encoder, "w")
    except ValueError:  # av's UnknownCodecError
        return False
    return True
