"""RIFE networks against a public implementation, on two frames of a film (data/bunny.png, data/make_rife_oracle.py)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.nodes.interpolation.architecture import FIVE_BLOCKS, FOUR_BLOCKS, LITE, RIFE_4_26, Architecture
from pack.nodes.interpolation.rife import Rife, batch_for, warp
from pack.nodes.interpolation.weights import BUNDLED, find_weights, load_rife
from PIL import Image
from safetensors.torch import load_file

from .random_rife import VERSIONS, random_weights

DATA = Path(__file__).parent / "data"
FOUR = (192, 128, 96, 64)
ARCHITECTURES = {  # widths, scales, features, encoder's width and layers, outputs, hidden
    "4_5": Architecture(FOUR, FOUR_BLOCKS, 0, 0, 0, 5, 0),
    "4_6": Architecture(FOUR, FOUR_BLOCKS, 0, 0, 0, 6, 0),
    "4_7": Architecture(FOUR, FOUR_BLOCKS, 4, 16, 2, 6, 0),
    "4_10": Architecture(FOUR, FOUR_BLOCKS, 8, 32, 4, 6, 0),
    "4_12_lite": Architecture((128, 96, 64, 48), FOUR_BLOCKS, 4, 32, 4, 6, 0),
    "4_17": Architecture(FOUR, FOUR_BLOCKS, 8, 32, 4, 6, 0),
    "4_20": Architecture((384, 192, 96, 48), FOUR_BLOCKS, 8, 32, 4, 6, 0),
    "4_21": Architecture((256, 192, 96, 48), FOUR_BLOCKS, 8, 32, 4, 13, 8),
    "4_22_lite": Architecture((192, 128, 64, 32), FOUR_BLOCKS, 4, 16, 4, 13, 8),
    "4_25": RIFE_4_26,
    "4_25_heavy": Architecture((384, 256, 192, 128, 64), FIVE_BLOCKS, 4, 16, 4, 13, 8),
    "4_25_lite": Architecture((192, 128, 96, 64, 24), LITE, 4, 16, 4, 13, 8),
    "4_26_heavy": Architecture((192, 128, 96, 64, 32), FIVE_BLOCKS, 16, 16, 4, 13, 8),
}
LISTED = {"4_7": ("0", "1"), "4_10": ("0", "2", "4", "6"), "4_12_lite": ("0", "2", "4", "6")}  # encoder layers' names


@pytest.fixture(scope="module")
def oracle() -> dict[str, torch.Tensor]:
    return load_file(DATA / "rife_oracle.safetensors")


@pytest.fixture(scope="module")
def bunny() -> torch.Tensor:
    """Two frames [2, 1, 3, 128, 256]."""
    sheet = torch.from_numpy(np.asarray(Image.open(DATA / "bunny.png").convert("RGB")).copy())
    return sheet.view(128, 2, 256, 3).permute(1, 3, 0, 2)[:, None].float() / 255


@torch.no_grad()
def make(model: Rife, frames: torch.Tensor, t: float, coarser: int = 1) -> torch.Tensor:
    """What the oracle holds: every 7th pixel of every 7th row, [h, w, 3]."""
    first, second = (model.sources(frame) for frame in frames)
    return model(first, second, torch.tensor([t]), coarser)[0].permute(1, 2, 0)[::7, ::7]


@pytest.mark.parametrize("t", [0.25, 0.5])
@pytest.mark.parametrize("coarser", [1, 2])
def test_same_frames_as_public_implementation(oracle, bunny, t, coarser):
    wanted = oracle[f"real/4_26/{1 / coarser}/{t}"]
    made = make(load_rife(find_weights(BUNDLED, [])), bunny, t, coarser)
    assert made.shape == wanted.shape and (made - wanted).abs().max() < 2e-4


@pytest.mark.parametrize("coarser", [1, 2])
def test_same_frames_with_the_real_weights_of_4_6(oracle, bunny, coarser):
    """By hand, the file is not in the repository: RIFE46=/path/to/rife.pkl, see data/make_rife_oracle.py."""
    if "RIFE46" not in os.environ:
        pytest.skip("needs the file of RIFE 4.6: RIFE46=/path/to/rife.pkl")
    model = load_rife(os.environ["RIFE46"])
    assert model.architecture == ARCHITECTURES["4_6"]
    for t in (0.25, 0.5):
        assert (make(model, bunny, t, coarser) - oracle[f"real/4_6/{1 / coarser}/{t}"]).abs().max() < 2e-4


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_known_by_its_tensors_and_computes_the_same(oracle, bunny, version, tmp_path):
    architecture = ARCHITECTURES[version]
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Rife(architecture).state_dict().items()}
    for i, layer in enumerate(LISTED.get(version, ())):
        for kind in ("weight", "bias"):
            shapes[f"encode.{layer}.{kind}"] = shapes.pop(f"encode.cnn{i}.{kind}")
    torch.save(random_weights(shapes), tmp_path / "flownet.pkl")
    model = load_rife(tmp_path / "flownet.pkl")
    assert model.architecture == architecture
    made = make(model, bunny[..., :128], 0.3)
    assert (made - oracle[f"random/{version}"]).abs().max() < 1e-4
    assert (made - bunny[0, 0, :, ::7, :128:7].permute(1, 2, 0)).abs().mean() > 0.05  # the weights do something


def test_warp_moves_by_whole_pixels_and_holds_the_edge():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 1.0  # look one pixel to the right
    wanted = torch.cat((image[..., 1:], image[..., -1:]), dim=-1)
    assert torch.allclose(warp(image, flow), wanted, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_warping_the_middle_of_cells_is_warping_then_shrinking(scale):
    """What a block sees, against the plain way: warp every pixel, then shrink bilinearly."""
    random = torch.manual_seed(0)
    image, flow = torch.rand(2, 5, 32, 64, generator=random), 9 * torch.randn(2, 2, 32, 64, generator=random)
    small = torch.nn.functional.interpolate(warp(image, flow), scale_factor=1 / scale, mode="bilinear")
    if scale == 2:
        middle = flow
    else:
        cells = flow.view(2, 2, 32 // scale, scale, 64 // scale, scale)
        middle = cells[:, :, :, scale // 2 - 1 : scale // 2 + 1, :, scale // 2 - 1 : scale // 2 + 1]
        middle = middle.reshape(2, 2, 64 // scale, 128 // scale)
    made = torch.nn.functional.avg_pool2d(warp(image, middle, scale), 2)
    assert torch.allclose(made, small, atol=1e-5)


@pytest.mark.parametrize(("width", "height", "frames"), [(1280, 720, 1), (3840, 2160, 1), (832, 480, 2), (128, 80, 16)])
def test_without_a_plan_small_frames_are_made_several_at_once(width, height, frames):
    assert batch_for(width, height) == frames
