"""Which RIFE network a file holds: the versions from 4.5 to 4.26, told apart by the names and shapes of their tensors.

Source of the differences: the shapes of the published weights (Practical-RIFE, MIT licence) and vs-rife 5.7.0 (MIT
licence), which has one implementation per version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TRAINING_ONLY = ("teacher.", "caltime.", "block_tea.")
# The encoder of 4.7 to 4.9 and that of 4.10 to 4.12 are numbered lists; 4.12's counts its activations too.
LISTED_ENCODERS = ({"0": "cnn0", "1": "cnn1"}, {"0": "cnn0", "2": "cnn1", "4": "cnn2", "6": "cnn3"})
FOUR_BLOCKS, FIVE_BLOCKS = (8, 4, 2, 1), (16, 8, 4, 2, 1)
LITE_WIDTH, LITE = 24, (32, 16, 8, 4, 1)  # 4.25.lite: nothing but the last block's width tells it apart
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """What differs between the networks.

    widths: channels inside each block, in the order in which they run. scales: each block works at 1/scale of the
    image. features: channels of an image's encoding, 0 where there is none. encoder_width, encoder_layers: of the
    encoder. outputs: channels that a block makes: 4 of flow, 1 of mask, the rest unused but for `hidden`. hidden:
    channels that a block hands to the next.
    """

    widths: tuple[int, ...]
    scales: tuple[int, ...]
    features: int
    encoder_width: int
    encoder_layers: int
    outputs: int
    hidden: int

    @property
    def adds_masks(self) -> bool:
        """Networks without an encoder add up the blocks' masks; in later ones each block makes it anew."""
        return not self.features

    @property
    def summed(self) -> int:
        """Channels of a block's output that are added to those of the blocks before."""
        return 5 if self.adds_masks else 4

    def inputs(self, block: int) -> int:
        """Channels that a block sees: two images, their features, the time; later ones also mask, hidden and flow."""
        return 2 * (3 + self.features) + 1 + (1 + self.hidden + 4 if block else 0)

    def multiple(self, coarser: int) -> int:
        """What the sides of an image must divide by: the coarsest block halves its shrunk image twice more."""
        return 4 * coarser * max(self.scales)


RIFE_4_26 = Architecture((192, 128, 96, 64, 32), FIVE_BLOCKS, 4, 16, 4, 13, 8)


def our_name(key: str) -> str | None:
    """A tensor's name in a published file -> in our network; None for what only training needs.

    Known are the prefixes module. and flownet., the numbered encoders of 4.7 to 4.12, and blocks.<i>., as newer
    ComfyUI releases name them in memory.
    """
    key = key.removeprefix("module.").removeprefix("flownet.")
    key = re.sub(r"^blocks\.(\d+)\.", r"block\1.", key)
    return None if key.startswith(TRAINING_ONLY) else key


def unlisted(names: list[str]) -> dict[str, str]:
    """New names for an encoder whose layers are a numbered list: "encode.1.bias" -> "encode.cnn1.bias"."""
    found = {name.split(".")[1] for name in names if re.match(r"encode\.\d+\.", name)}
    table = next((table for table in LISTED_ENCODERS if found == set(table)), {})
    parts = {name: name.split(".") for name in names if name.startswith("encode.")}
    return {name: ".".join(("encode", table[part[1]], *part[2:])) for name, part in parts.items() if part[1] in table}


def architecture_of(shapes: Shapes) -> Architecture | None:
    """The network whose tensors have these names (ours) and shapes, or None when there is no such version."""
    widths = tuple(shapes[name][0] for i in range(5) if (name := f"block{i}.conv0.1.0.weight") in shapes)
    last, second = shapes.get("block0.lastconv.0.weight"), shapes.get("block1.conv0.0.0.weight")
    if len(widths) < 4 or last is None or second is None or last[1] % 4:
        return None
    scales = FOUR_BLOCKS if len(widths) == 4 else LITE if widths[-1] == LITE_WIDTH else FIVE_BLOCKS
    layers = sum(name.startswith("encode.cnn") and name.endswith(".weight") for name in shapes)
    features, encoder_width = 0, 0
    if layers:
        encoder_width, features = shapes.get(f"encode.cnn{layers - 1}.weight", (0, 0))[:2]
    plain = 2 * (3 + features) + 1 + 1 + 4
    return Architecture(widths, scales, features, encoder_width, layers, last[1] // 4, max(0, second[1] - plain))
