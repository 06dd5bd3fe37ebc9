"""Load Text Encoder as ComfyUI calls it: two files, a type, the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import save_file

from .text_files import tiny_state

pytestmark = pytest.mark.comfy


@pytest.fixture
def nodes(toyworld: Path, tmp_path: Path) -> Iterator[ModuleType]:
    """The node's module, with a folder of text encoders that has two tiny ones."""
    folder_paths = pytest.importorskip("folder_paths")
    from pack.nodes.loading import nodes

    saved = {name: (list(paths), set(suffixes)) for name, (paths, suffixes) in
             folder_paths.folder_names_and_paths.items()}
    for part in ("t5xxl", "clip_l"):
        save_file(tiny_state(part, toyworld), tmp_path / f"{part}.safetensors")
    folder_paths.add_model_folder_path("text_encoders", str(tmp_path))
    yield nodes
    folder_paths.folder_names_and_paths.update(saved)
    folder_paths.filename_list_cache.clear()


def run(node: type, **inputs: str) -> tuple:
    return node.PREPARE_CLASS_CLONE({}).execute(**inputs).args


def test_two_files_become_one_clip(nodes: ModuleType) -> None:
    clip, report = run(nodes.LoadTextEncoder, text_encoder_name="t5xxl.safetensors", weights="nf4",
                       second_name="clip_l.safetensors")
    assert report.endswith("type: flux (auto: from T5 v1.1 text encoder and CLIP-L text encoder)")
    assert {"l", "t5xxl"} == set(clip.tokenize("the hero"))


def test_type_is_handed_on(nodes: ModuleType) -> None:
    _, report = run(nodes.LoadTextEncoder, text_encoder_name="t5xxl.safetensors", weights="int8", type="mochi")
    assert report.endswith("\ntype: mochi")
    with pytest.raises(ValueError, match="for type 'wan'"):
        run(nodes.LoadTextEncoder, text_encoder_name="t5xxl.safetensors", weights="nf4", type="wan")


def test_nothing_is_written_unless_the_cache_is_asked_for(nodes: ModuleType, tmp_path: Path) -> None:
    """The tiny encoder has no matrix of 1 MB, so the cache is not needed even then."""
    inputs = {"text_encoder_name": "t5xxl.safetensors", "weights": "nf4"}
    assert "cache" not in run(nodes.LoadTextEncoder, **inputs)[1]
    assert "cache: not needed, nothing to quantise" in run(nodes.LoadTextEncoder, **inputs, cache="keep")[1]
    assert {path.name for path in tmp_path.iterdir()} == {"t5xxl.safetensors", "clip_l.safetensors"}


def test_fingerprint_follows_both_files(nodes: ModuleType, tmp_path: Path) -> None:
    inputs = {"text_encoder_name": "t5xxl.safetensors", "weights": "nf4", "second_name": "clip_l.safetensors"}
    before = nodes.LoadTextEncoder.fingerprint_inputs(**inputs)
    assert before != nodes.LoadTextEncoder.fingerprint_inputs("t5xxl.safetensors", "nf4")
    (tmp_path / "clip_l.safetensors").write_bytes(b"other")
    assert nodes.LoadTextEncoder.fingerprint_inputs(**inputs) != before
    assert nodes.LoadTextEncoder.fingerprint_inputs(None, "nf4", None) == ()


def test_tooltip_tells_the_auto_rule(nodes: ModuleType) -> None:
    from pack.nodes.loading.text_formats import TYPES

    inputs = {entry.id: entry for entry in nodes.LoadTextEncoder.define_schema().inputs}
    assert list(inputs["type"].options) == ["auto", *TYPES]
    first_of = {}
    for name, combinations in TYPES.items():
        for families in combinations:
            first_of.setdefault(frozenset(family.title for family in families), name)
    assert all(f"-> {name}" in inputs["type"].tooltip for name in first_of.values())
    assert inputs["second_name"].options[0] == inputs["second_name"].default == "none"
