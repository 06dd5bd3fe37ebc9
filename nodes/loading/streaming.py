"""Read a checkpoint one tensor at a time and quantise on the way, so that RAM never holds the file's own size.

The file is mapped anew on the way: the pages of finished tensors leave the process instead of counting against it
until the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from ..common.progress import SILENT, Progress
from . import fp8
from .cache import HEADER_BYTES, SafetensorsWriter, cache_key, cache_path, read_cache, refuse_without_room
from .codecs import CODECS
from .files import TensorFile, TensorHeader, open_tensors, read_tensor
from .formats import Checkpoint
from .plan import LayerPlan

TENSORS_PER_WEIGHT = 6  # that a codec stores at most
COPY_BYTES = 1 << 28  # of the mapped file that one step of copying brings into RAM


def read_weights(checkpoint: Checkpoint, plan: LayerPlan, device: torch.device, progress: Progress = SILENT,
                 writer: SafetensorsWriter | None = None) -> dict[str, torch.Tensor]:
    """A state dict on the CPU in the codecs' key layout, the weights of plan.quantize packed.

    device: where the quantising is done. Tensors that stay keep the dtype of the file, those in fp8 become
    checkpoint.dtype. Peak RAM is the result plus the largest tensor that is packed or converted, at least 256 MB; where
    nothing is to be done the result is the mapped file. writer: is given every tensor. Cancel leaves nothing behind.
    """
    if not plan.quantize and not checkpoint.fp8:
        progress.update(checkpoint.bytes, checkpoint.bytes)
        return map_weights(checkpoint)
    state = {}
    done, percent, total = 0, -1, checkpoint.bytes
    with open_tensors(checkpoint.path) as file:
        for name, header in checkpoint.tensors.items():
            progress.check_cancel()
            new = _read_one(file, checkpoint, plan, name, device)
            state.update(new)
            for key, value in new.items() if writer else ():
                writer.add(key, value)
            file.release()
            done += header.bytes
            progress.update(done, total)
            if done * 100 // total > percent:
                percent = done * 100 // total
                progress.say(f"{checkpoint.path.name}: {percent} % of {total / 1e6:.0f} MB")
    return state


def _read_one(file: TensorFile, checkpoint: Checkpoint, plan: LayerPlan, name: str, device: torch.device,
              ) -> dict[str, torch.Tensor]:
    """What the tensor `name` becomes; nothing for scales that go into their weight."""
    tensors = checkpoint.tensors
    if fp8.is_part(tensors, name):
        return {}
    if name not in plan.quantize and name not in checkpoint.fp8:
        return {name: _copy_in_parts(file, tensors[name])}
    tensor = read_tensor(file, tensors[name])
    if name in checkpoint.fp8:
        scale = fp8.scale_of(tensors, name)
        tensor = fp8.to_numbers(tensor.to(device), file.get(tensors[scale].key) if scale else None, checkpoint.dtype)
    if name not in plan.quantize:
        return {name: tensor.to("cpu", copy=True)}
    codec = CODECS[plan.quantize[name]]
    return codec.to_state_dict(codec.quantize(tensor.to(device)).to("cpu"), name)


def _copy_in_parts(file: TensorFile, header: TensorHeader) -> torch.Tensor:
    """The tensor in RAM of its own; embeddings of 2 GB never lie there twice."""
    if header.bytes <= COPY_BYTES or header.more:
        return read_tensor(file, header).clone()
    out = torch.empty(header.shape, dtype=header.dtype)
    rows = max(1, COPY_BYTES * header.shape[0] // header.bytes)
    for start in range(0, header.shape[0], rows):
        out[start:start + rows] = file.get(header.key)[start:start + rows]
        file.release()
    return out


def read_weights_cached(checkpoint: Checkpoint, plan: LayerPlan, device: torch.device, progress: Progress,
                        ) -> tuple[dict[str, torch.Tensor], str]:
    """As read_weights, from the cache beside the file where it fits, else writing it; and the report's line about it.

    Raises ValueError before anything is read where the disk has no room. A folder that cannot be written to is told,
    and the model loads without.
    """
    if not plan.quantize:
        return read_weights(checkpoint, plan, device, progress), "cache: not needed, nothing to quantise"
    path, key = cache_path(checkpoint.path, plan.weights), cache_key(checkpoint.path, plan.weights, plan.quantize)
    state = read_cache(path, key)
    if state is not None:
        return state, f"cache: read from {path.name}"
    was_there = path.exists()
    refuse_without_room(path, _cache_bytes(checkpoint, plan), "The cache")
    with _writer(path, len(checkpoint.tensors) * TENSORS_PER_WEIGHT, key) as (writer, trouble):
        state = read_weights(checkpoint, plan, device, progress, writer)
    if trouble:
        return state, f"cache: not written ({trouble[0]})"
    return state, f"cache: {'an old one replaced' if was_there else 'written'}, {path.name}"


def _cache_bytes(checkpoint: Checkpoint, plan: LayerPlan) -> int:
    tensors = checkpoint.tensors
    kept = sum(header.bytes * (checkpoint.dtype.itemsize if name in checkpoint.fp8 else 1)
               for name, header in tensors.items() if name not in plan.quantize)
    packed = sum(CODECS[form].packed_bytes(*tensors[name].shape) + 2048 for name, form in plan.quantize.items())
    return HEADER_BYTES + kept + packed


def map_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """A state dict as the file has it, mapped: its RAM belongs to the file until somebody writes to a tensor."""
    with open_tensors(checkpoint.path) as file:
        return {name: read_tensor(file, header) for name, header in checkpoint.tensors.items()}


@contextlib.contextmanager
def _writer(path: Path, tensors: int, metadata: dict[str, str]) -> Iterator[tuple[_Forgiving | None, list[OSError]]]:
    """A writer whose troubles with the disk are collected instead of raised; no writer if it cannot even begin."""
    trouble: list[OSError] = []
    writer = SafetensorsWriter(path, tensors, metadata)
    try:
        writer.__enter__()
    except OSError as error:
        yield None, [error]
        return
    try:
        yield _Forgiving(writer, trouble), trouble
    except BaseException as error:
        writer.__exit__(type(error), error, None)
        raise
    try:
        writer.__exit__(OSError if trouble else None, None, None)
    except OSError as error:  # e.g. Windows: the old cache is mapped by a loaded model
        trouble.append(error)


class _Forgiving:
    """A SafetensorsWriter that stops at the first trouble with the disk, which must not cost the model."""

    def __init__(self, writer: SafetensorsWriter, trouble: list[OSError]) -> None:
        self.writer, self.trouble = writer, trouble

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if not self.trouble:
            try:
                self.writer.add(name, tensor)
            except OSError as error:
                self.trouble.append(error)
