"""The two RIFE nodes in process, under ComfyUI's real model management."""

from __future__ import annotations

import pytest
import torch

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


def test_node_interpolates_to_any_rate(nodes, rife):
    x = torch.linspace(0, 1, 64)
    images = torch.stack([torch.sin(6 * (x + shift / 64)) / 2 + 0.5 for shift in range(4)])
    images = images[:, None, :, None].expand(4, 64, 64, 3)
    smooth, fps = nodes.InterpolateFrames.execute(images, rife, 8.0, 20.0).args
    assert smooth.shape == (10, 64, 64, 3) and fps == 20.0
    assert torch.equal(smooth[0], images[0]) and torch.equal(smooth[5], images[2])
    blend = (images[0] + images[1]) / 2
    assert (rife(images[0], images[1], [0.5])[0] - blend).abs().mean() < 0.05


def test_more_images_than_ram_are_refused_at_once(nodes, rife):
    with pytest.raises(RuntimeError, match=r"5000000 images of together .* GB, which is free now.*Assemble Short"):
        nodes.InterpolateFrames.execute(torch.zeros(5, 64, 64, 3), rife, 0.001, 1000.0)


def test_no_images_are_refused(nodes, rife):
    with pytest.raises(ValueError, match="needs images, but got 'none'"):
        nodes.InterpolateFrames.execute(torch.zeros(0, 64, 64, 3), rife, 8.0, 24.0)


def test_model_can_be_unloaded_and_comes_back(rife):
    import comfy.model_management as mm

    frame = torch.rand(64, 64, 3)
    before = rife(frame, frame, [0.5])
    assert any(loaded.model is rife.patcher for loaded in mm.current_loaded_models)
    mm.unload_all_models()
    assert not any(loaded.model is rife.patcher for loaded in mm.current_loaded_models)
    assert torch.equal(rife(frame, frame, [0.5]), before)


def test_fewer_at_once_when_memory_runs_out(rife, monkeypatch):
    import comfy.model_management as mm
    from pack.nodes.interpolation import bridge

    real, sizes = bridge.frames_between, []

    def tight(model, first, second, times):
        sizes.append(len(times))
        if len(times) > 2:
            raise mm.OOM_EXCEPTION("full")
        return real(model, first, second, times)

    frame = torch.rand(64, 64, 3)
    wanted = rife(frame, frame, [0.2, 0.4, 0.6, 0.8, 0.9])
    monkeypatch.setattr(bridge, "frames_between", tight)
    assert (rife(frame, frame, [0.2, 0.4, 0.6, 0.8, 0.9]) - wanted).abs().max() < 1e-3
    assert sizes == [5, 2, 2, 1]


def test_unknown_model_is_refused_before_it_is_loaded(nodes):
    from pack.nodes.interpolation.weights import BUNDLED

    assert nodes.LoadRife.validate_inputs(BUNDLED) is True
    assert "needs a weights file" in nodes.LoadRife.validate_inputs("other.safetensors")


def test_schemas_are_complete(nodes):
    for node in nodes.NODES:
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("VideoMemory") and schema.category == "VideoMemory/interpolation"
        assert all(socket.tooltip for socket in (*schema.inputs, *schema.outputs))
