"""A film through a synthetic room and back: what is still there on return, with and without the memory.

The room, the walk and its scores are those of benchmarks/spatial.py, whose sampler is ideal: what the memory shows is
copied, holes are the truth. So what is measured is what the memory loses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import spatial as walks  # noqa: E402
from pack.nodes.spatial.cameras import path_from_text  # noqa: E402
from pack.nodes.spatial.cloud import on_picture, to_camera  # noqa: E402
from spatial_room import render  # noqa: E402

WIDTH, HEIGHT = 160, 96


@pytest.fixture(scope="module")
def vae():
    import comfy.sd
    import comfy.utils

    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(walks.TOYWORLD_VAE)))


def walk(vae, chunks, bound_mb=None):
    with torch.inference_mode():
        film = walks.Film(vae, chunks, WIDTH, HEIGHT)
        return walks.walk(film, bound_mb), film


def test_the_room_looks_the_same_from_everywhere_and_its_depth_is_exact():
    path = path_from_text("key 0.6 -0.1 0.4 12 0 in 1", WIDTH, HEIGHT, 8.0, 70.0)
    (picture, depth), (other, seen_depth) = (
        render(path.poses[frame], path.intrinsics[frame], WIDTH, HEIGHT) for frame in (0, 8))
    k, pose = path.intrinsics[0], path.poses[0]
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    rays = torch.stack(((u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], torch.ones_like(depth)), -1)
    world = ((rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]).reshape(-1, 3)
    there = to_camera(world, path.poses[8])
    column, row = (torch.round(axis).long() for axis in on_picture(there, path.intrinsics[8]))
    inside = (there[:, 2] > 0) & (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    at = row[inside], column[inside]
    visible = (seen_depth[at] - there[inside, 2]).abs() < 0.05 * there[inside, 2]
    assert float(visible.float().mean()) > 0.9
    difference = (picture.reshape(-1, 3)[inside][visible] - other[at][visible]).abs()
    assert float(difference.median()) < 0.02


@pytest.mark.parametrize("chunks", [1, 4, pytest.param(16, marks=pytest.mark.slow)])
def test_on_return_the_place_is_there_and_without_a_memory_it_is_not(vae, chunks):
    row, film = walk(vae, chunks)
    assert len(film.path) == chunks * 32 + 1
    assert row["with_memory"] < 0.8 * row["without"]
    assert row["known_part"] <= row["with_memory"] and 0.8 < row["coverage"] <= 1
    grid = (WIDTH // 8) * (HEIGHT // 8)
    assert row["points"] == grid * (chunks * 8 + 1)


def test_holes_are_counted_where_the_walk_has_not_been(vae):
    """Looking away on the way back, the memory says that it knows nothing, and its error is that of no memory."""
    with torch.inference_mode():
        film = walks.Film(vae, 1, WIDTH, HEIGHT)
        turned = film.path.poses.clone()
        turned[17:, :3, :3] = turned[17:, :3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
        film.path = type(film.path)(turned, film.path.intrinsics, WIDTH, HEIGHT, film.path.fps)
        row = walks.walk(film, None)
    assert row["coverage"] == 0.0 and row["with_memory"] == pytest.approx(row["without"])


def test_a_bounded_memory_keeps_its_budget_and_most_of_the_place(vae):
    free, _ = walk(vae, 4)
    held, _ = walk(vae, 4, bound_mb=free["mb"] / 4)
    assert held["mb"] <= free["mb"] / 4 and held["points"] < free["points"] / 3
    assert held["with_memory"] < held["without"]
