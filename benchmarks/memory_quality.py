"""Who is still the same? Identity in every clip of a film, for every way to remember, on the toy world.

All rows share prompts and noise. Clip 1 names the hero, the later ones do not (but for "re-anchored"); every cut
changes the scene. Judged on the second chunk of every clip, decoded alone, as on the model card; spins and jumps
included, exits not. In films with an absence, the clips after it count; a clip without hero is right where nobody is
seen.

    python benchmarks/memory_quality.py --comfyui PATH [--rollouts 48] [--rows NAME,..] [--work FOLDER] [--json PATH]

Every finished film is written to FOLDER (one file per row): started again, or beside another process with other rows,
it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from clip_sampler import CLIP_LATENTS, TOYWORLD, start
from identity import device_name

sys.path.append(str(TOYWORLD / "training"))
from classify import NONE, classify
from evaluate import Film, plan_films
from vae import WanVAE
from world import ACTIONS, COLORS, EMPTY, SCENES, SHAPES

PARTS = ("body", "hat", "shape")
LATER_ACTIONS = [ACTIONS.index(name) for name in ("walks left", "walks right", "jumps", "spins", "waves")]
CHUNK = CLIP_LATENTS // 2


@dataclass(frozen=True)
class Row:
    """One way to remember. spec: changes to the preset's MemorySpec. away: clips, from 0, without the hero.

    card: what the model card has for all three attributes in the last clip; then the films are its own, of 4 clips.
    """

    spec: dict = field(default_factory=dict)
    clips: int = 8
    away: tuple[int, ...] = ()
    forgets: bool = False
    reanchors: bool = False
    saves: str = ""  # "": no, "kv": after every clip, "latents": the same without K/V
    weights: str = "original"
    card: float | None = None


NO_SINK = {"sink_latents": 0}
RETRIEVAL = {"window_latents": 3, "retrieved_latents": 3}
RETRIEVAL_2 = {"sink_latents": 0, "window_latents": 3, "retrieved_latents": 6}
AWAY_1, AWAY_3, LATE = (2,), (2, 3, 4), (0, 2, 3, 4)  # LATE: the film opens on an empty scene, so the sink has no hero
ROWS = {
    "full memory": Row(clips=10),
    "window, no sink": Row(NO_SINK),
    "no memory": Row(forgets=True),
    "re-anchored": Row(reanchors=True),
    "int8": Row({"precision": "int8"}),
    "4-bit": Row({"precision": "4bit"}),
    "4-bit, NF4 weights": Row({"precision": "4bit"}, weights="nf4"),
    "4-bit, NF4 with int8 weights": Row({"precision": "4bit"}, weights="nf4_int8"),
    "saved and loaded": Row(saves="kv"),
    "saved without K/V": Row(saves="latents"),
    "recache": Row({"prompt_change": "recache"}),
    "retrieval": Row(RETRIEVAL),
    "away 1 clip": Row(away=AWAY_1),
    "away 1 clip, no sink": Row(NO_SINK, away=AWAY_1),
    "away 3 clips": Row(away=AWAY_3),
    "away 3 clips, no sink": Row(NO_SINK, away=AWAY_3),
    "away 3 clips, retrieval": Row(RETRIEVAL, away=AWAY_3),
    "away 3 clips, retrieval, no sink": Row(RETRIEVAL_2, away=AWAY_3),
    "away 3 clips, long window": Row({"window_latents": 24}, away=AWAY_3),
    "late hero, away 3 clips": Row(away=LATE),
    "late hero, away 3 clips, retrieval": Row(RETRIEVAL, away=LATE),
    "late hero, away 3 clips, retrieval, no sink": Row(RETRIEVAL_2, away=LATE),
}
CARD_SHARES = {"full memory": 0.85, "window, no sink": 0.38, "no memory": 0.00, "re-anchored": 0.90, "int8": 0.85,
               "4-bit": 0.85, "away 1 clip": 0.83, "away 1 clip, no sink": 0.00}
ROWS |= {f"card's films, {name}": replace(ROWS[name], clips=4, card=share) for name, share in CARD_SHARES.items()}
BASES = {(): "full memory", AWAY_1: "away 1 clip", AWAY_3: "away 3 clips", LATE: "late hero, away 3 clips"}


def prompts_of(film: Film, row: Row) -> list[str]:
    """One per clip of the row; the first clip with the hero names him."""
    clips = range(row.clips)
    actions = [EMPTY if clip in row.away else film.actions[clip] for clip in clips]
    first = next(clip for clip in clips if clip not in row.away)
    return replace(film, scenes=film.scenes[:row.clips], actions=actions).prompts(clips if row.reanchors else (first,))


def plan_film(seed: int, clips: int = 10) -> Film:
    """A film by its seed: the first clip is a walk, every cut changes the scene."""
    random = np.random.default_rng((11, seed))
    shape, body = int(random.integers(len(SHAPES))), int(random.integers(len(COLORS)))
    hat = (body + int(random.integers(1, len(COLORS)))) % len(COLORS)
    scenes = [int(random.integers(len(SCENES)))]
    for _ in range(clips - 1):
        scenes.append((scenes[-1] + int(random.integers(1, len(SCENES)))) % len(SCENES))
    actions = [int(random.choice(LATER_ACTIONS[:2])), *(int(random.choice(LATER_ACTIONS)) for _ in range(clips - 1))]
    return Film((shape, body, hat), scenes, actions)


@cache
def card_films() -> list[Film]:
    """The films that the model card was measured on."""
    return plan_films(48)


def judge(frames: torch.Tensor, film: Film, is_away: bool) -> list[bool]:
    """Body, hat, shape right in frames [T, H, W, 3], 0..1; in a clip without hero three times "nobody seen"."""
    seen = classify(frames.permute(0, 3, 1, 2).float())
    if is_away:
        return [bool(seen.body == NONE)] * 3
    shape, body, hat = film.identity
    return [bool(seen.body == body), bool(seen.hat == hat), bool(seen.shape == shape)]


def film_judge(comfyui: Path, scratch: Path, kinds: tuple[str, ...] = ("original", "nf4", "nf4_int8"),
               ) -> Callable[[Row, int], list[list[bool]]]:
    """`measure(row, seed)` -> [clips][body, hat, shape], made by the pack's own code inside this ComfyUI.

    kinds: the kinds of weights that rows may ask for.
    """
    start(comfyui)
    import comfy.utils
    from pack.nodes.loading.bridge import load_diffusion_model
    from pack.nodes.loading.bridge_text import load_text_encoder

    def file(name: str) -> str:
        return str(TOYWORLD / f"toyworld_{name}_fp16.safetensors")

    models = {weights: load_diffusion_model(file("dit"), weights, min_bytes=0)[0] for weights in kinds}
    encoder = load_text_encoder(file("te"), "original")[0]
    vae = WanVAE.from_state_dict(comfy.utils.load_torch_file(file("vae"))).eval()  # core's numbers, 7 times as fast

    @torch.inference_mode()
    def measure(row: Row, seed: int) -> list[list[bool]]:
        film = plan_film(seed) if row.card is None else card_films()[seed]
        prompts = [encoder.encode_from_tokens_scheduled(encoder.tokenize(text)) for text in prompts_of(film, row)]
        last = _last_chunks(models[row.weights], prompts, row, seed, scratch)
        return [judge(_decode(vae, samples), film, clip in row.away) for clip, samples in enumerate(last)]

    return measure


def _decode(vae: WanVAE, samples: torch.Tensor) -> torch.Tensor:
    """[1, C, T, h, w] as a LATENT holds them -> frames [4T-3, H, W, 3] in 0..1."""
    return ((vae.decode(samples.transpose(1, 2))[0] + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)


def _last_chunks(model: object, prompts: list, row: Row, seed: int, scratch: Path) -> list[torch.Tensor]:
    """The second chunk of every clip, [1, C, 3, h, w] as a LATENT holds it."""
    from dataclasses import replace

    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.files import load_memory, save_memory
    from pack.nodes.memory.state import empty_memory, forget
    from pack.nodes.sampling.bridge import sample_with_memory
    from pack.nodes.sampling.presets import PRESETS, memory_spec

    memory, chunks = empty_memory(replace(memory_spec("toyworld"), **row.spec)), []
    for prompt in prompts:
        memory = forget(memory) if row.forgets else memory
        samples, memory = sample_with_memory(model, memory, prompt, PRESETS["toyworld"], Geometry(16, 10, 16),
                                             CLIP_LATENTS, seed)
        chunks.append(samples[:, :, -CHUNK:])
        if row.saves:
            memory = load_memory(save_memory(memory, scratch / "memory.safetensors", with_kv=row.saves == "kv"))
    return chunks


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    z, share = 1.96, hits / count
    middle, spread = share + z * z / (2 * count), z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return float((middle - spread) / (1 + z * z / count)), float((middle + spread) / (1 + z * z / count))


def difference(mine: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of mine - other, paired by film: bootstrap over films of bool [films, clips]."""
    gains = mine.mean(1) - other.mean(1)
    draws = np.random.default_rng(0).integers(0, len(gains), (4000, len(gains)))
    low, high = np.quantile(gains[draws].mean(1), (0.025, 0.975))
    return float(gains.mean()), float(low), float(high)


