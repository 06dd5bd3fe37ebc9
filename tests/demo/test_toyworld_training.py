"""The training scripts train: a few steps on the CPU with tiny settings give files that load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dit import WanDiT
from safetensors.torch import load_file
from sample import Memory
from teacher_forcing import forward_block, memory_slots, velocity
from train_dit import DitTraining, train_dit
from train_vae import Phase, VaeTraining, train_vae
from vae import WanVAE, fold_latent_scale, normalise_latents

FOREVER = 1e9  # seconds: the steps end the training


def test_teacher_forcing_equals_the_chunk_sampler() -> None:
    """Every noisy chunk is predicted as the sampler would predict it from the K/V it has committed."""
    torch.manual_seed(0)
    model = WanDiT(feed_forward_dim=64, layers=2)
    torch.nn.init.normal_(model.head.head.weight, std=0.02)
    clean, noisy = torch.randn(2, 1, 5, 16, 3, 4, 4)
    text, bias = torch.randn(1, 5, 3, 4096), torch.zeros(1, 5, 3)
    sigma, memory, expected = torch.rand(1, 5), Memory(sink=1, window=2), []
    slots = memory_slots(5, sink=1, window=2)[None]
    with torch.no_grad():
        got = velocity(model, clean, noisy, sigma, (text, bias), slots, forward_block)
        for chunk in range(5):
            prompt = model.text(text[:, chunk])
            predicted, _ = model.forward_chunk(noisy[:, chunk], sigma[0, chunk] * 1000, prompt, memory.slots())
            memory.commit(model.forward_chunk(clean[:, chunk], 0.0, prompt, memory.slots())[1])
            expected.append(predicted)
    torch.testing.assert_close(got, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sink", "window", "last"),
    [(1, 2, [0, 2, 3]), (1, 1, [-1, 0, 3]), (0, 2, [-1, 2, 3]), (0, 3, [1, 2, 3]), (1, 0, [-1, -1, 0])],
)
def test_slots_hold_what_the_memory_holds(sink: int, window: int, last: list[int]) -> None:
    assert memory_slots(5, sink, window)[4].tolist() == last


def test_vae_training_writes_a_file_that_loads(tmp_path: Path) -> None:
    phase = Phase(frames=9, width=32, batch=1, decoded_latents=2, share=1.0)
    sizes = {"short_videos": 1, "long_videos": 1, "validation_videos": 1, "validation_chunks": 1}
    path = train_vae(VaeTraining(tmp_path, seconds=FOREVER, steps=2, phases=(phase,), **sizes))
    tensors = load_file(path)
    vae = WanVAE.from_state_dict(tensors)
    torch.manual_seed(1)
    assert not torch.equal(tensors["decoder.head.2.weight"].float(), WanVAE().decoder.head[2].weight)
    with torch.no_grad():
        assert vae.decode(vae.encode(torch.zeros(1, 5, 3, 16, 16))).shape == (1, 5, 3, 16, 16)


def test_folding_changes_the_latents_scale_and_not_the_pictures() -> None:
    torch.manual_seed(0)
    vae = WanVAE()
    pixels, mean, std = torch.rand(1, 5, 3, 32, 32) * 2 - 1, torch.randn(16), torch.rand(16) + 0.5
    with torch.no_grad():
        latents = vae.encode(pixels)
        decoded = vae.decode(latents)
        fold_latent_scale(vae, mean, std)
        folded = vae.encode(pixels)
        torch.testing.assert_close(vae.decode(folded), decoded, rtol=1e-4, atol=1e-4)
        expected = (latents - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        torch.testing.assert_close(normalise_latents(folded), expected, rtol=1e-4, atol=1e-4)


def test_dit_training_writes_a_file_that_loads_and_resumes(toyworld: Path, tmp_path: Path) -> None:
    sizes = {"videos": 1, "validation_videos": 1, "chunks": 2, "batch": 1, "layers": 1, "feed_forward_dim": 32}
    files = {"vae": toyworld / "toyworld_vae_fp16.safetensors"}
    files["text_encoder"] = toyworld / "toyworld_te_fp16.safetensors"
    path = train_dit(DitTraining(tmp_path, **files, **sizes, seconds=FOREVER, steps=2))
    first = load_file(path)
    model = WanDiT.from_state_dict(first)
    with torch.no_grad():
        assert model(torch.zeros(1, 16, 3, 4, 4), torch.zeros(1), torch.zeros(1, 2, 4096)).shape == (1, 16, 3, 4, 4)
    state = tmp_path / "state_model.pt"
    assert torch.load(state, weights_only=True)["step"] == 2
    train_dit(DitTraining(tmp_path, **files, **sizes, seconds=FOREVER, steps=1, resume=state, progress=(0.5, 1.0)))
    assert torch.load(state, weights_only=True)["step"] == 3
    assert not torch.equal(load_file(path)["head.head.weight"], first["head.head.weight"])


@pytest.mark.parametrize("script", ["train_dit", "sample"])
def test_script_runs_from_anywhere(script: str, toyworld: Path, tmp_path: Path) -> None:
    path = toyworld / "training" / f"{script}.py"
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "usage" in done.stdout
