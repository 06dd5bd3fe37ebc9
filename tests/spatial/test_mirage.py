"""Mirage's branch on a tiny random TI2V of ComfyUI's own class, and Microsoft's forward beside it.

The comparison runs where MIRAGE_PATH names a checkout of github.com/microsoft/LatentSpatialMemory.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

from pack.tests.sampling.latent_models import TEXT, filled, model  # noqa: E402

ORACLE = os.environ.get("MIRAGE_PATH")
H, W, T = 4, 6, 3


def draw(channels, count, seed):
    return torch.randn(1, channels, count, H, W, generator=torch.Generator().manual_seed(seed))


def branch_file(folder, prefix="", channels=96, drop=None, blocks=1):
    import comfy.ops
    from pack.nodes.spatial.bridge_branch import Branch
    from safetensors.torch import save_file

    made = filled(Branch(model("ti2v").model.diffusion_model, blocks, channels, comfy.ops.disable_weight_init,
                         torch.float32), seed=7)
    weights = {prefix + name: value.contiguous() for name, value in made.state_dict().items() if name != drop}
    save_file(weights, folder / "vace.safetensors")
    return str(folder / "vace.safetensors")


def surroundings(references=2, preceding=1, channels=96, **more):
    from pack.nodes.spatial.bridge_mirage import Surroundings

    return Surroundings(draw(channels, T + preceding, 1), draw(48, 4, 2)[:, :, :references],
                        draw(48, 4, 3)[:, :, :preceding], **more)


def forward(folder, around, context=None, times=(0.0, 700.0, 700.0), **file):
    from pack.nodes.spatial.bridge_branch import load_branch
    from pack.nodes.spatial.bridge_mirage import with_branch

    patched = with_branch(model("ti2v"), load_branch(branch_file(folder, **file), model("ti2v"))[0], around)
    text = torch.randn(1, 8, TEXT, generator=torch.Generator().manual_seed(5)) if context is None else context
    options = patched.model_options["transformer_options"]
    import comfy.patcher_extension as extension

    options = {**options, "wrappers": extension.copy_nested_dicts(patched.wrappers)}
    with torch.inference_mode():
        return patched.model.diffusion_model(draw(48, T, 4), torch.tensor([times]), text, transformer_options=options)


@pytest.fixture(scope="module")
def oracle():
    """(WanModel, VaceWanModel, model_fn_wan_video) of the checkout."""
    if not ORACLE:
        pytest.skip("MIRAGE_PATH names no checkout of microsoft/LatentSpatialMemory")
    pytest.importorskip("einops")
    folder = Path(ORACLE) / "src" / "mirage" / "spatia"
    for name, place in (("mirage", folder.parent), ("mirage.spatia", folder)):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(place)]
    dit, vace = (importlib.import_module(f"mirage.spatia.{name}") for name in ("wan_video_dit", "wan_video_vace"))
    tree = ast.parse((folder / "wan_video_new.py").read_text(encoding="utf-8"))
    body = [node for node in tree.body if getattr(node, "name", "") == "model_fn_wan_video"]
    import typing

    space = {**vars(dit), "VaceWanModel": vace.VaceWanModel, "Optional": typing.Optional, "torch": torch}
    exec(compile(ast.Module(body, []), "wan_video_new.py", "exec"), space)
    return dit.WanModel, vace.VaceWanModel, space["model_fn_wan_video"]


@pytest.mark.parametrize(("references", "preceding", "blocks", "channels"), [
    (0, 0, 1, 96), (2, 1, 1, 96), (4, 2, 2, 96), (0, 2, 1, 96), (2, 1, 2, 97), (2, 1, 1, 49)])
def test_a_forward_is_microsofts(oracle, tmp_path, references, preceding, blocks, channels):
    from safetensors.torch import load_file

    wan_class, vace_class, run = oracle
    around = surroundings(references, preceding, channels)
    inner = model("ti2v").model.diffusion_model
    theirs = wan_class(dim=inner.dim, in_dim=48, ffn_dim=inner.ffn_dim, out_dim=48, text_dim=TEXT,
                       freq_dim=inner.freq_dim, eps=1e-6, patch_size=(1, 2, 2), num_heads=inner.num_heads,
                       num_layers=len(inner.blocks), has_image_input=False, seperated_timestep=True,
                       fuse_vae_embedding_in_latents=True)
    theirs.load_state_dict(inner.state_dict())
    file = branch_file(tmp_path, blocks=blocks, channels=channels)
    layers = tuple(range(0, len(inner.blocks), len(inner.blocks) // blocks))[:blocks]
    vace = vace_class(vace_layers=layers, vace_in_dim=channels, dim=inner.dim, num_heads=inner.num_heads,
                      ffn_dim=inner.ffn_dim)
    weights = load_file(file)
    names = vace.state_dict().keys()
    assert names == weights.keys(), "the key layout is not that of the training code"
    vace.load_state_dict(weights)
    text = torch.randn(1, 8, TEXT, generator=torch.Generator().manual_seed(5))
    times = torch.tensor([0.0] * references + [0.0, 700.0, 700.0] + [0.0] * preceding)
    with torch.inference_mode():
        wanted = run(dit=theirs, vace=vace, latents=torch.cat((around.references, draw(48, T, 4), around.preceding), 2),
                     timestep=times, context=text, vace_context=[around.place[0]], num_ref_frames=references,
                     fuse_vae_embedding_in_latents=True)[:, :, references : references + T]
    found = forward(tmp_path, around, text, blocks=blocks, channels=channels)
    assert wanted.std() > 0.01
    assert (found - wanted).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))


def test_every_part_of_the_surroundings_counts(tmp_path):
    from dataclasses import replace

    around = surroundings()
    first = forward(tmp_path, around)
    assert first.shape == (1, 48, T, H, W)
    for name in ("place", "references", "preceding"):
        other = forward(tmp_path, replace(around, **{name: getattr(around, name).flip(2) + 1}))
        assert (first - other).abs().max() > 1e-4, name
    assert (first - forward(tmp_path, replace(around, strength=0.0))).abs().max() > 1e-4


@pytest.mark.parametrize("prefix", ["", "vace.", "module.pipe.vace.", "model."])
def test_prefixes_of_the_training_code_are_taken_off(tmp_path, prefix):
    around = surroundings()
    assert torch.equal(forward(tmp_path, around), forward(tmp_path, around, prefix=prefix))


@pytest.mark.parametrize("channels", [49, 97])
def test_branches_with_a_channel_for_holes_load_too(tmp_path, channels):
    assert torch.isfinite(forward(tmp_path, surroundings(channels=channels), channels=channels)).all()


def test_files_that_are_no_branch_are_refused(tmp_path):
    from pack.nodes.spatial.bridge_branch import load_branch

    with pytest.raises(ValueError, match="96, 97"):
        load_branch(branch_file(tmp_path, channels=32), model("ti2v"))
    with pytest.raises(ValueError, match=r"missing.*before_proj"):
        load_branch(branch_file(tmp_path, drop="vace_blocks.0.before_proj.weight"), model("ti2v"))
    with pytest.raises(ValueError, match="0 blocks"):
        load_branch(branch_file(tmp_path, prefix="other."), model("ti2v"))
