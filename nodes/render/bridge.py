"""What Render Short asks of ComfyUI: where run folders lie, digests of its inputs, and how far its inner nodes are."""

from __future__ import annotations

import re
import time
from typing import Any

from comfy_execution.progress import ProgressHandler, add_progress_handler

from ..budget.learned import FILE, clip_seconds, read_records
from ..common.compat import node_progress, output_places, user_folder
from ..common.types import RenderPlan
from ..video.places import SUBFOLDER
from ..video.run_folder import RunFolder, open_folder
from .report import FilmClock

SAY_EVERY_S = 0.5


def open_run(run_name: str) -> RunFolder:
    """The run folder of this name, where ComfyUI's settings say."""
    return open_folder(*output_places(SUBFOLDER), run_name)


def clip_times(run: RunFolder, plan: RenderPlan) -> list[float]:
    """Seconds that clips took: of this film, or else of others with this plan on this card; empty = nobody knows."""
    known = clip_seconds(read_records(user_folder() / FILE), plan.card, plan)
    return run.seconds() or ([known] if known else [])


def show_progress(node: str, clock: FilmClock) -> None:
    """Show under Render Short how far its film is, as long as this prompt runs."""
    add_progress_handler(_FilmHandler(node, clock))


class _FilmHandler(ProgressHandler):
    """Hears of every node of the prompt; those inside Render Short are named <its id>.<n>.<m>.clip00_sample."""

    def __init__(self, node: str, clock: FilmClock) -> None:
        super().__init__(f"videomemory_film_{node}")
        self.clock, self.say, self.said = clock, node_progress(0, node).say, 0.0
        self.names = re.compile(rf"{re.escape(node)}\.\d+\.\d+\.clip(\d+)_(sample|save)")

    def start_handler(self, node_id: str, state: dict, prompt_id: str) -> None:
        self._tell(node_id, 0.0)

    def update_handler(self, node_id: str, value: float, max_value: float, state: dict, prompt_id: str,
                       image: Any = None) -> None:
        self._tell(node_id, value / max_value if max_value else 0.0)

    def finish_handler(self, node_id: str, state: dict, prompt_id: str) -> None:
        found = self.names.fullmatch(node_id)
        if found and found[2] == "save":
            self.clock.finish(int(found[1]), time.monotonic())

    def _tell(self, node_id: str, share: float) -> None:
        found, now = self.names.fullmatch(node_id), time.monotonic()
        line = self.clock.update(int(found[1]), found[2], share, now) if found else ""
        if line and now - self.said >= SAY_EVERY_S:
            self.said = now
            self.say(line)
