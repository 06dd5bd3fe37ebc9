"""Reading tensor by tensor: the right bytes, progress, and Cancel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.nodes.common.progress import Progress
from pack.nodes.loading import formats, nf4
from pack.nodes.loading.plan import plan_layers
from pack.nodes.loading.streaming import read_weights
from safetensors.torch import load_file

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(toyworld: Path) -> formats.Checkpoint:
    return formats.read_checkpoint(toyworld / "toyworld_dit_fp16.safetensors", formats.DIFFUSION_MODELS)


def test_quantises_the_plan_and_copies_the_rest(checkpoint: formats.Checkpoint) -> None:
    plan = plan_layers(checkpoint, min_bytes=0)
    state, source = read_weights(checkpoint, plan, CPU), load_file(checkpoint.path)
    for name in plan.quantize:
        expected = nf4.to_state_dict(nf4.quantize(source[name]), name)
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    assert all(torch.equal(state[name], source[name]) for name in plan.keep)
    assert len(state) == len(plan.keep) + 6 * len(plan.quantize)


def test_progress_ends_at_the_size_of_the_file(checkpoint: formats.Checkpoint) -> None:
    steps: list[tuple[int, int]] = []
    read_weights(checkpoint, plan_layers(checkpoint, min_bytes=0), CPU,
                 Progress(update=lambda done, total: steps.append((done, total))))
    assert steps == sorted(steps) and steps[-1] == (checkpoint.bytes, checkpoint.bytes)


def test_cancel_stops_between_tensors(checkpoint: formats.Checkpoint) -> None:
    class Cancelled(Exception):
        pass

    seen: list[int] = []

    def cancel_at_the_third() -> None:
        if len(seen) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        read_weights(checkpoint, plan_layers(checkpoint, min_bytes=0), CPU,
                     Progress(update=lambda done, _total: seen.append(done), check_cancel=cancel_at_the_third))
    assert len(seen) == 3
