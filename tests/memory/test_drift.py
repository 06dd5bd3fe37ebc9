"""Drift: zero for what is equal, known values for what is not, and blind to who is in the picture, as it says."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.memory.drift import colour_distance, direction, latent_distance, mean_lab, statistics_of


@pytest.mark.parametrize(("rgb", "lab"), [  # CIE Lab of sRGB primaries under D65 (Bruce Lindbloom's calculator)
    ((255, 255, 255), (100.0, 0.0, 0.0)), ((0, 0, 0), (0.0, 0.0, 0.0)), ((255, 0, 0), (53.24, 80.09, 67.20)),
    ((0, 255, 0), (87.73, -86.18, 83.18)), ((0, 0, 255), (32.30, 79.19, -107.86)), ((119, 119, 119), (50.03, 0.0, 0.0)),
])
def test_lab_of_known_colours(rgb, lab):
    picture = torch.tensor(rgb, dtype=torch.uint8).expand(4, 5, 3)
    assert mean_lab(picture).tolist() == pytest.approx(lab, abs=0.02)
    assert mean_lab(picture.float() / 255).tolist() == pytest.approx(lab, abs=0.02)


def test_distance_of_latents_is_that_of_means_and_spreads():
    torch.manual_seed(0)
    latents = torch.randn(4, 3, 8, 8)
    start = statistics_of([latents])
    assert latent_distance(start, statistics_of([latents])) == 0
    assert latent_distance(start, statistics_of([latents + 0.5])) == pytest.approx(0.5, abs=1e-5)
    mean, std = start
    stretched = (latents - mean[:, None, None, None]) * 2 + mean[:, None, None, None]
    expected = float(std.square().mean().sqrt())
    assert latent_distance(start, statistics_of([stretched])) == pytest.approx(expected, abs=1e-5)


def test_two_chunks_count_as_one():
    a, b = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8) + 1
    assert latent_distance(statistics_of([a, b]), statistics_of([torch.cat((a, b), 1)])) == 0
    assert latent_distance(statistics_of([a, b]), statistics_of([a])) > 0.3


def test_colour_says_where_it_went():
    grey, amber = (mean_lab(torch.tensor(rgb, dtype=torch.uint8)) for rgb in ((128,) * 3, (120, 90, 40)))
    assert direction(grey, grey) == "" and colour_distance(grey, grey) == 0
    assert direction(grey, amber) == "darker, redder, yellower" and colour_distance(grey, amber) > 20


def test_where_things_are_does_not_count():
    """Not identity: the same pixels in another order have no drift."""
    torch.manual_seed(1)
    latents, frame = torch.randn(4, 3, 8, 8), torch.rand(8, 8, 3)
    turned = statistics_of([latents.flip(3)])
    assert latent_distance(statistics_of([latents]), turned) == pytest.approx(0, abs=1e-6)
    assert colour_distance(mean_lab(frame), mean_lab(frame.flip(0))) == pytest.approx(0, abs=1e-9)
