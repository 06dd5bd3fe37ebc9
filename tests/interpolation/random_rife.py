"""Random weights that every numpy makes alike: a RIFE network's structure can be compared without its file."""

from __future__ import annotations

import numpy as np
import torch

# One version of vs-rife's implementations for each structure there is.
VERSIONS = ("4_5", "4_6", "4_7", "4_10", "4_12_lite", "4_17", "4_20", "4_21", "4_22_lite", "4_25", "4_25_heavy",
            "4_25_lite", "4_26_heavy")


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A tensor for every name, drawn in alphabetical order, of a size that keeps the flow within a few pixels."""
    random = np.random.RandomState(46)
    weights = {}
    for name in sorted(shapes):
        shape = shapes[name]
        spread = 0.3 / max(1, shape[0]) ** 0.5 if len(shape) > 1 else 0.05
        weights[name] = torch.from_numpy((random.standard_normal(shape) * spread).astype(np.float32))
    return weights
