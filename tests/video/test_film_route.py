"""What the film strip asks the server: one question is worked on once at a time, and a held file is told."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture
def route(tmp_path, monkeypatch):
    import folder_paths
    from pack.nodes.video import bridge_route

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return bridge_route


@pytest.fixture
def run(route, tmp_path):
    """A film of two clips."""
    from pack.nodes.video.encode import write_ffv1
    from pack.nodes.video.run_folder import RunFolder

    run = RunFolder(tmp_path / "videomemory" / "film")
    for index in range(2):
        take = run.begin(index, f"made from {index}", f"digest {index}")
        frames = torch.full((9, 32, 48, 3), 90 * index, dtype=torch.uint8)
        for kind in ("latents", "memory"):
            take = run.put(take, kind, lambda path: path.write_bytes(b"x") and None)
        take = run.put(take, "video", lambda path, frames=frames: write_ffv1(path, iter(frames), 8))
        run.finish(take)
    return run


def test_the_same_question_is_worked_on_once(route):
    started, go = threading.Event(), threading.Event()
    calls = []

    def slow(name: str) -> str:
        calls.append(name)
        started.set()
        go.wait(10)
        return f"answer to {name}"

    async def ask() -> list[object]:
        first, second, gone, other = (asyncio.ensure_future(route._in_turn(slow, name)) for name in "aaab")
        await asyncio.to_thread(started.wait, 10)
        gone.cancel()  # a page that was closed
        go.set()
        answers = [*await asyncio.gather(first, second, other), await route._in_turn(slow, "a")]
        return [*answers, gone.cancelled()]

    assert asyncio.run(ask()) == ["answer to a", "answer to a", "answer to b", "answer to a", True]
    assert sorted(calls) == ["a", "a", "b"]


def test_a_clip_that_somebody_holds_leaves_the_others_their_scores(route, run, monkeypatch):
    from pack.nodes.video.run_folder import RunFolder

    assert [one["index"] for one in route.scores_of("film")] == [0, 1]
    file = RunFolder.file

    def held(self, take, kind):
        if take.index == 1:
            raise PermissionError("used by another process")
        return file(self, take, kind)

    monkeypatch.setattr(RunFolder, "file", held)
    assert [one["index"] for one in route.scores_of("film")] == [0]


def test_a_picture_needs_no_checksum_and_a_damaged_clip_has_none(route, run, monkeypatch):
    from pack.nodes.video import run_folder

    with monkeypatch.context() as patched:
        patched.setattr(run_folder.RunFolder, "file", lambda *_: pytest.fail("the checksum was compared"))
        assert route.picture_of("film", 1).startswith(b"\xff\xd8")
    route.jpeg_of.cache_clear()
    (run.path / "clip_001.mkv").write_bytes(b"no film")
    with pytest.raises(RuntimeError, match="could not be read"):
        route.picture_of("film", 1)
