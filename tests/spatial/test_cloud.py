"""Writing and reading a place: what comes back, what is left out, what is refused; and Microsoft's code beside ours.

The comparison runs where MIRAGE_PATH names a checkout of github.com/microsoft/LatentSpatialMemory; nothing of it is
part of this repository. Everywhere else an independent slow implementation of the description stands in for it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from pack.nodes.spatial.bound import bound, merge  # noqa: E402
from pack.nodes.spatial.cloud import Look, read, write  # noqa: E402
from pack.nodes.spatial.files import load_spatial, save_spatial  # noqa: E402
from pack.nodes.spatial.references import choose_references, overlap, visible_cells  # noqa: E402
from pack.nodes.spatial.values import empty_memory, make_path, point_bytes  # noqa: E402

H, W, h, w, C = 24, 40, 6, 10, 5
ORACLE = os.environ.get("MIRAGE_PATH")


def pose(x=0.0, y=0.0, z=0.0, yaw=0.0):
    angle = torch.tensor(float(yaw))
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.tensor([[c, 0, s, x], [0, 1, 0, y], [-s, 0, c, z], [0, 0, 0, 1.0]])


def path(*poses, fx=30.0):
    k = torch.tensor([[fx, 0, W / 2], [0, fx * 1.1, H / 2], [0, 0, 1.0]])
    return make_path(torch.stack(poses), k.repeat(len(poses), 1, 1), W, H, 16.0)


def look(count=1, frames=None, seed=0, **more):
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(C, count, h, w, generator=draw).half().float()
    depth = torch.rand(count, H, W, generator=draw) * 3 + 2
    return Look(latents, depth, tuple(range(count)) if frames is None else frames, **more)


def start():
    return empty_memory(C, h, w)


WALK = path(pose(), pose(0.2, 0.1, -0.3, 0.1), pose(-0.4, 0, 0.5, -0.2), pose(0, 0, 0, 3.1416))


def slow_project(memory, camera, k):
    """Pixel by pixel, point by point, in Python floats' words: the description, not the code."""
    picture, depth = torch.zeros(C, h, w), torch.full((h, w), float("inf"))
    inverse = torch.inverse(camera)
    seen = (memory.points @ inverse[:3, :3].T) + inverse[:3, 3]
    for i, (x, y, z) in enumerate(seen):
        if z <= 0:
            continue
        u, v = torch.round(x * k[0, 0] / z + k[0, 2]), torch.round(y * k[1, 1] / z + k[1, 2])
        if 0 <= u < w and 0 <= v < h and z < depth[int(v), int(u)]:
            depth[int(v), int(u)] = z
            picture[:, int(v), int(u)] = memory.features[i].float()
    return picture, depth


def test_the_same_camera_reads_back_every_latent_bit_for_bit():
    one = look()
    reading = read(write(start(), one, WALK), WALK, (0,))
    assert torch.equal(reading.latents, one.latents)
    assert not reading.holes.any()
    assert reading.coverage == (1.0,)


def test_other_cameras_see_what_the_slow_description_says():
    memory = write(start(), look(3), WALK)
    reading = read(memory, WALK, (1, 2, 3))
    for t, frame in enumerate((1, 2, 3)):
        picture, depth = slow_project(memory, WALK.poses[frame], WALK.on_grid(frame, h, w))
        assert torch.equal(reading.latents[:, t], picture)
        assert torch.equal(reading.depth[t], depth)
    assert 0 < reading.coverage[0] <= 1
    assert reading.coverage[0] == 1 - float(reading.holes[0].float().mean())


def test_a_camera_that_looks_away_sees_only_holes():
    reading = read(write(start(), look(), WALK), WALK, (3,))
    assert reading.holes.all() and reading.coverage == (0.0,) and not reading.latents.any()


def test_the_nearest_point_wins_whatever_was_written_first():
    near, far = look(seed=1), look(seed=2)
    near = Look(near.latents, torch.full((1, H, W), 2.0), (0,))
    far = Look(far.latents, torch.full((1, H, W), 5.0), (0,))
    for order in ((near, far), (far, near)):
        memory = start()
        for one in order:
            memory = write(memory, one, WALK)
        assert torch.equal(read(memory, WALK, (0,)).latents, near.latents)


def test_of_equally_near_points_the_newest_wins():
    first, second = look(seed=1), look(seed=2)
    second = Look(second.latents, first.depth, (0,))
    memory = write(write(start(), first, WALK), second, WALK)
    assert torch.equal(read(memory, WALK, (0,)).latents, second.latents)


def test_writing_leaves_the_old_memory_as_it_was():
    before = write(start(), look(), WALK)
    copy = before.points.clone()
    after = write(before, look(2, (1, 2)), WALK)
    assert len(before) == h * w and torch.equal(before.points, copy)
    assert len(after) == 3 * h * w
    assert after.frames.unique().tolist() == [0, 1, 2]