def table(results: dict[str, dict[str, list]]) -> str:
    """Per row: all three attributes by clip; clips 2.. together with their interval; and against its baseline."""
    lines = ["| memory | films | all three by clip | clips that count, together | against |", "| --- " * 5 + "|"]
    for name, films in results.items():
        row, hits = ROWS[name], _hits(films)
        counted = _counted(row)
        together = hits[:, counted]
        low, high = wilson(int(together.sum()), together.size)
        base = "card's films, " * (row.card is not None) + BASES[row.away]
        line = ""
        if name != base and base in results:
            shared = sorted(films.keys() & results[base].keys(), key=int)
            mine, other = (_hits({seed: one[seed] for seed in shared})[:, counted] for one in (films, results[base]))
            mean, *around = difference(mine, other)
            line = f"{mean:+.3f} ({around[0]:+.3f} to {around[1]:+.3f}) than {base}"
        if row.card is not None:
            line += f"{'; ' * bool(line)}clip 4 on the card {row.card:.2f}"
        by_clip = " ".join(f"{share:.2f}" for share in hits.mean(0))
        share = f"{together.mean():.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"| {name} | {len(films)} | {by_clip} | {share} | {line} |")
    return "\n".join(lines)


def _hits(films: dict[str, list]) -> np.ndarray:
    return np.array([films[seed] for seed in sorted(films, key=int)], bool).all(2)


