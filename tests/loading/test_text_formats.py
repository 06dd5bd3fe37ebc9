"""Recognising text encoders by their header, and their configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.nodes.loading import formats, text_formats
from safetensors.torch import load_file, save_file


def test_encoder_configuration_is_read_from_the_tensors(toyworld: Path) -> None:
    checkpoint = formats.read_checkpoint(toyworld / "toyworld_te_fp16.safetensors", text_formats.TEXT_ENCODERS)
    config = text_formats.umt5_config(checkpoint)
    assert {key: config[key] for key in ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size")} == {
        "num_layers": 1, "d_model": 4096, "num_heads": 2, "d_kv": 8, "d_ff": 8, "vocab_size": 113}


def test_t5_with_one_position_bias_for_all_layers_is_refused(toyworld: Path, tmp_path: Path) -> None:
    tensors = load_file(toyworld / "toyworld_te_fp16.safetensors")
    tensors["encoder.block.1.layer.1.layer_norm.weight"] = torch.zeros(4096)
    save_file(tensors, tmp_path / "t5.safetensors")
    checkpoint = formats.read_checkpoint(tmp_path / "t5.safetensors", text_formats.TEXT_ENCODERS)
    with pytest.raises(ValueError, match=r"'t5.safetensors' must be a UMT5 .* T5 with 1 position biases in 2 layers"):
        text_formats.umt5_config(checkpoint)
