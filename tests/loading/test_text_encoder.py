"""Quantised text encoders inside the real CLIP: same numbers as their unpacked weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.comfy
PROMPT = "a blue circle hero with a green hat walks right in the forest"


@pytest.fixture(scope="module")
def bridge_text() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge_text

    return bridge_text


@pytest.fixture(scope="module")
def reference(toyworld: Path) -> dict[str, torch.Tensor]:
    return load_file(toyworld / "reference_rollout.safetensors")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("weights", ["original", "nf4"])
def test_text_encoder_gives_the_model_cards_conditioning(bridge_text: ModuleType, toyworld: Path, reference: dict,
                                                         weights: str) -> None:
    clip, report = bridge_text.load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), weights)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]
    assert conditioning.shape == (1, 512, 4096)
    assert (conditioning[0, :15] - reference["text_embedding_prompt0"]).abs().max() < 1e-5
    assert not conditioning[0, 15:].any()
    assert "toyworld_te_fp16.safetensors" in report


def test_quantised_text_encoder_equals_its_unpacked_weights(bridge_text: ModuleType, toyworld: Path,
                                                            tmp_path: Path) -> None:
    from pack.nodes.loading import formats, nf4, text_formats
    from pack.nodes.loading.plan import plan_layers

    path = toyworld / "toyworld_te_fp16.safetensors"
    plan = plan_layers(formats.read_checkpoint(path, text_formats.TEXT_ENCODERS), min_bytes=0)
    assert len(plan.quantize) == 7
    state = {name: nf4.dequantize(nf4.quantize(tensor), torch.float32) if name in plan.quantize else tensor
             for name, tensor in load_file(path).items()}
    save_file({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
              tmp_path / "unpacked.safetensors")
    ours, _ = bridge_text.load_text_encoder(str(path), "nf4", min_bytes=0)
    theirs, _ = bridge_text.load_text_encoder(str(tmp_path / "unpacked.safetensors"), "original")
    ours, theirs = (clip.encode_from_tokens(clip.tokenize(PROMPT)) for clip in (ours, theirs))
    assert relative(ours, theirs) < 1e-5


def test_full_size_encoder_keeps_cores_sizes(bridge_text: ModuleType) -> None:
    """The sizes that send a file to core's own loader are those of core's configuration."""
    import json

    import comfy.text_encoders.wan

    config = json.loads((Path(comfy.text_encoders.wan.__file__).parent / "umt5_config_xxl.json").read_text())
    assert config.items() >= bridge_text.UMT5_XXL.items()


def test_loading_an_encoder_leaves_nothing_on_cores_list(bridge_text: ModuleType, toyworld: Path) -> None:
    """The patcher that core made is exchanged; left on the list it would be reported as a memory leak."""
    import comfy.model_management

    before = [id(loaded) for loaded in comfy.model_management.current_loaded_models]
    clip, _ = bridge_text.load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "nf4")
    assert isinstance(clip.patcher, bridge_text.QuantPatcher) and clip.patcher.is_clip
    assert [id(loaded) for loaded in comfy.model_management.current_loaded_models] == before
