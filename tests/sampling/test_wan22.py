"""The flagship's path on tiny random weights: 48 channels, a LongLive-style .pt in NF4, chunk 8, UniPC."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading.bridge import load_diffusion_model
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("random_wan", ROOT / "benchmarks" / "random_wan.py")
    random_wan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(random_wan)
    folder = tmp_path_factory.mktemp("wan22")
    flat = random_wan.write_wan(folder / "flat.safetensors", dim=256, ffn=512, layers=2, channels=48,
                                dtype=torch.float32)
    wrapped = {f"model.{name}": tensor for name, tensor in load_file(flat).items()}
    torch.save({"generator": wrapped, "note": "as LongLive 2 saves it"}, folder / "model_bf16.pt")
    return load_diffusion_model(str(folder / "model_bf16.pt"), "nf4", min_bytes=0)[0]


def two_clips(model, second_forgets=False, **options):
    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.state import empty_memory, forget
    from pack.nodes.sampling.bridge import sample_with_memory
    from pack.nodes.sampling.presets import PRESETS, memory_spec

    positive = [[torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(5)), {}]]
    memory, clips = empty_memory(memory_spec("longlive_2", **options)), []
    with torch.inference_mode():
        for i in range(2):
            memory = forget(memory) if i and second_forgets else memory
            samples, memory = sample_with_memory(model, memory, positive, PRESETS["longlive_2"], Geometry(48, 4, 6),
                                                 8, 1)
            clips.append(samples)
    return clips, memory


def test_model_is_comfyuis_wan22(model):
    from comfy.model_base import WAN22

    assert isinstance(model.model, WAN22)


def test_second_clip_sees_the_first(model):
    (first, second), memory = two_clips(model)
    (first_again, alone), _ = two_clips(model, second_forgets=True)
    assert first.shape == (1, 48, 8, 4, 6) and torch.isfinite(second).all()
    assert torch.equal(first, first_again) and not torch.equal(second, alone)
    assert [block.start for block in memory.blocks] == [0, 8]


def test_4bit_memory_in_ram_stays_near_the_exact_one(model):
    exact, stored = (two_clips(model, **options)[0][1] for options in ({}, {"precision": "4bit", "placement": "ram"}))
    assert 0 < (stored - exact).norm() / exact.norm() < 0.1
