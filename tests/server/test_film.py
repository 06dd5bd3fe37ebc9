"""A film through the real server: what is executed again, what a Cancel and a kill leave behind."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 6
SCENES = [
    "{hero} walks right in the forest", "{hero} jumps by the sea", "{hero} walks left in the city",
    "{hero} waves in the snow", "{hero} walks right in the cave", "{hero} walks left in the desert"]
STOPPED_BY_USER = "interrupted"


@pytest.fixture(scope="module")
def workflow() -> dict:
    return json.loads((ROOT / "workflows" / "demo_toyworld.json").read_text(encoding="utf-8"))


@pytest.fixture
def film(server, workflow, request):
    """The demo workflow as an API prompt, shortened to six clips of one chunk, in a run folder of its own."""
    from pack.scripts.harness.film import node_of
    from pack.scripts.harness.workflow_api import prompt_from_workflow

    prompt = prompt_from_workflow(workflow, server.client.get("/object_info"))
    name = re.sub(r"\W", "_", request.node.name)
    prompt[node_of(prompt, "VideoMemoryBudgetGate")]["inputs"]["clip_seconds"] = 1.5
    schedule = prompt[node_of(prompt, "VideoMemoryPromptSchedule")]["inputs"]
    schedule.update(clip_seconds=1.5, film_seconds=1.5 * CLIPS, scenes=scenes_text(SCENES))
    prompt[node_of(prompt, "VideoMemoryRenderShort")]["inputs"]["run_name"] = name
    prompt[node_of(prompt, "VideoMemoryAssembleShort")]["inputs"].update(
        filename_prefix=f"video/{name}", enlarge=1, target_fps=8.0)
    return prompt


def scenes_text(scenes: list[str]) -> str:
    return "\n".join(f"{1.5 * i}-{1.5 * (i + 1)}: {scene}" for i, scene in enumerate(scenes))


def with_scene(prompt: dict, index: int, scene: str) -> dict:
    changed = copy.deepcopy(prompt)
    scenes = [*SCENES[:index], scene, *SCENES[index + 1:]]
    next(node for node in changed.values() if node["class_type"] == "VideoMemoryPromptSchedule")["inputs"][
        "scenes"] = scenes_text(scenes)
    return changed


class Listener:
    """Collects the nodes that the server says it executes; may interrupt in the middle of one.

    interrupt_in: short name of a node. steps: progress at which to interrupt it; 0 = as soon as it really starts, which
    is when Save Clip, having asked for its inputs, is announced again.
    """

    def __init__(self, server, interrupt_in: str = "", steps: int = 0) -> None:
        self.server, self.interrupt_in, self.steps = server, interrupt_in, steps
        self.executed: list[str] = []
        self.interrupted = False

    def __call__(self, event: str, data: dict) -> None:
        if event == "executing" and data.get("node"):
            self.executed.append(data["node"].rsplit(".", 1)[-1])
        if self.interrupt_in and not self.interrupted and self._is_reached(event, data):
            self.server.client.interrupt()
            self.interrupted = True

    def _is_reached(self, event: str, data: dict) -> bool:
        if self.steps == 0:
            return self.executed.count(self.interrupt_in) == 2
        states = data.get("nodes", {}) if event == "progress_state" else {}
        return any(node.endswith(self.interrupt_in) and state["value"] >= self.steps for node, state in states.items())


def run(server, prompt: dict, listener: Listener | None = None) -> list[str]:
    """Run to the end; returns the executed nodes (inner ones by their short names)."""
    listener = listener or Listener(server)
    server.client.run(prompt, listener, server.check_alive)
    return listener.executed


def run_until_interrupted(server, prompt: dict, node: str, steps: int) -> None:
    from pack.scripts.harness.errors import CannotContinue

    listener = Listener(server, node, steps)
    with pytest.raises(CannotContinue, match=STOPPED_BY_USER):
        run(server, prompt, listener)
    assert listener.interrupted


def stage(executed: list[str], kind: str) -> list[int]:
    """Clip numbers of the executed nodes clipNN_<kind>; a node that first asks for its inputs is announced twice."""
    return [int(match.group(1)) for name in dict.fromkeys(executed)
            if (match := re.fullmatch(rf"clip(\d+)_{kind}", name))]


def manifest(server, name: str) -> dict:
    return json.loads((server.output / "videomemory" / name / "manifest.json").read_text(encoding="utf-8"))


def clip_digests(server, prompt: dict) -> list[str]:
    """One digest per finished clip, of its latents and of the frames of its lossless video."""
    av, numpy = pytest.importorskip("av"), pytest.importorskip("safetensors.numpy")
    from pack.scripts.harness.film import run_name

    folder = server.output / "videomemory" / run_name(prompt)
    takes = manifest(server, run_name(prompt))["clips"]
    assert [take["status"] for take in takes] == ["done"] * CLIPS
    digests = []
    for take in takes:
        digest = hashlib.sha256(numpy.load_file(folder / take["files"]["latents"]["name"])["samples"].tobytes())
        with av.open(str(folder / take["files"]["video"]["name"])) as video:
            for frame in video.decode(video=0):
                digest.update(frame.to_ndarray(format="rgb24").tobytes())
        digests.append(digest.hexdigest())
    return digests


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
    ("clip02_save", 0, 3),  # in the middle of decoding: the third clip's samples are safe
])
def test_film_goes_on_after_cancel(server, film, node, steps, safe):
    from pack.scripts.harness.film import run_name

    run_until_interrupted(server, film, node, steps)
    takes = manifest(server, run_name(film))["clips"]
    folder = server.output / "videomemory" / run_name(film)
    assert sum(take["status"] == "done" for take in takes) >= 2
    assert sum("memory" in take["files"] for take in takes) == safe
    assert not list(folder.glob("*.tmp"))
    server.client.post("/free", {"unload_models": True, "free_memory": True})  # ComfyUI forgets, as after a restart
    assert stage(run(server, film), "sample") == list(range(safe, CLIPS))


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
