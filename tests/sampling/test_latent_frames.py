"""Films of ordinary checkpoints, frame by frame: none is lost, none comes twice, whatever lies between two clips."""

from __future__ import annotations

import pytest
import torch

from .counting_films import Studio, memory_of, numbered, numbers_of
from .latent_models import FILMS

pytestmark = pytest.mark.comfy

OVERLAPS = [("wan22_ti2v_5b", 4), ("wan21_i2v_14b", 4), ("wan22_i2v_14b", 2), ("wan21_vace", 1), ("wan21_vace", 4),
            ("wan22_svi_pro", 4), ("hunyuan_i2v", 3), ("hunyuan15_i2v", 2)]


def joined(clips: list[list[int]]) -> list[int]:
    return [number for clip in clips for number in clip]


@pytest.mark.parametrize(("preset", "overlap"), [*((preset, 0) for preset in FILMS), *OVERLAPS])
def test_three_clips_count_on(preset, overlap):
    shown, after = Studio(preset).film(memory_of(preset, overlap_latents=overlap))
    assert [len(clip) for clip in shown] == [13, 16, 16]  # 4 latents each: the film's first one holds one frame
    assert joined(shown) == list(range(45))
    assert (after.latents_done, after.clips_done) == (12, 3)
    kept = 4 * (after.spec.overlap_latents - 1) + 1
    assert numbers_of(after.overlap / 255) == list(range(45 - kept, 45))


@pytest.mark.parametrize("overlap", [1, 3])
@pytest.mark.parametrize("preset", ["wan22_ti2v_5b", "wan21_i2v_14b", "hunyuan15_i2v"])
def test_a_new_anchor_leads_the_last_frames_and_is_not_shown(preset, overlap):
    studio = Studio(preset)
    shown, _ = studio.film(memory_of(preset, overlap_latents=overlap, reanchor_clips=2), clips=4)
    assert joined(shown) == list(range(61))
    slots = max(2, overlap)
    given = [seen for i, seen in enumerate(studio.counter.seen) if i == 0 or seen != studio.counter.seen[i - 1]]
    assert given[2] == [0, *range(29 - 4 * (slots - 1), 29)]  # the third clip; 29 frames were done
    assert given[1] == list(range(13 - 4 * (overlap - 1) - 1, 13))
    assert given[3] == list(range(45 - 4 * (overlap - 1) - 1, 45))


@pytest.mark.parametrize("preset", FILMS)
def test_a_scene_begins_with_its_own_picture(preset):
    """The picture itself is trimmed: it would be a latent of one frame in the middle of the film."""
    studio = Studio(preset)
    _, memory = studio.film(memory_of(preset), clips=2)
    latent, memory, report = studio.clip(memory, start_image=numbered(60), scene_cut=True)
    assert numbers_of(studio.frames(latent)) == list(range(61, 77)) and latent["context_samples"].shape[2] == 1
    assert "begun with the start image" in report and "Scene cut" in report and memory.cuts == 1
    latent, _, report = studio.clip(memory)
    assert numbers_of(studio.frames(latent)) == list(range(77, 93)) and "the clip before" in report
    if preset in ("wan21_vace", "wan22_svi_pro"):  # what the film began with, not this scene
        assert studio.counter.seen[-1][0] == 0


@pytest.mark.parametrize("preset", FILMS)
def test_a_scene_without_a_picture_begins_with_the_films_first_frame(preset):
    studio = Studio(preset)
    _, memory = studio.film(memory_of(preset), clips=2)
    latent, _, report = studio.clip(memory, scene_cut=True)
    assert len(studio.frames(latent)) == 16 and studio.counter.seen[-1] == [0]
    begun = "text alone, the film's first frame beside it" if preset == "wan21_vace" else "the film's first frame"
    assert f"begun with {begun}" in report and "1 of them trimmed" in report


def test_a_prompt_that_says_so_cuts_too():
    from .latent_models import text

    studio = Studio("wan21_i2v_14b")
    _, memory = studio.film(memory_of("wan21_i2v_14b"), clips=1)
    said = text(5, videomemory_text="The scene transitions. A beach.")
    _, after, report = studio.clip(memory, positive=said)
    assert "Scene cut" in report and after.cuts == 1 and studio.counter.seen[-1] == [0]
    _, first, report = studio.clip(memory_of("wan21_i2v_14b"), positive=said, start_image=numbered(0))
    assert first.cuts == 0 and "Scene cut" not in report  # nothing lies before it


@pytest.mark.parametrize("preset", FILMS)
def test_after_forget_a_film_begins_anew_in_the_same_place(preset):
    from pack.nodes.memory.state import forget

    studio = Studio(preset)
    _, memory = studio.film(memory_of(preset), clips=1)
    latent, after, report = studio.clip(forget(memory), start_image=numbered(30))
    assert numbers_of(studio.frames(latent)) == list(range(31, 47)) and "begun with the start image" in report
    assert (latent["first_latent"], after.latents_done) == (4, 8) and "Colours" not in report
    latent, _, _ = studio.clip(after)
    assert numbers_of(studio.frames(latent)) == list(range(47, 63))
    assert numbers_of(after.anchor.frame[None] / 255) == [30]


@pytest.mark.parametrize("preset", ["wan22_ti2v_5b", "wan21_vace"])
def test_a_film_may_begin_with_text(preset):
    studio = Studio(preset)
    shown, after = studio.film(memory_of(preset), start_image=None)
    assert joined(shown) == list(range(45)) and numbers_of(after.anchor.frame[None] / 255) == [0]
    assert studio.counter.seen[0] == []


def test_saved_clips_hold_these_frames(tmp_path, monkeypatch):
    """Save Clip's own files, read back."""
    av = pytest.importorskip("av")
    import folder_paths
    from pack.nodes.video.nodes import SaveClip

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    studio, memory, clips, numbers = Studio("wan22_svi_pro"), memory_of("wan22_svi_pro"), None, []
    for i in range(3):
        latent, memory, _ = studio.clip(memory, start_image=None if i else numbered(0))
        with torch.inference_mode():
            clips, memory, _ = SaveClip.EXECUTE_NORMALIZED(vae=studio.vae, run_name="count", samples=latent,
                                                           memory=memory, clips=clips).args
    for record in clips.records:
        with av.open(f"{record.folder}/{record.video_file}") as video:
            frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
        assert record.frames == len(frames)
        numbers += numbers_of(torch.stack(frames) / 255)
    assert numbers == list(range(45))
