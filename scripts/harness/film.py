"""The demo film as an API prompt: its nodes by name, its comparison films, and how far it is while it runs."""

from __future__ import annotations

import copy
import math
import re

from .errors import CannotContinue
from .status_line import StatusLine, bar_text, duration_text

RENDER, SCHEDULE, ASSEMBLE = "VideoMemoryRenderShort", "VideoMemoryPromptSchedule", "VideoMemoryAssembleShort"
FILM = "memory and re-anchoring"
# name -> (carry the memory, name the identity again now and then); the film itself has both
COMPARISONS = {"memory only": (True, False), "re-anchoring only": (False, True), "neither": (False, False)}
STATUS_SLOT = 2  # of Render Short
CLIP_NODE = re.compile(r"clip(\d+)_(prompt|forget|sample|load|save)$")
SAMPLE_SHARE = 0.6  # of a clip's time; the rest is decoding
ASSEMBLE_SHARE = 0.25  # of the film's time


def node_of(prompt: dict, class_type: str) -> str:
    """The id of the only node of this type."""
    found = [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise CannotContinue(f"The workflow needs exactly one {class_type} node, and it has {len(found)}: restore "
                             f"workflows/demo_toyworld.json from the repository.")
    return found[0]


def schedule(prompt: dict) -> dict:
    """The inputs of the film's Re-anchor Prompt Schedule."""
    return prompt[node_of(prompt, SCHEDULE)]["inputs"]


def clip_count(prompt: dict) -> int:
    """How many clips the film will have, from its schedule."""
    inputs = schedule(prompt)
    return max(1, math.ceil(inputs["film_seconds"] / inputs["clip_seconds"] - 1e-6))


def comparison(prompt: dict, name: str) -> dict:
    """The film's prompt without memory or re-anchoring: same seed, a run folder of its own, not assembled."""
    carry_memory, reanchor = COMPARISONS[name]
    render = node_of(prompt, RENDER)
    changed = {node_id: copy.deepcopy(prompt[node_id]) for node_id in _needed_for(prompt, render)}
    changed[render]["inputs"]["carry_memory"] = carry_memory
    changed[render]["inputs"]["run_name"] = run_name(prompt) + "_" + re.sub(r"\W+", "_", name)
    if not reanchor:
        changed[node_of(prompt, SCHEDULE)]["inputs"]["reanchor_seconds"] = 0.0
    changed["status"] = {"class_type": "PreviewAny", "inputs": {"source": [render, STATUS_SLOT]}}  # an output node
    return changed


def run_name(prompt: dict) -> str:
    """The name of the film's run folder."""
    return prompt[node_of(prompt, RENDER)]["inputs"]["run_name"]


def retention(conditions: dict[str, dict]) -> dict[str, dict]:
    """Per condition `same_hero: "9 of 9"` and the shares per attribute, over the clips after the first.

    The first clip has nothing to remember: it shows the hero because its prompt names it.
    """
    result = {}
    for name, scores in conditions.items():
        later = scores["clips"][1:]
        same = sum(clip["same_hero"] for clip in later)
        result[name] = {"same_hero": f"{same} of {len(later)}"}
        for part in ("body", "hat", "shape"):
            kept = sum(clip["kept"][part] for clip in later)
            result[name][part] = round(kept / len(later), 3) if later else None
    return result


def film_file(history: dict, prompt: dict) -> tuple[str, str]:
    """(subfolder, file name) of the assembled film inside ComfyUI's output folder, from the run's history."""
    shown = history["outputs"].get(node_of(prompt, ASSEMBLE), {})
    saved = next((one for value in shown.values() if isinstance(value, list) for one in value
                  if isinstance(one, dict) and "filename" in one), None)
    if saved is None:
        raise CannotContinue("The run ended without a film: look into the ComfyUI log beside the film for the reason.")
    return saved.get("subfolder", ""), saved["filename"]


class FilmProgress:
    """Listens to a run and shows `[####----]  43%, about 25 s left, clip 5 of 10, chunk 2 of 2`.

    Relies on Render Short naming its nodes clip00_prompt, clip00_sample, clip00_save, ... and on the line of text that
    Clip Sampler sends with each chunk.
    """

    def __init__(self, status: StatusLine, prompt: dict) -> None:
        self.status = status
        self.clips = clip_count(prompt)
        is_assembled = any(node["class_type"] == ASSEMBLE for node in prompt.values())
        self.assemble_share = ASSEMBLE_SHARE if is_assembled else 0.0
        self.clip_shares: dict[int, float] = {}
        self.sampled: set[int] = set()  # clips that were not in the run folder yet
        self.assembled = 0.0
        self.chunk = ""
        self.doing = "loading the models"

    def __call__(self, event: str, data: dict) -> None:
        if event == "text":
            found = re.search(r"chunk \d+ of \d+", data["text"])
            self.chunk = f", {found.group(0)}" if found else self.chunk
        elif event == "progress_state":
            for node_id, state in data.get("nodes", {}).items():
                match = CLIP_NODE.search(node_id)
                if match is not None:
                    self._note_clip(int(match.group(1)), match.group(2), state)
                elif len(self.clip_shares) >= self.clips and state.get("max", 0) > 1:
                    self._note_assembly(state)
            self.status.show(self.line(self.status.seconds()), with_time=False)

    def fraction(self) -> float:
        """0 to 1 over the whole film."""
        made = sum(self.clip_shares.values()) / max(self.clips, len(self.clip_shares))
        return (1 - self.assemble_share) * made + self.assemble_share * self.assembled

    def line(self, elapsed_s: float) -> str:
        """What is shown; the time left is a guess, and none is made before a tenth is done."""
        fraction = self.fraction()
        left = f"about {duration_text(elapsed_s / fraction - elapsed_s)} left, " if 0.1 < fraction < 1 else ""
        return f"{bar_text(fraction)} {fraction:4.0%}, {left}{self.doing}"

    def _note_clip(self, clip: int, stage: str, state: dict) -> None:
        """Every state of every node comes again and again: only what is further than before counts."""
        if stage == "sample":
            self.sampled.add(clip)
        reached = _share(state) * {"sample": SAMPLE_SHARE, "save": 1 - SAMPLE_SHARE}.get(stage, 0.0)
        reached += SAMPLE_SHARE if stage == "save" else 0.0
        if reached <= self.clip_shares.get(clip, -1.0):
            return
        self.clip_shares[clip] = reached
        what = {"sample": self.chunk, "save": ", decoding"}.get(stage, "")
        self.doing = f"clip {clip + 1} of {self.clips}{what}"

    def _note_assembly(self, state: dict) -> None:
        share = _share(state)
        if share > self.assembled:
            self.assembled = share
            self.doing = f"joining the clips, frame {state['value']:.0f} of {state['max']:.0f}"


def _share(state: dict) -> float:
    if state.get("state") == "finished":
        return 1.0
    return min(state["value"] / state["max"], 1.0) if state.get("max") else 0.0


def _needed_for(prompt: dict, node_id: str) -> set[str]:
    """The node and everything upstream of it."""
    needed, waiting = set(), [node_id]
    while waiting:
        current = waiting.pop()
        if current not in needed:
            needed.add(current)
            waiting += [value[0] for value in prompt[current]["inputs"].values()
                        if isinstance(value, list) and len(value) == 2 and value[0] in prompt]
    return needed
