"""The spatial room's nodes inside ComfyUI, with the demo's real VAE: a place is lifted, read, updated, saved, shown."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

WIDTH, HEIGHT = 128, 80


@pytest.fixture(scope="module")
def vae(toyworld):
    sd, utils = pytest.importorskip("comfy.sd"), pytest.importorskip("comfy.utils")
    return sd.VAE(sd=utils.load_torch_file(str(toyworld / "toyworld_vae_fp16.safetensors")))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    folder_paths = pytest.importorskip("folder_paths")
    for name in ("output", "temp", "input"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


def run(module, name, **given):
    import importlib

    return getattr(importlib.import_module(f"pack.nodes.spatial.{module}"), name).EXECUTE_NORMALIZED(**given).args


def camera(moves="truck 0.5 in 1\nback", **more):
    given = {"moves": moves, "width": WIDTH, "height": HEIGHT, "fps": 8.0, "field_of_view": 60.0}
    return run("nodes_camera", "CameraPathNode", **{**given, **more})


def depth(frames=1):
    return (2 + torch.arange(WIDTH) / WIDTH).repeat(frames, HEIGHT, 1)[..., None].repeat(1, 1, 1, 3)


def image():
    return torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))


def lift(vae, **more):
    given = {"camera_path": camera()[0], "vae": vae, "depth": depth(), "depth_kind": "metric", "near": 1.0, "far": 9.0,
             "image": image()}
    with torch.inference_mode():
        return run("nodes", "LiftSpatial", **{**given, **more})


def read(memory, first_frame=0, latents=1, **more):
    return run("nodes", "ReadSpatial", spatial_memory=memory, camera_path=camera()[0], first_frame=first_frame,
               latents=latents, **more)


def update(vae, memory, clip, **more):
    given = {"camera_path": camera()[0], "vae": vae, "latent": {"samples": clip}, "depth": depth(clip.shape[2]),
             "depth_kind": "metric", "first_frame": 0, "budget_mb": 64.0}
    return run("nodes", "UpdateSpatial", spatial_memory=memory, **{**given, **more})


def test_a_lifted_picture_is_read_back_by_its_own_camera(vae):
    memory, report = lift(vae)
    with torch.inference_mode():
        encoded = vae.encode(image()[..., :3])
    latent, holes, preview, coverage, words = read(memory, vae=vae)
    assert torch.equal(latent["samples"], encoded.cpu().half().float().reshape(latent["samples"].shape))
    assert coverage == 1.0 and not holes.any() and "100.0%" in words
    assert preview.shape == (1, 8 * holes.shape[1], 8 * holes.shape[2], 3) and preview.std() > 0.05
    assert f"{len(memory)} points" in report


def test_a_latent_lifts_like_its_image(vae):
    with torch.inference_mode():
        encoded = vae.encode(image())
    from_latent = lift(vae, image=None, latent={"samples": encoded})[0]
    assert torch.equal(from_latent.features, lift(vae)[0].features)


def test_holes_open_where_the_camera_moves_on_and_close_after_an_update(vae):
    memory = lift(vae)[0]
    before = read(memory, latents=3)
    assert before[1][2].any() and before[3] < 1
    assert (before[2][2].sum(-1) == 0).float().mean() == pytest.approx(float(before[1][2].mean()), abs=0.01)
    clip = torch.randn(1, memory.channels, 3, memory.height, memory.width)
    every = depth(9) + torch.arange(9).view(9, 1, 1, 1) / 100
    for given in (every, every[::4]):
        after, report = update(vae, memory, clip, depth=given)
        nearest = [float(after.points[after.frames == frame][len(memory) if frame == 0 else 0:, 2].min())
                   for frame in (0, 4, 8)]
        assert nearest == pytest.approx([2 + 3.5 / WIDTH + frame / 100 for frame in (0, 4, 8)], abs=0.02)
        assert read(after, latents=3)[3] == 1.0
        assert f"{3 * memory.height * memory.width} points came in, 0 were merged away" in report
    assert read(memory, latents=3)[3] == before[3], "the memory that went in has changed"


def test_a_budget_is_kept_by_update(vae):
    memory = lift(vae)[0]
    clip = torch.randn(1, memory.channels, 5, memory.height, memory.width)
    after, report = update(vae, memory, clip, budget_mb=memory.nbytes * 2 / 2**20)
    assert after.nbytes <= memory.nbytes * 2
    assert "0 were merged away" not in report and "merged in cells" in report


def test_where_points_are_merged_the_most_trusted_one_stays(vae):
    """Without confidence the look from nearer by would win: here it is not trusted, except in its right half."""
    trusted = torch.ones(1, HEIGHT, WIDTH)
    memory = lift(vae, confidence=0.5 * trusted)[0]
    assert torch.equal(memory.confidence, torch.full_like(memory.confidence, 0.5))
    clip = torch.randn(1, memory.channels, 1, memory.height, memory.width)
    doubtful = 0.1 * trusted
    doubtful[..., WIDTH // 2 :] = 0.9
    nearer = {"depth": depth() - 0.005, "first_frame": 4}
    tight = memory.nbytes * 1.02 / 2**20
    after, _ = update(vae, memory, clip, confidence=doubtful[0], budget_mb=tight, camera_path=camera("hold in 1")[0],
                      **nearer)
    left = after.points[:, 0] < -0.3
    right = after.points[:, 0] > 0.3
    assert after.voxel > 0 and float((after.frames[left] == 0).float().mean()) > 0.9  # a cell may hold one point alone
    assert float((after.frames[right] == 4).float().mean()) > 0.9
    without, _ = update(vae, lift(vae)[0], clip, budget_mb=tight, camera_path=camera("hold in 1")[0], **nearer)
    assert float((without.frames[without.points[:, 0] < -0.3] == 4).float().mean()) > 0.6


def test_confidence_is_read_per_frame_and_refused_where_it_does_not_fit(vae):
    memory = lift(vae)[0]
    clip = torch.zeros(1, memory.channels, 3, memory.height, memory.width)
    every = (torch.arange(9).view(9, 1, 1) / 8).expand(9, HEIGHT, WIDTH)
    after, _ = update(vae, memory, clip, depth=depth(9), confidence=every)
    per_frame = [after.confidence[len(memory):][after.frames[len(memory):] == frame] for frame in (0, 4, 8)]
    assert [float(values.max()) for values in per_frame] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match=r"confidence for 3 latents.*2 frames"):
        update(vae, memory, clip, confidence=every[:2])
    with pytest.raises(ValueError, match="confidence of another size"):
        update(vae, memory, clip, confidence=every[..., :64])


def test_depth_without_a_scale_is_fitted_and_reported(vae):
    memory = lift(vae)[0]
    clip = torch.zeros(1, memory.channels, 1, memory.height, memory.width)
    after, report = update(vae, memory, clip, depth=(depth() - 1) / 4, depth_kind="relative")
    assert "scale 4, shift 1" in report
    assert torch.allclose(after.points[len(memory):], memory.points, atol=1e-3)
    first, _ = lift(vae, depth=depth(), depth_kind="inverse")
    assert float(first.points[:, 2].min()) < 1.5 and float(first.points[:, 2].max()) > 4


def test_a_mask_keeps_moving_things_out(vae):
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1
    memory, _ = lift(vae, mask=mask)
    assert len(memory) == memory.height * memory.width // 2
    with pytest.raises(ValueError, match="an empty cloud"):
        lift(vae, mask=torch.ones(1, HEIGHT, WIDTH))


def test_a_saved_place_is_loaded_and_shown(vae, folders):
    memory = lift(vae)[0]
    path, = run("nodes_files", "SaveSpatial", spatial_memory=memory, filename_prefix="rooms/hall")
    assert path.endswith("videomemory/places/rooms/hall_00001_.safetensors")
    again, report = run("nodes_files", "LoadSpatial", file="rooms/hall_00001_.safetensors")
    assert torch.equal(again.points, memory.points) and again.vae_key == memory.vae_key and "points" in report
    views, _ = run("nodes_files", "SpatialReport", spatial_memory=again)
    assert views.shape == (3, 384, 384, 3)
    shown = (views.sum(-1) > 0).flatten(1).sum(1) / 16  # a point is drawn 4x4
    assert shown[0] > 0.9 * len(memory) and (shown >= memory.height).all() and shown[2] < shown[0]


def test_the_orbit_view_is_given_the_points_themselves(vae, folders):
    import base64
    import json

    import numpy as np
    from pack.nodes.spatial.nodes_files import SpatialReport
    from pack.nodes.spatial.orbit import MOST, orbit_of

    memory = lift(vae)[0]
    shown = SpatialReport.EXECUTE_NORMALIZED(spatial_memory=memory).ui["videomemory_orbit"][0]
    shown = json.loads(json.dumps(shown))
    points = np.frombuffer(base64.b64decode(shown["points"]), "<i2").reshape(-1, 3).copy()
    world = torch.tensor(shown["middle"]) + torch.from_numpy(points).float() * shown["scale"]
    assert shown["total"] == shown["shown"] == len(memory)
    assert (world - memory.points).abs().max() < shown["scale"]
    colours = np.frombuffer(base64.b64decode(shown["colours"]), "u1").reshape(-1, 3)
    assert colours.shape == points.shape and colours.std() > 10 and colours.min() >= 25
    wide = (world - torch.tensor(shown["middle"])).norm(dim=1)
    assert 0.9 < float((wide <= shown["reach"]).float().mean()) < 1
    many = memory
    while len(many) <= MOST:
        many = update(vae, many, torch.zeros(1, memory.channels, 5, memory.height, memory.width))[0]
    limited = orbit_of(many)
    assert (limited["shown"], limited["total"]) == (MOST, len(many)) and len(limited["points"]) == MOST * 8


def test_names_outside_the_folders_are_refused(folders):
    from pack.nodes.spatial.nodes_camera import CameraPathNode
    from pack.nodes.spatial.nodes_files import LoadSpatial, SaveSpatial

    (folders / "secret.json").write_text("{}")
    assert "input folder" in CameraPathNode.validate_inputs("hold in 1", "../secret.json")
    assert "line 1" in CameraPathNode.validate_inputs("jump 3 in 2")
    assert CameraPathNode.validate_inputs("hold in 1") is True
    assert "no such file" in LoadSpatial.validate_inputs("../../secret.safetensors")
    assert "without .." in SaveSpatial.validate_inputs("../place")


def test_a_file_in_the_input_folder_becomes_a_path(folders):
    from pack.nodes.spatial.camera_files import path_to_json

    path, count, report = camera("pan 90 in 1")
    (folders / "input" / "path.json").write_text(path_to_json(path))
    again, again_count, _ = camera("hold in 1", file="path.json")
    assert torch.equal(again.poses, path.poses) and (count, again_count) == (9, 9) and "9 frames, 1.00 s" in report


def test_what_does_not_belong_together_is_refused(vae):
    from dataclasses import replace

    memory = lift(vae)[0]
    foreign = replace(memory, vae_key="0" * 32)
    clip = torch.zeros(1, memory.channels, 1, memory.height, memory.width)
    for refused in (lambda: read(foreign, vae=vae), lambda: update(vae, foreign, clip)):
        with pytest.raises(ValueError, match="from another VAE.*00000000"):
            refused()
    with pytest.raises(ValueError, match="exactly one"):
        lift(vae, latent={"samples": clip})
    with pytest.raises(ValueError, match="exactly one"):
        lift(vae, image=None)
    with pytest.raises(ValueError, match="image, but got '64x80'"):
        lift(vae, image=image()[:, :, :64])
    with pytest.raises(ValueError, match=r"depth for 1 latents.*2 frames"):
        update(vae, memory, clip, depth=depth(2))
    with pytest.raises(ValueError, match="frames 0 to 16"):
        read(memory, latents=6)
    with pytest.raises(ValueError, match="one video or picture"):
        update(vae, memory, clip.repeat(2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="spatial_memory, but got 'int'"):
        run("nodes_files", "SpatialReport", spatial_memory=3)
