"""The demo workflow, and a short film of its own for every test."""

from __future__ import annotations

import json
import re

import pytest

from .films import ROOT, make_film


@pytest.fixture(scope="session")
def workflow() -> dict:
    return json.loads((ROOT / "workflows" / "demo_toyworld.json").read_text(encoding="utf-8"))


@pytest.fixture
def film(server, workflow, request):
    """Six clips of one chunk, in a run folder named as the test."""
    return make_film(server, workflow, re.sub(r"\W", "_", request.node.name))
