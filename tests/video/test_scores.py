"""Join and drift scores of clips on disk: films of a texture that moves, stops, jumps, cuts, darkens or pales."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from pack.nodes.memory.drift import colour_distance, look_of, mean_lab
from pack.nodes.video.encode import VideoFacts, read_frames, write_ffv1
from pack.nodes.video.run_folder import RunFolder
from pack.nodes.video.scores import ClipFile, drift_score, frames_at, join_score
from pack.nodes.video.tiers import COMPRESSED, compress_video

FPS = 24.0
NOISE = torch.rand(6, 20, 3, generator=torch.Generator().manual_seed(1))
SCENE = torch.nn.functional.interpolate(NOISE.movedim(-1, 0)[None], size=(96, 320), mode="bilinear")[0].movedim(0, -1)
OTHER = 1 - SCENE.flip(0) ** 3


def clip(folder: Path, index: int, places: list[int], scene: torch.Tensor = SCENE, cuts: int = 0) -> ClipFile:
    """A clip that shows 160 columns of the scene, from these ones on."""
    path = folder / f"clip{index}.mkv"
    write_ffv1(path, (scene[:, place : place + 160] for place in places), FPS)
    return ClipFile(index, path, f"sha {folder.name} {index}", len(places), FPS, cuts)


def steps(start: int, count: int = 12, step: int = 4) -> list[int]:
    return [start + step * i for i in range(count)]


def test_an_even_join_is_smooth_and_near_one(tmp_path):
    score = join_score(clip(tmp_path, 0, steps(0)), clip(tmp_path, 1, steps(48)))
    assert score.word == "smooth" and score.value == pytest.approx(1, abs=0.15) and score.note == ""


@pytest.mark.parametrize(("start", "note"), [(44, "the picture stands still"), (58, "the picture jumps")])
def test_a_repeated_frame_and_a_jump_are_visible(tmp_path, start, note):
    score = join_score(clip(tmp_path, 0, steps(0)), clip(tmp_path, 1, steps(start)))
    assert (score.word, score.note) == ("visible", note)
    assert score.value < 0.5 if "still" in note else score.value > 2


def test_another_picture_and_a_cut_that_the_film_knows_are_hard_cuts(tmp_path):
    first = clip(tmp_path, 0, steps(0))
    seen = join_score(first, clip(tmp_path, 1, steps(0), OTHER))
    assert seen.word == "hard cut" and seen.value > 0.165
    known = join_score(first, clip(tmp_path, 2, steps(48), cuts=1))
    assert known.word == "hard cut" and known.value < 0.165


def test_drift_is_the_distance_of_colours_and_contrast(tmp_path):
    first = clip(tmp_path, 0, [0] * 6)
    same = drift_score(first, clip(tmp_path, 1, [0] * 4))
    assert (same.word, round(same.value, 9), same.note) == ("none", 0, "")
    dark = drift_score(first, clip(tmp_path, 2, [0] * 6, SCENE * 0.6))
    assert dark.word == "strong" and dark.value > 10 and "darker" in dark.note
    pale = clip(tmp_path, 3, [0] * 6, SCENE * 0.7 + 0.15)
    flat = drift_score(first, pale)
    colours = colour_distance(*(mean_lab(frames_at(one, [0])[0]) for one in (first, pale)))
    assert flat.word == "slight" and "less contrast" in flat.note and flat.value > colours + 1
    assert "more contrast" in drift_score(pale, first).note


def test_a_drift_that_comes_late_in_a_clip_counts(tmp_path):
    first, path = clip(tmp_path, 0, [0] * 9), tmp_path / "late.mkv"
    write_ffv1(path, (SCENE[:, :160] * (1 if i < 3 else 0.6) for i in range(9)), FPS)
    assert drift_score(first, ClipFile(1, path, "late", 9, FPS)).value > 5


def test_look_is_mean_and_spread():
    half = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert look_of(half).tolist() == pytest.approx([50, 0, 0, 50], abs=0.01)


@pytest.mark.parametrize("fps", [8.0, 16.0, 24.0, 23.976, 30.0])
@pytest.mark.parametrize("compressed", [False, True])
def test_any_frame_is_found_in_any_file(tmp_path, fps, compressed):
    path = tmp_path / "clip.mkv"
    facts = write_ffv1(path, (torch.full((64, 64, 3), 4 * i, dtype=torch.uint8) for i in range(60)), fps)
    if compressed:
        compress_video(path, tmp_path / f"small{COMPRESSED}", 60, facts.fps)
        path = tmp_path / f"small{COMPRESSED}"
    wanted = [0, 1, 2, 17, 30, 31, 57, 58, 59]
    asked, every = ClipFile(0, path, "", 60, float(facts.fps)), list(read_frames(path))
    assert torch.equal(torch.stack(frames_at(asked, wanted)), torch.stack([every[i] for i in wanted]))
    assert torch.equal(frames_at(asked, [43])[0], every[43])


def test_a_clip_that_was_compressed_since_keeps_its_scores_without_being_read(tmp_path):
    first, second = clip(tmp_path, 0, steps(0)), clip(tmp_path, 1, steps(48))
    scores = join_score(first, second), drift_score(first, second)
    gone = replace(second, path=tmp_path / f"not there{COMPRESSED}")
    assert (join_score(first, gone), drift_score(first, gone)) == scores
    with pytest.raises(RuntimeError, match="could not be read"):
        drift_score(first, replace(gone, key="another take"))


def test_a_file_that_is_too_short_is_told(tmp_path):
    short = clip(tmp_path, 0, steps(0, 5))
    with pytest.raises(RuntimeError, match="a complete file of 9 frames. Render the clip again"):
        frames_at(ClipFile(0, short.path, "", 9, FPS), [8])


def put_clip(run: RunFolder, index: int, path: Path) -> None:
    """A finished clip whose file is `path`'s bytes, listed as 12 frames."""
    take = run.begin(index, f"made from {index}", f"{run.path.name} {index}")

    def write(to: Path) -> VideoFacts:
        to.write_bytes(path.read_bytes())
        return VideoFacts(12, Fraction(24), 160, 96)

    for kind in ("latents", "memory"):
        take = run.put(take, kind, lambda path: path.write_bytes(b"bytes"))
    run.finish(run.put(take, "video", write))


@pytest.mark.comfy
def test_a_clip_that_is_damaged_or_has_another_size_takes_no_score_from_the_others(tmp_path, monkeypatch):
    import folder_paths
    from pack.nodes.video.bridge_route import scores_of

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    run = RunFolder(tmp_path / "videomemory" / "film")
    for index in range(6):
        put_clip(run, index, clip(tmp_path, index, steps(4 * index), SCENE[:60] if index == 4 else SCENE).path)
    whole = scores_of("film")
    assert [bool(one["join"]) for one in whole] == [False, True, True, True, False, False]
    assert [bool(one["drift"]) for one in whole] == [False, *[True] * 5]
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(clip(tmp_path, 1, steps(4)).path.read_bytes()[:2000])
    other = RunFolder(tmp_path / "videomemory" / "damaged")
    for index in range(4):
        put_clip(other, index, broken if index == 1 else clip(tmp_path, index, steps(4 * index)).path)
    scores = scores_of("damaged")
    assert [bool(one["join"]) for one in scores] == [False, False, False, True]
    assert [bool(one["drift"]) for one in scores] == [False, False, True, True]


def test_clips_of_one_frame_have_scores(tmp_path):
    first, second = clip(tmp_path, 0, [0]), clip(tmp_path, 1, [4])
    assert join_score(first, second).word == "smooth" and drift_score(first, second).word == "none"