def _counted(row: Row) -> list[int]:
    """Clips that say something: after the absence, or after clip 1."""
    return list(range(max(row.away) + 1 if row.away else 1, min(row.clips, 8)))


def main() -> None:
    """Measure what is missing, print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI folder (0.3.75)")
    parser.add_argument("--rollouts", type=int, default=48, help="films per row")
    parser.add_argument("--rows", default=",".join(name.replace(",", ";") for name in ROWS),
                        help="names, separated by commas; a comma inside a name is written ;")
    parser.add_argument("--work", type=Path, help="folder for one file per row; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write every clip's result here")
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory(prefix="memory_quality_")
    work = arguments.work or Path(scratch.name)
    work.mkdir(parents=True, exist_ok=True)
    measure = film_judge(arguments.comfyui, Path(scratch.name))
    for seed in range(arguments.rollouts):
        for name in (name.replace(";", ",") for name in arguments.rows.split(",")):
            _complete(work, name, seed, measure)
    results = {name: films for name in ROWS if (films := _read(work, name))}
    print(f"device: {device_name()}\n\n{table(results)}")
    if arguments.json:
        head = {"device": device_name(), "parts": PARTS, "rows": {name: asdict(ROWS[name]) for name in results}}
        arguments.json.write_text(json.dumps(head | {"films": results}))
    scratch.cleanup()


def _complete(work: Path, name: str, seed: int, measure: Callable[[Row, int], list[list[bool]]]) -> None:
    films = _read(work, name)
    if str(seed) in films:
        return
    started = time.perf_counter()
    films[str(seed)] = measure(ROWS[name], seed)
    _file(work, name).write_text(json.dumps(films))
    print(f"{name}, film {seed + 1}: {time.perf_counter() - started:.1f} s", flush=True)


def _read(work: Path, name: str) -> dict[str, list]:
    file = _file(work, name)
    return json.loads(file.read_text()) if file.exists() else {}


def _file(work: Path, name: str) -> Path:
    return work / f"{name.replace(', ', '_').replace(' ', '-').replace('/', '')}.json"


if __name__ == "__main__":
    main()
