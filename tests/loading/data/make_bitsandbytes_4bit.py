"""Makes bitsandbytes_4bit.safetensors with bitsandbytes 0.50.2 on a CPU: python make_bitsandbytes_4bit.py

Weights "<quant type>_<block size>_<double|single>" in bitsandbytes' own keys. The file's metadata holds for each the
sha256 of its float32, float16 and bfloat16 values as bitsandbytes unpacks them. Columns are whole blocks: with others,
the AVX-512 path of that version unpacks blocks larger than a row with wrong scales.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import bitsandbytes.functional as functional
import torch
from safetensors.torch import save_file

SHAPES = {32: (18, 512), 64: (9, 2048), 128: (3, 128), 256: (3, 256), 512: (3, 512), 1024: (1, 1024), 2048: (1, 4096),
          4096: (1, 8192)}


def digest(values: torch.Tensor) -> str:
    """sha256 of the values' bytes; -0 counts as 0."""
    return hashlib.sha256((values + 0.0).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def main() -> None:
    tensors, digests = {}, {}
    for quant_type in ("nf4", "fp4"):
        for block_size, shape in SHAPES.items():
            for statistics in ("double", "single"):
                name = f"{quant_type}_{block_size}_{statistics}"
                generator = torch.Generator().manual_seed(block_size)
                weight = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator) * 0.05
                packed, state = functional.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type,
                                                         compress_statistics=statistics == "double")
                tensors |= {name: packed, **{f"{name}.{key}": value
                                             for key, value in state.as_dict(packed=True).items()}}
                for dtype in (torch.float32, torch.float16, torch.bfloat16):
                    state.dtype = dtype
                    digests[f"{name}.{dtype}"] = digest(functional.dequantize_4bit(packed, state))
    save_file(tensors, Path(__file__).with_name("bitsandbytes_4bit.safetensors"), digests)


if __name__ == "__main__":
    main()
