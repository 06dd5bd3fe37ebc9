"""What does packing the weights cost? Identity in films of four clips on the toy world, for every kind of weights.

All rows share prompts and noise; clip 1 names the hero, clips 2-4 do not; judged as in memory_quality.py, which says
how. The toy world's layers are small, so everything that a full-size model would have packed is packed here
(min_bytes=0); embeddings, head and time modulation stay, as in every model.

    python benchmarks/weights_quality.py --comfyui PATH [--rollouts 48] [--weights KIND,..] [--work FOLDER] [--json X]

Every finished film is written to FOLDER (one file per kind): started again, it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from identity import device_name
from memory_quality import PARTS, Row, difference, film_judge, wilson

CLIPS = 4
KINDS = ("original", "nf4", "nf4_int8", "int8")
AIMS = {"nf4": -0.02, "nf4_int8": -0.02, "int8": -0.01}  # at most so much less identity than with original weights


def main() -> None:
    """Measure what is missing, print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI folder (0.3.75)")
    parser.add_argument("--rollouts", type=int, default=48, help="films per kind of weights")
    parser.add_argument("--weights", default=",".join(KINDS), help="kinds of weights, separated by commas")
    parser.add_argument("--work", type=Path, help="folder for one file per kind; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write every clip's result here")
    options = parser.parse_args()
    kinds = tuple(options.weights.split(","))
    with tempfile.TemporaryDirectory(prefix="weights_quality_") as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        measure = film_judge(options.comfyui, Path(scratch), kinds)
        for seed in range(options.rollouts):
            for kind in kinds:
                films = read(work, kind)
                if str(seed) not in films:
                    started = time.perf_counter()
                    films[str(seed)] = measure(Row(clips=CLIPS, weights=kind), seed)
                    (work / f"{kind}.json").write_text(json.dumps(films))
                    print(f"{kind}, film {seed + 1}: {time.perf_counter() - started:.1f} s", flush=True)
        results = {kind: films for kind in kinds if (films := read(work, kind))}
    print(f"device: {device_name()}; identity = body, hat and shape right, 95 % intervals\n\n{table(results)}")
    if options.json:
        options.json.write_text(json.dumps({"device": device_name(), "date": time.strftime("%Y-%m-%d"), "parts": PARTS,
                                            "summary": summary(results), "films": results}) + "\n")


def read(work: Path, kind: str) -> dict[str, list]:
    """Films by seed: [clips][body, hat, shape]."""
    file = work / f"{kind}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def summary(results: dict[str, dict[str, list]]) -> dict[str, dict]:
    """Per kind over clips 2-4: the share of clips with all three attributes right, its interval, and the paired
    difference from original weights, mean and interval."""
    rows = {}
    for kind, films in results.items():
        seeds = sorted(films, key=int)
        hits = _hits(films, seeds)
        rows[kind] = {"films": len(seeds), "by_clip": np.array([films[seed] for seed in seeds]).all(2).mean(0).tolist(),
                      "by_part": np.array([films[seed] for seed in seeds])[:, 1:].mean((0, 1)).tolist(),
                      "identity": float(hits.mean()), "interval": wilson(int(hits.sum()), hits.size)}
        if kind != "original" and "original" in results:
            shared = [seed for seed in seeds if seed in results["original"]]
            rows[kind]["difference"] = difference(_hits(films, shared), _hits(results["original"], shared))
    return rows


def table(results: dict[str, dict[str, list]]) -> str:
    lines = ["| weights | films | all three by clip | body / hat / shape | clips 2-4 | than original | aim |",
             "| --- " * 7 + "|"]
    for kind, row in summary(results).items():
        by_clip, by_part = (" / ".join(f"{share:.2f}" for share in row[part]) for part in ("by_clip", "by_part"))
        low, high = row["interval"]
        against = "{:+.3f} ({:+.3f} to {:+.3f})".format(*row["difference"]) if "difference" in row else ""
        aim = f">= {AIMS[kind]:+.2f}" if kind in AIMS else ""
        share = f"{row['identity']:.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"| {kind} | {row['films']} | {by_clip} | {by_part} | {share} | {against} | {aim} |")
    return "\n".join(lines)


def _hits(films: dict[str, list], seeds: list[str]) -> np.ndarray:
    """bool [films, clips 2-4]."""
    return np.array([films[seed] for seed in seeds], bool)[:, 1:].all(2)


if __name__ == "__main__":
    main()
