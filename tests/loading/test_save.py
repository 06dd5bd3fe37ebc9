"""Save Quantized Model: the file loads to the same model, bit for bit, and holds no LoRA."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy


class Cancelled(Exception):
    pass


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


def load(bridge: ModuleType, path: Path, weights: str = "nf4") -> Any:
    return bridge.load_diffusion_model(str(path), weights, min_bytes=0)[0]


@pytest.fixture(params=["nf4", "int8"])
def model(request: pytest.FixtureRequest, bridge: ModuleType, toyworld: Path) -> Any:
    return load(bridge, toyworld / "toyworld_dit_fp16.safetensors", request.param)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.model.diffusion_model.state_dict())


def lora(model: Any) -> Any:
    import comfy.model_management
    import comfy.sd

    key, module = "diffusion_model.blocks.0.ffn.0", model.model.diffusion_model.blocks[0].ffn[0]
    tensors = {f"{key}.lora_A.weight": torch.ones(2, module.in_features),
               f"{key}.lora_B.weight": torch.ones(module.out_features, 2),
               f"{key}.diff_b": torch.ones(module.out_features)}
    patched = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]
    comfy.model_management.load_models_gpu([patched])
    return patched


@pytest.mark.parametrize("has_lora", [False, True])
def test_reloading_gives_the_same_weights(bridge: ModuleType, model: Any, tmp_path: Path, has_lora: bool) -> None:
    from pack.nodes.loading.bridge_save import save_model

    before, path = {name: tensor.clone() for name, tensor in weights_of(model).items()}, tmp_path / "saved.safetensors"
    report = save_model(lora(model) if has_lora else model, path)
    assert ("LoRAs on this MODEL (2 weights) are not in the file" in report) == has_lora
    for weights in bridge.WEIGHTS:
        after = weights_of(load(bridge, path, weights))
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype
                   for name, tensor in before.items())


def test_saving_the_reloaded_file_gives_the_same_bytes(bridge: ModuleType, model: Any, tmp_path: Path) -> None:
    from pack.nodes.loading.bridge_save import save_model
    from safetensors.torch import load_file

    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_model(model, first)
    save_model(load(bridge, first), second)
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_cancel_leaves_no_file(model: Any, tmp_path: Path) -> None:
    from pack.nodes.common.progress import Progress
    from pack.nodes.loading.bridge_save import save_model

    def cancel() -> None:
        if list(tmp_path.iterdir()):
            raise Cancelled

    with pytest.raises(Cancelled):
        save_model(model, tmp_path / "a.safetensors", Progress(check_cancel=cancel))
    assert not list(tmp_path.iterdir())


def test_a_model_without_packed_weights_is_refused(bridge: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    from pack.nodes.loading.bridge_save import save_model

    plain = load(bridge, toyworld / "toyworld_dit_fp16.safetensors", "original")
    with pytest.raises(ValueError, match=r"Save Quantized Model needs a quantised MODEL, but got a .* without"):
        save_model(plain, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_cached_load_is_the_same_model(bridge: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    import shutil

    path = shutil.copy(toyworld / "toyworld_dit_fp16.safetensors", tmp_path / "a.safetensors")
    expected = weights_of(load(bridge, Path(path)))
    for line in ("cache: written", "cache: read from"):
        model, report = bridge.load_diffusion_model(path, "nf4", min_bytes=0, cache=True)
        assert line in report
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(model).items())


def test_cores_save_nodes_refuse_packed_weights(bridge: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    import folder_paths
    from comfy_extras.nodes_model_merging import CLIPSave, ModelSave
    from pack.nodes.loading import bridge_text

    model = load(bridge, toyworld / "toyworld_dit_fp16.safetensors")
    clip = bridge_text.load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "nf4", min_bytes=0)[0]
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    try:
        for _ in range(2):  # the model is loaded already the second time
            with pytest.raises(ValueError, match="need weights that are not packed, but got a quantised WanModel"):
                ModelSave().save(model, "diffusion_models/toy")
        with pytest.raises(ValueError, match="need weights that are not packed"):
            CLIPSave().save(clip, "clip/toy")
        assert not list(tmp_path.rglob("*.safetensors"))
        original = bridge.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"), "original")[0]
        ModelSave().save(original, "diffusion_models/toy")
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    finally:
        folder_paths.set_output_directory(before)
