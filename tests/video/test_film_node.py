"""Assemble Short with its codecs, joins, plan and what becomes of the clips, on real clips in a real run folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pack.nodes.common.types import MemorySpec, PhaseCost, RenderPlan, VideoClips
from pack.nodes.video.codecs import CODECS
from pack.nodes.video.encode import read_frames, write_ffv1
from pack.nodes.video.run_folder import RunFolder

pytestmark = pytest.mark.comfy

FRAMES, SIZE = 10, 96
PLAN = RenderPlan(SIZE, SIZE, 2, MemorySpec("toyworld", 8.0, 3, 3, 6), 0, 3, 0, (), ())


@pytest.fixture
def nodes_film(tmp_path, monkeypatch):
    pytest.importorskip("comfy.ops")
    import folder_paths
    from pack.nodes.video import nodes_film

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return nodes_film


@pytest.fixture(scope="module")
def rife():
    pytest.importorskip("comfy.ops")
    from pack.nodes.interpolation.nodes import LoadRife
    from pack.nodes.interpolation.weights import BUNDLED

    return LoadRife.execute(BUNDLED).args[0]


def texture(seed: int) -> torch.Tensor:
    """[3, 96, 400] a smooth random pattern; every seed has its own tint."""
    small = torch.rand(1, 1, 12, 50, generator=torch.manual_seed(seed))
    pattern = torch.nn.functional.interpolate(small, size=(SIZE, 400), mode="bicubic")[0].clamp(0, 1)
    return pattern * torch.tensor([1.0, 0.9, 0.8 / seed])[:, None, None] / (1 + seed / 8)


def moving(seed: int, start: int) -> torch.Tensor:
    """A texture that moves by 4 pixels per frame: [FRAMES, 96, 96, 3] uint8."""
    picture = (texture(seed) * 255).byte().permute(1, 2, 0)
    return torch.stack([picture[:, start + 4 * i : start + 4 * i + SIZE] for i in range(FRAMES)])


@pytest.fixture
def clips(tmp_path) -> VideoClips:
    """Three clips in a run folder: the second begins with the first one's last frame, the third is another shot."""
    run, records = RunFolder(tmp_path / "videomemory" / "film"), []
    for index, frames in enumerate((moving(1, 0), moving(1, 36), moving(5, 0))):
        take = run.begin(index, f"print{index}", f"digest{index}")
        take = run.put(take, "latents", lambda path: path.write_bytes(b"latents"))
        take = run.put(take, "video", lambda path, frames=frames: write_ffv1(path, [frames], 8))
        records.append(run.finish(take))
    return VideoClips(tuple(records))


def assemble(nodes_film, clips, **options):
    options = {"target_fps": 0.0, "enlarge": 1, "crf": 1, "filename_prefix": "video/short", **options}
    return nodes_film.AssembleShort.execute(clips, **options).args


def frames_of(path: str) -> torch.Tensor:
    return torch.stack(list(read_frames(path))).float()


def test_a_stutter_is_smoothed_by_default_and_a_cut_is_not(nodes_film, clips, rife):
    _, smooth, report = assemble(nodes_film, clips, rife=rife)
    _, plain, _ = assemble(nodes_film, clips, rife=rife, seams="off")
    smooth, plain = frames_of(smooth), frames_of(plain)
    changed = [i for i in range(3 * FRAMES) if (smooth[i] - plain[i]).abs().mean() > 1]
    assert changed == [FRAMES - 1, FRAMES] and "0|1 0.0" in report and "smoothed, 1|2 cut." in report
    steps = [(smooth[i + 1] - smooth[i]).abs().mean() for i in range(FRAMES + 2)]
    assert min(steps) > 0.5 * max(steps)
    repeated = (plain[FRAMES] - plain[FRAMES - 1]).abs().mean()
    assert repeated < 0.1 * max(steps)


def test_off_is_the_film_of_the_clips_frames(nodes_film, clips, rife):
    """Nothing but the encoder stands between the clips and the film."""
    _, path, report = assemble(nodes_film, clips, rife=rife, seams="off", crf=0)
    frames = torch.cat([moving(1, 0), moving(1, 36), moving(5, 0)]).float()
    assert (frames_of(path) - frames).abs().mean() < 2 and "Joins" not in report


def test_the_plan_says_how_many_frames_are_made_at_once(nodes_film, clips, rife, monkeypatch):
    from pack.nodes.interpolation.between import FrameMaker

    real, seen = FrameMaker.make, []
    monkeypatch.setattr(FrameMaker, "make", lambda self, tasks: seen.append(len(tasks)) or real(self, tasks))
    _, path, _ = assemble(nodes_film, clips, rife=rife, target_fps=16.0, plan=PLAN, seams="off")
    assert max(seen) == 3 and sum(seen) == 28 and len(seen) < 12 and len(frames_of(path)) == 6 * FRAMES
    seen.clear()
    assemble(nodes_film, clips, rife=rife, target_fps=16.0, plan=replace(PLAN, interpolation_batch=1), seams="off")
    assert set(seen) == {1}


