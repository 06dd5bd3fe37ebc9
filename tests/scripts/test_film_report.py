"""Scores and contact sheet from real run folders with rendered toy-world heroes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.nodes.video.encode import write_ffv1, write_mp4
from pack.nodes.video.run_folder import RunFolder
from pack.scripts.harness import film_report
from PIL import Image

FPS = 8


def plain_hero(body: tuple[int, int, int]) -> torch.Tensor:
    """16 frames of a square with a green hat on grey, as flat as the classifier likes it, [T, H, W, 3] 0..1."""
    frame = np.full((80, 128, 3), 130, np.uint8)
    frame[30:60, 50:80] = body
    frame[16:30, 56:74] = (40, 190, 60)
    return torch.from_numpy(np.repeat(frame[None], 16, 0)).float() / 255


def make_run(folder: Path, bodies: list[tuple[int, int, int]]) -> Path:
    """A run folder as Save Clip leaves it, one clip per body colour."""
    run = RunFolder(folder)
    for index, body in enumerate(bodies):
        take = run.begin(index, "print", f"digest {index}")
        take = run.put(take, "latents", lambda path: path.write_bytes(b"latents"))
        take = run.put(take, "video", lambda path, body=body: write_ffv1(path, [plain_hero(body)], FPS))
        run.finish(take)
    return folder


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> tuple[dict, Path]:
    """film_report.py run as the demo runs it: a process of its own."""
    folder = tmp_path_factory.mktemp("report")
    red, blue = (220, 40, 45), (50, 60, 220)
    runs = {"both": make_run(folder / "both", [red, red, red]),
            "neither": make_run(folder / "neither", [red, blue, red])}
    write_mp4(folder / "film.mp4", [plain_hero(red)], FPS, 16, None, {})
    schedule = {"identity": "a red square hero with a green hat", "hero": "the hero",
                "scenes": "0-2: {hero} walks right in the forest\n2: {hero} waves by the sea",
                "reanchor_seconds": 4.0, "clip_seconds": 3.0, "film_seconds": 6.0}
    job = {"films": {name: {"folder": str(run), "schedule": schedule} for name, run in runs.items()},
           "film": str(folder / "film.mp4"), "title": "A test", "sheet": str(folder / "sheet.png"),
           "result": str(folder / "result.json")}
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([sys.executable, film_report.__file__, str(folder / "job.json")], check=True)
    return json.loads((folder / "result.json").read_text()), folder


def test_a_clip_is_scored_against_the_hero_of_the_first_prompt(result):
    scores = result[0]["conditions"]
    assert [clip["kept"]["body"] for clip in scores["both"]["clips"]] == [True, True, True]
    assert [clip["kept"]["body"] for clip in scores["neither"]["clips"]] == [True, False, True]
    assert scores["neither"]["clips"][1]["seen"]["body"] == "blue"
    assert film_report.lost_text(scores["neither"]["clips"][1]).startswith("other body (blue)")


def test_prompts_are_cut_by_the_real_clip_length(result):
    """The clips are 2 s long although the schedule asked for 3 s: prompts and re-anchors follow the clips."""
    clips = result[0]["conditions"]["both"]["clips"]
    assert [clip["start_s"] for clip in clips] == [0, 2, 4]
    assert clips[1]["prompt"] == "the hero waves by the sea"
    assert [clip["names_identity"] for clip in clips] == [True, False, True]


def test_the_films_facts_are_read_from_the_file(result):
    film = result[0]["film"]
    assert (film["width"], film["height"], film["frames"], film["fps"], film["seconds"]) == (128, 80, 16, 8, 2)


def test_the_sheet_shows_every_clip_and_every_film(result):
    with Image.open(result[1] / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert pixels.shape[1] > 1200
    red = (np.abs(pixels - (220, 40, 45)).sum(-1) < 12).sum()
    blue = (np.abs(pixels - (50, 60, 220)).sum(-1) < 12).sum()
    assert red > 5 * blue > 0  # blue is in one strip, once
    assert not (result[1] / "sheet.png.partial").exists()
