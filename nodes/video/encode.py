"""Frames into files and back, one at a time: lossless FFV1 for clips, H.264, H.265 or AV1 for the finished film.

Frames are [H, W, 3] or [n, H, W, 3], uint8 or float in 0..1. A file is written under `<name>.tmp` and renamed when it
is complete; an exception or a cancel on the way (also from the iterator that brings the frames) leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace

from ..common.disk import discard, patiently
from ..common.errors import message
from ..interpolation.retime import exact_fps
from .codecs import require_encoder

StreamMaker = Callable[[av.container.OutputContainer, int, int], av.VideoStream]
BT709 = 1  # the number of BT.709 in ISO/IEC 23091-2 for primaries, transfer and matrix alike


@dataclass(frozen=True)
class VideoFacts:
    """What a written or probed video file holds."""

    frames: int
    fps: Fraction
    width: int
    height: int


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Frames as uint8 on the CPU; floats in 0..1 are rounded to the nearest of 256 steps."""
    if frames.dtype == torch.uint8:
        return frames.cpu()
    return frames.float().clamp(0.0, 1.0).mul(255.0).round().to("cpu", torch.uint8)


def write_ffv1(path: str | Path, frames: Iterable[torch.Tensor], fps: float | Fraction) -> VideoFacts:
    """Write frames losslessly (bit-exact RGB of 8 bits) as FFV1 version 3 in Matroska, every frame a key frame."""

    def stream(container: av.container.OutputContainer, width: int, height: int) -> av.VideoStream:
        out = container.add_stream("ffv1", rate=exact_fps(fps), options={
            "level": "3", "coder": "1", "context": "0", "g": "1", "slices": "4", "slicecrc": "1"})
        out.width, out.height, out.pix_fmt = width, height, "bgr0"
        return out

    return _write(Path(path), "matroska", {}, frames, exact_fps(fps), stream, None, {})


def write_mp4(
    path: str | Path,
    frames: Iterable[torch.Tensor],
    fps: float | Fraction,
    crf: int = 18,
    audio: dict | None = None,
    metadata: dict[str, str] | None = None,
    codec: str = "h264",
) -> VideoFacts:
    """Write frames as a film (yuv420p, BT.709, fast start) in MP4; H.264 plays everywhere.

    crf: 0 (best) to 51 on H.264's scale, whatever the codec, which is one of CODECS. An odd width or height is made
    even by repeating the last column or row: 4:2:0 has no odd sizes. audio: ComfyUI AUDIO {"waveform": [1, channels,
    samples] float in -1..1, "sample_rate"}, becomes AAC and is cut at the film's end. metadata: text that ComfyUI reads
    back when the file is dropped on it.
    """
    kind = require_encoder(codec)

    def stream(container: av.container.OutputContainer, width: int, height: int) -> av.VideoStream:
        options = {**kind.options, "crf": str(kind.crf(crf))}
        out = container.add_stream(kind.encoder, rate=exact_fps(fps), options=options)
        out.width, out.height, out.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = out.codec_context
        context.codec_tag = kind.tag
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = ColorRange.MPEG
        return out

    options = {"movflags": "+faststart+use_metadata_tags"}
    return _write(Path(path), "mp4", options, frames, exact_fps(fps), stream, audio, metadata or {})


def read_frames(path: str | Path) -> Iterator[torch.Tensor]:
    """Yield the frames of a video file in order, [H, W, 3] uint8; RuntimeError when the file is damaged."""
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        raise RuntimeError(message(
            f"The video file {str(path)!r} could not be read", f"the error {error}", "a complete video file",
            "Render the clip again: delete its file and queue the workflow.")) from error


def _write(
    path: Path,
    file_format: str,
    options: dict[str, str],
    frames: Iterable[torch.Tensor],
    fps: Fraction,
    make_stream: StreamMaker,
    audio: dict | None,
    metadata: dict[str, str],
) -> VideoFacts:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with av.open(str(temporary), "w", format=file_format, options=options) as container:
            container.metadata.update(metadata)
            writer = _Writer(container, make_stream, fps, audio)
            for chunk in frames:
                for frame in to_uint8(chunk).reshape(-1, *chunk.shape[-3:]):
                    writer.add(frame.numpy())
            facts = writer.close(path)
        patiently(os.replace, temporary, path)
    finally:
        discard(temporary)
    return facts


