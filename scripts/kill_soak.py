"""Renders a short film over and over with kill -9 at random moments: python scripts/kill_soak.py [--kills 50].

The film is made once without a stop. Then, in fresh folders, ComfyUI is killed at random moments of the render, started
again, and again, until it may finish. Each time the film must be the unbroken one, to the last byte of the file, and
nothing that was finished at a kill may be made again. Prints a line per film; ends with an error if anything differs.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from harness.environment import ROOT, Environment, own_environment, users_environment
from harness.errors import CannotContinue
from harness.film import node_of
from harness.server import ComfyUIServer
from harness.workflow_api import prompt_from_workflow

TOYWORLD = ROOT / "demo" / "toyworld"
WORKFLOW = ROOT / "workflows" / "demo_toyworld.json"
NAME = "soak"
CLIP_S = 1.5  # one chunk
KILLS_PER_FILM = 6
SCENES = ("walks right in the forest", "jumps by the sea", "waves in the snow", "walks left in the desert")


@dataclass
class Result:
    """What happened. moments: seconds after the start of a render at which it was killed. found: how often each node
    was at work at a kill. listed: how many clips the manifest called done, at each kill. wrong: sentences."""

    kills: int = 0
    films: int = 0
    unbroken_s: float = 0.0
    moments: list[float] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    listed: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Watch:
    """Hears what ComfyUI says of one render. sampled: the clips whose sampler ran. node: the one at work."""

    sampled: set[int] = field(default_factory=set)
    node: str = "none"

    def __call__(self, event: str, data: dict) -> None:
        if event == "executing" and data.get("node"):
            self.node = data["node"].rsplit(".", 1)[-1]
            if self.node.endswith("_sample"):
                self.sampled.add(int(self.node[4:-7]))

    @property
    def stage(self) -> str:
        """"sample" or "save" of whatever clip, "others" outside the clips."""
        return self.node.split("_")[-1] if self.node.startswith("clip") else "others"


class Soak:
    """One film, made again and again in folders of its own."""

    def __init__(self, environment: Environment, folder: Path, clips: int, seed: int) -> None:
        self.environment, self.folder, self.clips = environment, folder, clips
        self.random, self.result = random.Random(seed), Result()
        self.seconds = 0.0  # of the unbroken render

    def run(self, kills: int) -> Result:
        """The unbroken film, then films with kills until there were as many as asked for."""
        self._render(self.folder / "unbroken")
        self.result.unbroken_s = round(self.seconds, 2)
        self.wanted = film_digests(self.folder / "unbroken")
        while self.result.kills < kills:
            self._broken_film(min(KILLS_PER_FILM, kills - self.result.kills))
        return self.result

    def _broken_film(self, kills: int) -> None:
        self.result.films += 1
        output, killed, listed = self.folder / f"film{self.result.films}", 0, 0
        while killed < kills and listed < self.clips:  # of a film whose clips are done, no second kill
            if not self._is_killed(output):
                break
            killed, listed = killed + 1, self._look(output)
        else:
            self._checked_render(output)
        self.result.kills += killed
        is_same = film_digests(output) == self.wanted
        if not is_same:
            self._complain("it is another film")
        print(f"film {self.result.films}: {killed} kills, {'the same film' if is_same else 'ANOTHER FILM'}", flush=True)

    def _is_killed(self, output: Path) -> bool:
        """Render with a kill at a random moment; False where the render was faster."""
        left = 1.0 - sum(take["status"] == "done" for take in takes_of(output)) / (self.clips + 1)
        moment = self.random.uniform(0.0, self.seconds * left)
        was_killed = self._checked_render(output, moment)
        if was_killed:
            self.result.moments.append(round(moment, 2))
        return was_killed

    def _checked_render(self, output: Path, kill_after_s: float | None = None) -> bool:
        """Render, and note what was made again although it was safe before; whether a kill ended it."""
        safe = {take["index"] for take in takes_of(output) if "memory" in take["files"]}
        finished = finished_files(output)
        watch, was_killed = self._render(output, kill_after_s)
        if safe & watch.sampled:
            self._complain(f"clips {sorted(safe & watch.sampled)} were sampled again")
        touched = [name for name, stamp in finished.items() if stamp != stamp_of(output, name)]
        if touched:
            self._complain(f"{touched} were written again")
        if was_killed:
            self.result.found[watch.stage] = self.result.found.get(watch.stage, 0) + 1
        return was_killed

    def _look(self, output: Path) -> int:
        """What the kill left: how many clips are finished, and whether everything listed is there."""
        takes = takes_of(output)
        listed = sum(take["status"] == "done" for take in takes)
        self.result.listed.append(listed)
        for stored in (stored for take in takes for stored in take["files"].values()):
            path = run_folder(output) / stored["name"]
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != stored["sha256"]:
                self._complain(f"{stored['name']} is listed and not whole")
        return listed

    def _complain(self, sentence: str) -> None:
        self.result.wrong.append(f"film {self.result.films}: {sentence}")

    def _render(self, output: Path, kill_after_s: float | None = None) -> tuple[Watch, bool]:
        """Start ComfyUI and render; what was heard, and whether a kill ended it."""
        watch = Watch()
        with ComfyUIServer(self.environment, output, self.folder / "comfyui.log", (TOYWORLD,)) as server:
            prompt, began = film_prompt(server, self.clips), time.monotonic()
            was_killed = threading.Event()
            timer = threading.Timer(kill_after_s or 0.0, kill, (server, was_killed))
            if kill_after_s is not None:
                timer.start()
            try:
                server.client.run(prompt, watch, server.check_alive)
            except (CannotContinue, OSError):
                timer.cancel()
                if not was_killed.is_set():
                    raise
                return watch, True
            timer.cancel()
            self.seconds = self.seconds or time.monotonic() - began
        return watch, False


def kill(server: ComfyUIServer, done: threading.Event) -> None:
    """kill -9, to the whole group: nothing of it can clean up."""
    done.set()
    process = server.process
    if process is None or sys.platform == "win32":
        return process and process.kill()
    with contextlib.suppress(ProcessLookupError):  # it has ended a moment before
        os.killpg(process.pid, signal.SIGKILL)


def film_prompt(server: ComfyUIServer, clips: int) -> dict:
    """The demo workflow with clips of one chunk."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    prompt = prompt_from_workflow(workflow, server.client.get("/object_info"))
    prompt[node_of(prompt, "VideoMemoryBudgetGate")]["inputs"]["clip_seconds"] = CLIP_S
    prompt[node_of(prompt, "VideoMemoryPromptSchedule")]["inputs"].update(
        clip_seconds=CLIP_S, film_seconds=CLIP_S * clips, scenes="\n".join(
            f"{CLIP_S * i}-{CLIP_S * (i + 1)}: {{hero}} {SCENES[i % len(SCENES)]}" for i in range(clips)))
    prompt[node_of(prompt, "VideoMemoryRenderShort")]["inputs"]["run_name"] = NAME
    prompt[node_of(prompt, "VideoMemoryAssembleShort")]["inputs"].update(filename_prefix=NAME, enlarge=2)
    return prompt


