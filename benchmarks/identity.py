"""Does the hero stay the same? Films of ten 3-second clips on the toy world, with and without memory and re-anchoring.

Four conditions share scenes, heroes and noise: with memory, the context of every clip is carried into the next; with
re-anchoring, the prompt names the hero again wherever a multiple of 8 seconds is passed, otherwise only in clip 1.
Every film is judged in its native pixels on the last half of each clip (demo/toyworld/identity.py).

    python benchmarks/identity.py [--comfyui PATH] [--seeds 8] [--json OUT.json]

With --comfyui the films are made by the pack inside that ComfyUI, without it by the checkpoint's reference sampler.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

TOYWORLD = Path(__file__).resolve().parents[1] / "demo" / "toyworld"
REANCHOR_SECONDS = 8
CONDITIONS = {  # name -> carry the memory from clip to clip, name the hero again
    "memory and re-anchoring": (True, True),
    "memory only": (True, False),
    "re-anchoring only": (False, True),
    "neither": (False, False),
}


@dataclass(frozen=True)
class Scene:
    """One clip of the demo film."""

    start: float  # seconds
    text: str  # with {hero}


def reference_film(texts: list[str], seed: int, carry_memory: bool) -> list[np.ndarray]:
    """One clip per text -> frames uint8 [T, 80, 128, 3] per clip; `carry_memory=False` starts every clip afresh."""
    sample, models = _reference_sampler()
    return [clip.permute(0, 2, 3, 1).numpy() for clip in sample.generate_film(models, texts, seed, carry_memory)]


def read_film(path: Path) -> tuple[str, str, list[Scene]]:
    """Identity, short name and scenes of a film.json."""
    film = json.loads(path.read_text())
    lines = [re.fullmatch(r"(?P<start>[\d.]+)-[\d.]+: (?P<text>.+)", line) for line in film["scenes"]]
    return film["identity"], film["hero"], [Scene(float(line["start"]), line["text"]) for line in lines]


def clip_texts(identity: str, hero: str, scenes: list[Scene], reanchor: bool) -> list[str]:
    """The prompt of every clip: the first names the identity, and so does every re-anchored one."""
    texts, before = [], None
    for scene in scenes:
        passed = before is None or scene.start // REANCHOR_SECONDS > before // REANCHOR_SECONDS
        named = before is None or (reanchor and passed)
        texts.append(scene.text.replace("{hero}", identity if named else hero))
        before = scene.start
    return texts


def random_identities(count: int) -> list[str]:
    """That many different heroes out of the 120, drawn with a fixed seed."""
    world = _load("world", TOYWORLD / "training" / "world.py")
    names = [
        f"a {body} {shape} hero with a {hat} hat"
        for shape in world.SHAPES
        for body in world.COLORS
        for hat in world.COLORS
        if body != hat
    ]
    return [names[row] for row in np.random.default_rng(0).permutation(len(names))[:count]]


def measure(generate_film: Callable, films: int, film: tuple[str, str, list[Scene]],
            every_hero: bool) -> tuple[dict[str, list], float]:
    """Per condition the retention of each film (seed = its number), and seconds of computing per film."""
    score = _load("toyworld_identity", TOYWORLD / "identity.py")
    identity, hero, scenes = film
    identities = random_identities(films) if every_hero else [identity] * films
    results: dict[str, list] = {name: [] for name in CONDITIONS}
    started = time.perf_counter()
    for seed, who in enumerate(identities):
        for name, (carry_memory, reanchor) in CONDITIONS.items():
            clips = generate_film(clip_texts(who, hero, scenes, reanchor), seed, carry_memory)
            results[name].append(score.retention(clips, score.parse_identity(who)))
    return results, (time.perf_counter() - started) / (films * len(CONDITIONS))


def device_name() -> str:
    """The GPU torch would use, otherwise the processor and the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


@cache
def _reference_sampler() -> tuple[ModuleType, tuple]:
    sys.path.append(str(TOYWORLD / "training"))
    sample = _load("sample", TOYWORLD / "training" / "sample.py")
    return sample, sample.load(TOYWORLD)


@cache
def _load(name: str, path: Path) -> ModuleType:
    """A module from its file: this script has the same name as the score's."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Measure, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="make the films with the pack inside this ComfyUI (0.3.75)")
    parser.add_argument("--seeds", type=int, default=8, help="films per condition")
    parser.add_argument("--heroes", choices=("film", "random"), default="random", help="the film's, or one per seed")
    parser.add_argument("--film", type=Path, default=TOYWORLD / "film.json")
    parser.add_argument("--json", type=Path, help="write every clip's result here")
    arguments = parser.parse_args()
    film = read_film(arguments.film)
    generate = reference_film
    if arguments.comfyui:
        generate = _load("clip_sampler", Path(__file__).with_name("clip_sampler.py")).film_maker(arguments.comfyui)
    results, seconds = measure(generate, arguments.seeds, film, arguments.heroes == "random")
    sampler = "the pack in ComfyUI" if arguments.comfyui else "reference sampler"
    heroes = film[0] if arguments.heroes == "film" else "one random hero per film"
    print(f"{arguments.seeds} films of {len(film[2])} clips per condition, {heroes}; {sampler}")
    print(f"device: {device_name()}; {seconds:.1f} s per film; clip 1 is not counted\n")
    print(_load("toyworld_identity", TOYWORLD / "identity.py").table(results))
    if arguments.json:
        parts = ("body", "hat", "shape", "all_three")
        numbers = {
            name: [{part: getattr(score, part).tolist() for part in parts} for score in scores]
            for name, scores in results.items()
        }
        head = {"device": device_name(), "sampler": sampler, "heroes": arguments.heroes,
                "seconds_per_film": round(seconds, 2)}
        arguments.json.write_text(json.dumps(head | {"conditions": numbers}, indent=1))


if __name__ == "__main__":
    main()
