"""The translations against the nodes as they are now: no missing name, no stale key, in any language."""

from __future__ import annotations

import json

import pytest
from pack.scripts import build_locales

pytestmark = pytest.mark.comfy


def names(defs: dict) -> set[tuple]:
    """(node, kind, key) of everything that has a name."""
    found = {(node, "node", "") for node, one in defs.items() if "display_name" in one}
    return found | {(node, kind, key) for node, one in defs.items() for kind in ("inputs", "outputs")
                    for key, field in one.get(kind, {}).items() if "name" in field}


def test_the_files_are_what_the_script_builds(node_classes):
    for path, text in build_locales.pages(node_classes).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.parent.name}/{path.name} is old: run python scripts/build_locales.py --comfyui PATH")


def test_english_is_complete(node_classes):
    for node in build_locales.english(node_classes).values():
        assert node["display_name"] and node["description"]
        for field in [*node["inputs"].values(), *node["outputs"].values()]:
            assert field["name"] and field["tooltip"]


@pytest.mark.parametrize("language", build_locales.LANGUAGES)
def test_every_name_is_translated(node_classes, language):
    english = build_locales.english(node_classes)
    path = build_locales.ROOT / "locales" / language / "nodeDefs.json"
    translated = json.loads(path.read_text(encoding="utf-8"))
    assert names(english) - names(translated) == set()
    assert names(translated) - names(english) == set()


@pytest.mark.parametrize("language", build_locales.LANGUAGES)
def test_no_translation_is_of_a_text_that_is_gone(node_classes, language):
    texts = set()

    def collect(value) -> None:
        if isinstance(value, str):
            texts.add(value)
        else:
            for one in value.values():
                collect(one)

    collect(build_locales.english(node_classes))
    assert set(build_locales.catalogue_of(language)) - texts == set()
