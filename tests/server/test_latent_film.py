"""A film of an ordinary checkpoint through the real server: three clips, saved and assembled, every frame counted."""

from __future__ import annotations

import pytest

from ..sampling.latent_models import save_wan

pytestmark = [pytest.mark.comfy, pytest.mark.server, pytest.mark.slow]

SIZE = {"width": 128, "height": 80}
CLIPS = 3


@pytest.fixture(scope="module")
def pair_server(server, toyworld, tmp_path_factory):
    """A server that offers a tiny Wan 2.2 I2V pair of random weights beside the demo's VAE and text encoder."""
    from pack.scripts.harness.server import ComfyUIServer

    models, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("latent_film")
    for seed, name in ((1, "high"), (2, "low")):
        save_wan("i2v22", models / f"{name}.safetensors", seed)
    with ComfyUIServer(server.environment, folder / "output", folder / "comfyui.log", (toyworld, models)) as running:
        yield running


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loaders(weights: str) -> dict:
    def model(name: str) -> dict:
        return node("VideoMemoryLoadDiffusionModel", model_name=f"{name}.safetensors", weights=weights)

    return {
        "high": model("high"), "low": model("low"), "vae": node("VAELoader", vae_name="toyworld_vae_fp16.safetensors"),
        "te": node("VideoMemoryLoadTextEncoder", text_encoder_name="toyworld_te_fp16.safetensors", weights="original"),
        "text": node("CLIPTextEncode", clip=["te", 0], text="the hero jumps by the sea"),
        "no": node("CLIPTextEncode", clip=["te", 0], text="snow"),
        "picture": node("EmptyImage", width=100, height=80, batch_size=1, color=0x4080C0),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["high", 0], scheduler="simple", steps=6, denoise=1.0),
        "memory": node("VideoMemoryPersistentMemory", preset="wan22_i2v_14b", window_seconds=0.0, sink_seconds=-1.0,
                       precision="model", placement="vram"),
    }


def sampled(memory: list, **first) -> dict:
    """Twelve frames: three latents at 16 frames per second."""
    return node("VideoMemoryClipSampler", model=["high", 0], model_low_noise=["low", 0], memory=memory, seed=5,
                positive=["text", 0], negative=["no", 0], vae=["vae", 0], sampler=["sampler", 0],
                sigmas=["sigmas", 0], clip_seconds=0.75, **SIZE, **first)


def film(name: str, weights: str = "original") -> dict:
    prompt, memory, clips = loaders(weights), ["memory", 0], {}
    for i in range(CLIPS):
        prompt[f"clip{i}"] = sampled(memory, **({} if i else {"start_image": ["picture", 0]}))
        prompt[f"saved{i}"] = node("VideoMemorySaveClip", samples=[f"clip{i}", 0], memory=[f"clip{i}", 1],
                                   vae=["vae", 0], run_name=name, **clips)
        prompt[f"said{i}"] = node("PreviewAny", source=[f"clip{i}", 2])
        memory, clips = [f"saved{i}", 1], {"clips": [f"saved{i}", 0]}
    prompt["film"] = node("VideoMemoryAssembleShort", clips=[f"saved{CLIPS - 1}", 0], target_fps=0.0, enlarge=1, crf=18,
                          filename_prefix=f"video/{name}")
    return prompt


def latents(server, name: str, index: int):
    numpy = pytest.importorskip("safetensors.numpy")
    import json

    folder = server.output / "videomemory" / name
    take = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["clips"][index]
    return numpy.load_file(folder / take["files"]["latents"]["name"])


def test_three_clips_of_a_pair_make_a_film_without_a_lost_frame(pair_server):
    av, numpy = pytest.importorskip("av"), pytest.importorskip("numpy")
    outputs = pair_server.client.run(film("latent"), alive=pair_server.check_alive)["outputs"]
    said = [outputs[f"said{i}"]["text"][0] for i in range(CLIPS)]
    assert all(text.startswith("Latent memory (frames given as conditions), because Wan 2.2 I2V A14B") for text in said)
    assert "begun with the start image; 0 of them trimmed" in said[0] and "100x80 was scaled to 128x80" in said[0]
    assert all("3 steps with the high and 3 steps with the low noise model, cfg 3.5" in text for text in said)
    assert all("begun with the last frame of the clip before; 1 of them trimmed" in text for text in said[1:])
    with av.open(str(next(pair_server.output.glob("video/latent*.mp4")))) as video:
        stream = video.streams.video[0]
        shown = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(shown) == 9 + 12 + 12 and shown[0].shape == (80, 128, 3) and stream.average_rate == 16
    assert [latents(pair_server, "latent", i)["samples"].shape[2] for i in range(CLIPS)] == [3, 3, 3]

    again = {**loaders("original"),
             "loaded": node("VideoMemoryLoadClip", run_name="latent", clip_index=1, with_memory=True),
             "clip2": sampled(["loaded", 1]), "saved": node("VideoMemorySaveClip", samples=["clip2", 0], vae=["vae", 0],
                                                            run_name="resumed", memory=["clip2", 1])}
    pair_server.client.post("/free", {"unload_models": True, "free_memory": True})  # ComfyUI forgets, as in a restart
    pair_server.client.run(again, alive=pair_server.check_alive)
    unbroken, resumed = latents(pair_server, "latent", 2), latents(pair_server, "resumed", 0)
    assert numpy.array_equal(unbroken["samples"], resumed["samples"]) and unbroken["samples"].std() > 0.01
    assert numpy.array_equal(unbroken["context_samples"], resumed["context_samples"])


def test_what_is_missing_stops_the_film_in_one_sentence(pair_server):
    from pack.scripts.harness.errors import CannotContinue

    prompt = film("refused")
    del prompt["clip0"]["inputs"]["model_low_noise"]
    with pytest.raises(CannotContinue, match="ClipSampler failed: Clip Sampler: Wan 2.2 I2V A14B .*one model"):
        pair_server.client.run(prompt, alive=pair_server.check_alive)
    assert not (pair_server.output / "videomemory" / "refused" / "manifest.json").exists()
