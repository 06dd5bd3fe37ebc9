"""Two chunks of Mirage through the nodes, and through Microsoft's functions around the same weights.

Theirs, cut out of the checkout that MIRAGE_PATH names: the cloud, projection, choice of references and of preceding
latents, the layout of the place, the forward, and the solver with its noise levels. The VAE is core's in both, and
features are rounded to float16 in both, as the memory stores them.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

from pack.nodes.spatial.cameras import path_from_text  # noqa: E402
from pack.tests.sampling.latent_models import TEXT, model, text, vae  # noqa: E402
from pack.tests.spatial.test_cloud import oracle as cloud_oracle  # noqa: E402, F401
from pack.tests.spatial.test_mirage import ORACLE, branch_file  # noqa: E402
from pack.tests.spatial.test_mirage import oracle as forward_oracle  # noqa: E402, F401
from pack.tests.spatial.their_solver import their_solver  # noqa: E402

W, H, T, STEPS = 96, 64, 3, 3
PATH = path_from_text("key 0.7 0.05 0.3 7 0 in 2\nback", W, H, 8.0, 60.0)  # no two points are equally near
LONG = path_from_text("key 0.7 0.05 0.3 7 0 in 4\nback", W, H, 8.0, 60.0)  # for two chunks of 33 frames


def depth(count):
    slope = 1.7 + torch.arange(W) / W + 0.37 * torch.arange(H)[:, None] / H
    return slope.repeat(count, 1, 1)


def image():
    return torch.rand(1, H, W, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def branch(tmp_path, monkeypatch, request):
    """The file's name; of 96 channels, or as many as the test is parametrised with."""
    folder_paths = pytest.importorskip("folder_paths")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    return Path(branch_file(tmp_path, channels=getattr(request, "param", 96))).name


def lifted(path=PATH):
    from pack.nodes.spatial.nodes import LiftSpatial

    return LiftSpatial.EXECUTE_NORMALIZED(camera_path=path, vae=vae("ti2v"), depth=depth(1)[..., None],
                                          depth_kind="metric", near=1.0, far=9.0, image=image()).args[0]


def chunk(branch, memory, **options):
    from pack.nodes.spatial.nodes_mirage import MirageClipSampler

    given = {"model": model("ti2v"), "branch": branch, "vae": vae("ti2v"), "positive": text(1),
             "spatial_memory": memory, "camera_path": PATH, "seed": 3, "latents": T, "steps": STEPS}
    return MirageClipSampler.EXECUTE_NORMALIZED(**{**given, **options}).args


def update(memory, clip, frame, path=PATH):
    from pack.nodes.spatial.nodes import UpdateSpatial

    return UpdateSpatial.EXECUTE_NORMALIZED(
        spatial_memory=memory, camera_path=path, vae=vae("ti2v"), latent=clip, depth_kind="metric", first_frame=frame,
        depth=depth(clip["samples"].shape[2])[..., None], budget_mb=64.0).args[0]


@torch.inference_mode()
def two_chunks(branch, path=PATH, latents=T):
    """(film after both, memory after both, reports)"""
    how = {"camera_path": path, "latents": latents}
    memory = lifted(path)
    film, clip, frame, first = chunk(branch, memory, start_image=image(), **how)
    assert clip["samples"].shape[2] == latents and frame == 0
    memory = update(memory, clip, frame, path)
    film, clip, frame, second = chunk(branch, memory, film=film, **how)
    assert clip["samples"].shape[2] == latents - 1 and frame == 4 * latents
    return film["samples"], update(memory, clip, frame, path), (first, second)


