"""The memory room's nodes inside ComfyUI: what they refuse before anything runs, what they write, read and show."""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def toy(toyworld):
    """(MODEL, VAE) of the demo checkpoint."""
    sd, utils = pytest.importorskip("comfy.sd"), pytest.importorskip("comfy.utils")
    vae = sd.VAE(sd=utils.load_torch_file(str(toyworld / "toyworld_vae_fp16.safetensors")))
    return sd.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors")), vae


@pytest.fixture
def output(tmp_path, monkeypatch):
    folder_paths = pytest.importorskip("folder_paths")
    for name in ("output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path / "output"


def remember(**options):
    from pack.nodes.memory.nodes import PersistentMemory

    given = {"preset": "toyworld", "window_seconds": 0.0, "sink_seconds": -1.0, "precision": "model",
             "placement": "vram"}
    return PersistentMemory.EXECUTE_NORMALIZED(**{**given, **options}).args


def clip(model, memory, seed=3):
    from pack.nodes.sampling.nodes import ClipSampler

    tokens = torch.zeros(1, 512, 4096)
    tokens[:, :9] = torch.randn(1, 9, 4096, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(model=model, memory=memory, positive=[[tokens, {}]], seed=seed, width=128,
                                              height=80, clip_seconds=3.0).args


def save(memory, prefix, **options):
    from pack.nodes.memory.nodes_files import SaveMemory

    return SaveMemory.EXECUTE_NORMALIZED(memory=memory, filename_prefix=prefix, **options).args


def load(file):
    from pack.nodes.memory.nodes_files import LoadMemory

    return LoadMemory.EXECUTE_NORMALIZED(file=file).args


def test_old_workflows_make_the_memory_that_they_made():
    from pack.nodes.sampling.presets import memory_spec

    memory, report = remember()
    assert memory.spec == memory_spec("toyworld") and report.startswith("Toy world (bundled demo): 8 frames")


@pytest.mark.parametrize(("given", "said"), [
    ({}, True), ({"prompt_change": "pin", "pinned_seconds": 1.5}, True), ({"pinned_seconds": None}, True),
    ({"preset": "custom", "recipe": None}, True), ({"preset": None, "recipe": None}, True),
    ({"preset": "custom"}, "no recipe"), ({"recipe": None}, "another checkpoint is chosen"),
    ({"pinned_seconds": 1.5}, "1.5 with 'keep' on a new prompt"), ({"prompt_change": "pin"}, "pins nothing"),
    ({"preset": "svd", "overlap_frames": 9}, "got 9 frames"), ({"preset": "svd", "reanchor_clips": 1}, "re-anchored"),
    ({"precision": "int3"}, "allowed: model, int8, 4bit"),
])
def test_contradictions_are_refused_before_anything_is_loaded(given, said):
    """None is what ComfyUI passes for a link; a socket without one is not passed at all."""
    from pack.nodes.memory.nodes import PersistentMemory

    given = {"preset": "toyworld", "precision": "model", "placement": "vram", **given}
    answer = PersistentMemory.validate_inputs(**given)
    assert answer is True if said is True else said in answer


def recipe(**options):
    from pack.nodes.memory.nodes import CustomRecipe

    given = {"label": "Mine", "fps": 8.0, "chunk": 3, "sink": 3, "window": 6, "sigmas": "", "steps": 8, "shift": 3.0,
             "solver": "renoise", "whole_timesteps": False, "pin": 0, "shot_gap": 0}
    return CustomRecipe.EXECUTE_NORMALIZED(**{**given, **options}).args[0]


def test_a_custom_recipe_with_the_toy_worlds_numbers_is_the_toy_world(toy):
    """Its own recipe is written out in presets.py; a user types the same numbers."""
    custom, _ = remember(preset="custom", recipe=recipe())
    (ours, after, report), (theirs, _, _) = clip(toy[0], custom), clip(toy[0], remember()[0])
    assert torch.equal(ours["samples"], theirs["samples"])
    assert after.spec.custom.label == "Mine" and "because Mine was trained" in report


@pytest.mark.parametrize(("given", "said"), [
    ({}, True), ({"chunk": None}, True), ({"sink": 4}, "the sink cannot be used, but got 4; allowed: 0 or multiples"),
    ({"window": 7}, "the window cannot"), ({"pin": 1}, "the pin cannot"), ({"sigmas": "0.5, 0.8"}, "sigmas cannot"),
    ({"sigmas": "one"}, "sigmas cannot"),
])
def test_a_recipe_that_no_checkpoint_can_mean_is_refused(given, said):
    from pack.nodes.memory.nodes import CustomRecipe

    answer = CustomRecipe.validate_inputs(**{"chunk": 3, "sink": 3, "window": 6, "sigmas": "", "pin": 0, **given})
    assert answer is True if said is True else said in answer


def test_a_memory_is_saved_with_and_without_keys_and_values(toy, output):
    from pack.nodes.memory.files import file_bytes

    _, after, _ = clip(toy[0], remember()[0])
    path, report = save(after, "whole")
    assert str(path) in report and "Keys and values take" in report and "without them it would be" in report
    path, report = save(after, "bare", with_kv=False)
    assert "were left out" in report
    sizes = [file.stat().st_size for file in sorted((output / "videomemory" / "memories").glob("*.safetensors"))]
    assert sizes[0] - file_bytes(after, with_kv=False) < 100_000 and sizes[1] > 10 * sizes[0]
    (whole, said), (bare, other) = load("whole_00001_.safetensors"), load("bare_00001_.safetensors")
    assert "1 clip, 3.00 s of film (6 latents)." in said and "of all 2 chunks are in it" in said
    assert "16x10 latent pixels of 16 channels" in said and f"model {after.model_key[:8]}" in said
    assert "of 2 of 2 chunks are not in it" in other
    want = clip(toy[0], after)[0]["samples"]
    assert torch.equal(clip(toy[0], whole)[0]["samples"], want)
    assert torch.allclose(clip(toy[0], bare)[0]["samples"], want, atol=1e-3)


def test_a_disk_without_room_is_refused_before_anything_is_written(toy, output, monkeypatch):
    _, after, _ = clip(toy[0], remember()[0])
    usage = shutil.disk_usage(output)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=5_000_000))
    with pytest.raises(RuntimeError, match="no room on its disk, but got 5.0 MB free.*save it without K/V: 0.3 MB"):
        save(after, "hero")
    assert not list(output.rglob("*hero*"))
    save(after, "hero", with_kv=False)
    assert len(list(output.rglob("*hero*"))) == 1


