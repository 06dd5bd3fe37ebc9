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
root, path, form, cache = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "cache"
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
plan = plan_layers(checkpoint, weights=form)
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
@pytest.mark.parametrize(("source", "form", "cache"), [
    ("bf16", "nf4", "off"), ("bf16", "nf4", "cache"), ("bf16", "int8", "off"), ("scaled fp8", "nf4", "off"),
    ("sharded bf16", "nf4", "off")])
def test_quantising_holds_the_result_and_one_tensor(tmp_path: Path, source: str, form: str, cache: str) -> None:
    path, count = write(tmp_path, source)
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", MEASURE, str(root), str(path), form, cache], capture_output=True,
                            text=True, check=True)
    quantized, result_bytes, grown = map(int, result.stdout.split())
    assert grown > result_bytes / 2, grown  # or nothing was measured
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert quantized == count and size > {"nf4": 3.5, "int8": 1.9}[form] * result_bytes / (2 if "fp8" in source else 1)
    assert grown < result_bytes + 125e6 < size  # one tensor is 17 MB, the files are 268 MB or more


def write(folder: Path, source: str) -> tuple[Path, int]:
    """Files of 2048 x 4096 weights, 268 MB, and how many weights these are."""
    count = 32 if source == "scaled fp8" else 16
    state = {f"blocks.{i}.ffn.0.weight": torch.full((2048, 4096), 0.01 * i, dtype=torch.bfloat16)
             for i in range(1, 1 + count)}
    if source == "scaled fp8":
        state = {name: weight.to(torch.float8_e4m3fn) for name, weight in state.items()}
        state |= {name.replace(".weight", ".scale_weight"): torch.tensor(0.5) for name in state}
    names, parts = list(state), 4 if source == "sharded bf16" else 1
    for part in range(parts):
        mine = names[part * len(names) // parts:(part + 1) * len(names) // parts]
        save_file({name: state[name] for name in mine},
                  folder / (f"big-{part + 1:05}-of-{parts:05}.safetensors" if parts > 1 else "big.safetensors"))
    return folder / ("big-00001-of-00004.safetensors" if parts > 1 else "big.safetensors"), count
