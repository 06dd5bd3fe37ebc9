"""Run names and clip numbers that come over a link: a node's cache must see what lies in the folders all the same."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture
def save(tmp_path, monkeypatch):
    """save(run name, index, content): a finished clip of that run, in a session that has seen nothing yet."""
    import folder_paths
    from pack.nodes.video import run_folder, runs
    from pack.nodes.video.bridge import open_run
    from pack.nodes.video.clip_files import save_latent
    from pack.nodes.video.encode import write_ffv1
    from pack.nodes.video.seen import SeenFiles

    seen = SeenFiles()
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(runs, "SEEN", seen)
    monkeypatch.setattr(run_folder.RunFolder.__init__, "__defaults__", (seen,))

    def save(name: str, index: int, content: str):
        run = open_run(name)
        take = run.begin(index, content, f"digest of {content}")
        latent = {"samples": torch.rand(1, 16, 2, 4, 4), "fps": 16.0}
        take = run.put(take, "latents", lambda path: save_latent(latent, path))
        take = run.put(take, "video", lambda path: write_ffv1(path, torch.rand(5, 32, 32, 3), 16))
        return run, run.finish(take)

    return save


@pytest.mark.parametrize("node", ["SaveClip", "RenderShort"])
def test_frames_that_are_gone_are_seen_whatever_the_run_is_called(save, node):
    from pack.nodes.render.nodes import RenderShort
    from pack.nodes.video.nodes import SaveClip

    look = {"SaveClip": SaveClip, "RenderShort": RenderShort}[node].fingerprint_inputs
    run, record = save("film", 0, "a")
    before = look(run_name=None)
    assert look(run_name=None) == before
    run.drop_videos([record])
    with pytest.raises(RuntimeError, match="Queue again"):
        run.current(record)
    assert look(run_name=None) != before


@pytest.mark.parametrize(("name", "index"), [("film", 0), (None, 0), ("film", None), (None, None)])
def test_another_take_is_seen_and_the_same_one_is_not_read_again(save, name, index):
    from pack.nodes.video.nodes import LoadClip

    save("film", 0, "a")
    before = LoadClip.fingerprint_inputs(run_name=name, clip_index=index)
    assert LoadClip.fingerprint_inputs(run_name=name, clip_index=index) == before
    save("film", 0, "b")
    assert LoadClip.fingerprint_inputs(run_name=name, clip_index=index) != before


def test_clips_that_cannot_be_meant_count_nothing(save, tmp_path):
    from pack.nodes.video.nodes import LoadClip

    save("film", 0, "a")
    before = [LoadClip.fingerprint_inputs(run_name=name, clip_index=0) for name in ("film", None)]
    save("film", 1, "b")
    broken = tmp_path / "videomemory" / "not ours"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    assert [LoadClip.fingerprint_inputs(run_name=name, clip_index=0) for name in ("film", None)] == before


def test_a_clip_saved_without_memory_is_not_sampled_again(save):
    from pack.nodes.video.nodes import SaveClip

    save("film", 0, "shot1")
    assert SaveClip.check_lazy_status("film", fingerprint="shot1", samples=None) == []
    assert SaveClip.check_lazy_status("film", fingerprint="shot1", samples=None, memory=None) == ["samples", "memory"]
    assert SaveClip.check_lazy_status("film", fingerprint="shot2", samples=None) == ["samples"]
