"""The file of a Mirage branch, read by its header: what it is, and what its weights will take.

Source: arXiv 2606.09828 and its authors' code (wan_video_vace.py, train.py): `vace_patch_embedding` and `vace_blocks`,
full blocks on every second layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..loading.codecs import CODECS, is_part_of_stored
from ..loading.families import WAN
from ..loading.formats import Checkpoint, read_header
from ..loading.plan import MIN_BYTES, plan_layers

PREFIXES = ("module.", "model.", "_fsdp_wrapped_module.", "pipe.vace.", "vace.")
PATCH, BLOCKS = "vace_patch_embedding.", "vace_blocks."
CONTEXTS = (49, 96, 97)  # 48 of the place; 96: and 48 of a white film; 49, 97: and one that marks where all is zero
FAMILY = replace(WAN, title="Mirage branch", markers=(f"{PATCH}weight", f"{BLOCKS}0.before_proj.weight"))


def read_branch(path: str | Path) -> Checkpoint:
    """The tensors of the branch in a file, without the training code's prefixes; none in a file of something else."""
    header = read_header(path)
    tensors = {_bare(name): tensor for name, tensor in header.tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith((PATCH, BLOCKS))}
    return Checkpoint(Path(path), FAMILY, tensors, header.metadata, header.note)


def count_blocks(names: Mapping[str, Any]) -> int:
    """Blocks of a branch, by the names of its tensors."""
    return len({name.split(".")[1] for name in names if name.startswith(BLOCKS)})


def branch_bytes(branch: Checkpoint, weights: str, min_bytes: int = MIN_BYTES) -> int:
    """VRAM of the branch's weights beside the model's, packed ones with their scales.

    weights: one of codecs.WEIGHTS. What is not packed stays as the file has it.
    """
    plan, tensors, total = plan_layers(branch, min_bytes, weights), branch.tensors, 0
    for name, header in tensors.items():
        if name in plan.quantize:
            total += CODECS[plan.quantize[name]].packed_bytes(*header.shape)
        elif name in plan.stored or is_part_of_stored(tensors, name):
            total += header.bytes
        else:
            total += torch.Size(header.shape).numel() * (branch.dtype if name in branch.fp8 else header.dtype).itemsize
    return total


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = next(name[len(prefix):] for prefix in PREFIXES if name.startswith(prefix))
    return name
