"""Unpacking on a GPU, and the Triton kernels in Triton's interpreter: the same bits as torch gives on the CPU."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pack.nodes.loading import dequantize, dequantize_torch, fp4, int8, nf4
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
ORACLE = Path(__file__).with_name("data") / "bitsandbytes_4bit.safetensors"
SHAPES = [(1, 2), (1, 64), (7, 22), (3, 128), (513, 130), (3, 1500), (32, 4096)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
has_triton = importlib.util.find_spec("triton") is not None

INTERPRET = """
import pathlib, sys, types
root = pathlib.Path(sys.argv[1])
for name, folder in (("pack", root), ("pack.nodes", root / "nodes")):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [str(folder)]
import torch
from safetensors import safe_open
from pack.nodes.loading import dequantize_torch, fp4, int8, nf4, triton_int8, triton_nf4

def check(weight, kernel):
    exact = dequantize_torch.unpack(weight, torch.float32)
    assert torch.equal(kernel.unpack(weight, torch.float32), exact), weight.shape
    assert torch.equal(kernel.unpack(weight, torch.float16), exact.half()), weight.shape
    cut = (exact.view(torch.int32) & -65536).view(torch.float32).bfloat16()  # the interpreter never rounds to bf16
    assert torch.equal(kernel.unpack(weight, torch.bfloat16), cut), weight.shape

count = 0
with safe_open(sys.argv[2], framework="pt") as file:
    for name in sorted({key.split(".")[0] for key in file.keys()}):
        tensors = {key: file.get_tensor(key) for key in file.keys() if key.split(".")[0] == name}
        check((nf4 if name.startswith("nf4") else fp4).from_state_dict(tensors, name), triton_nf4)
        count += 1
generator = torch.Generator().manual_seed(0)
for shape in eval(sys.argv[3]):
    weight = torch.randn(shape, generator=generator)
    check(nf4.quantize(weight), triton_nf4)
    check(int8.quantize(weight), triton_int8)
    count += 2
print(count)
"""


@pytest.mark.skipif(not has_triton, reason="needs Triton")
def test_triton_kernels_give_the_bits_of_torch_in_the_interpreter() -> None:
    """Without a GPU; rounding to bfloat16 is the GPU's own and is tested there."""
    done = subprocess.run([sys.executable, "-c", INTERPRET, str(ROOT), str(ORACLE), repr(SHAPES)], text=True,
                          capture_output=True, check=False, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 32 + 2 * len(SHAPES)


def weights() -> list:
    """Every weight of the stored bitsandbytes file, and random ones of all shapes in NF4 and int8."""
    found = []
    with safe_open(ORACLE, framework="pt") as file:
        for name in sorted({key.split(".")[0] for key in file.keys()}):  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in file.keys() if key.split(".")[0] == name}  # noqa: SIM118
            found.append((nf4 if name.startswith("nf4") else fp4).from_state_dict(tensors, name))
    random = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in SHAPES]
    return [*found, *map(nf4.quantize, random), *map(int8.quantize, random)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("module", ["triton_nf4", "triton_int8", "dequantize_bitsandbytes", "dequantize_torch"])
def test_every_back_end_gives_the_bits_of_the_cpu_on_cuda(module: str) -> None:
    pytest.importorskip("triton" if module.startswith("triton") else "torch")
    pytest.importorskip("bitsandbytes" if module.endswith("bitsandbytes") else "torch")
    unpack = importlib.import_module(f"pack.nodes.loading.{module}").unpack
    kinds = [kind for kind, modules in dequantize.CUDA_BACK_ENDS.items() if module in (*modules, "dequantize_torch")]
    for weight in (weight for weight in weights() if weight.KIND in kinds):
        for dtype in DTYPES:
            expected = dequantize_torch.unpack(weight, dtype)
            assert torch.equal(unpack(weight.to("cuda"), dtype).cpu(), expected), (weight.shape, dtype)


@pytest.mark.cuda
@pytest.mark.skipif(not (torch.cuda.is_available() and has_triton), reason="needs a CUDA device and Triton")
def test_triton_is_chosen_where_it_works() -> None:
    for weight, module in ((nf4.quantize(torch.randn(8, 64)), "triton_nf4"),
                           (int8.quantize(torch.randn(8, 64)), "triton_int8")):
        assert dequantize.choose(weight.to("cuda"), dequantize.CUDA_BACK_ENDS[weight.KIND])[0] == module


@pytest.mark.cuda
@pytest.mark.skipif(not (torch.cuda.is_available() and has_triton), reason="needs a CUDA device and Triton")
def test_triton_needs_no_memory_beside_the_weight() -> None:
    weight = nf4.quantize(torch.randn(1024, 4096)).to("cuda")
    nf4.dequantize(weight, torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nf4.dequantize(weight, torch.bfloat16)
    assert torch.cuda.max_memory_allocated() - before == 1024 * 4096 * 2