def run_folder(output: Path) -> Path:
    return output / "videomemory" / NAME


def takes_of(output: Path) -> list[dict]:
    """The takes that the manifest lists; none before there is one."""
    path = run_folder(output) / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["clips"] if path.exists() else []


def finished_files(output: Path) -> dict[str, tuple]:
    """Name -> stamp of every file of a finished clip."""
    return {stored["name"]: stamp_of(output, stored["name"]) for take in takes_of(output) if take["status"] == "done"
            for stored in take["files"].values()}


def stamp_of(output: Path, name: str) -> tuple | None:
    """When a file was written; None where it is gone."""
    path = run_folder(output) / name
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None


def film_digests(output: Path) -> set[str]:
    """sha256 of every film file: a kill behind the last frame leaves one, and the next render makes another."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in output.glob(f"{NAME}_*.mp4")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--comfyui", type=Path, help="your own ComfyUI instead of a fetched one")
    parser.add_argument("--python", type=Path, help="the Python that runs your ComfyUI")
    chosen = parser.parse_args()
    environment = users_environment(chosen.comfyui, chosen.python) if chosen.comfyui else own_environment()
    with tempfile.TemporaryDirectory(prefix="kill_soak_") as folder:
        result = Soak(environment, Path(folder), chosen.clips, chosen.seed).run(chosen.kills)
    print(f"{result.kills} kills in {result.films} films of {chosen.clips} clips, ComfyUI {environment.version}, "
          f"{platform.platform()}; at work at the kills: {result.found}; "
          f"clips finished at the kills: {dict(sorted(Counter(result.listed).items()))}")
    print("\n".join(result.wrong) or "Every film equals the unbroken one, byte for byte; nothing finished was redone.")
    if chosen.json:
        facts = {"date": time.strftime("%Y-%m-%d"), "comfyui": environment.version, "system": platform.platform(),
                 "clips": chosen.clips, **vars(result)}
        chosen.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
