"""The recipe's models and reference sampler reproduce the published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from make_reference import make_reference
from make_text_encoder import make_text_encoder
from safetensors import safe_open
from safetensors.torch import load_file
from sample import Memory, contact_sheet, generate_film, load
from text_encoder import TextEncoder, embed_captions

PROMPTS = ("a red square hero with a blue hat walks left in the forest", "The hero, jumps by the sea.", "zebra")


def test_text_encoder_is_the_published_one_when_made_again(toyworld: Path, tmp_path: Path) -> None:
    make_text_encoder(tmp_path / "made.safetensors")
    made, published = load_file(tmp_path / "made.safetensors"), load_file(toyworld / "toyworld_te_fp16.safetensors")
    ours, theirs = TextEncoder(made), TextEncoder(published)
    assert [ours.token_ids(prompt) for prompt in PROMPTS] == [theirs.token_ids(prompt) for prompt in PROMPTS]
    assert made.keys() == published.keys()
    for key in made.keys() - {"spiece_model"}:  # sentencepiece may write the same tokenizer differently some day
        assert torch.equal(made[key], published[key]), key


def test_short_prompts_are_the_long_ones_when_the_padding_is_folded(toyworld: Path) -> None:
    dit, _, encoder = load(toyworld)
    noise = torch.randn(1, 16, 3, 10, 16, generator=torch.Generator().manual_seed(0))
    short, bias = encoder.encode_short(PROMPTS[0])
    with torch.no_grad():
        expected, _ = dit.forward_chunk(noise, 500, dit.text(encoder.encode(PROMPTS[0])), [])
        got, _ = dit.forward_chunk(noise, 500, dit.text(short), [], bias)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    table, biases = embed_captions(encoder, list(PROMPTS[:2]), torch.float32)
    torch.testing.assert_close(table[:1], short, rtol=0, atol=1e-5)
    assert biases[0].clamp(min=-1e4).tolist() == bias.flatten().clamp(min=-1e4).tolist()


def test_short_prompt_is_refused_when_it_does_not_fit(toyworld: Path) -> None:
    encoder = TextEncoder(load_file(toyworld / "toyworld_te_fp16.safetensors"))
    with pytest.raises(ValueError, match="at most 15 fit. Use encode instead"):
        encoder.encode_short("the hero " * 8)


def test_reference_file_is_reproduced(toyworld: Path) -> None:
    path = toyworld / "reference_rollout.safetensors"
    made, metadata = make_reference(toyworld)
    published = load_file(path)
    assert made.keys() == published.keys()
    for key, tensor in published.items():
        torch.testing.assert_close(made[key], tensor, rtol=1e-4, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
    with safe_open(path, "pt") as file:
        stored = file.metadata()
    assert {key: metadata[key] for key in metadata if key != "torch"} == {
        key: value for key, value in stored.items() if key != "torch"
    }
    assert json.loads(metadata["sigmas_renoise4"]) == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_memory_holds_sink_and_window_only() -> None:
    memory = Memory(sink=1, window=2)
    held = []
    for chunk in range(5):
        memory.commit([(torch.tensor(chunk), torch.tensor(chunk))])
        held.append(list(memory.chunks))
    assert held == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    memory.reset()
    assert memory.slots() == []


def test_film_has_one_clip_per_prompt_and_saves_a_contact_sheet(toyworld: Path, tmp_path: Path) -> None:
    texts = ["a red star hero with a blue hat waves in the city", "the hero jumps by the sea"]
    clips = generate_film(load(toyworld), texts, seed=0)
    assert [tuple(clip.shape) for clip in clips] == [(21, 3, 80, 128), (24, 3, 80, 128)]
    assert all(clip.dtype == torch.uint8 for clip in clips)
    contact_sheet(clips, tmp_path / "sheet.png", columns=3)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.comfy
def test_dit_equals_comfyui(toyworld: Path) -> None:
    import comfy.ldm.wan.model
    import comfy.model_detection
    import comfy.ops
    from dit import WanDiT

    weights = {key: value.float() for key, value in load_file(toyworld / "toyworld_dit_fp16.safetensors").items()}
    ours = WanDiT.from_state_dict(weights)
    config = comfy.model_detection.detect_unet_config(weights, "")
    theirs = comfy.ldm.wan.model.WanModel(
        **config, operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu"
    )
    theirs.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 6, 10, 16, generator=generator)
    text = torch.zeros(2, 512, 4096)
    text[:, :13] = torch.randn(2, 13, 4096, generator=generator)
    with torch.no_grad():
        for timestep in (torch.tensor([700.0, 30.0]), torch.rand(2, 6, generator=generator) * 1000):
            assert_same(ours(latents, timestep, text), theirs(latents, timestep, text), 1e-5)
        chunk = latents[:, :, :3]
        alone, _ = ours.forward_chunk(chunk, 500.0, ours.text(text), [])
        assert_same(alone, theirs(chunk, torch.tensor([500.0, 500.0]), text), 1e-5)


@pytest.mark.comfy
def test_vae_equals_comfyui(toyworld: Path) -> None:
    import comfy.ldm.wan.vae
    from vae import WanVAE

    ours = WanVAE.from_state_dict(load_file(toyworld / "toyworld_vae_fp16.safetensors"))
    theirs = comfy.ldm.wan.vae.WanVAE(dim=16, z_dim=16, temperal_downsample=[False, True, True])
    theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for frames in (1, 9):
            pixels = torch.rand(1, 3, frames, 80, 128, generator=generator) * 2 - 1
            latents = theirs.encode(pixels)
            assert_same(ours.encode(pixels.transpose(1, 2)).transpose(1, 2), latents, 1e-4)
            assert_same(ours.decode(latents.transpose(1, 2)).transpose(1, 2), theirs.decode(latents), 1e-4)


@pytest.mark.comfy
def test_text_encoder_equals_comfyui(toyworld: Path) -> None:
    import comfy.ops
    import comfy.text_encoders.t5
    import comfy.text_encoders.wan

    tensors = load_file(toyworld / "toyworld_te_fp16.safetensors")
    encoder = TextEncoder(tensors)
    config = {"num_layers": 1, "d_model": 4096, "d_kv": 8, "num_heads": 2, "d_ff": 8, "vocab_size": 113}
    config |= {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "umt5"}
    theirs = comfy.text_encoders.t5.T5(config, torch.float32, "cpu", comfy.ops.manual_cast)
    theirs.load_state_dict({key: value.float() for key, value in tensors.items() if key != "spiece_model"})
    tokenizer = comfy.text_encoders.wan.UMT5XXlTokenizer(tokenizer_data={"spiece_model": tensors["spiece_model"]})
    ids = [token[0] for token in tokenizer.tokenize_with_weights(PROMPTS[0])[0]]
    count = len(encoder.token_ids(PROMPTS[0]))
    assert ids[:count] == encoder.token_ids(PROMPTS[0])
    mask = (torch.arange(len(ids)) < count).long()[None]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), mask)[0] * mask[..., None]
    assert_same(encoder.encode(PROMPTS[0]), expected, 1e-5)


def assert_same(got: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    assert float((got - expected).norm() / expected.norm()) < relative
