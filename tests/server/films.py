"""Films of the demo checkpoint through the real server: the prompt, what was executed, what lies in the run folder."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 6
SCENES = [
    "{hero} walks right in the forest", "{hero} jumps by the sea", "{hero} walks left in the city",
    "{hero} waves in the snow", "{hero} walks right in the cave", "{hero} walks left in the desert"]
STOPPED_BY_USER = "interrupted"


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


def clip_digests(server, prompt: dict, clips: int = CLIPS) -> list[str]:
    """One digest per finished clip, of its latents and of the frames of its lossless video."""
    av, numpy = pytest.importorskip("av"), pytest.importorskip("safetensors.numpy")
    from pack.scripts.harness.film import run_name

    folder = server.output / "videomemory" / run_name(prompt)
    takes = manifest(server, run_name(prompt))["clips"]
    assert [take["status"] for take in takes] == ["done"] * clips
    digests = []
    for take in takes:
        digest = hashlib.sha256(numpy.load_file(folder / take["files"]["latents"]["name"])["samples"].tobytes())
        with av.open(str(folder / take["files"]["video"]["name"])) as video:
            for frame in video.decode(video=0):
                digest.update(frame.to_ndarray(format="rgb24").tobytes())
        digests.append(digest.hexdigest())
    return digests


def make_film(server, workflow: dict, name: str, clips: int = CLIPS) -> dict:
    """The demo workflow as an API prompt, shortened to clips of one chunk, in a run folder of its own."""
    from pack.scripts.harness.film import node_of
    from pack.scripts.harness.workflow_api import prompt_from_workflow

    prompt = prompt_from_workflow(workflow, server.client.get("/object_info"))
    prompt[node_of(prompt, "VideoMemoryBudgetGate")]["inputs"]["clip_seconds"] = 1.5
    schedule = prompt[node_of(prompt, "VideoMemoryPromptSchedule")]["inputs"]
    schedule.update(clip_seconds=1.5, film_seconds=1.5 * clips, scenes=scenes_text(SCENES[:clips]))
    render = node_of(prompt, "VideoMemoryRenderShort")
    prompt[render]["inputs"]["run_name"] = name
    prompt[node_of(prompt, "VideoMemoryAssembleShort")]["inputs"].update(
        filename_prefix=f"video/{name}", enlarge=1, target_fps=8.0)
    prompt["status"] = {"class_type": "PreviewAny", "inputs": {"source": [render, 2]}}
    return prompt


def render_inputs(prompt: dict) -> dict:
    """The inputs of the film's Render Short."""
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == "VideoMemoryRenderShort")


def run_and_read(server, prompt: dict, listener: Listener | None = None) -> tuple[list[str], str]:
    """Run to the end; the executed nodes and what Render Short says ("" where it was not executed)."""
    listener = listener or Listener(server)
    history = server.client.run(prompt, listener, server.check_alive)
    return listener.executed, " ".join(history["outputs"].get("status", {}).get("text", [])).strip('"')


def forget(server) -> None:
    """Let ComfyUI forget every output, as after a restart."""
    server.client.post("/free", {"unload_models": True, "free_memory": True})
