"""Video files: bit-exact clips, films that play with the right rate, count and colours, and no half files."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from pack.nodes.video import codecs
from pack.nodes.video.codecs import CODECS, require_encoder
from pack.nodes.video.encode import VideoFacts, read_frames, to_uint8, write_ffv1, write_mp4

TAGS = {"h264": "avc1", "h265": "hvc1", "av1": "av01"}


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


@pytest.mark.parametrize(("codec", "fps"), [
    *(("h264", fps) for fps in (8.0, 24.0, 23.976, 12.5, 29.97, 60.0)), ("h265", 23.976), ("h265", 12.5),
    ("av1", 23.976), ("av1", 12.5)])
def test_mp4_has_the_count_rate_and_duration(tmp_path, codec, fps):
    facts = write_mp4(tmp_path / "film.mp4", [noise(25, 64, 64)], fps, codec=codec)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == facts.fps and stream.frames == 25
        assert stream.duration * stream.time_base == 25 / facts.fps
        times = sorted(frame.pts * frame.time_base for frame in container.decode(stream))
    assert times == [i / facts.fps for i in range(25)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("colour", [(200, 30, 40), (20, 180, 60), (30, 60, 220), (250, 250, 250), (5, 5, 5)])
def test_mp4_colours_survive_and_are_tagged(tmp_path, codec, colour):
    write_mp4(tmp_path / "film.mp4", [flat(colour)], 8, crf=1, codec=codec)
    with av.open(str(tmp_path / "film.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert context.codec_tag == TAGS[codec]  # Apple's players know H.265 by no other
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p"
        stored = [np.frombuffer(plane, np.uint8)[0] for plane in next(container.decode(video=0)).planes]
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    wanted = 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748
    assert stored == pytest.approx(wanted, abs=2)  # the planes themselves: old PyAV reads them with other primaries


@pytest.mark.parametrize("codec", CODECS)
def test_mp4_can_start_before_it_is_all_there(tmp_path, codec):
    write_mp4(tmp_path / "film.mp4", [noise(8, 64, 64)], 8, codec=codec)
    data = (tmp_path / "film.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_are_made_even_by_the_edge(tmp_path):
    facts = write_mp4(tmp_path / "film.mp4", [flat((90, 120, 200), height=37, width=91)], 8, crf=1)
    assert (facts.width, facts.height) == (92, 38)
    frame = next(read_frames(tmp_path / "film.mp4")).int()
    assert frame.shape == (38, 92, 3) and (frame - frame[0, 0]).abs().max() <= 2


def waves(frames: int, height: int, width: int) -> torch.Tensor:
    """Moving waves with a little noise: something like a film."""
    y, x, t = torch.meshgrid(torch.arange(height), torch.arange(width), torch.arange(frames), indexing="ij")
    level = torch.sin(x / 7 + t / 3) * torch.cos(y / 11 - t / 5) * 90 + 120
    level = level + 4 * torch.randn(level.shape, generator=torch.manual_seed(3))
    return level.clamp(0, 255).byte().permute(2, 0, 1)[..., None].expand(-1, -1, -1, 3).contiguous()


def psnr_of(path, frames: torch.Tensor) -> float:
    made = torch.stack(list(read_frames(path))).float()
    return float(10 * torch.log10(255**2 / (made - frames.float()).square().mean()))


@pytest.mark.parametrize("codec", CODECS)
def test_lower_crf_is_closer(tmp_path, codec):
    frames, found = waves(6, 96, 128), []
    for crf in (8, 24, 44):
        write_mp4(tmp_path / "film.mp4", [frames], 8, crf=crf, codec=codec)
        found.append(psnr_of(tmp_path / "film.mp4", frames))
    assert found == sorted(found, reverse=True) and found[0] > found[2] + 6


@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_quality_means_about_the_same_whatever_the_codec(tmp_path, codec):
    frames = waves(16, 192, 256)
    for name in ("h264", codec):
        write_mp4(tmp_path / f"{name}.mp4", [frames], 24, crf=20, codec=name)
    assert psnr_of(tmp_path / f"{codec}.mp4", frames) == pytest.approx(psnr_of(tmp_path / "h264.mp4", frames), abs=3)


def test_every_encoder_gets_a_number_that_it_takes():
    assert [CODECS["h264"].crf(q) for q in (0, 18, 51)] == [0, 18, 51]
    assert [CODECS["h265"].crf(q) for q in (0, 18, 51)] == [0, 18, 51]
    assert [CODECS["av1"].crf(q) for q in (0, 18, 23, 51)] == [1, 14, 30, 63]


def test_a_codec_that_this_pyav_lacks_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(codecs, "CODECS", {**CODECS, "av1": replace(CODECS["av1"], encoder="libnothing")})
    with pytest.raises(ValueError, match="'av1', which this installation of PyAV cannot encode; allowed: h264, h265"):
        write_mp4(tmp_path / "film.mp4", [noise(1, 64, 64)], 8, codec="av1")
    with pytest.raises(ValueError, match="'vp9', which is no codec; allowed: h264, h265"):
        require_encoder("vp9")
    assert not list(tmp_path.iterdir())


def test_frames_too_small_for_an_encoder_are_refused_at_the_first_one(tmp_path):
    with pytest.raises(ValueError, match="encoder libx265 refuses the film, but got frames of 8x6"):
        write_mp4(tmp_path / "film.mp4", [noise(1, 6, 8)], 8, codec="h265")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("channels", "rate", "seconds", "kept"), [
    (1, 44100, 9.0, 44100), (2, 48000, 1.25, 48000), (2, 37800, 9.0, 48000), (1, 192000, 1.5, 48000)])
def test_sound_is_muxed_and_cut_at_the_end(tmp_path, channels, rate, seconds, kept):
    """At its own rate where AAC has it; from any other it is resampled, as high and as long as before."""
    tone = torch.sin(torch.arange(int(rate * seconds)) * (2 * np.pi * 440 / rate)) * 0.5
    audio = {"waveform": tone.expand(1, channels, -1), "sample_rate": rate}
    write_mp4(tmp_path / "film.mp4", [noise(24, 64, 64)], 12, audio=audio)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.codec.name, stream.rate, stream.channels) == ("aac", kept, channels)
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)[0]
    assert abs(len(heard) / kept - min(2.0, seconds)) < 0.05
    middle = heard[len(heard) // 4 : len(heard) // 2]
    peak = np.abs(np.fft.rfft(middle)).argmax() * kept / len(middle)
    assert abs(peak - 440) < 10


def test_resampled_sound_stays_in_step_with_the_picture(tmp_path):
    """A click every half second lies where it was, to 2 ms."""
    wave = torch.zeros(1, 1, 37800 * 3)
    clicks = [18900 * n + 9450 for n in range(6)]
    for click in clicks:
        wave[..., click : click + 20] = 0.9
    write_mp4(tmp_path / "film.mp4", [noise(36, 64, 64)], 12, audio={"waveform": wave, "sample_rate": 37800})
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = list(container.decode(audio=0))
    heard = np.abs(np.concatenate([frame.to_ndarray() for frame in frames], axis=1)[0])
    start = float(frames[0].pts * frames[0].time_base)
    for click in clicks:
        wanted = click / 37800
        near = slice(int((wanted - start - 0.1) * 48000), int((wanted - start + 0.1) * 48000))
        assert (near.start + heard[near].argmax()) / 48000 + start == pytest.approx(wanted, abs=0.002)


@pytest.mark.parametrize("codec", CODECS)
def test_metadata_lies_where_the_editor_looks_for_it(tmp_path, codec):
    """The editor reads no more than the first 64 MB, and there moov / udta / meta / keys + ilst."""
    texts = {"workflow": '{"nodes": [{"title": "\u00e4\u4e2d"}]}', "prompt": '{"1": {"class_type": "X"}}'}
    write_mp4(tmp_path / "film.mp4", [noise(2, 64, 64)], 8, metadata=texts, codec=codec)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert {name: container.metadata[name] for name in texts} == texts
    data = (tmp_path / "film.mp4").read_bytes()
    moov = boxes(data)["moov"]
    meta = boxes(boxes(moov)["udta"])["meta"][4:]  # 4: version and flags
    keys, names = boxes(meta)["keys"][8:], []
    while keys:
        size = int.from_bytes(keys[:4], "big")
        names.append(keys[8:size].decode())
        keys = keys[size:]
    items = boxes(meta)["ilst"]
    for number, name in enumerate(names, start=1):
        if name in texts:
            item = boxes(items)[number.to_bytes(4, "big").decode("latin-1")]
            assert boxes(item)["data"][8:].decode() == texts[name]
    assert set(texts) <= set(names)


def boxes(data: bytes) -> dict[str, bytes]:
    """What is inside an MP4 box: each box's content by type. Source: ISO/IEC 14496-12, 4.2."""
    found = {}
    while len(data) >= 8:
        size = int.from_bytes(data[:4], "big")
        found[data[4:8].decode("latin-1")] = data[8:size]
        data = data[size:]
    return found


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