def test_a_film_of_two_chunks_is_one_latent_short_of_twice_and_remembers(branch):
    film, memory, (first, second) = two_chunks(branch)
    with torch.inference_mode():
        encoded = vae("ti2v").encode(image())
    assert film.shape == (1, 48, 2 * T - 1, H // 16, W // 16) and torch.isfinite(film).all()
    assert torch.equal(film[:, :, :1], encoded.float())
    assert memory.frames.unique().tolist() == [0, 4, 8, 12, 16]
    assert "References: frames none." in first
    assert "References: frames none." not in second and "Frame 16" in second


def test_a_chunk_of_nan_is_not_handed_on(branch):
    from pack.tests.sampling.test_finite import SAID, broken

    with torch.inference_mode(), pytest.raises(ValueError, match=f"Mirage Clip Sampler {SAID}"):
        chunk(branch, lifted(), start_image=image(), model=broken(model("ti2v"), 1)[0])


def test_the_noise_levels_are_the_authors():
    from pack.nodes.spatial.bridge_mirage_clip import schedule

    assert [round(level, 5) for level in schedule(4)] == [0.9998, 0.93727, 0.83306, 0.62469, 0.0]  # shift 5, LongLive's


def test_an_old_frame_is_judged_by_what_was_known_after_its_own_chunk():
    from dataclasses import replace

    from pack.nodes.spatial.bridge_mirage_clip import ChunkRequest, _references, as_of

    with torch.inference_mode():
        memory = update(lifted(), {"samples": torch.zeros(1, 48, T, H // 16, W // 16)}, 0)
    assert as_of(memory, 4).frames.unique().tolist() == [0, 4]
    later = memory.frames > 0
    memory = replace(memory, points=memory.points[later], features=memory.features[later],
                     frames=memory.frames[later], confidence=memory.confidence[later])
    request = ChunkRequest(None, None, None, [], memory, PATH, None, torch.zeros(1, 48, T, H // 16, W // 16), 0, T,
                           STEPS, None)
    assert sorted(_references(request, (8, 12, 16))) == [0, 1, 2]


@pytest.mark.parametrize(("branch", "path", "latents"), [(96, PATH, T), (97, PATH, T), (49, PATH, T), (96, LONG, 9)],
                         indirect=["branch"], ids=["96 channels", "97 channels", "49 channels", "33 frames"])
def test_two_chunks_are_microsofts(branch, path, latents, tmp_path, cloud_oracle, forward_oracle):  # noqa: F811
    ours, _, (_, report) = two_chunks(branch, path, latents)
    theirs = their_film(tmp_path / branch, path, latents, cloud_oracle, forward_oracle)
    assert ours.shape[2] == 2 * latents - 1 and "References: frames none." not in report
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("channels", [49, 96, 97])
def test_the_place_is_laid_out_as_microsoft_trains_it(channels):
    if not ORACLE:
        pytest.skip("MIRAGE_PATH names no checkout of microsoft/LatentSpatialMemory")
    scene = torch.randn(1, 48, T, 4, 6, generator=torch.Generator().manual_seed(1))
    scene[:, :, 1, :2] = 0.0  # a hole
    place = our_place(scene, channels)
    assert torch.equal(place, their_place(scene, channels))
    if channels == 49:
        assert torch.equal(place[0, 48].bool(), ~scene[0].ne(0).any(0)) and place[0, 48].any()


def our_place(scene, channels):
    from pack.nodes.spatial.bridge_mirage_clip import place_of

    return place_of(scene, channels, white)


@torch.inference_mode()
def white(frames):
    return model("ti2v").model.process_latent_in(vae("ti2v").encode(torch.ones(frames, H, W, 3)).float())


def their_place(scene, channels):
    """build_vace_context of their training code; for 97 channels it is given a scene of 96."""
    import torch.nn as nn

    file, wanted = Path(ORACLE) / "scripts" / "train.py", ("build_vace_context", "build_control_score_latent")
    body = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if getattr(node, "name", "") in wanted]
    space = {"torch": torch, "nn": nn}
    exec(compile(ast.Module(body, []), str(file), "exec"), space)
    encoder = SimpleNamespace(upsampling_factor=16, encode=lambda video, **_: white(video.shape[2]))

    def build(given, expected):
        given = given.movedim(2, 1)
        return space["build_vace_context"](target_scene=given[:, :1], preceding_scene=given[:, 1:], vae=encoder,
                                           expected_channels=expected, device="cpu", dtype=torch.float32)

    return build(build(scene, 96), 97) if channels == 97 else build(scene, channels)


def their_functions(cloud_class):
    wanted = {"build_target_pose_indices", "project_lpc_sequence", "select_preceding_context", "compute_points_iou",
              "select_reference_latents", "visible_points_from_lpc", "update_frame_visibility",
              "scale_intrinsics_to_hw"}
    file = Path(ORACLE) / "src" / "mirage" / "inference" / "mirage_pipeline.py"
    body = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if getattr(node, "name", "") in wanted]
    import numpy as np

    space = {"np": np, "torch": torch, "Tensor": torch.Tensor, "LatentPointCloud": cloud_class, "VideoGeometry": object}
    exec(compile(ast.Module(body, []), str(file), "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in wanted})


@torch.inference_mode()
def their_film(file, path, latents, cloud_class, forward):
    """The loop of their generate(), on our tiny weights."""
    import numpy as np

    tools, inner = their_functions(cloud_class), model("ti2v").model
    geometry = SimpleNamespace(intrinsics=path.intrinsics.numpy(), poses_c2w=path.poses.numpy(),
                               frames=np.zeros((len(path), H, W, 3), np.uint8))
    run, channels = their_forward(file, forward)

    def stored(latents):  # as the memory stores them
        return inner.process_latent_in(inner.process_latent_out(latents).half().float())

    first = inner.process_latent_in(vae("ti2v").encode(image()).float())
    cloud = cloud_class.from_geometry(depth(1)[0], path.intrinsics[0], path.poses[0], stored(first)[0], None, "cpu")
    made, scenes, seen = [], [], {}
    for index in range(2):
        frames = tools.build_target_pose_indices(start_frame=0, output_start=0 if index == 0 else 4 * (latents - 1) + 1,
                                                 model_frames=4 * (latents - 1) + 1, temporal_stride=4, iter_idx=index)
        scene = tools.project_lpc_sequence(lpc=cloud, geometry=geometry, frame_indices=frames)
        before, before_scene = tools.select_preceding_context(generated_latents=made, generated_scene_latents=scenes,
                                                              num_frames=2)
        references, _ = tools.select_reference_latents(
            lpc=cloud, geometry=geometry, target_pose_indices=frames, generated_latents=made, iou_threshold=0.04,
            frame_visible_points=seen, max_reference_frames=4, voxel_size=0.1)
        start = first if index == 0 else made[-1][None, :, None]
        chunk = their_chunk(run, channels, scene, before, before_scene, references, start)[0]
        new = slice(0 if index == 0 else 1, None)
        made += list(chunk[:, new].unbind(1))
        scenes += list(scene[:, new].unbind(1))
        count = len(frames[new])
        cloud.update(depth(count), path.intrinsics[frames[new]], path.poses[frames[new]],
                     stored(chunk[None])[0][:, new].movedim(1, 0))
        tools.update_frame_visibility(lpc=cloud, geometry=geometry, pose_indices=frames[new],
                                      frame_visible_points=seen, start_output_latent=len(made) - count)
    return inner.process_latent_out(torch.stack(made, 1)[None])


def their_chunk(run, channels, scene, before, before_scene, references, start):
    latents = scene.shape[1]
    scene = scene if before_scene is None else torch.cat((scene, before_scene), 1)
    place = their_place(scene[None], channels)[0]
    x = torch.randn(1, 48, latents, *scene.shape[2:], generator=torch.Generator().manual_seed(3))
    lead = 0 if references is None else references.shape[2]
    solver = their_solver(ORACLE)(num_train_timesteps=1000, shift=1.0)
    solver.set_timesteps(STEPS, device="cpu", shift=5.0)
    x[:, :, :1] = start
    for timestep in solver.timesteps:
        t = timestep.float().repeat(latents)
        t[0] = 0
        parts = [part for part in (references, x, before) if part is not None]
        times = torch.cat((torch.zeros(lead), t, torch.zeros(0 if before is None else before.shape[2])))
        flow = run(torch.cat(parts, 2), times, place, lead)[:, :, lead : lead + latents]
        x = solver.step(flow, timestep, x, return_dict=False)[0].clone()
        x[:, :, :1] = start
    return x


def their_forward(file, forward):
    from safetensors.torch import load_file

    wan_class, vace_class, run = forward
    inner = model("ti2v").model.diffusion_model
    sizes = {"dim": inner.dim, "num_heads": inner.num_heads, "ffn_dim": inner.ffn_dim}
    dit = wan_class(in_dim=48, out_dim=48, text_dim=TEXT, freq_dim=inner.freq_dim, eps=1e-6, patch_size=(1, 2, 2),
                    num_layers=len(inner.blocks), has_image_input=False, seperated_timestep=True,
                    fuse_vae_embedding_in_latents=True, **sizes)
    dit.load_state_dict(inner.state_dict())
    weights = load_file(file)
    channels = weights["vace_patch_embedding.weight"].shape[1]
    branch = vace_class(vace_layers=(0,), vace_in_dim=channels, **sizes)
    branch.load_state_dict(weights)
    return (lambda latents, times, place, lead: run(
        dit=dit, vace=branch, latents=latents, timestep=times, context=text(1)[0][0], vace_context=[place],
        num_ref_frames=lead, fuse_vae_embedding_in_latents=True)), channels


def test_what_does_not_fit_is_refused_before_the_branch_is_read(branch):
    with torch.inference_mode():
        memory, film = lifted(), {"samples": torch.zeros(1, 48, T, H // 16, W // 16)}
        cases = {"a wan vace model": {"model": model("vace"), "film": film}, "none of them": {},
                 "both": {"film": film, "start_image": image()},
                 "film, but got": {"film": {"samples": torch.zeros(1, 48, T, 2, 2)}},
                 "48 channels for 96x64": {"film": film, "camera_path": path_from_text("hold in 4", 64, 64, 8.0, 60.0)},
                 "spatial_memory, but got": {"film": film, "spatial_memory": 3}}
        for words, options in cases.items():
            with pytest.raises(ValueError, match=words):
                chunk("no such file", memory, **options)
