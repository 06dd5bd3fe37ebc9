"""Mirage's branch packed as the main model's layers are, and kept over the chunks of a film."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

from pack.tests.sampling.latent_models import model, save_wan  # noqa: E402
from pack.tests.spatial.test_mirage import T, branch_file, draw, surroundings  # noqa: E402
from pack.tests.spatial.test_mirage_clip import branch, chunk, lifted, two_chunks, update  # noqa: E402, F401

FORMS = ["nf4", "int8", "nf4_int8"]


def packed_model(folder, weights="nf4"):
    from pack.nodes.loading.bridge import load_diffusion_model

    save_wan("ti2v", folder / "wan.safetensors")
    return load_diffusion_model(str(folder / "wan.safetensors"), weights, min_bytes=0)[0]


def load(path, main, weights):
    from pack.nodes.spatial.bridge_branch import load_branch

    return load_branch(path, main, weights, min_bytes=0)


def unpacked_file(packed, path):
    """What the weights of a module of packed layers stand for, as a file in float32."""
    from safetensors.torch import save_file

    weights = {}
    for name, part in packed.named_modules():
        form = getattr(part, "codec", None)
        for key, value in part.named_parameters(prefix=name, recurse=False):
            if form is None or key.endswith(".bias"):
                weights[key] = value.detach().float().contiguous()
        if form is not None:
            held = dict(part.named_parameters(recurse=False))
            whole = part.form.with_tensors({**held, "packed": held["weight"]})
            weights[f"{name}.weight"] = form.dequantize(whole, torch.float32)
    save_file(weights, path)
    return str(path)


@torch.inference_mode()
def forward(main, packed, around):
    import comfy.patcher_extension as extension
    from pack.nodes.spatial.bridge_mirage import with_branch

    patched = with_branch(main, packed, around)
    options = {**patched.model_options["transformer_options"],
               "wrappers": extension.copy_nested_dicts(patched.wrappers)}
    text = torch.randn(1, 8, patched.model.diffusion_model.text_dim, generator=torch.Generator().manual_seed(5))
    return patched.model.diffusion_model(draw(48, T, 4), torch.tensor([[0.0, 700.0, 700.0]]), text,
                                         transformer_options=options)


@pytest.mark.parametrize("weights", FORMS)
def test_a_packed_branch_computes_what_its_unpacked_weights_do(tmp_path, weights):
    main, around, file = packed_model(tmp_path, weights), surroundings(), branch_file(tmp_path, blocks=2)
    packed, report = load(file, main, weights)
    plain, _ = load(file, main, "original")
    same, _ = load(unpacked_file(packed.model, tmp_path / "unpacked.safetensors"), main, "original")
    found, wanted, original = (forward(main, one, around) for one in (packed, same, plain))
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (found - original).abs().max() > 1e-4
    forms = {type(part.form).__name__ for part in packed.model.modules() if getattr(part, "codec", None)}
    assert len(forms) == (2 if weights == "nf4_int8" else 1)
    assert packed.model_size() < (0.4 if weights == "nf4" else 0.5) * plain.model_size()
    assert "Mirage branch" in report


def test_core_moves_the_packed_branch_as_a_model_of_its_own(tmp_path):
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher
    from pack.nodes.spatial.bridge_mirage import with_branch

    main, around = packed_model(tmp_path), surroundings()
    packed, _ = load(branch_file(tmp_path, blocks=2), main, "nf4")
    patched = with_branch(main, packed, around)
    beside = patched.get_nested_additional_models()
    assert len(beside) == 1 and beside[0].is_clone(packed) and isinstance(packed, ModelPatcher)
    wanted, cpu = forward(main, packed, around), torch.device("cpu")
    for budget in (0, packed.model_size() // 2, 1):
        packed.patch_model(cpu, lowvram_model_memory=budget)
        assert torch.equal(forward(main, packed, around), wanted)
        packed.partially_unload(cpu, packed.model_size() // 4)
        assert torch.equal(forward(main, packed, around), wanted)
        packed.detach()
    comfy.model_management.load_models_gpu([patched, *beside])
    assert {type(one.model) for one in comfy.model_management.loaded_models()} >= {type(packed.model)}


def test_comfyui_makes_room_for_what_stands_beside_the_target(tmp_path):
    """Its own estimate is of the target alone."""
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.spatial.bridge_mirage import KEY, with_branch
    from pack.nodes.spatial.costs import mirage_bytes

    main, asked = packed_model(tmp_path), []
    packed, _ = load(branch_file(tmp_path), main, "original")
    patched = with_branch(main, packed, surroundings(references=2, preceding=1))
    make_room = patched.get_wrappers(WrappersMP.PREPARE_SAMPLING, KEY)[0]
    make_room(lambda model, shape, conds: asked.append(shape), patched, (1, 48, T, 44, 80), {})
    batch, channels, latents, *size = asked[0]
    assert (batch, channels, size) == (1, 48, [44, 80])
    beside = main.memory_required(asked[0]) - main.memory_required([1, 48, T + 3, 44, 80])
    assert latents > T + 3 and beside >= mirage_bytes(T, 880, 128, 4)


def test_a_packed_branch_needs_a_model_whose_layers_are_packed(tmp_path):
    with pytest.raises(ValueError, match=r"weights nf4 for this MODEL.*Load Diffusion Model \(NF4\)"):
        load(branch_file(tmp_path), model("ti2v"), "nf4")
    with pytest.raises(ValueError, match="another shape.*after_proj"):
        load(widened(branch_file(tmp_path)), model("ti2v"), "original")


def widened(path):
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights["vace_blocks.0.after_proj.weight"] = torch.zeros(129, 128)
    save_file(weights, path)
    return path


def spoil(path):
    """Other bytes under the same name, of the same size and time: who reads them fails, who looks at the name cannot
    tell."""
    facts, other = os.stat(path), Path(f"{path}.new")
    other.write_bytes(b"\xff" * facts.st_size)
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(other, path)


@torch.inference_mode()
def test_the_second_chunk_reads_no_file(branch, tmp_path):  # noqa: F811
    wanted, _, _ = two_chunks(branch)
    main = model("ti2v").clone()
    memory = lifted()
    from pack.tests.spatial.test_mirage_clip import image

    film, clip, frame, _ = chunk(branch, memory, model=main, start_image=image())
    memory = update(memory, clip, frame)
    spoil(tmp_path / branch)
    film, _, _, _ = chunk(branch, memory, model=main.clone(), film=film)  # a clone: another LoRA, the same weights
    assert torch.equal(film["samples"], wanted)
    os.utime(tmp_path / branch)
    with pytest.raises(ValueError, match="safetensors"):
        chunk(branch, memory, model=main, film=film)


def test_the_kept_branch_goes_with_its_model_and_with_another_choice(tmp_path):
    from pack.nodes.spatial.bridge_branch import branch_of

    main, file = packed_model(tmp_path), branch_file(tmp_path)
    first, _ = branch_of(file, main, "nf4", 0)
    assert branch_of(file, main.clone(), "nf4", 0)[0] is first
    second, _ = branch_of(file, main, "int8", 0)
    assert second is not first and second.model_size() > first.model_size()
    alive = weakref.ref(second.model)
    del main, second
    gc.collect()
    assert alive() is None


def test_another_choice_lets_go_of_the_kept_branch_before_it_reads(tmp_path):
    from pack.nodes.common.progress import Progress
    from pack.nodes.spatial.bridge_branch import branch_of

    main, file, seen = packed_model(tmp_path), branch_file(tmp_path, blocks=2), []
    old = weakref.ref(branch_of(file, main, "nf4", 0)[0].model)

    def look(_done, _total):
        gc.collect()
        seen.append(old())

    branch_of(file, main, "int8", 0, Progress(update=look))
    assert seen and not any(seen), "two branches lay in RAM"
