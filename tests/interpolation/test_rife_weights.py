"""Finding RIFE weights, and refusing files that are something else."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.interpolation.weights import BUNDLED, DATA, find_weights, list_weights, load_rife
from safetensors.torch import load_file, save_file


def test_bundled_weights_come_first_and_win(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / BUNDLED).write_bytes(b"x")
    assert list_weights([tmp_path, tmp_path / "missing"]) == [BUNDLED, "a.safetensors"]
    assert find_weights(BUNDLED, [tmp_path]) == DATA / BUNDLED
    assert find_weights("a.safetensors", [tmp_path]) == tmp_path / "a.safetensors"


@pytest.mark.parametrize("name", ["missing.safetensors", "../a.safetensors"])
def test_unknown_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"needs a weights file, but got .*allowed: rife_v4.26_fp16"):
        find_weights(name, [tmp_path])


def test_licence_of_the_weights_is_beside_them():
    text = (DATA / "RIFE_LICENSE.txt").read_text(encoding="utf-8")
    assert "Zhewei Huang" in text and "MIT License" in text


@pytest.mark.parametrize(("change", "got"), [
    (lambda w: w.pop("block0.conv0.0.0.weight"), "no block0.conv0.0.0.weight"),
    (lambda w: w.update(extra=torch.zeros(1)), "an unknown extra"),
    (lambda w: w.update({"encode.cnn0.bias": torch.zeros(3)}), r"encode.cnn0.bias of shape \[3\] instead of \[16\]"),
])
def test_other_tensors_are_refused_by_name(tmp_path, change, got):
    weights = load_file(DATA / BUNDLED)
    change(weights)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"'other.safetensors' must be RIFE v4.26, but got one with {got}"):
        load_rife(tmp_path / "other.safetensors")


def test_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "flownet.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="a file that cannot be read"):
        load_rife(tmp_path / "flownet.safetensors")


def test_prefix_of_published_checkpoints_is_accepted(tmp_path):
    weights = {f"module.{name}": value for name, value in load_file(DATA / BUNDLED).items()}
    save_file(weights, tmp_path / "module.safetensors")
    assert load_rife(tmp_path / "module.safetensors").encode.cnn0.weight.dtype == torch.float32