class _Writer:
    """One open container: encodes frames as they come and keeps the sound in step with them."""

    def __init__(
        self, container: av.container.OutputContainer, make_stream: StreamMaker, fps: Fraction, audio: dict | None
    ) -> None:
        self.container, self.make_stream, self.fps, self.audio = container, make_stream, fps, audio
        self.video: av.VideoStream | None = None
        self.sound: _AudioTrack | None = None
        self.size = (0, 0)
        self.frames = 0

    def add(self, pixels: np.ndarray) -> None:
        """Encode one [H, W, 3] uint8 frame; ValueError when its size differs from the first one's."""
        size = (pixels.shape[1], pixels.shape[0])
        if self.video is None:
            self._begin(size)
        elif size != self.size:
            raise ValueError(message(
                f"All frames of a video must be {self.size[0]}x{self.size[1]}, like its first",
                f"{size[0]}x{size[1]} at frame {self.frames}", "one size", "Render all clips of a film at one size."))
        context = self.video.codec_context
        if (context.width, context.height) != size:
            pixels = np.pad(pixels, ((0, context.height - size[1]), (0, context.width - size[0]), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        if context.pix_fmt == "yuv420p":
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        else:
            frame = frame.reformat(format=context.pix_fmt)
        frame.pts, frame.time_base = self.frames, 1 / self.fps
        self.container.mux(self.video.encode(frame))
        self.frames += 1
        if self.sound:
            self.sound.encode_until(self.frames / self.fps)

    def _begin(self, size: tuple[int, int]) -> None:
        self.video, self.size = self.make_stream(self.container, *size), size
        self.video.time_base = self.video.codec_context.time_base = 1 / self.fps
        self.sound = _AudioTrack(self.container, self.audio) if self.audio else None
        try:
            with _own_priority():
                self.video.codec_context.open()
        except av.FFmpegError as error:
            raise ValueError(message(
                f"The encoder {self.video.codec_context.name} refuses the film", f"frames of {size[0]}x{size[1]}",
                "sizes that it can encode: most want 64 pixels or more",
                "Enlarge the film, or choose another codec.")) from error

    def close(self, path: Path) -> VideoFacts:
        """Flush the encoders; ValueError when no frame ever came."""
        if self.video is None:
            raise ValueError(message(f"The video {path.name!r} needs frames", "none", "one frame or more",
                                     "Connect clips or images that are not empty."))
        self.container.mux(self.video.encode(None))
        if self.sound:
            self.sound.close()
        context = self.video.codec_context
        return VideoFacts(self.frames, self.fps, context.width, context.height)


@contextmanager
def _own_priority() -> Iterator[None]:
    """Keep the thread's scheduling: SVT-AV1, run by root, makes the thread that opens it a real-time one.

    So would be every process that ComfyUI starts from then on, and two busy ones of them stop a computer of two cores.
    """
    if not hasattr(os, "sched_getscheduler"):  # Linux alone has it
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


class _AudioTrack:
    """ComfyUI AUDIO as AAC, encoded in step with the video so that the muxer never has to hold much of either.

    A sample rate that AAC lacks becomes OTHER_RATE.
    """

    STEP = 1024  # samples per AAC frame
    OTHER_RATE = 48000

    def __init__(self, container: av.container.OutputContainer, audio: dict) -> None:
        waveform = audio["waveform"][0].float().cpu()  # [channels, samples]
        if waveform.shape[0] not in (1, 2):
            raise ValueError(message("The film's sound must be mono or stereo", f"{waveform.shape[0]} channels",
                                     "1 or 2 channels", "Mix the audio down first."))
        self.rate, self.done = int(audio["sample_rate"]), 0
        if self.rate <= 0:
            raise ValueError(message("The film's sound needs a sample rate", f"{audio['sample_rate']} Hz",
                                     "more than 0", "Load the sound again."))
        self.samples = waveform.nan_to_num().clamp(-1.0, 1.0).numpy()
        self.layout = "mono" if waveform.shape[0] == 1 else "stereo"
        self.container = container
        rate = self.rate if self.rate in av.codec.Codec("aac", "w").audio_rates else self.OTHER_RATE
        self.stream = container.add_stream("aac", rate=rate, layout=self.layout)

    def encode_until(self, seconds: Fraction) -> None:
        """Encode what sounds before `seconds`; PyAV resamples it to the stream's rate."""
        stop = min(self.samples.shape[1], int(seconds * self.rate))
        while self.done < stop:
            piece = self.samples[:, self.done : min(stop, self.done + self.STEP)]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, self.done, Fraction(1, self.rate)
            self.container.mux(self.stream.encode(frame))
            self.done += piece.shape[1]

    def close(self) -> None:
        """Flush the encoder."""
        self.container.mux(self.stream.encode(None))
