"""The data of the toy world is, bit for bit, the data the checkpoint was trained on.

The digests were made by the recipe that trained the published weights, before it was rewritten for this repository.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from classify import NONE, Classification, classify
from render import hero_on_screen, render, to_uint8
from world import EMPTY, Specs, caption, caption_table, chunk_captions, chunk_of_frame, frames_of_chunks, sample_specs

# (videos, seed, chunks, chunks per clip) -> digests of specs, frames, frames without the hero, prompts, hero on screen
DIGESTS = {
    (4, 1, 3, None): (
        "ff271ab7bde1d39b",
        "732c8dd0ffd8ab9b",
        "fddc3184aa28925a",
        "76465962e7289dff",
        "020f896d348ca41e",
    ),
    (3, 7, 2, None): (
        "58e302a5d8a685b5",
        "b11ba3a36ddfcb78",
        "bb874b1bd40bcd32",
        "16be63f733f2edba",
        "436e67acc91d21a7",
    ),
    (6, 31, 2, 2): (
        "afc16794e9f67b84",
        "c2e580d50efc58a8",
        "679ab6a71eda50c2",
        "073719def9dc758b",
        "38b21760c030ea64",
    ),
}
# the classifier's verdict on each of these videos: body, hat, shape
LABELS = {
    (4, 1, 3, None): [(3, 0, 1), (2, 1, 3), (3, 2, 0), (1, 2, 1)],
    (3, 7, 2, None): [(0, 4, 2), (0, 3, 3), (1, 3, 0)],
    (6, 31, 2, 2): [(0, 5, 1), (5, 0, 2), (5, 3, 1), (1, 4, 0), (4, 0, 3), (0, 4, 3)],
}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def digest_specs(specs: Specs) -> str:
    arrays = {field.name: getattr(specs, field.name) for field in fields(specs)}
    raw = [array if array.dtype == np.float32 else array.astype(np.int64) for _, array in sorted(arrays.items())]
    return hashlib.sha256(b"".join(array.tobytes() for array in raw)).hexdigest()[:16]


@pytest.mark.parametrize("key", DIGESTS)
def test_videos_are_those_the_checkpoint_was_trained_on(key: tuple) -> None:
    specs = sample_specs(*key)
    frames, bare = render(specs), render(specs, hero=False)
    got = (
        digest_specs(specs),
        digest(to_uint8(frames).numpy()),
        digest(to_uint8(bare).numpy()),
        digest(chunk_captions(specs, caption_table()[1])),
        digest(hero_on_screen(specs)),
    )
    assert got == DIGESTS[key]
    assert frames.shape == (key[0], frames_of_chunks(key[2]), 3, 80, 128)


@pytest.mark.parametrize("key", LABELS)
def test_classifier_reads_rendered_videos(key: tuple) -> None:
    seen = [classify(video) for video in render(sample_specs(*key))]
    assert [(one.body, one.hat, one.shape) for one in seen] == LABELS[key]


def test_classifier_sees_nobody_in_an_empty_scene() -> None:
    video = render(sample_specs(1, 31, 2), hero=False)[0]
    assert classify(video) == Classification(NONE, NONE, NONE, 0.0)


def test_prompts_follow_the_trained_grammar() -> None:
    captions, rows = caption_table()
    assert len(captions) == 4362
    assert hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16] == "f02de5a59f9f4661"
    assert caption(2, 4, (0, 4, 2)) == "a blue circle hero with a green hat waves by the sea"
    assert caption(0, 1) == captions[rows[0, 1]] == "the hero walks right in the forest"
    assert caption(5, EMPTY) == "the empty cave"


def test_first_chunk_is_three_frames_shorter() -> None:
    assert torch.from_numpy(chunk_of_frame(3)).bincount().tolist() == [9, 12, 12]