def test_masked_pixels_are_not_remembered_and_may_have_no_depth():
    one = look()
    mask = torch.zeros(1, H, W)
    mask[:, :8] = 1.0
    depth = one.depth.clone()
    depth[:, :8] = float("inf")  # sky
    memory = write(start(), Look(one.latents, depth, (0,), mask), WALK)
    holes = read(memory, WALK, (0,)).holes[0]
    assert holes[:2].all() and not holes[2:].any()
    assert torch.isfinite(memory.points).all()


def test_a_pixel_is_left_out_where_a_missing_depth_would_be_blended_in():
    one = look()
    mask, depth = torch.zeros(1, H, W), one.depth.clone()
    mask[0, 10, 14] = 1.0  # one of the four that latent pixel (2, 3) is blended from; its nearest one is (8, 12)
    assert not read(write(start(), Look(one.latents, depth, (0,), mask), WALK), WALK, (0,)).holes.any()
    depth[0, 10, 14] = float("nan")
    holes = read(write(start(), Look(one.latents, depth, (0,), mask), WALK), WALK, (0,)).holes[0]
    assert holes.nonzero().tolist() == [[2, 3]]


def test_depth_is_blended_from_the_four_pixels_around_a_latent_pixels_middle():
    one = look()
    memory = write(start(), one, WALK)
    for row, column in ((0, 0), (2, 3), (5, 9)):
        y, x = 4 * row + 1, 4 * column + 1
        z = one.depth[0, y : y + 2, x : x + 2].mean()
        k = WALK.on_grid(0, h, w)
        wanted = torch.stack(((column - k[0, 2]) * z / k[0, 0], (row - k[1, 2]) * z / k[1, 1], z))
        assert torch.allclose(memory.points[row * w + column], wanted, atol=1e-5)


def test_bytes_per_point_are_what_is_stated():
    memory = write(start(), look(), WALK)
    stored = sum(t.nbytes for t in (memory.points, memory.features, memory.frames, memory.confidence))
    assert stored == memory.nbytes == len(memory) * point_bytes(C)
    assert point_bytes(48) == 114 and point_bytes(16) == 50


@pytest.mark.parametrize(("value", "word"), [(0.0, "zero"), (-1.0, "negative"), (float("nan"), "NaN"),
                                             (float("inf"), "infinite")])
def test_depth_that_is_none_is_refused_by_name(value, word):
    one = look()
    one.depth[0, 3, 3] = value
    with pytest.raises(ValueError, match=f"{word} depth in 1 of 960 pixels.*mask"):
        write(start(), one, WALK)


@pytest.mark.parametrize("name", ["depth", "mask", "confidence"])
def test_pictures_of_another_size_are_refused(name):
    one = look()
    parts = {"depth": one.depth, "mask": None, "confidence": None, name: torch.ones(1, H, W - 2)}
    with pytest.raises(ValueError, match=f"{name} of another size.*24, 38.*24, 40"):
        write(start(), Look(one.latents, frames=(0,), **parts), WALK)


def test_latents_of_another_grid_or_not_finite_are_refused():
    one = look()
    with pytest.raises(ValueError, match=r"latents of its grid.*\(5, 1, 6, 9\)"):
        write(start(), Look(one.latents[..., :9], one.depth, (0,)), WALK)
    one.latents[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite latents"):
        write(start(), one, WALK)


def test_an_empty_cloud_and_frames_beyond_the_path_are_refused():
    with pytest.raises(ValueError, match="an empty cloud"):
        read(start(), WALK, (0,))
    memory = write(start(), look(), WALK)
    with pytest.raises(ValueError, match="frames 3 to 4.*frames 0 to 3"):
        read(memory, WALK, (3, 4))
    with pytest.raises(ValueError, match="frames 4 to 4"):
        write(start(), look(1, (4,)), WALK)


@pytest.mark.parametrize("wrong", ["scaled", "mirrored", "sheared", "nan", "bottom"])
def test_a_rotation_that_is_none_is_refused(wrong):
    bad = pose(1, 2, 3, 0.3)
    if wrong == "scaled":
        bad[:3, :3] *= 1.01
    elif wrong == "mirrored":
        bad[:3, 0] *= -1
    elif wrong == "sheared":
        bad[0, 1] += 0.1
    elif wrong == "nan":
        bad[0, 0] = float("nan")
    else:
        bad[3, 0] = 0.5
    with pytest.raises(ValueError, match="finite poses" if wrong == "nan" else "frame 1 has none"):
        path(pose(), bad)


def test_a_budget_is_kept_and_of_a_cell_the_most_trusted_point_stays():
    memory = write(start(), look(4), WALK)
    for share in (0.5, 0.1, 0.04):
        budget = int(memory.nbytes * share)
        small = bound(memory, budget)
        assert 0 < small.nbytes <= budget
        assert small.nbytes > budget * 0.6, "much more was thrown away than had to be"
    assert bound(memory, memory.nbytes) is memory
    cells = torch.floor(memory.points.double() / 0.7).long()
    merged = merge(memory, 0.7)
    kept = torch.floor(merged.points.double() / 0.7).long()
    assert len(torch.unique(kept, dim=0)) == len(kept) == len(torch.unique(cells, dim=0))
    for cell, trust in zip(kept, merged.confidence, strict=True):
        assert trust == memory.confidence[(cells == cell).all(1)].max()


def test_nearness_is_the_confidence_unless_one_is_given():
    near = write(start(), Look(look().latents, torch.full((1, H, W), 2.0), (0,)), WALK)
    assert (near.confidence == 0.5).all()
    given = write(start(), Look(look().latents, look().depth, (0,), confidence=torch.full((1, H, W), 0.25)), WALK)
    assert (given.confidence == 0.25).all()


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="budget.*bytes or more"):
        bound(write(start(), look(), WALK), 20)