def test_what_the_film_takes_is_measured_beside_its_plan(nodes_film, clips, rife, tmp_path, monkeypatch):
    """RIFE and the encoder with it; a film of another size is not what was planned."""
    import folder_paths
    from pack.nodes.budget.learned import read_records

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    phases = (PhaseCost("interpolation", 2**20, 2**20, parts=(("activations", 2**20),)), PhaseCost("encode", 0, 2**20))
    plan, file = replace(PLAN, phases=phases), tmp_path / "videomemory" / "budget.json"
    assemble(nodes_film, clips, plan=plan, enlarge=2)
    assert read_records(file) == ()
    assemble(nodes_film, clips, plan=plan)
    assert [record.phase for record in read_records(file)] == ["encode"]
    assemble(nodes_film, clips, rife=rife, plan=plan)
    assert [record.phase for record in read_records(file)] == ["encode", "interpolation", "encode"]


def test_a_full_card_costs_speed_and_not_the_film(nodes_film, clips, rife, monkeypatch):
    import comfy.model_management as mm
    from pack.nodes.interpolation.between import FrameMaker

    real, seen = FrameMaker.make, []

    def tight(self, tasks):
        seen.append(len(tasks))
        if len(tasks) > 1:
            raise mm.OOM_EXCEPTION("full")
        return real(self, tasks)

    monkeypatch.setattr(FrameMaker, "make", tight)
    _, path, _ = assemble(nodes_film, clips, rife=rife, target_fps=16.0, plan=PLAN, seams="off")
    assert seen[0] == 3 and set(seen[1:]) == {1} and len(frames_of(path)) == 6 * FRAMES


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_makes_a_film(nodes_film, clips, codec):
    video, path, _ = assemble(nodes_film, clips, codec=codec, crf=10, seams="crossfade")
    assert path.endswith(".mp4") and video.get_frame_count() == 3 * FRAMES
    assert video.get_dimensions() == (SIZE, SIZE) and video.get_frame_rate() == 8


@pytest.mark.parametrize(("codec", "answer"), [
    ("h264", True), ("av1", True), (None, True), ("vp9", "which is no codec")])
def test_codec_is_checked_before_the_film_is_rendered(nodes_film, codec, answer):
    said = nodes_film.AssembleShort.validate_inputs("video/short", codec)
    assert said is True if answer is True else answer in said


def test_a_codec_that_this_pyav_lacks_is_refused_before_the_film_is_rendered(nodes_film, monkeypatch):
    from pack.nodes.video import codecs

    monkeypatch.setattr(codecs, "CODECS", {**CODECS, "av1": replace(CODECS["av1"], encoder="libnothing")})
    said = nodes_film.AssembleShort.validate_inputs("video/short", "av1")
    assert "cannot encode; allowed: h264, h265" in said


def test_clips_can_be_compressed_once_the_film_is_made(nodes_film, clips):
    folder = Path(clips.records[0].folder)
    before = sum(path.stat().st_size for path in folder.glob("*.mkv"))
    _, first, report = assemble(nodes_film, clips, intermediates="compress")
    after = sum(path.stat().st_size for path in folder.glob("*.mkv"))
    assert after < before and f"compressed without visible loss: {(before - after) / 1e6:.1f} MB freed." in report
    assert len(list(folder.glob("*.latents.safetensors"))) == 3
    _, again, _ = assemble(nodes_film, clips)  # the same records, as ComfyUI's cache has them
    assert (frames_of(first) - frames_of(again)).abs().mean() < 1.5


def test_clips_can_be_deleted_once_the_film_is_made(nodes_film, clips):
    folder = Path(clips.records[0].folder)
    _, path, report = assemble(nodes_film, clips, intermediates="delete")
    assert len(frames_of(path)) == 3 * FRAMES and "deleted; their latents stay" in report
    assert not list(folder.glob("*.mkv")) and len(list(folder.glob("*.latents.safetensors"))) == 3
    assert [clip["status"] for clip in json.loads((folder / "manifest.json").read_text())["clips"]] == ["dropped"] * 3
    with pytest.raises(RuntimeError, match="needs the frames of clip 0"):
        assemble(nodes_film, clips)


def test_clips_are_kept_when_the_film_fails(nodes_film, clips, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nodes_film, "write_mp4", full)
    with pytest.raises(RuntimeError, match="Assemble Short has to write into"):
        assemble(nodes_film, clips, intermediates="delete")
    assert len(list(Path(clips.records[0].folder).glob("*.mkv"))) == 3


def test_a_disk_that_refuses_to_compress_does_not_cost_the_film(nodes_film, clips, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "compress_videos", full)
    _, path, report = assemble(nodes_film, clips, intermediates="compress")
    assert len(frames_of(path)) == 3 * FRAMES and "could not all be dealt with" in report
