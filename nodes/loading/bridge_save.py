"""The weights of a loaded MODEL as they would lie in a file: packed ones in their codec's keys, without LoRAs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..common.errors import message
from ..common.progress import SILENT, Progress
from .bridge_linear import QuantLinear
from .cache import FORMAT, HEADER_BYTES, SafetensorsWriter, refuse_without_room

SOURCE = "videomemory_source"  # attachment of a MODEL: name and metadata of its file
TENSORS_PER_WEIGHT = 6


def save_model(model: Any, path: Path, progress: Progress = SILENT) -> str:
    """Write a quantised MODEL to `path` (safetensors), tensor by tensor, and say what is in the file.

    LoRAs are not in it: they stay the LoRA files' business. Raises ValueError for a MODEL without packed weights and
    for a disk without room; on Cancel nothing is left behind.
    """
    inner = model.model.diffusion_model
    packed = {f"{name}.weight": module for name, module in inner.named_modules()
              if isinstance(module, QuantLinear) and module.codec is not None}
    if not packed:
        raise ValueError(message(
            "Save Quantized Model needs a quantised MODEL", f"a {type(inner).__name__} without a quantised weight",
            "what the loaders of this pack give with weights nf4, nf4_int8 or int8",
            "Load it with one of these, or use ComfyUI's Save Model."))
    state = {name: tensor for name, tensor in inner.state_dict().items() if not _is_part(name, packed)}
    total = sum(tensor.nbytes for tensor in inner.state_dict().values())
    refuse_without_room(path, total + HEADER_BYTES, "Save Quantized Model")
    source = model.attachments.get(SOURCE, {"name": "", "metadata": {}})
    metadata = {**source["metadata"], "format": "pt", "videomemory_format": FORMAT,
                "videomemory_source": source["name"]}
    done = 0
    with SafetensorsWriter(path, len(state) + TENSORS_PER_WEIGHT * len(packed), metadata) as writer:
        for name, tensor in _tensors(model, state, packed):
            progress.check_cancel()
            writer.add(name, tensor)
            done += tensor.nbytes
            progress.update(min(done, total), total)
    lines = [f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {len(packed)} quantised weights, {len(state)} others"]
    if model.patches:
        lines.append(f"The LoRAs on this MODEL ({len(model.patches)} weights) are not in the file: load them again.")
    return "\n".join(lines)


def _tensors(model: Any, state: dict[str, torch.Tensor], packed: dict[str, QuantLinear],
             ) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        backup = model.backup.get(f"diffusion_model.{name}")  # the weight before core wrote a LoRA into it
        yield name, tensor if backup is None else backup.weight
    for name, module in packed.items():
        tensors = {field: parameter.detach().to("cpu") for field, parameter in module.named_parameters(recurse=False)}
        tensors["packed"] = tensors["weight"]
        yield from module.codec.to_state_dict(module.form.with_tensors(tensors), name).items()


def _is_part(name: str, packed: dict[str, QuantLinear]) -> bool:
    """Whether a parameter belongs to a packed weight or to a LoRA beside it; biases stand for themselves."""
    layer, _, field = name.rpartition(".")
    return f"{layer}.weight" in packed and field != "bias"