def test_a_file_gives_back_the_same_memory(tmp_path):
    memory = merge(write(start(), look(2), WALK), 0.3)
    again = load_spatial(save_spatial(memory, tmp_path / "a" / "place.safetensors"))
    for name in ("points", "features", "frames", "confidence"):
        assert torch.equal(getattr(memory, name), getattr(again, name))
    assert (again.height, again.width, again.voxel, again.vae_key) == (h, w, 0.3, "")
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["place.safetensors"]


def test_files_of_others_and_damaged_ones_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"points": torch.zeros(1, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors.*format None"):
        load_spatial(tmp_path / "other.safetensors")
    whole = save_spatial(write(start(), look(), WALK), tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        load_spatial(tmp_path / "cut.safetensors")
    memory = write(start(), look(), WALK)
    memory.points[0, 0] = float("nan")
    with pytest.raises(ValueError, match="points: NaN"):
        load_spatial(save_spatial(memory, tmp_path / "nan.safetensors"))


def test_references_are_the_frames_that_saw_the_same_place():
    memory = write(start(), look(2), WALK)
    target = visible_cells(memory, WALK, (0, 1))
    history = {i: visible_cells(memory, WALK, (frame,)) for i, frame in enumerate((3, 2, 1, 0))}
    assert len(history[0]) == 0
    cells = [set(map(tuple, one.tolist())) for one in (target, *history.values())]
    shares = {i: len(cells[0] & one) / len(cells[0] | one) for i, one in enumerate(cells[1:])}
    assert {i: overlap(target, one) for i, one in history.items()} == shares
    best = sorted((i for i in shares if shares[i] >= 0.04), key=lambda i: -shares[i])
    assert choose_references(target, history) == tuple(best) and 0 not in best
    assert choose_references(target, history, most=1) == tuple(best[:1])
    assert choose_references(target, history, threshold=1.01) == ()


@pytest.fixture(scope="module")
def oracle():
    if not ORACLE:
        pytest.skip("MIRAGE_PATH names no checkout of microsoft/LatentSpatialMemory")
    file = Path(ORACLE) / "src" / "mirage" / "latent_point_cloud.py"
    spec = importlib.util.spec_from_file_location("mirage_latent_point_cloud", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.LatentPointCloud


def test_lift_and_projection_are_bit_equal_to_microsofts(oracle):
    one = look(3)
    mask = torch.zeros(3, H, W)
    mask[:, 5:11, 7:20] = 1.0
    one = Look(one.latents, one.depth, (0, 1, 2), mask)
    ours = write(start(), one, WALK)
    theirs = oracle.from_geometry(one.depth[0], WALK.intrinsics[0], WALK.poses[0], one.latents[:, :1], mask[0], "cpu")
    theirs.update(one.depth[1:], WALK.intrinsics[1:3], WALK.poses[1:3], one.latents[:, 1:].movedim(1, 0), mask[1:])
    assert torch.equal(ours.points, theirs.points_world[theirs.valid_mask])
    assert torch.equal(ours.features.float(), theirs.features[theirs.valid_mask])
    reading = read(ours, WALK, (0, 1, 2, 3))
    for frame in range(4):
        latent, known = theirs.project(WALK.poses[frame], WALK.on_grid(frame, h, w))
        assert torch.equal(reading.latents[:, frame], latent)
        assert torch.equal(reading.holes[frame], ~known)


def test_the_choice_of_references_is_microsofts(oracle):
    tree = Path(ORACLE) / "src" / "mirage" / "inference" / "mirage_pipeline.py"
    import ast

    import numpy as np

    wanted = "compute_points_iou"
    body = [node for node in ast.parse(tree.read_text(encoding="utf-8")).body if getattr(node, "name", "") == wanted]
    space = {"np": np}
    exec(compile(ast.Module(body, []), str(tree), "exec"), space)
    memory = write(start(), look(3), WALK)

    def seen(frame):
        camera = torch.inverse(WALK.poses[frame])
        x, y, z = ((memory.points @ camera[:3, :3].T) + camera[:3, 3]).T
        k = WALK.on_grid(frame, h, w)
        u, v = x * k[0, 0] / z + k[0, 2], y * k[1, 1] / z + k[1, 2]
        return memory.points[(z > 0) & (u >= 0) & (u < w) & (v >= 0) & (v < h)].numpy()

    target = np.concatenate([seen(0), seen(1)])
    for frame in range(4):
        ours = overlap(visible_cells(memory, WALK, (0, 1)), visible_cells(memory, WALK, (frame,)))
        assert ours == space[wanted](target, seen(frame), 0.1)
