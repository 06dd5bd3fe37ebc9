"""The two loader nodes as ComfyUI calls them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.comfy


@pytest.fixture
def nodes(toyworld: Path) -> Iterator[ModuleType]:
    folder_paths = pytest.importorskip("folder_paths")
    from pack.nodes.loading import nodes

    saved = {name: (list(paths), set(suffixes)) for name, (paths, suffixes) in
             folder_paths.folder_names_and_paths.items()}
    for folder in ("diffusion_models", "text_encoders"):
        folder_paths.add_model_folder_path(folder, str(toyworld))
    yield nodes
    folder_paths.folder_names_and_paths.update(saved)
    folder_paths.filename_list_cache.clear()


def run(node: type, **inputs: str) -> tuple:
    return node.PREPARE_CLASS_CLONE({}).execute(**inputs).args


def test_nodes_load_the_toy_files(nodes: ModuleType) -> None:
    model, report = run(nodes.LoadDiffusionModel, model_name="toyworld_dit_fp16.safetensors", weights="nf4")
    assert model.model.diffusion_model.dim == 256 and report.startswith("toyworld_dit_fp16.safetensors: Wan")
    clip, report = run(nodes.LoadTextEncoder, text_encoder_name="toyworld_te_fp16.safetensors", weights="original")
    assert clip.tokenize("the hero") and report.startswith("toyworld_te_fp16.safetensors: loaded")


def test_unknown_files_are_refused_before_loading(nodes: ModuleType) -> None:
    answer = nodes.LoadDiffusionModel.validate_inputs(model_name="missing.safetensors")
    assert "Load Diffusion Model (NF4) needs a file of models/diffusion_models, but got 'missing.safetensors'" in answer
    answer = nodes.LoadTextEncoder.validate_inputs(text_encoder_name="missing.safetensors")
    assert "models/text_encoders" in answer and "Put the file there and press R" in answer


def test_unknown_kinds_of_weights_are_refused(nodes: ModuleType) -> None:
    for node, name in ((nodes.LoadDiffusionModel, {"model_name": "toyworld_dit_fp16.safetensors"}),
                       (nodes.LoadTextEncoder, {"text_encoder_name": "toyworld_te_fp16.safetensors"})):
        assert node.validate_inputs(**name) is True
        with pytest.raises(ValueError, match=r"but got 'int3'; allowed: nf4, int8, original"):
            run(node, **name, weights="int3")


def test_names_over_a_link_are_left_to_the_run(nodes: ModuleType) -> None:
    assert nodes.LoadDiffusionModel.validate_inputs(model_name=None) is True
    assert nodes.LoadDiffusionModel.fingerprint_inputs(model_name=None, weights="nf4") == ()
    assert nodes.LoadTextEncoder.validate_inputs(text_encoder_name=None) is True
    assert nodes.LoadTextEncoder.fingerprint_inputs(text_encoder_name=None, weights=None) == ()


@pytest.mark.parametrize("weights", ["nf4", "original"])
def test_other_files_are_no_text_encoder(nodes: ModuleType, weights: str) -> None:
    """ComfyUI's own loader makes an SD 1 encoder with random weights of them."""
    with pytest.raises(ValueError, match=r"got a Wan diffusion model .* or choose another file\.$"):
        run(nodes.LoadTextEncoder, text_encoder_name="toyworld_dit_fp16.safetensors", weights=weights)


def test_fingerprint_follows_the_file(nodes: ModuleType, tmp_path: Path) -> None:
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"one")
    before = nodes.LoadDiffusionModel.fingerprint_inputs(model_name="a.safetensors", weights="nf4")
    (tmp_path / "a.safetensors").write_bytes(b"other")
    assert nodes.LoadDiffusionModel.fingerprint_inputs(model_name="a.safetensors", weights="nf4") != before
