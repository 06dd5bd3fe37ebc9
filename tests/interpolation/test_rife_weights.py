"""Finding RIFE weights, and refusing files that are something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pack.nodes.interpolation.architecture import RIFE_4_26
from pack.nodes.interpolation.weights import BUNDLED, DATA, find_weights, list_weights, load_rife
from safetensors.torch import load_file, save_file


def test_bundled_weights_come_first_and_win(tmp_path):
    for name in ("a.safetensors", BUNDLED, "notes.txt", "model.onnx"):
        (tmp_path / name).write_bytes(b"x")
    assert list_weights([tmp_path, tmp_path / "missing"]) == [BUNDLED, "a.safetensors"]
    assert find_weights(BUNDLED, [tmp_path]) == DATA / BUNDLED
    assert find_weights("a.safetensors", [tmp_path]) == tmp_path / "a.safetensors"


def test_files_are_told_apart_by_their_folder_and_the_first_folder_wins(tmp_path):
    for path in ("one/4.6/flownet.pkl", "one/rife49.pth", "two/4.26/flownet.pkl", "two/rife49.pth", "two/x.PT"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert list_weights(folders) == [BUNDLED, "4.26/flownet.pkl", "4.6/flownet.pkl", "rife49.pth", "x.PT"]
    assert find_weights("4.26/flownet.pkl", folders) == tmp_path / "two/4.26/flownet.pkl"
    assert find_weights("rife49.pth", folders) == tmp_path / "one/rife49.pth"


@pytest.mark.parametrize("name", ["missing.safetensors", "../a.safetensors", "/etc/passwd"])
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
    with pytest.raises(ValueError, match=f"'other.safetensors' must be RIFE 4.5 to 4.26, but got a file with {got}"):
        load_rife(tmp_path / "other.safetensors")


def test_another_network_is_refused(tmp_path):
    save_file({"extract.convs.0.weight": torch.zeros(3, 3)}, tmp_path / "film_net.safetensors")
    with pytest.raises(ValueError, match=r"'film_net.safetensors' must be RIFE 4.5 to 4.26, but got tensors of someth"):
        load_rife(tmp_path / "film_net.safetensors")


def test_shapes_that_only_a_pickle_claims_cost_no_memory(tmp_path):
    """A tensor of 40 GB that is one number in the file: refused by its neighbours' shapes, nothing is allocated."""
    weights = dict(load_file(DATA / BUNDLED))
    weights["block0.conv0.1.0.weight"] = torch.zeros(1).expand(100_000, 100_000, 3, 3)
    torch.save(weights, tmp_path / "huge.pth")
    with pytest.raises(ValueError, match=r"'huge.pth' must be RIFE 4.5 to 4.26, but got a file with .* such differ"):
        load_rife(tmp_path / "huge.pth")


@pytest.mark.parametrize("name", ["flownet.safetensors", "flownet.pkl"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes((DATA / BUNDLED).read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"'{name}' must "):
        load_rife(tmp_path / name)


class Runs:
    """Unpickled, this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({**load_file(DATA / BUNDLED), "extra": Runs(tmp_path / "was_run")}, tmp_path / "flownet.pkl")
    with pytest.raises(ValueError, match=r"'flownet.pkl' must hold only tensors and plain values.*Nothing in it was r"):
        load_rife(tmp_path / "flownet.pkl")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("ending", ["safetensors", "pkl", "pth", "pt"])
@pytest.mark.parametrize("published", [
    lambda name: f"module.{name}", lambda name: f"flownet.{name}", lambda name: f"module.flownet.{name}",
    lambda name: re.sub(r"^block(\d)", r"blocks.\1", name)], ids=["module", "flownet", "both", "blocks"])
def test_names_of_published_files_are_known(tmp_path, published, ending):
    """With what only training needs, as in flownet.pkl, and in the names that newer ComfyUI releases give."""
    bundled = load_file(DATA / BUNDLED)
    weights = {published(name): value for name, value in bundled.items()}
    weights.update({published("teacher.conv0.0.0.bias"): torch.zeros(3), published("caltime.0.bias"): torch.zeros(3)})
    path = tmp_path / f"flownet.{ending}"
    save_file(weights, path) if ending == "safetensors" else torch.save(weights, path)
    model = load_rife(path)
    assert model.encode.cnn0.weight.dtype == torch.float32
    assert all(torch.equal(value, bundled[name].float()) for name, value in model.state_dict().items())


def test_the_old_pickle_format_is_read(tmp_path):
    torch.save(dict(load_file(DATA / BUNDLED)), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    assert load_rife(tmp_path / "old.pkl").architecture == RIFE_4_26
