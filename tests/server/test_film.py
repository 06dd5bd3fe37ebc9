"""A film through the real server: what is executed again, what a Cancel and a kill leave behind."""

from __future__ import annotations

import copy

import pytest

from .films import (
    CLIPS,
    Listener,
    clip_digests,
    forget,
    manifest,
    render_inputs,
    run,
    run_until_interrupted,
    stage,
    with_scene,
)

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_second_run_executes_nothing_and_a_new_text_only_the_later_clips(server, film):
    first = run(server, film)
    assert stage(first, "sample") == stage(first, "save") == list(range(CLIPS))
    before = clip_digests(server, film)
    assert run(server, film) == []

    changed = run(server, with_scene(film, 4, "{hero} waves by the sea"))
    assert stage(changed, "prompt") == [4]  # clip 6 says what it said, but it remembers clip 5
    assert stage(changed, "sample") == stage(changed, "save") == [4, 5]
    after = clip_digests(server, film)
    assert after[:4] == before[:4] and not set(after[4:]) & set(before[4:])


@pytest.mark.parametrize(("node", "steps", "safe"), [
    ("clip02_sample", 3, 2),  # in the middle of sampling: two clips are finished
    ("clip02_save", 1, 3),  # in the middle of decoding: the third clip's samples are safe
])
def test_film_goes_on_after_cancel(server, film, node, steps, safe):
    from pack.scripts.harness.film import run_name

    run_until_interrupted(server, film, node, steps)
    takes = manifest(server, run_name(film))["clips"]
    folder = server.output / "videomemory" / run_name(film)
    assert sum(take["status"] == "done" for take in takes) >= 2
    assert sum("memory" in take["files"] for take in takes) == safe
    assert not list(folder.glob("*.tmp"))
    forget(server)
    assert stage(run(server, film), "sample") == list(range(safe, CLIPS))


def test_a_clip_that_was_cancelled_goes_on_behind_its_finished_chunk(server, film):
    """A clip of two chunks, cancelled in the second: what is left is one clean pass and that chunk. The same bits."""
    class Totals(Listener):
        forwards = 0

        def __call__(self, event: str, data: dict) -> None:
            super().__call__(event, data)
            states = data.get("nodes", {}) if event == "progress_state" else {}
            self.forwards = max([self.forwards, *(state["max"] for node, state in states.items()
                                                  if node.endswith("clip02_sample"))])

    whole, left, film = Totals(server), Totals(server), copy.deepcopy(film)
    for node in film.values():
        if "clip_seconds" in node["inputs"]:
            node["inputs"]["clip_seconds"] = 3.0
    run(server, film, whole)
    want = clip_digests(server, film, 3)
    other = copy.deepcopy(film)
    render_inputs(other)["run_name"] = "cancelled_in_its_second_chunk"
    run_until_interrupted(server, other, "clip02_sample", int(whole.forwards) // 2 + 2)
    kept = server.base / "user" / "videomemory" / "unfinished"
    assert len(list(kept.iterdir())) == 1
    forget(server)
    run(server, other, left)
    assert left.forwards == whole.forwards // 2 + 1
    assert clip_digests(server, other, 3) == want and not list(kept.iterdir())


def test_killed_film_goes_on_to_the_same_bits(server, film, toyworld, tmp_path):
    """kill -9 in the middle of clip 4; a new server finishes the film, and it equals an unbroken one."""
    from pack.scripts.harness.errors import CannotContinue
    from pack.scripts.harness.film import node_of
    from pack.scripts.harness.server import ComfyUIServer

    def start(name: str) -> ComfyUIServer:
        return ComfyUIServer(server.environment, tmp_path / "output", tmp_path / f"{name}.log", (toyworld,))

    class Kill(Listener):
        def __call__(self, event: str, data: dict) -> None:
            super().__call__(event, data)
            if stage(self.executed, "sample")[-1:] == [3]:
                self.server.process.kill()

    with start("first") as first, pytest.raises(CannotContinue):
        run(first, film, Kill(first))
    with start("second") as server:
        executed = run(server, film)
        assert stage(executed, "sample") == [3, 4, 5]
        resumed = clip_digests(server, film)
        whole = copy.deepcopy(film)
        whole[node_of(whole, "VideoMemoryRenderShort")]["inputs"]["run_name"] = "unbroken"
        assert stage(run(server, whole), "sample") == list(range(CLIPS))
        assert clip_digests(server, whole) == resumed
