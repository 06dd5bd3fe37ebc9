"""The translations against the nodes as they are now: no missing name, no stale key, in any language."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from pack.scripts import build_locales

pytestmark = pytest.mark.comfy

# placeholders, quoted grammar, folders, names of things
KEPT = re.compile(r"\{\w+\}|<\w+>|(?<!\w)'[^']*: [^']*'|\b(?:models|output)(?:/\w+)+|\b(?:MODEL|VAE|CLIP|LoRA)\b")


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
def test_every_text_is_translated_and_no_translation_is_left_over(node_classes, language):
    texts, catalogue = texts_of(build_locales.english(node_classes)), build_locales.catalogue_of(language)
    assert texts - set(catalogue) == set()
    assert set(catalogue) - texts == set()
    assert all(catalogue.values())
    sentences = {text: catalogue[text] for text in texts if text.endswith(".")}
    assert [text for text, translation in sentences.items() if text == translation] == []


@pytest.mark.parametrize("language", build_locales.LANGUAGES)
def test_a_translation_keeps_numbers_values_and_nodes(node_classes, language):
    catalogue = build_locales.catalogue_of(language)
    nodes = {cls.GET_SCHEMA().display_name for cls in node_classes}
    values = {str(value) for cls in node_classes for one in cls.GET_SCHEMA().inputs
              for value in getattr(one, "options", None) or ()}
    for text, translation in catalogue.items():
        lost = Counter(re.findall(r"\d+", text)) - Counter(re.findall(r"\d+", translation))
        assert not lost, f"{text!r} has numbers that {translation!r} has not: {sorted(lost)}"
        explained = re.findall(r"\b(\w+)(?: =|:)", text)  # "int8 = half of that"
        for kept in [*KEPT.findall(text), *values.intersection(explained)]:
            assert kept in translation, f"{translation!r} lacks {kept!r}"
        for name in nodes - {text}:
            if " " in name and re.search(rf"(?<!Spatial ){re.escape(name)}", text):
                assert catalogue[name] in translation, f"{translation!r} does not name {catalogue[name]!r}"


def texts_of(value: dict | str) -> set[str]:
    """Every text of a tree."""
    return {value} if isinstance(value, str) else set().union(*map(texts_of, value.values()))
