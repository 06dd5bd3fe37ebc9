"""A memory through the real server: made by a recipe, filled by two clips, shown, saved, loaded, gone on with."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

FOREST = "a red square hero with a green hat walks right in the forest"
FILM = (FOREST, "the hero jumps by the sea", FOREST)
TOY_NUMBERS = {"label": "Mine", "fps": 8.0, "chunk": 3, "sink": 3, "window": 6, "sigmas": "", "steps": 8, "shift": 3.0,
               "solver": "renoise", "whole_timesteps": False, "pin": 0, "shot_gap": 0}
REMEMBER = {"preset": "toyworld", "window_seconds": 0.0, "sink_seconds": -1.0, "precision": "model",
            "placement": "vram"}


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loaders() -> dict:
    return {
        "model": node("UNETLoader", unet_name="toyworld_dit_fp16.safetensors", weight_dtype="default"),
        "te": node("VideoMemoryLoadTextEncoder", text_encoder_name="toyworld_te_fp16.safetensors", weights="original"),
        "vae": node("VAELoader", vae_name="toyworld_vae_fp16.safetensors"),
        **{f"text{i}": node("CLIPTextEncode", clip=["te", 0], text=text) for i, text in enumerate(FILM)},
    }


def clip(i: int, memory: str, seconds: float = 3.0) -> dict:
    return node("VideoMemoryClipSampler", model=["model", 0], memory=[memory, 0 if memory[:4] != "clip" else 1],
                positive=[f"text{i}", 0], seed=7, width=128, height=80, clip_seconds=seconds)


def run(server, prompt: dict) -> dict:
    return server.client.run(prompt, alive=server.check_alive)["outputs"]


def shown(kind: str) -> dict:
    return node("PreviewAny", source=[kind, 1])


def test_a_memory_with_recipe_pin_and_retrieval_is_reported_with_a_picture(server):
    image = pytest.importorskip("PIL.Image")
    outputs = run(server, {
        **loaders(),
        "recipe": node("VideoMemoryCustomRecipe", **TOY_NUMBERS),
        "memory": node("VideoMemoryPersistentMemory", **{**REMEMBER, "preset": "custom", "recipe": ["recipe", 0]},
                       prompt_change="pin", pinned_seconds=1.5, retrieved_seconds=1.5),
        "promise": shown("memory"),
        "clip0": clip(0, "memory"), "clip1": clip(1, "clip0", 4.5), "clip2": clip(2, "clip1"),
        "said": node("PreviewAny", source=["clip2", 2]),
        "report": node("VideoMemoryMemoryReport", memory=["clip2", 1], vae=["vae", 0], model=["model", 0]),
        "saved": node("SaveImage", images=["report", 0], filename_prefix="memory_report"),
    })
    promise, report = outputs["promise"]["text"][0], outputs["report"]["text"][0]
    assert promise.startswith("Mine: 8 frames per second") and "(pinned): 3 latents" in promise
    assert "Its prompt brought back 1.5 to 3.0 s of the film." in outputs["said"]["text"][0]
    assert "3 clips, 10.50 s of film (21 latents)." in report and "The connected model made this memory." in report
    assert all(f"{role} 1.50 s in 1 chunk" in report for role in ("sink", "pinned", "retrieved", "window"))
    assert outputs["report"]["images"][0]["type"] == "temp"
    with image.open(next(server.output.glob("memory_report*.png"))) as sheet:
        assert sheet.width == 1200 and sheet.height > 400 and len(sheet.convert("RGB").getcolors(2**20)) > 500


def latents_of(server, name: str):
    numpy = pytest.importorskip("safetensors.numpy")
    return numpy.load_file(next(server.output.glob(f"memory_{name}*.latent")))["latent_tensor"]


def go_on(server, name: str, memory: dict) -> str:
    """Samples the second clip after the memory node `memory`; its latents go to a file, its report is returned."""
    outputs = run(server, {**loaders(), **memory, "clip1": clip(1, next(iter(memory))), "said": node(
        "PreviewAny", source=["clip1", 2]), "file": node("SaveLatent", samples=["clip1", 0],
                                                       filename_prefix=f"memory_{name}")})
    return outputs["said"]["text"][0]


def test_a_film_goes_on_from_a_file_with_and_without_keys_and_values(server):
    numpy = pytest.importorskip("numpy")
    first = {"memory": node("VideoMemoryPersistentMemory", **REMEMBER), "clip0": clip(0, "memory")}
    outputs = run(server, {
        **loaders(), **first,
        "whole": node("VideoMemorySaveMemory", memory=["clip0", 1], filename_prefix="t_whole"),
        "bare": node("VideoMemorySaveMemory", memory=["clip0", 1], filename_prefix="t_bare", with_kv=False),
        "straight": clip(1, "clip0"),
        "file": node("SaveLatent", samples=["straight", 0], filename_prefix="memory_straight"),
    })
    assert "Keys and values take" in outputs["whole"]["text"][0] and "left out" in outputs["bare"]["text"][0]
    folder = server.output / "videomemory" / "memories"
    sizes = {name: (folder / f"t_{name}_00001_.safetensors").stat().st_size for name in ("whole", "bare")}
    assert sizes["whole"] > 5 * sizes["bare"]
    said = {name: go_on(server, name, {"loaded": node("VideoMemoryLoadMemory", file=f"t_{name}_00001_.safetensors")})
            for name in ("whole", "bare")}
    straight = latents_of(server, "straight")
    assert numpy.array_equal(latents_of(server, "whole"), straight)
    assert numpy.abs(latents_of(server, "bare") - straight).max() < 1e-3 and straight.std() > 0.1
    assert "rebuilt" not in said["whole"] and "because the memory came without them" in said["bare"]


def test_a_contradiction_is_refused_before_anything_runs(server):
    from pack.scripts.harness.errors import CannotContinue

    executed = []
    with pytest.raises(CannotContinue, match=r"pinned \(seconds\) 2 with 'keep'"):
        server.client.run({
            **loaders(), "memory": node("VideoMemoryPersistentMemory", **REMEMBER, pinned_seconds=2.0),
            "clip0": clip(0, "memory"), "report": node("VideoMemoryMemoryReport", memory=["clip0", 1]),
        }, lambda event, data: executed.append(event), server.check_alive)
    assert "executing" not in executed
