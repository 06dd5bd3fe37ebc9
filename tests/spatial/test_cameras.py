"""Camera paths from words and from files: where cameras stand, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from pack.nodes.spatial.camera_files import path_from_file, path_to_json  # noqa: E402
from pack.nodes.spatial.cameras import intrinsics_from_fov, path_from_text  # noqa: E402
from pack.nodes.spatial.cloud import to_camera  # noqa: E402


def path(text, fps=8.0):
    return path_from_text(text, 64, 48, fps, 90.0)


def place(pose):
    return [round(float(v), 5) + 0.0 for v in pose[:3, 3]]


def forward(pose):
    return [round(float(v), 5) + 0.0 for v in pose[:3, 2]]


@pytest.mark.parametrize(("text", "position", "direction"), [
    ("hold in 1", [0, 0, 0], [0, 0, 1]),
    ("dolly 2 in 1", [0, 0, 2], [0, 0, 1]),
    ("truck 2 in 1", [2, 0, 0], [0, 0, 1]),
    ("crane 2 in 1", [0, -2, 0], [0, 0, 1]),
    ("pan 90 in 1", [0, 0, 0], [1, 0, 0]),
    ("tilt 90 in 1", [0, 0, 0], [0, -1, 0]),
    ("orbit 90 around 3 in 1", [3, 0, 3], [-1, 0, 0]),
    ("key 1 2 3 90 0 in 1", [1, 2, 3], [1, 0, 0]),
    ("pan 90 in 1\ndolly 2 in 1", [2, 0, 0], [1, 0, 0]),
    ("pan 90 in 1 # to the window\n\nTRUCK 1 IN 0.5s", [0, 0, -1], [1, 0, 0]),
])
def test_a_move_ends_where_its_words_say(text, position, direction):
    pose = path(text).poses[-1]
    assert place(pose) == position
    assert forward(pose) == direction


def test_half_way_through_a_move_half_of_it_is_done():
    found = path("dolly 2 in 2\npan 40 in 1")
    assert len(found) == 25
    assert place(found.poses[8]) == [0, 0, 1]
    assert forward(found.poses[20]) == [round(math.sin(math.radians(20)), 5), 0, round(math.cos(math.radians(20)), 5)]


def test_back_returns_by_the_same_frames():
    found = path("dolly 2 in 1\norbit 50 around 2 in 1\ntilt 10 in 0.5\nback")
    assert len(found) == 41
    assert torch.allclose(found.poses, found.poses.flip(0), atol=1e-6)
    assert not torch.allclose(found.poses[0], found.poses[20], atol=0.1)


def test_an_orbit_keeps_its_point_in_the_middle():
    found = path("orbit 120 around 3 in 2")
    for pose in found.poses:
        seen = to_camera(torch.tensor([[0.0, 0.0, 3.0]]), pose)[0]
        assert torch.allclose(seen, torch.tensor([0.0, 0.0, 3.0]), atol=1e-5)


def test_intrinsics_follow_the_field_of_view():
    k = intrinsics_from_fov(64, 48, 90.0)
    assert torch.allclose(k, torch.tensor([[32.0, 0, 32], [0, 32, 24], [0, 0, 1]]))
    edge = torch.tensor([math.tan(math.radians(30)), 0, 1.0])
    assert float((intrinsics_from_fov(64, 48, 60.0) @ edge)[0]) == pytest.approx(64, abs=1e-3)


@pytest.mark.parametrize("line", ["pan 90", "pan in 2", "pan 90 in 0", "pan 90 in -1", "walk 3 in 2", "orbit 30 in 2",
                                  "pan 90 around 2 in 2", "key 1 2 3 in 2", "pan ninety in 2", "hold 3 in 2",
                                  "pan 1e3 in 2", "back in 2"])
def test_a_line_that_is_not_understood_is_named(line):
    with pytest.raises(ValueError, match=r"line 2.*pan DEG in S"):
        path(f"dolly 1 in 1\n{line}")


def test_empty_texts_long_ones_and_odd_lenses_are_refused():
    for text in ("", "# nothing", "back"):
        with pytest.raises(ValueError, match="an empty text"):
            path(text)
    with pytest.raises(ValueError, match="7200 s"):
        path("hold in 7200")
    with pytest.raises(ValueError, match="field of view"):
        path_from_text("hold in 1", 64, 48, 8.0, 180.0)
    with pytest.raises(ValueError, match="0x48"):
        path_from_text("hold in 1", 0, 48, 8.0, 90.0)


def test_json_of_ours_comes_back_and_scales(tmp_path):
    found = path("orbit 50 around 2 in 1")
    file = tmp_path / "path.json"
    file.write_text(path_to_json(found))
    again = path_from_file(file, 128, 96, 24.0)
    assert torch.equal(again.poses, found.poses)
    assert torch.equal(again.intrinsics[3], found.intrinsics[3] * torch.tensor([[2.0], [2.0], [1.0]]))
    assert (again.width, again.height, again.fps) == (128, 96, 8.0)


def test_nerf_json_is_turned_to_our_axes(tmp_path):
    pose = [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]  # looks along -z, y up
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({"camera_angle_x": math.pi / 2, "frames": [{"transform_matrix": pose}]}))
    found = path_from_file(file, 64, 48, 24.0)
    assert forward(found.poses[0]) == [0, 0, -1] and place(found.poses[0]) == [1, 2, 3]
    assert [float(v) for v in found.poses[0][:3, 1]] == [0, -1, 0]
    assert float(found.intrinsics[0, 0, 0]) == pytest.approx(32)


def colmap(folder, q="0.7071067811865476 0 0.7071067811865476 0", model="PINHOLE 64 48 30 31 32 24"):
    folder.mkdir()
    (folder / "cameras.txt").write_text(f"# Camera list\n1 {model}\n")
    (folder / "images.txt").write_text(f"# Images\n2 1 0 0 0 0 0 5 1 b.png\n1 2 3\n1 {q} 1 2 3 1 a.png\n\n")
    return folder


def test_colmap_poses_are_inverted_and_ordered_by_name(tmp_path):
    found = path_from_file(colmap(tmp_path / "sparse"), 64, 48, 24.0)
    assert len(found) == 2
    world_to_camera = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]])  # 90 degrees about y
    assert torch.allclose(found.poses[0] @ world_to_camera, torch.eye(4), atol=1e-6)
    assert place(found.poses[1]) == [0, 0, -5]
    assert [float(found.intrinsics[0][i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2))] == [30, 31, 32, 24]


def test_files_that_are_no_camera_path_are_refused(tmp_path):
    cases = {"none.json": None, "text.json": "hello", "list.json": "[]", "empty.json": '{"frames": []}',
             "short.json": '{"frames": [{"c2w": [[1]]}], "width": 8, "height": 8}'}
    for name, text in cases.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"Camera Path cannot read {name}.*COLMAP"):
            path_from_file(tmp_path / name, 64, 48, 24.0)
    with pytest.raises(ValueError, match=r"OPENCV.*image_undistorter"):
        path_from_file(colmap(tmp_path / "lens", model="OPENCV 64 48 30 30 32 24 0 0 0 0"), 64, 48, 24.0)
    with pytest.raises(ValueError, match="cannot read q"):
        path_from_file(colmap(tmp_path / "q", q="one 0 0 0"), 64, 48, 24.0)
    squashed = path_to_json(path("hold in 1")).replace("[1.0, ", "[1.5, ", 1)
    (tmp_path / "squashed.json").write_text(squashed)
    with pytest.raises(ValueError, match="frame 0 has none"):
        path_from_file(tmp_path / "squashed.json", 64, 48, 24.0)
