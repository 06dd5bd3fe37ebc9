"""Compare Quantization through the real server, on the demo checkpoint."""

from __future__ import annotations

from fractions import Fraction

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]


def comparison(weight_dtype: str) -> dict:
    """The original weights beside core's loader with `weight_dtype`, one clip of six latents, as an API prompt."""
    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    dit = "toyworld_dit_fp16.safetensors"
    return {
        "a": node("UNETLoader", unet_name=dit, weight_dtype="default"),
        "b": node("UNETLoader", unet_name=dit, weight_dtype=weight_dtype),
        "te": node("VideoMemoryLoadTextEncoder", text_encoder_name="toyworld_te_fp16.safetensors", weights="original"),
        "vae": node("VAELoader", vae_name="toyworld_vae_fp16.safetensors"),
        "memory": node("VideoMemoryPersistentMemory", preset="toyworld", sink_seconds=-1.0, window_seconds=0.0,
                       precision="model", placement="vram"),
        "text": node("CLIPTextEncode", clip=["te", 0], text="a red square hero with a green hat jumps by the sea"),
        "compare": node("VideoMemoryCompareQuantization", model_a=["a", 0], model_b=["b", 0], vae=["vae", 0],
                        memory=["memory", 0], positive=["text", 0], seed=7, width=128, height=80, clip_seconds=3.0,
                        name_a="original", name_b=weight_dtype),
        "report": node("PreviewAny", source=["compare", 0]),
        "plot": node("SaveImage", images=["compare", 1], filename_prefix=f"compare_{weight_dtype}"),
        "video": node("SaveVideo", video=["compare", 2], filename_prefix=f"compare_{weight_dtype}", format="auto",
                      codec="auto"),
    }


def report(server, weight_dtype: str) -> str:
    outputs = server.client.run(comparison(weight_dtype), alive=server.check_alive)["outputs"]
    return outputs["report"]["text"][0]


def test_equal_models_are_identical(server):
    text = report(server, "default")
    assert "default against original, 21 frames" in text and "PSNR identical" in text


def test_fewer_bits_show_in_report_plot_and_video(server):
    av = pytest.importorskip("av")
    text = report(server, "fp8_e4m3fn")
    assert "PSNR identical" not in text and "worst frame by PSNR" in text
    assert list(server.output.glob("compare_fp8_e4m3fn*.png"))
    with av.open(str(next(server.output.glob("compare_fp8_e4m3fn*.mp4")))) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.frames, stream.average_rate) == (256, 21, Fraction(8))
