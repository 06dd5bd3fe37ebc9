"""Files whose tensors stay in the file: the same values, and nothing that the system would count as memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from pack.nodes.common.mapped import DTYPES, read_header, read_mapped
from pack.nodes.loading import files
from safetensors import SafetensorError
from safetensors.torch import save_file


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {f"{dtype}".removeprefix("torch."): torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
             for dtype in DTYPES.values()}
    return found | {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "five": torch.randn(1, 2, 3, 4, 5)}


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = values()
    save_file(written, tmp_path / "all.safetensors", {"who": "me"})
    read, metadata = read_mapped(tmp_path / "all.safetensors")
    assert metadata == {"who": "me"} and set(read) == set(written)
    for name, tensor in written.items():
        assert (read[name].dtype, read[name].shape, bits(read[name])) == (tensor.dtype, tensor.shape, bits(tensor))


def test_a_file_without_values_is_read_too(tmp_path: Path) -> None:
    save_file({"empty": torch.zeros(0, 4)}, tmp_path / "empty.safetensors")
    (tensor,) = read_mapped(tmp_path / "empty.safetensors")[0].values()
    assert tensor.shape == (0, 4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_map_can_only_be_read_and_goes_with_its_last_tensor(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    save_file(values(), path)

    def rights() -> list[str]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return [line.split()[1] for line in maps if line.endswith(str(path))]

    tensor = read_mapped(path)[0]["five"]
    assert rights() == ["r--s"] and tensor.numel() == 120
    del tensor
    assert rights() == []


@pytest.mark.parametrize("cut", [4, 60, -8])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "all.safetensors"
    save_file(values(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SafetensorError):
        read_header(path)


def test_on_windows_checkpoints_are_read_without_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written = tmp_path / "all.safetensors", values()
    save_file(written, path, {"who": "me"})
    monkeypatch.setattr(files.sys, "platform", "win32")
    with files.open_tensors(path) as opened:
        assert opened.metadata == {"who": "me"} and set(opened.headers) == set(written)
        for name, tensor in written.items():
            assert bits(opened.get(name)) == bits(tensor)
            opened.release()
        monkeypatch.undo()
        if os.path.exists("/proc/self/maps"):
            assert str(path) not in Path("/proc/self/maps").read_text()


def test_an_unknown_kind_of_value_is_told_by_its_header(tmp_path: Path) -> None:
    header = json.dumps({"new": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "new.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises((SafetensorError, KeyError)):
        read_mapped(path)
