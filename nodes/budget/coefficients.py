"""Numbers that no formula gives: one documented file per model family in data/, with the script that measures them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..common.errors import message

DATA = Path(__file__).parent / "data"
HOW = ("traced", "measured", "assumed")


def known_families() -> tuple[str, ...]:
    """The families with a file."""
    return tuple(sorted(file.stem for file in DATA.glob("*.json")))


@cache
def coefficients(family: str) -> Mapping[str, float]:
    """The coefficients of a family by name; ValueError for a family without a file, or one whose file is not whole."""
    path = DATA / f"{family}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {name: float(entry["value"]) for name, entry in content["coefficients"].items()
                 if entry["how"] in HOW and entry["note"]}
        if len(found) != len(content["coefficients"]) or not content["script"]:
            raise ValueError("an entry does not say where its number comes from")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(message(f"The cost of a {family} model needs its coefficients", f"{path.name}: {error}",
                                 f"one of {', '.join(known_families())}",
                                 "Install the pack again.")) from error
    return found
