"""Files that the system will not map as a whole: each tensor is read into memory of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest
import torch
from pack.nodes.common.mapped import DTYPES
from pack.nodes.loading import files
from safetensors.torch import save_file


def test_unmapped_tensors_equal_mapped_ones(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {f"{dtype}".removeprefix("torch."): torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
             for dtype in DTYPES.values()}
    state |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "five": torch.randn(1, 2, 3, 4, 5)}
    save_file(state, tmp_path / "all.safetensors", {"format": "pt", "who": "me"})
    read = files.UnmappedFile(tmp_path / "all.safetensors")
    for name, tensor in state.items():
        found = read.get_tensor(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(found.view(torch.uint8) if found.ndim else found, tensor.view(torch.uint8) if found.ndim
                           else tensor), name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs sparse files")
def test_a_file_larger_than_memory_is_opened_and_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    huge = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total) // 8 * 8
    header = {"small": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
              "huge": {"dtype": "I64", "shape": [huge // 8], "data_offsets": [8, 8 + huge]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + torch.tensor([1.0, 2.0]).numpy().tobytes())
        try:
            file.truncate(8 + len(text) + 8 + huge)
        except OSError as error:
            pytest.skip(f"this disk has no sparse files of that size: {error}")
    with files.open_tensors(path) as opened:
        assert opened.headers["huge"].bytes == huge
        assert opened.get("small").tolist() == [1.0, 2.0]
        opened.release()
        assert opened.get("small").tolist() == [1.0, 2.0]