def test_a_file_of_the_first_version_says_what_it_lacks(output, request):
    folder = output / "videomemory" / "memories"
    folder.mkdir(parents=True)
    shutil.copy(request.path.with_name("data") / "version1.safetensors", folder / "old.safetensors")
    assert "format version 1, older than 2" in load("old.safetensors")[1]


def report_of(memory, **options):
    from pack.nodes.memory.nodes_report import MemoryReport

    with torch.inference_mode():
        return MemoryReport.EXECUTE_NORMALIZED(memory=memory, **options)


def test_the_report_shows_decoded_chunks_and_knows_the_model(toy, output):
    from pack.nodes.memory.sheet import WIDTH

    model, vae = toy
    _, after, _ = clip(model, remember()[0])
    shown = report_of(after, vae=vae, model=model)
    image, text = shown.args
    assert image.shape[0] == 1 and image.shape[2:] == (WIDTH, 3) and "The connected model made this memory." in text
    assert len(shown.ui["images"]) == 1 and shown.ui["text"] == (text,)
    other = model.clone()
    other.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.5)
    preview, text = report_of(after, model=other).args
    assert "is not the one that made this memory" in text and "connect the VAE" in text
    assert preview.shape[2] == WIDTH and not (preview.shape == image.shape and torch.equal(preview, image))


def test_the_picture_of_a_chunk_is_what_the_vae_makes_of_its_latents(toy):
    from pack.nodes.memory.bridge import frame_maker

    model, vae = toy
    samples, after, _ = clip(model, remember()[0])
    with torch.inference_mode():
        frame = frame_maker(after, vae)(after.blocks[0].latents)
        whole = vae.decode(samples["samples"])[0]
        assert (frame - whole[4]).abs().max() < 1e-4  # the last frame of the chunk's middle latent
        rough = frame_maker(after, None)(after.blocks[0].latents)
    assert rough.shape == (10, 16, 3) and rough.std() > 0.01


def test_a_vae_of_another_model_is_refused(toy, monkeypatch):
    _, after, _ = clip(toy[0], remember()[0])
    monkeypatch.setattr(toy[1], "latent_channels", 48)
    with pytest.raises(ValueError, match="VAE does not belong to the film, but got a VAE of 48 channels; allowed: 16"):
        report_of(after, vae=toy[1])


def test_nothing_remembered_is_shown_too(output):
    image, text = report_of(remember()[0]).args
    assert image.shape[0] == 1 and "Remembered: nothing." in text
