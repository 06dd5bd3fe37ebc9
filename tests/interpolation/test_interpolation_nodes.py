"""The two RIFE nodes in process, under ComfyUI's real model management."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.common.types import MemorySpec, RenderPlan

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("comfy.ops")
    from pack.nodes.interpolation import nodes

    return nodes


@pytest.fixture(scope="module")
def rife(nodes):
    from pack.nodes.interpolation.weights import BUNDLED

    return nodes.LoadRife.execute(BUNDLED).args[0]


def between(rife, first: torch.Tensor, second: torch.Tensor, *times: float, batch: int = 0) -> torch.Tensor:
    from pack.nodes.interpolation.between import Between

    stream = rife.stream(first.shape[1], first.shape[0], batch)
    return torch.stack(stream([Between(first, second, t) for t in times]))


def a_plan(batch: int) -> RenderPlan:
    return RenderPlan(64, 64, 2, MemorySpec("toyworld", 8.0, 3, 3, 6), 0, batch, 0, (), ())


def test_node_interpolates_to_any_rate(nodes, rife):
    x = torch.linspace(0, 1, 64)
    images = torch.stack([torch.sin(6 * (x + shift / 64)) / 2 + 0.5 for shift in range(4)])
    images = images[:, None, :, None].expand(4, 64, 64, 3)
    smooth, fps = nodes.InterpolateFrames.execute(images, rife, 8.0, 20.0).args
    assert smooth.shape == (10, 64, 64, 3) and fps == 20.0
    assert torch.equal(smooth[0], images[0]) and torch.equal(smooth[5], images[2])
    blend = (images[0] + images[1]) / 2
    assert (between(rife, images[0], images[1], 0.5)[0] - blend).abs().mean() < 0.05


def test_more_images_than_ram_are_refused_at_once(nodes, rife):
    with pytest.raises(RuntimeError, match=r"5000000 images of together .* GB, which is free now.*Assemble Short"):
        nodes.InterpolateFrames.execute(torch.zeros(5, 64, 64, 3), rife, 0.001, 1000.0)


def test_no_images_are_refused(nodes, rife):
    with pytest.raises(ValueError, match="needs images, but got 'none'"):
        nodes.InterpolateFrames.execute(torch.zeros(0, 64, 64, 3), rife, 8.0, 24.0)


def test_transparency_is_left_away_and_other_channels_are_refused(nodes, rife):
    images = torch.rand(2, 64, 64, 4)
    made = nodes.InterpolateFrames.execute(images, rife, 8.0, 16.0).args[0]
    assert torch.equal(made, nodes.InterpolateFrames.execute(images[..., :3], rife, 8.0, 16.0).args[0])
    for wrong in (torch.rand(2, 64, 64, 1), torch.rand(2, 64, 64)):
        with pytest.raises(ValueError, match=r"needs images with colours.*\[frames, height, width, 3\]"):
            nodes.InterpolateFrames.execute(wrong, rife, 8.0, 16.0)


def test_a_name_over_a_link_is_checked_when_it_is_used(nodes):
    assert nodes.LoadRife.validate_inputs(None) is True


def test_model_can_be_unloaded_and_comes_back(rife):
    import comfy.model_management as mm

    frame = torch.rand(64, 64, 3)
    before = between(rife, frame, frame, 0.5)
    assert any(loaded.model is rife.patcher for loaded in mm.current_loaded_models)
    mm.unload_all_models()
    assert not any(loaded.model is rife.patcher for loaded in mm.current_loaded_models)
    assert torch.equal(between(rife, frame, frame, 0.5), before)


def test_fewer_at_once_from_there_on_when_memory_runs_out(rife, monkeypatch):
    """Half as many, and no second try with too many: the film is finished, frame for frame."""
    import comfy.model_management as mm
    from pack.nodes.interpolation.between import Between, FrameMaker

    real, sizes = FrameMaker.make, []

    def tight(self, tasks):
        sizes.append(len(tasks))
        if len(tasks) > 2:
            raise mm.OOM_EXCEPTION("full")
        return real(self, tasks)

    frame = torch.rand(64, 64, 3)
    times = (0.2, 0.4, 0.6, 0.8, 0.9)
    wanted = between(rife, frame, frame, *times)
    monkeypatch.setattr(FrameMaker, "make", tight)
    stream = rife.stream(64, 64, batch=5)
    for _ in range(2):
        assert (torch.stack(stream([Between(frame, frame, t) for t in times])) - wanted).abs().max() < 1e-3
    assert sizes == [5, 2, 2, 1, 2, 2, 1]


def test_out_of_memory_with_one_frame_is_no_secret(rife, monkeypatch):
    import comfy.model_management as mm
    from pack.nodes.interpolation.between import FrameMaker

    def full(self, tasks):
        raise mm.OOM_EXCEPTION("full")

    monkeypatch.setattr(FrameMaker, "make", full)
    with pytest.raises(mm.OOM_EXCEPTION):
        between(rife, torch.rand(64, 64, 3), torch.rand(64, 64, 3), 0.5)


@pytest.mark.parametrize(("plan", "sizes"), [(a_plan(3), [3, 3, 1]), (None, [7])])
def test_the_plan_says_how_many_frames_are_made_at_once(nodes, rife, monkeypatch, plan, sizes):
    from pack.nodes.interpolation.between import FrameMaker

    real, seen = FrameMaker.make, []
    monkeypatch.setattr(FrameMaker, "make", lambda self, tasks: seen.append(len(tasks)) or real(self, tasks))
    images = torch.rand(1, 64, 64, 3).expand(8, 64, 64, 3)
    assert nodes.InterpolateFrames.execute(images, rife, 8.0, 16.0, plan).args[0].shape[0] == 16
    assert seen == sizes


def test_flow_scale_reaches_the_network(nodes):
    from pack.nodes.interpolation.weights import BUNDLED

    for scale, coarser in (("auto", 1), ("full", 1), ("half", 2), ("quarter", 4)):
        rife = nodes.LoadRife.execute(BUNDLED, scale).args[0]
        assert rife.stream(1280, 720).maker.coarser == coarser
    assert nodes.LoadRife.execute(BUNDLED).args[0].stream(3840, 2160).maker.coarser == 2


def test_weights_of_other_packs_are_offered_once_each(nodes, tmp_path, monkeypatch):
    """models/frame_interpolation as in newer ComfyUI, models/rife or RIFE, and Frame-Interpolation's own folder."""
    import folder_paths
    from pack.nodes.interpolation.bridge import weight_folders

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    packs = ([str(tmp_path / "custom_nodes")], set())
    elsewhere = ([str(tmp_path / "other_drive"), str(tmp_path / "models" / "rife")], set())
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"custom_nodes": packs, "rife": elsewhere})
    theirs = tmp_path / "custom_nodes" / "ComfyUI-Frame-Interpolation" / "ckpts" / "rife"
    theirs.mkdir(parents=True)
    assert weight_folders() == [str(tmp_path / "models" / "frame_interpolation"), str(tmp_path / "other_drive"),
                                str(tmp_path / "models" / "rife"), str(tmp_path / "models" / "RIFE"), str(theirs)]
    (theirs / "rife49.pth").write_bytes(b"x")
    from pack.nodes.interpolation.weights import BUNDLED, list_weights

    assert list_weights(weight_folders()) == [BUNDLED, "rife49.pth"]


def test_unknown_model_is_refused_before_it_is_loaded(nodes):
    from pack.nodes.interpolation.weights import BUNDLED

    assert nodes.LoadRife.validate_inputs(BUNDLED) is True
    assert "needs a weights file" in nodes.LoadRife.validate_inputs("other.safetensors")


def test_schemas_are_complete(nodes):
    for node in nodes.NODES:
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("VideoMemory") and schema.category == "VideoMemory/interpolation"
        assert all(socket.tooltip for socket in (*schema.inputs, *schema.outputs))
