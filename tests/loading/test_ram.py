"""Peak RAM while quantising, measured in a process of its own: far below the file's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MEASURE = """
import pathlib, re, sys, types
root, path, cache = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "cache"
for name, folder in (("pack", root), ("pack.nodes", root / "nodes")):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [str(folder)]
import torch
from pack.nodes.common.progress import SILENT
from pack.nodes.loading import families, files, formats, nf4, streaming
from pack.nodes.loading.plan import plan_layers
with files.open_tensors(path) as file:
    headers = dict(file.headers)
checkpoint = formats.Checkpoint(pathlib.Path(path), families.WAN, headers, {})
plan = plan_layers(checkpoint)
nf4.quantize(torch.randn(512, 512))
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
cpu = torch.device("cpu")
state = (streaming.read_weights_cached(checkpoint, plan, cpu, SILENT)[0] if cache
         else streaming.read_weights(checkpoint, plan, cpu))
print(len(plan.quantize), sum(t.nbytes for t in state.values()),
      peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak RAM is read from /proc")
@pytest.mark.parametrize("cache", ["off", "cache"])
def test_quantising_holds_the_result_and_one_tensor(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "big.safetensors"
    save_file({f"blocks.{i}.ffn.0.weight": torch.full((2048, 4096), 0.01 * i, dtype=torch.bfloat16)
               for i in range(1, 17)}, path)
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", MEASURE, str(root), str(path), cache], capture_output=True,
                            text=True, check=True)
    quantized, result_bytes, grown = map(int, result.stdout.split())
    assert grown > result_bytes / 2, grown  # or nothing was measured
    assert quantized == 16 and path.stat().st_size > 3.5 * result_bytes
    assert grown < result_bytes + 100e6  # one tensor is 17 MB; the file is 268 MB