@pytest.mark.parametrize("rate", [0, -44100])
def test_a_sample_rate_that_is_none_is_refused(tmp_path, rate):
    audio = {"waveform": torch.zeros(1, 2, 8), "sample_rate": rate}
    with pytest.raises(ValueError, match=f"needs a sample rate, but got '?{rate} Hz'?; allowed: more than 0"):
        write_mp4(tmp_path / "film.mp4", [torch.zeros(1, 16, 16, 3)], 8.0, audio=audio)
    assert not list(tmp_path.iterdir())


def test_sound_with_holes_does_not_cost_the_film(tmp_path):
    wave = torch.full((1, 1, 16000), float("nan"))
    wave[..., ::2] = float("inf")
    write_mp4(tmp_path / "film.mp4", [noise(8, 64, 64)], 8, audio={"waveform": wave, "sample_rate": 16000})
    assert len(list(read_frames(tmp_path / "film.mp4"))) == 8


def test_more_than_two_channels_are_refused(tmp_path):
    audio = {"waveform": torch.zeros(1, 6, 9), "sample_rate": 8000}
    with pytest.raises(ValueError, match="must be mono or stereo, but got 6 channels"):
        write_mp4(tmp_path / "film.mp4", [noise(1, 64, 64)], 8, audio=audio)


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "clip.mkv").write_bytes(b"not a video")
    with pytest.raises(RuntimeError, match=r"clip.mkv' could not be read"):
        list(read_frames(tmp_path / "clip.mkv"))


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux alone has schedulers to choose")
@pytest.mark.parametrize("codec", CODECS)
def test_no_encoder_makes_comfyui_a_real_time_program(tmp_path, codec):
    """SVT-AV1 does, when root runs it."""
    seen = []

    def frames():
        for _ in range(3):
            seen.append((os.sched_getscheduler(0), os.sched_getparam(0).sched_priority))
            yield torch.zeros(2, 64, 64, 3, dtype=torch.uint8)

    write_mp4(tmp_path / "film.mp4", frames(), 8, codec=codec)
    seen.append((os.sched_getscheduler(0), os.sched_getparam(0).sched_priority))
    assert set(seen) == {seen[0]}
