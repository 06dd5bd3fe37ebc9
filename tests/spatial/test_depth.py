"""Depth of unknown scale: what fits the memory is found again, what cannot fit is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pack.nodes.spatial.cameras import path_from_text  # noqa: E402
from pack.nodes.spatial.cloud import Look, write  # noqa: E402
from pack.nodes.spatial.depth import fitted, least_squares  # noqa: E402
from pack.nodes.spatial.values import empty_memory  # noqa: E402

H, W, h, w = 24, 40, 6, 10
PATH = path_from_text("hold in 1\npan 180 in 1", W, H, 2.0, 60.0)
LATENTS = torch.zeros(2, 1, h, w)


def slope():
    """[1, H, W]: exact under bilinear resizing, 2 to 5."""
    return (2 + 3 * torch.arange(W) / (W - 1)).repeat(1, H, 1)


def known(depth):
    return write(empty_memory(2, h, w), Look(LATENTS, depth, (0,)), PATH)


def test_a_scaled_and_shifted_depth_is_found_again():
    true = slope()
    look, (fit,) = fitted(known(true), Look(LATENTS, (true - 0.7) / 5, (1,)), PATH, "relative", 1, 9)
    assert torch.allclose(look.depth, true, atol=1e-4)
    assert (fit.scale, fit.shift) == (pytest.approx(5, abs=1e-3), pytest.approx(0.7, abs=1e-3))
    assert fit.pixels == h * w and fit.error < 1e-4


def test_an_inverse_depth_is_found_again_though_white_is_near():
    true = 1 / (0.2 + 0.3 * torch.arange(W) / (W - 1)).repeat(1, H, 1)
    look, (fit,) = fitted(known(true), Look(LATENTS, (1 / true - 0.1) / 2, (1,)), PATH, "inverse", 1, 9)
    assert (look.depth / true - 1).abs().max() < 0.02  # bilinear depth on the grid is not bilinear inverse depth
    assert fit.scale == pytest.approx(2, rel=0.02) and fit.error < 0.02


def test_metric_depth_is_taken_as_it_is():
    look = Look(LATENTS, slope() * 3, (1,))
    assert fitted(known(slope()), look, PATH, "metric", 1, 9) == (look, ())


def test_masked_pixels_do_not_count():
    true, given = slope(), (slope() - 0.7) / 5
    mask = torch.zeros(1, H, W)
    mask[:, :12] = 1
    given[:, :12] = 50.0
    look, (fit,) = fitted(known(true), Look(LATENTS, given, (1,), mask), PATH, "relative", 1, 9)
    assert fit.pixels == 3 * w and torch.allclose(look.depth[:, 12:], true[:, 12:], atol=1e-4)
    given[:, :12] = float("nan")
    look, _ = fitted(known(true), Look(LATENTS, given, (1,), mask), PATH, "relative", 1, 9)
    assert torch.allclose(look.depth[:, 16:], true[:, 16:], atol=1e-4)


def test_the_first_frame_is_spread_between_near_and_far():
    first = Look(LATENTS, slope(), (0,))
    empty = empty_memory(2, h, w)
    for kind, low, high in (("relative", 1, 9), ("inverse", 9, 1)):
        depth = fitted(empty, first, PATH, kind, 1, 9)[0].depth
        assert depth[0, 0, 0] == pytest.approx(low, rel=1e-5) and depth[0, 0, -1] == pytest.approx(high, rel=1e-5)
    with pytest.raises(ValueError, match="0 < near < far"):
        fitted(empty, first, PATH, "relative", 9, 1)
    with pytest.raises(ValueError, match="everywhere"):
        fitted(empty, Look(LATENTS, torch.ones(1, H, W), (0,)), PATH, "relative", 1, 9)


def test_what_cannot_be_fitted_is_refused():
    memory = known(slope())
    with pytest.raises(ValueError, match="frame 4 sees too little.*0 latent pixels"):
        fitted(memory, Look(LATENTS, slope(), (4,)), PATH, "relative", 1, 9)
    with pytest.raises(ValueError, match="frame 1 does not fit.*scale -"):
        fitted(memory, Look(LATENTS, 6 - slope(), (1,)), PATH, "relative", 1, 9)
    with pytest.raises(ValueError, match="one depth everywhere"):
        fitted(memory, Look(LATENTS, torch.ones(1, H, W), (1,)), PATH, "relative", 1, 9)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fitted(memory, Look(LATENTS, slope() * float("nan"), (1,)), PATH, "relative", 1, 9)


def test_least_squares_is_the_known_solution():
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 50, generator=draw)
    wanted = torch.linalg.lstsq(torch.stack((x, torch.ones(50)), 1).double(), y.double()[:, None]).solution[:, 0]
    assert least_squares(x, y) == pytest.approx(tuple(wanted.tolist()))
