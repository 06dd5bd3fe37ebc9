"""A finished film whose folder is damaged, through the real server: what is made again, and what comes out."""

from __future__ import annotations

import copy
import shutil
import time

import pytest

from .films import CLIPS, Listener, clip_digests, forget, make_film, render_inputs, run, run_and_read, stage

pytestmark = [pytest.mark.server, pytest.mark.slow]

FORGETS = [False, True]  # whether ComfyUI has to notice by itself that what it has cached is not there any more


@pytest.fixture(scope="module")
def whole(server, workflow) -> tuple[dict, list[str]]:
    """A finished film and the digests of its clips."""
    prompt = make_film(server, workflow, "damaged")
    forget(server)  # another module may have sampled the same clips
    executed, status = run_and_read(server, prompt)
    assert stage(executed, "sample") == list(range(CLIPS)) and status == f"0 reused, {CLIPS} generated."
    assert run(server, prompt) == []
    return prompt, clip_digests(server, prompt)


def folder_of(server, prompt: dict):
    return server.output / "videomemory" / render_inputs(prompt)["run_name"]


def flip_a_byte(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def newest(folder, pattern: str):
    return sorted(folder.glob(pattern))[-1]


@pytest.mark.parametrize("forgets", FORGETS)
@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_damaged_frames_are_decoded_again(server, whole, harm, forgets):
    prompt, digests = whole
    path = newest(folder_of(server, prompt), "clip_002*.mkv")
    path.unlink() if harm == "delete" else flip_a_byte(path)
    if forgets:
        forget(server)
    executed, status = run_and_read(server, prompt)
    assert stage(executed, "sample") == [] and 2 in stage(executed, "save")
    assert status.startswith(f"{CLIPS} reused, 0 generated. {path.name} ")
    assert status.endswith("so the frames were decoded again from the latents.")
    assert clip_digests(server, prompt) == digests
    assert run(server, prompt) == []


@pytest.mark.parametrize("kind", ["latents", "memory"])
def test_damaged_latents_and_memories_are_rendered_again(server, whole, kind):
    prompt, digests = whole
    path = newest(folder_of(server, prompt), f"clip_003*.{kind}.safetensors")
    flip_a_byte(path)
    executed, status = run_and_read(server, prompt)
    assert stage(executed, "sample") == [3]
    assert status == (f"{CLIPS - 1} reused, 1 generated (clip 4). {path.name} had changed on the disk, so the clip was "
                      "rendered again.")
    assert clip_digests(server, prompt) == digests


def test_a_lost_manifest_costs_nothing(server, whole):
    prompt, digests = whole
    (folder_of(server, prompt) / "manifest.json").unlink()
    forget(server)
    executed, status = run_and_read(server, prompt)
    assert stage(executed, "sample") == []
    assert "was lost; it was made anew from the cards of 6 clips" in status
    assert clip_digests(server, prompt) == digests


def when_free(act, records) -> None:
    """Do it as soon as the server has let go of the folder, a moment after its run has ended."""
    end = time.monotonic() + 20
    while True:
        try:
            return act(records)
        except RuntimeError as error:
            if "at work there" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.1)


def test_clips_compressed_or_without_frames_are_used_again(server, whole):
    """As Assemble Short leaves them when it is told so."""
    from pack.nodes.common.types import ClipRecord
    from pack.nodes.video.run_folder import RunFolder

    prompt, digests = whole
    run_folder = RunFolder(folder_of(server, prompt))
    records: list[ClipRecord] = [run_folder.record(take) for take in run_folder.takes()]
    when_free(run_folder.compress_videos, records[:2])
    executed, status = run_and_read(server, prompt)
    assert stage(executed, "sample") == [] and status == f"{CLIPS} reused, 0 generated."
    when_free(run_folder.drop_videos, records)
    executed, status = run_and_read(server, prompt)
    assert stage(executed, "sample") == [] and status == f"{CLIPS} reused, 0 generated."
    assert clip_digests(server, prompt) == digests


def test_a_deleted_folder_is_made_anew(server, whole):
    prompt, digests = whole
    shutil.rmtree(folder_of(server, prompt))
    executed, status = run_and_read(server, prompt)
    assert stage(executed, "sample") == list(range(CLIPS)) and status == f"0 reused, {CLIPS} generated."
    assert clip_digests(server, prompt) == digests


def test_folder_deleted_in_the_middle_of_a_run(server, whole, film):
    """The run ends with a sentence; the next one makes what was lost and keeps what came after."""
    from pack.scripts.harness.errors import CannotContinue

    class Delete(Listener):
        def _is_reached(self, event: str, data: dict) -> bool:
            if stage(self.executed, "sample")[-1:] == [3] and not self.interrupted:
                shutil.rmtree(folder_of(self.server, film))
                self.interrupted = True
            return False

    with pytest.raises(CannotContinue, match="needs the (frames|file) of clip 0"):
        run(server, film, Delete(server, "clip03_sample"))
    executed, status = run_and_read(server, film)
    assert {1, 2} <= set(stage(executed, "sample")) <= {0, 1, 2, 3}  # ComfyUI may still have the samples of clip 0
    assert status.startswith(("3 reused, 3 generated (clips 1 to 3)", "2 reused, 4 generated (clips 1 to 4)"))
    assert clip_digests(server, film) == whole[1]


def test_two_servers_and_one_run(server, whole, film, toyworld, tmp_path):
    """The second one is told who is at work; the first one's film is what it would have been."""
    from pack.scripts.harness.errors import CannotContinue
    from pack.scripts.harness.server import ComfyUIServer

    refusals = []

    class Intrude(Listener):
        def _is_reached(self, event: str, data: dict) -> bool:
            if not refusals and stage(self.executed, "sample") == [0]:
                another = copy.deepcopy(film)
                render_inputs(another)["seed"] = 99
                with pytest.raises(CannotContinue) as refused:
                    run(second, another)
                refusals.append(str(refused.value))
            return False

    forget(server)  # it has sampled the same first clip in another run folder
    with ComfyUIServer(server.environment, server.output, tmp_path / "second.log", (toyworld,)) as second:
        executed = run(server, film, Intrude(server, "clip00_sample"))
    assert stage(executed, "sample") == list(range(CLIPS))
    assert "is written by one ComfyUI at a time, but got another at work there (process " in refusals[0]
    assert clip_digests(server, film) == whole[1]
