"""Thumbnails of the bundled workflows: every workflow has one, it is the one that is drawn now, its words fit."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from build_pictures import FILMS, QUALITY  # noqa: E402
from build_workflows import WORKFLOWS  # noqa: E402
from workflows.cards import CARDS, EDGE_X, SIZE, draw_card, facts  # noqa: E402


def test_every_workflow_has_a_thumbnail_and_no_thumbnail_is_left_over():
    assert {*CARDS, *FILMS} == set(WORKFLOWS) == {path.stem for path in (ROOT / "workflows").glob("*.jpg")}
    assert {Image.open(path).size for path in (ROOT / "workflows").glob("*.jpg")} == {SIZE}


@pytest.mark.parametrize("name", CARDS)
def test_the_file_is_what_is_drawn_now(name):
    memory = io.BytesIO()
    draw_card(CARDS[name], WORKFLOWS[name]()[0]).save(memory, "jpeg", quality=QUALITY)
    stored = ROOT / "workflows" / f"{name}.jpg"
    drawn, stored = (np.asarray(Image.open(source), dtype=int) for source in (memory, stored))
    assert abs(drawn - stored).max() <= 60, "run python scripts/build_pictures.py"


@pytest.mark.parametrize("name", CARDS)
def test_the_words_fit(name):
    card = CARDS[name]
    for words, size in ((card.headline, 42), (card.promise, 24), (facts(WORKFLOWS[name]()[0]), 24)):
        assert ImageFont.load_default(size).getlength(words) <= SIZE[0] - 2 * EDGE_X, words
