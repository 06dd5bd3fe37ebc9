"""Recognising files by their header, and deciding which weights become NF4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.nodes.loading import families, formats, nf4
from pack.nodes.loading.plan import plan_layers
from pack.nodes.loading.report import describe_load
from safetensors.torch import load_file, save_file

BLOCK = "blocks.0.self_attn.q.weight"


def test_reads_the_header_only(toyworld: Path) -> None:
    headers = formats.read_header(toyworld / "toyworld_dit_fp16.safetensors").tensors
    for key, tensor in load_file(toyworld / "toyworld_dit_fp16.safetensors").items():
        assert headers[key].shape == tuple(tensor.shape)
        assert headers[key].dtype == tensor.dtype and headers[key].bytes == tensor.nbytes


@pytest.mark.parametrize("prefix", ["", "model.", "diffusion_model.", "model.diffusion_model."])
def test_recognises_wan_under_every_prefix(prefix: str, tmp_path: Path) -> None:
    path = write_markers(tmp_path, prefix)
    checkpoint = formats.read_checkpoint(path, formats.DIFFUSION_MODELS)
    assert checkpoint.family is families.WAN
    assert set(checkpoint.tensors) == set(families.WAN.markers)
    assert checkpoint.tensors[BLOCK].key == prefix + BLOCK


def test_refuses_unknown_files_with_what_was_looked_for(tmp_path: Path) -> None:
    save_file({"unet.down.weight": torch.zeros(2, 2)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(ValueError, match=r"'sdxl.safetensors' must be a checkpoint .* 1 tensors, the first named "
                                         r"'unet.down.weight'; allowed: Wan diffusion model \(head.modulation"):
        formats.read_checkpoint(tmp_path / "sdxl.safetensors", formats.DIFFUSION_MODELS)


def test_plan_keeps_embeddings_head_and_small_weights(toyworld: Path) -> None:
    checkpoint = formats.read_checkpoint(toyworld / "toyworld_dit_fp16.safetensors", formats.DIFFUSION_MODELS)
    plan = plan_layers(checkpoint, min_bytes=200_000)
    assert len(plan.quantize) == 12 and all(".ffn." in name for name in plan.quantize)
    assert plan.keep["text_embedding.0.weight"] == "embedding"
    assert plan.keep["time_projection.1.weight"] == "time modulation"
    assert plan.keep["head.head.weight"] == "output head"
    assert plan.keep["blocks.3.modulation"] == "norm, bias or modulation"
    assert plan.keep[BLOCK] == "smaller than 0.2 MB"
    assert len(plan_layers(checkpoint, min_bytes=0).quantize) == 60
    assert not plan_layers(checkpoint).quantize


def test_plan_keeps_matrices_with_an_odd_number_of_columns(tmp_path: Path) -> None:
    path = write_markers(tmp_path, "", **{"blocks.0.ffn.0.weight": torch.zeros(4, 3)})
    plan = plan_layers(formats.read_checkpoint(path, formats.DIFFUSION_MODELS), min_bytes=0)
    assert plan.keep["blocks.0.ffn.0.weight"] == "odd number of columns"


def test_odd_columns_are_no_matter_for_int8(tmp_path: Path) -> None:
    path = write_markers(tmp_path, "", **{"blocks.0.ffn.0.weight": torch.zeros(4, 3)})
    plan = plan_layers(formats.read_checkpoint(path, formats.DIFFUSION_MODELS), 0, "int8")
    assert plan.quantize["blocks.0.ffn.0.weight"] == "int8"


def test_matrices_that_no_linear_layer_holds_stay(toyworld: Path) -> None:
    checkpoint = formats.read_checkpoint(toyworld / "toyworld_dit_fp16.safetensors", formats.DIFFUSION_MODELS)
    plan = plan_layers(checkpoint, 0, "nf4", linears={BLOCK})
    assert plan.quantize == {BLOCK: "nf4"} and plan.keep["blocks.1.ffn.0.weight"] == "no linear layer"


def test_files_that_are_nf4_already_are_recognised(tmp_path: Path) -> None:
    weight = nf4.quantize(torch.randn(6, 64).half())
    stored = nf4.to_state_dict(weight, "blocks.0.ffn.0.weight")
    stored["blocks.0.ffn.0.weight"] = weight.packed.reshape(-1, 1)  # as bitsandbytes writes it
    checkpoint = formats.read_checkpoint(write_markers(tmp_path, "model.", **stored), formats.DIFFUSION_MODELS)
    plan = plan_layers(checkpoint, min_bytes=0)
    assert plan.stored == {"blocks.0.ffn.0.weight": "nf4"}
    assert checkpoint.tensors["blocks.0.ffn.0.weight"].shape == (6, 64)
    assert checkpoint.dtype == torch.float16
    assert not any("absmax" in name for name in plan.keep)


def test_report_counts_layers_bytes_and_reasons(toyworld: Path) -> None:
    checkpoint = formats.read_checkpoint(toyworld / "toyworld_dit_fp16.safetensors", formats.DIFFUSION_MODELS)
    report = describe_load(checkpoint, plan_layers(checkpoint, min_bytes=0), 10_100_000)
    assert "Wan diffusion model, 15.6 MB in the file, 10.1 MB loaded" in report
    assert "NF4: 60 weights, 12.2 MB -> 3.2 MB" in report
    assert "as stored: 10 x embedding, 2.5 MB" in report
    untouched = describe_load(checkpoint, plan_layers(checkpoint), 15_600_000)
    assert "NF4: no weight" in untouched and "60 x smaller than 1.0 MB" in untouched


def write_markers(folder: Path, prefix: str, **more: torch.Tensor) -> Path:
    """The smallest file that is a Wan model by its names."""
    tensors = {marker: torch.zeros(2, 2, dtype=torch.float16) for marker in families.WAN.markers} | more
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "wan.safetensors")
    return folder / "wan.safetensors"
