"""Quantised text encoders inside the real CLIP: same numbers as their unpacked weights in ComfyUI's own classes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from .text_files import PARTS_OF, core_clip, encode, load, relative, tiny_state, unpacked, write_full_size, write_parts

pytestmark = pytest.mark.comfy
PROMPT = "a blue circle hero with a green hat walks right in the forest"
PROMPTS = (PROMPT, "", 'a sign that says "open 24 hours", (night:1.3)', "rain " * 90)


@pytest.fixture(scope="module")
def bridge_text() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge_text

    return bridge_text


@pytest.fixture(scope="module")
def reference(toyworld: Path) -> dict[str, torch.Tensor]:
    return load_file(toyworld / "reference_rollout.safetensors")


@pytest.mark.parametrize(("kind", "weights"), [*((kind, "nf4") for kind in PARTS_OF), ("wan", "int8"), ("flux", "int8"),
                                               ("hunyuan_video", "int8"), ("hunyuan_video_15", "int8")])
def test_packed_encoder_equals_core_with_the_unpacked_weights(bridge_text: ModuleType, toyworld: Path, tmp_path: Path,
                                                              kind: str, weights: str) -> None:
    paths = write_parts(kind, tmp_path, toyworld)
    ours, report = load(bridge_text, paths, weights, kind)
    theirs = core_clip(kind, [unpacked(path, weights) for path in paths])
    plain, _ = load(bridge_text, paths, "original", kind)
    assert report.endswith(f"type: {kind}")
    for prompt in PROMPTS:
        got, expected, exact = (encode(clip, prompt) for clip in (ours, theirs, plain))
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            if value is not None:
                assert got[key].shape == value.shape
                assert (got[key] - value).float().norm() <= 1e-5 * value.float().norm(), (prompt, key)
        assert relative(exact["cond"], expected["cond"]) > 1e-3  # they are packed


@pytest.mark.parametrize("weights", ["original", "nf4"])
def test_text_encoder_gives_the_model_cards_conditioning(bridge_text: ModuleType, toyworld: Path, reference: dict,
                                                         weights: str) -> None:
    clip, report = bridge_text.load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), weights)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]
    assert conditioning.shape == (1, 512, 4096)
    assert (conditioning[0, :15] - reference["text_embedding_prompt0"]).abs().max() < 1e-5
    assert not conditioning[0, 15:].any()
    assert report.startswith("toyworld_te_fp16.safetensors: ")


@pytest.mark.parametrize("weights", ["original", "nf4"])
def test_clip_with_more_positions_reads_longer_prompts(bridge_text: ModuleType, toyworld: Path, tmp_path: Path,
                                                       weights: str) -> None:
    """Long-CLIP: 248 tokens at once instead of 77."""
    state = tiny_state("clip_l", toyworld)
    state["text_model.embeddings.position_embedding.weight"] = torch.randn(248, 128).half()
    save_file(state, tmp_path / "long.safetensors")
    clip, _ = load(bridge_text, [str(tmp_path / "long.safetensors")], weights)
    assert clip.encode_from_tokens(clip.tokenize("rain " * 90)).shape == (1, 248, 128)


@pytest.mark.parametrize("weights", ["original", "nf4"])
def test_the_second_file_may_come_first(bridge_text: ModuleType, toyworld: Path, tmp_path: Path, weights: str) -> None:
    paths = write_parts("hunyuan_video", tmp_path, toyworld)
    clips = [load(bridge_text, order, weights)[0] for order in (paths, paths[::-1])]
    one, other = (encode(clip, PROMPT) for clip in clips)
    assert torch.equal(one["cond"], other["cond"]) and torch.equal(one["pooled_output"], other["pooled_output"])


def test_report_names_the_type_and_what_stayed(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    paths = write_parts("hunyuan_video_15", tmp_path, toyworld)
    _, report = load(bridge_text, paths, "nf4")
    lines = report.splitlines()
    assert lines[0].startswith("qwen25_7b.safetensors: Qwen2.5-VL 7B text encoder, ")
    assert lines[1].startswith("NF4: 28 weights, ")
    assert "as stored: 1 x embedding, 19.5 MB" in lines
    assert "not in the file: visual (no prompts with images)" in lines
    assert any(line.startswith("byt5_small.safetensors: ByT5 glyph text encoder, ") for line in lines)
    assert "as stored: 1 x position bias, 0.0 MB" in lines
    assert lines[-1] == ("type: hunyuan_video_15 (auto: from Qwen2.5-VL 7B text encoder and ByT5 glyph text encoder)")


def test_images_are_refused_where_the_file_cannot_see(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    clip, _ = load(bridge_text, write_parts("hunyuan_video_15", tmp_path, toyworld), "nf4")
    tokens = clip.tokenize("<|im_start|>user\n<|image_pad|>what is this", images=[torch.rand(1, 56, 56, 3)])
    with pytest.raises(ValueError, match=r"with images needs a text encoder that sees, but got one whose file holds "
                                         r"only the text half; allowed: Qwen2.5-VL 7B with its visual tensors"):
        clip.encode_from_tokens(tokens)


def test_encoder_is_managed_by_core(bridge_text: ModuleType, toyworld: Path, tmp_path: Path) -> None:
    import comfy.model_management

    paths = write_parts("flux", tmp_path, toyworld)
    clip, _ = load(bridge_text, paths, "nf4")
    before = encode(clip, PROMPT)["cond"]
    assert clip.patcher.is_clip and isinstance(clip.patcher, bridge_text.QuantPatcher)
    assert clip.patcher in [loaded.model for loaded in comfy.model_management.current_loaded_models]
    assert clip.patcher.model_size() == comfy.model_management.module_size(clip.cond_stage_model)
    size = clip.patcher.model_size()
    clip.patcher.partially_unload(torch.device("cpu"), size // 2)
    assert torch.equal(encode(clip.clone(), PROMPT)["cond"], before)
    comfy.model_management.unload_all_models()
    assert torch.equal(encode(clip, PROMPT)["cond"], before)


def test_loading_an_encoder_leaves_nothing_on_cores_list(bridge_text: ModuleType, toyworld: Path) -> None:
    """The patcher that core made is exchanged; left on the list it would be reported as a memory leak."""
    import comfy.model_management

    before = [id(loaded) for loaded in comfy.model_management.current_loaded_models]
    bridge_text.load_text_encoder(str(toyworld / "toyworld_te_fp16.safetensors"), "nf4")
    assert [id(loaded) for loaded in comfy.model_management.current_loaded_models] == before


@pytest.mark.parametrize("kind", ["hunyuan_video", "wan"])
def test_what_was_packed_once_is_read_from_the_cache(bridge_text: ModuleType, toyworld: Path, tmp_path: Path,
                                                     kind: str) -> None:
    paths = write_parts(kind, tmp_path, toyworld)
    clips, reports = zip(*(load(bridge_text, paths, "nf4", cache=True) for _ in range(2)), strict=True)
    assert torch.equal(*(encode(clip, PROMPT)["cond"] for clip in clips))
    for part in PARTS_OF[kind]:
        assert f"cache: written, {part}.safetensors.nf4.videomemory" in reports[0]
        assert f"cache: read from {part}.safetensors.nf4.videomemory" in reports[1]


@pytest.mark.parametrize("weights", ["nf4", "original"])
def test_files_that_are_packed_already_load_as_they_are(bridge_text: ModuleType, toyworld: Path, tmp_path: Path,
                                                        weights: str) -> None:
    """One packed as bitsandbytes does it, the other in full: the second stays what it is where "original" is asked."""
    from pack.nodes.loading import nf4

    llama, clip_l = write_parts("hunyuan_video", tmp_path, toyworld)
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(llama).items():
        packed |= nf4.to_state_dict(nf4.quantize(tensor), name) if "_proj" in name else {name: tensor}
        packed[name] = packed[name].reshape(-1, 1) if "_proj" in name else tensor  # bitsandbytes' own shape
    save_file(packed, tmp_path / "packed.safetensors")
    ours, report = load(bridge_text, [str(tmp_path / "packed.safetensors"), clip_l], weights)
    expected, _ = load(bridge_text, [llama, clip_l], "nf4")
    assert "NF4 already in the file: 28 weights" in report
    assert ("clip_l.safetensors: loaded as it is" in report) == (weights == "original")
    assert torch.equal(encode(ours, PROMPT)["cond"], encode(expected, PROMPT)["cond"])


@pytest.mark.parametrize("weights", ["nf4", "original"])
def test_full_size_files_load(bridge_text: ModuleType, tmp_path: Path, weights: str) -> None:
    """A real CLIP-L by its header: "original" goes through core's own loader."""
    import comfy.model_management

    path = write_full_size(tmp_path / "clip_l.safetensors", "clip_l", "BF16")
    clip, report = bridge_text.load_text_encoder(str(path), weights)
    assert clip.encode_from_tokens(clip.tokenize(PROMPT)).shape == (1, 77, 768)
    if weights == "original":
        assert "loaded as it is through ComfyUI, 247.3 MB in the file" in report
        assert not isinstance(clip.patcher, bridge_text.QuantPatcher)
        in_core = comfy.model_management.text_encoder_dtype(torch.device("cpu"))
        assert clip.cond_stage_model.clip_l.transformer.dtype == in_core != torch.bfloat16
    else:
        assert "NF4: 72 weights, 169.9 MB -> 43.9 MB" in report
        assert "as stored: 2 x embedding, 76.0 MB" in report and "as stored: 1 x output projection, 1.2 MB" in report
    assert report.endswith("type: stable_diffusion (auto: from CLIP-L text encoder)")
