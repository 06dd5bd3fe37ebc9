"""Tensors of a file that ComfyUI's model has no place for: told and left out, or a model that is another one."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from .diffusers_weights import state_of
from .test_diffusers import SHAPES
from .tiny_models import output, random_state

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge

    return bridge


def cameras(fp8: bool) -> dict[str, torch.Tensor]:
    """Layers that a training code has added to each block, as ReCamMaster's does."""
    weights = {f"blocks.{i}.cam_encoder.weight": torch.ones(128, 12, dtype=torch.bfloat16) for i in range(2)}
    if not fp8:
        return weights
    return {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()} | {
        name.replace("weight", part): torch.tensor(2.0) for name in weights for part in ("weight_scale", "input_scale")}


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_what_has_no_place_is_told_and_not_loaded(bridge: ModuleType, tmp_path: Path, weights: str, fp8: bool,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    state, extra = random_state("wan_t2v"), cameras(fp8)
    (tmp_path / "plain").mkdir()
    save_file(state, tmp_path / "plain" / "a.safetensors")
    save_file(state | extra, tmp_path / "a.safetensors")
    expected, report = bridge.load_diffusion_model(str(tmp_path / "plain" / "a.safetensors"), weights, min_bytes=0)
    assert "not used" not in report
    line = f"not used, ComfyUI has no place for it: {len(extra)} tensors, first blocks.0.cam_encoder.weight"
    with caplog.at_level(logging.WARNING):
        for cache in (False, True, True):
            model, told = bridge.load_diffusion_model(str(tmp_path / "a.safetensors"), weights, 0, cache=cache)
            assert told.startswith(f"{report}\n{line}") and told.count("cache: ") == cache
            assert torch.equal(output("wan_t2v", model), output("wan_t2v", expected))
    assert f"a.safetensors: {line}" in caplog.text and "unet unexpected" not in caplog.text


@pytest.mark.parametrize("weights", ["nf4", "int8", "original"])
@pytest.mark.parametrize("kind", ["hunyuan", "wan_ti2v", "ltx"])
def test_another_model_in_diffusers_names_is_refused(bridge: ModuleType, tmp_path: Path, weights: str, kind: str,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """FramePack: HunyuanVideo with an embedding of earlier frames. Without it the film would be another one."""
    state = state_of(SHAPES[kind]) | {"clean_x_embedder.proj.bias": torch.zeros(8),
                                      "clean_x_embedder.proj.weight": torch.zeros(8, 16, 1, 2, 2)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "FramePack.safetensors")
    monkeypatch.setattr(bridge, "read_weights", None)
    with pytest.raises(ValueError, match=r"FramePack.safetensors' must be a .* of ComfyUI's kinds, but got one with 2 "
                                         r"tensors that ComfyUI has no place for, the first named clean_x_embedder"):
        bridge.load_diffusion_model(str(tmp_path / "FramePack.safetensors"), weights)
