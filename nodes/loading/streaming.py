"""Read a checkpoint one tensor at a time and quantise on the way, so that RAM never holds the file's own size.

The file is mapped anew on the way: the pages of finished tensors leave the process instead of counting against it
until the end.
"""

from __future__ import annotations

import torch

from ..common.progress import SILENT, Progress
from . import nf4
from .files import open_tensors
from .formats import Checkpoint, LayerPlan


def read_weights(checkpoint: Checkpoint, plan: LayerPlan, device: torch.device,
                 progress: Progress = SILENT) -> dict[str, torch.Tensor]:
    """A state dict on the CPU in bitsandbytes' key layout, weights of plan.quantize in NF4.

    device: where the quantising is done. Tensors that stay keep the dtype of the file. Peak RAM is the result plus the
    largest tensor, for torch files plus 256 MB. Cancel leaves nothing behind.
    """
    state: dict[str, torch.Tensor] = {}
    quantize, stored = set(plan.quantize), set(plan.stored)
    done, percent, total = 0, -1, checkpoint.bytes
    with open_tensors(checkpoint.path) as file:
        for name, header in checkpoint.tensors.items():
            progress.check_cancel()
            tensor = file.get(header.key)
            if name in quantize:
                state.update(nf4.to_state_dict(nf4.quantize(tensor.to(device)).to("cpu"), name))
            elif name in stored:
                state[name] = tensor.reshape(header.shape[0], -1).clone()
            else:
                state[name] = tensor.clone()
            file.release()
            done += header.bytes
            progress.update(done, total)
            if done * 100 // total > percent:
                percent = done * 100 // total
                progress.say(f"{checkpoint.path.name}: {percent} % of {total / 1e6:.0f} MB")
    return state


def map_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """A state dict as the file has it, mapped: its RAM belongs to the file until somebody writes to a tensor."""
    with open_tensors(checkpoint.path) as file:
        return {name: file.get(header.key) for name, header in checkpoint.tensors.items()}
