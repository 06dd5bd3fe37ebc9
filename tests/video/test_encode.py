"""Video files: bit-exact clips, films that play with the right rate, count and colours, and no half files."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from pack.nodes.video.encode import VideoFacts, read_frames, to_uint8, write_ffv1, write_mp4


def noise(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(1))


def flat(colour: tuple[int, int, int], frames: int = 4, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(frames, height, width, 3).contiguous()


@pytest.mark.parametrize(("height", "width"), [(80, 128), (37, 91), (16, 18)])
def test_ffv1_gives_back_every_bit(tmp_path, height, width):
    frames = noise(7, height, width)
    facts = write_ffv1(tmp_path / "clip.mkv", [frames[:3], frames[3:4], frames[4:]], 8)
    assert facts == VideoFacts(7, Fraction(8), width, height)
    assert torch.equal(torch.stack(list(read_frames(tmp_path / "clip.mkv"))), frames)


def test_floats_are_rounded_not_cut(tmp_path):
    levels = torch.arange(256).float().div(255).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(levels + 0.4 / 255).flatten()[:-3], to_uint8(levels).flatten()[:-3])
    assert torch.equal(to_uint8(levels)[0, :, :, 0].flatten(), torch.arange(256, dtype=torch.uint8))
    assert to_uint8(torch.tensor([-1.0, 2.0])).tolist() == [0, 255]


@pytest.mark.parametrize("fps", [8.0, 24.0, 23.976, 12.5, 29.97, 60.0])
def test_mp4_has_the_count_rate_and_duration(tmp_path, fps):
    facts = write_mp4(tmp_path / "film.mp4", [noise(25, 48, 64)], fps)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == facts.fps and stream.frames == 25
        assert stream.duration * stream.time_base == 25 / facts.fps
        times = sorted(frame.pts * frame.time_base for frame in container.decode(stream))
    assert times == [i / facts.fps for i in range(25)]


@pytest.mark.parametrize("colour", [(200, 30, 40), (20, 180, 60), (30, 60, 220), (250, 250, 250), (5, 5, 5)])
def test_mp4_colours_survive_and_are_tagged(tmp_path, colour):
    write_mp4(tmp_path / "film.mp4", [flat(colour)], 8, crf=1)
    with av.open(str(tmp_path / "film.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p"
        stored = [np.frombuffer(plane, np.uint8)[0] for plane in next(container.decode(video=0)).planes]
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    wanted = 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748
    assert stored == pytest.approx(wanted, abs=2)  # the planes themselves: old PyAV reads them with other primaries


def test_mp4_can_start_before_it_is_all_there(tmp_path):
    write_mp4(tmp_path / "film.mp4", [noise(8, 64, 64)], 8)
    data = (tmp_path / "film.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_are_made_even_by_the_edge(tmp_path):
    facts = write_mp4(tmp_path / "film.mp4", [flat((90, 120, 200), height=37, width=91)], 8, crf=1)
    assert (facts.width, facts.height) == (92, 38)
    frame = next(read_frames(tmp_path / "film.mp4")).int()
    assert frame.shape == (38, 92, 3) and (frame - frame[0, 0]).abs().max() <= 2


def test_lower_crf_is_closer(tmp_path):
    frames = noise(4, 64, 64)
    errors = []
    for crf in (10, 40):
        write_mp4(tmp_path / "film.mp4", [frames], 8, crf=crf)
        errors.append((torch.stack(list(read_frames(tmp_path / "film.mp4"))).float() - frames.float()).abs().mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("channels", "rate", "seconds"), [(1, 44100, 9.0), (2, 48000, 1.25)])
def test_sound_is_muxed_and_cut_at_the_end(tmp_path, channels, rate, seconds):
    tone = torch.sin(torch.arange(int(rate * seconds)) * (2 * np.pi * 440 / rate)) * 0.5
    audio = {"waveform": tone.expand(1, channels, -1), "sample_rate": rate}
    write_mp4(tmp_path / "film.mp4", [noise(24, 64, 64)], 12, audio=audio)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.codec.name, stream.rate, stream.channels) == ("aac", rate, channels)
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)[0]
    assert abs(len(heard) / rate - min(2.0, seconds)) < 0.05
    middle = heard[len(heard) // 4 : len(heard) // 2]
    peak = np.abs(np.fft.rfft(middle)).argmax() * rate / len(middle)
    assert abs(peak - 440) < 10


def test_metadata_comes_back(tmp_path):
    write_mp4(tmp_path / "film.mp4", [noise(2, 64, 64)], 8, metadata={"workflow": '{"nodes": []}'})
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.metadata["workflow"] == '{"nodes": []}'


@pytest.mark.parametrize("write", [write_ffv1, write_mp4])
def test_failure_on_the_way_keeps_the_old_file_and_no_half_one(tmp_path, write):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")

    def frames():
        yield noise(3, 64, 64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, frames(), 8)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("frames", "text"), [
    ([], "needs frames, but got 'none'"),
    ([noise(1, 64, 64), noise(1, 64, 62)], r"must be 64x64, like its first, but got 62x64 at frame 1"),
])
def test_impossible_films_are_refused(tmp_path, frames, text):
    with pytest.raises(ValueError, match=text):
        write_mp4(tmp_path / "film.mp4", frames, 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [1, 192000])
def test_a_sample_rate_that_aac_lacks_is_refused(tmp_path, rate):
    audio = {"waveform": torch.zeros(1, 2, 8), "sample_rate": rate}
    with pytest.raises(ValueError, match=f"but got {rate} Hz; allowed: 7350, .*44100, 48000"):
        write_mp4(tmp_path / "film.mp4", [torch.zeros(1, 16, 16, 3)], 8.0, audio=audio)
    assert not list(tmp_path.iterdir())


def test_more_than_two_channels_are_refused(tmp_path):
    audio = {"waveform": torch.zeros(1, 6, 9), "sample_rate": 8000}
    with pytest.raises(ValueError, match="must be mono or stereo, but got 6 channels"):
        write_mp4(tmp_path / "film.mp4", [noise(1, 64, 64)], 8, audio=audio)


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "clip.mkv").write_bytes(b"not a video")
    with pytest.raises(RuntimeError, match=r"clip.mkv' could not be read"):
        list(read_frames(tmp_path / "clip.mkv"))
