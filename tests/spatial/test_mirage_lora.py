"""The LoRA that Mirage's training code saves, on a MODEL through Load LoRA (coverage), against a merge by hand.

Where MIRAGE_PATH names a checkout of github.com/microsoft/LatentSpatialMemory, its own functions name the keys.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

from pack.tests.sampling.latent_models import TEXT, save_wan  # noqa: E402
from pack.tests.spatial.test_mirage import ORACLE, branch_file, draw  # noqa: E402
from pack.tests.spatial.test_mirage_branch import unpacked_file  # noqa: E402

TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")  # of the training code, rank 32
RANK = 4


def matrices(main):
    """name of a layer -> (A, B), as peft begins and training leaves them."""
    generator, found = torch.Generator().manual_seed(3), {}
    for name, part in main.model.diffusion_model.named_modules():
        if name.startswith("blocks.") and name.endswith(TARGETS) and hasattr(part, "in_features"):
            found[name] = (torch.randn(RANK, part.in_features, generator=generator) * 0.1,
                           torch.randn(part.out_features, RANK, generator=generator) * 0.1)
    return found


def saved(parts, pattern="pipe.dit.{}.lora_{}.weight"):
    return {pattern.format(name, letter): value.contiguous() for name, pair in parts.items()
            for letter, value in zip("AB", pair, strict=True)}


def load(folder, weights):
    from pack.nodes.loading.bridge import load_diffusion_model

    if not (folder / "wan.safetensors").exists():
        save_wan("ti2v", folder / "wan.safetensors")
    return load_diffusion_model(str(folder / "wan.safetensors"), weights, min_bytes=0)[0]


@torch.inference_mode()
def forward(main):
    import comfy.model_management

    comfy.model_management.load_models_gpu([main])
    text = torch.randn(1, 8, TEXT, generator=torch.Generator().manual_seed(5))
    inner = main.model.diffusion_model
    dtype = next(inner.head.parameters()).dtype
    return inner(draw(48, 3, 4).to(dtype), torch.tensor([[0.0, 700.0, 700.0]]), text.to(dtype)).float()


def merged_by_hand(main, parts, strength):
    """Another MODEL whose weights are W + strength B A."""
    with torch.no_grad():
        for name, (a, b) in parts.items():
            layer = main.model.diffusion_model.get_submodule(name)
            layer.weight += strength * (b @ a).to(layer.weight)
    return main


def put_on(main, lora, strength=1.0):
    from pack.nodes.loading.bridge_lora import load_lora

    return load_lora(main, lora, "lora.safetensors", strength)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_lora_is_what_a_merge_by_hand_gives(tmp_path, strength):
    parts = matrices(load(tmp_path, "original"))
    assert len(parts) == 2 * (4 + 4 + 2)
    patched, line = put_on(load(tmp_path, "original"), saved(parts), strength)
    found, plain = forward(patched), forward(load(tmp_path, "original"))
    wanted = forward(merged_by_hand(load(tmp_path, "original"), parts, strength))
    assert line.startswith("lora.safetensors: 40 of 40 keys matched")
    assert (found - wanted).abs().max() < 1e-4 * float(wanted.abs().max())
    assert (found - plain).abs().max() > 0.01


def test_on_a_packed_model_it_lies_beside_the_weights(tmp_path):
    main = load(tmp_path, "nf4")
    parts = matrices(main)
    found = forward(put_on(main, saved(parts))[0])
    assert sum(getattr(part, "has_side_path", False) for part in main.model.modules()) == len(parts)
    (tmp_path / "plain").mkdir()
    unpacked_file(main.model.diffusion_model, tmp_path / "plain" / "wan.safetensors")
    wanted = forward(merged_by_hand(load(tmp_path / "plain", "original"), parts, 1.0))
    assert (found - wanted).abs().max() < 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("pattern", ["base_model.model.{}.lora_{}.default.weight", "pipe.dit.{}.lora_{}.default.weight",
                                     "diffusion_model.{}.lora_{}.weight"])
def test_other_names_of_the_same_training_are_the_same_lora(tmp_path, pattern):
    parts = matrices(load(tmp_path, "original"))
    one = forward(put_on(load(tmp_path, "original"), saved(parts))[0])
    assert torch.equal(one, forward(put_on(load(tmp_path, "original"), saved(parts, pattern))[0]))


def test_a_file_of_another_layout_is_refused(tmp_path):
    from safetensors.torch import load_file

    main = load(tmp_path, "original")
    parts = matrices(main)
    small = {name: (a[:, :64], b[:64]) for name, (a, b) in parts.items()}
    for lora in (load_file(branch_file(tmp_path)), saved(parts, "pipe.vace.{}.lora_{}.weight"), saved(small), {}):
        with pytest.raises(ValueError, match=r"'lora.safetensors' must be a LoRA for WanModel.*none fits"):
            put_on(main, lora)


def test_the_names_are_those_of_microsofts_training_code(tmp_path):
    """Their export of a peft model's state dict, and what their inference makes of the file."""
    if not ORACLE:
        pytest.skip("MIRAGE_PATH names no checkout of microsoft/LatentSpatialMemory")
    parts = matrices(load(tmp_path, "original"))
    train, infer = Path(ORACLE, "scripts", "train.py"), Path(ORACLE, "src/mirage/inference/mirage_pipeline.py")
    space = {"torch": torch, "Any": object, "Tensor": torch.Tensor}
    for file, names in ((train, ("strip_prefixes", "to_pipeline_lora_key", "export_tensor", "build_export_state")),
                        (infer, ("_normalize_lora_state_dict", "_normalize_lora_checkpoint_key"))):
        body = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if getattr(node, "name", "") in names]
        exec(compile(ast.Module(body, []), str(file), "exec"), space)
    in_training = saved(parts, "module.dit.base_model.model.{}.lora_{}.default.weight")
    exported = space["build_export_state"](in_training, "lora")
    assert exported.keys() == saved(parts).keys()
    theirs = space["_normalize_lora_state_dict"](exported)
    assert theirs.keys() == {f"{name}.lora_{letter}.weight" for name in parts for letter in "AB"}
