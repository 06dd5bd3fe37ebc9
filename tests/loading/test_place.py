"""What a model computes in, on described cards: core's own rules with this pack's order of dtypes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CARDS = {"NVIDIA GeForce RTX 3060": (8, 6), "NVIDIA GeForce RTX 2060": (7, 5), "NVIDIA GeForce GTX 1660": (7, 5)}


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch):
    """Make ComfyUI see a card of that name with 12 GB; only what asks the hardware is answered here."""
    management = pytest.importorskip("comfy.model_management")

    def described(name: str) -> None:
        major, minor = CARDS[name]
        monkeypatch.setattr(management, "cpu_state", management.CPUState.GPU)
        monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda"))
        monkeypatch.setattr(management, "maximum_vram_for_weights", lambda _device: 12e9 * 0.88)
        monkeypatch.setattr(torch.cuda, "get_device_properties",
                            lambda _device=None: SimpleNamespace(name=name, major=major, minor=minor))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # slowly, before Ampere

    return described


def chosen(kind: str, file_dtype: torch.dtype) -> torch.dtype:
    from comfy import supported_models
    from pack.nodes.loading.bridge_place import compute_dtype
    from pack.nodes.loading.families import WAN
    from pack.nodes.loading.files import TensorHeader
    from pack.nodes.loading.formats import Checkpoint

    header = TensorHeader("a.weight", file_dtype, (14_000, 1_000_000), 14_000_000_000 * file_dtype.itemsize)
    checkpoint = Checkpoint(Path("model.safetensors"), WAN, {"a.weight": header}, {})
    return compute_dtype(checkpoint, list(getattr(supported_models, kind).supported_inference_dtypes))


@pytest.mark.parametrize(("card", "kind", "file_dtype", "expected"), [
    ("NVIDIA GeForce RTX 3060", "WAN21_T2V", BF16, BF16),
    ("NVIDIA GeForce RTX 3060", "WAN21_T2V", FP32, BF16),
    ("NVIDIA GeForce RTX 3060", "WAN21_T2V", torch.float8_e4m3fn, BF16),
    ("NVIDIA GeForce RTX 3060", "WAN21_T2V", FP16, FP16),
    ("NVIDIA GeForce RTX 3060", "LTXV", FP16, BF16),  # overflows in float16
    ("NVIDIA GeForce RTX 3060", "HunyuanVideo", BF16, BF16),
    ("NVIDIA GeForce RTX 3060", "SVD_img2vid", FP16, FP16),
    ("NVIDIA GeForce RTX 2060", "WAN21_T2V", BF16, FP16),
    ("NVIDIA GeForce RTX 2060", "HunyuanVideo15", BF16, FP16),
    ("NVIDIA GeForce RTX 2060", "LTXV", BF16, BF16),  # kept so, computed in float32
    ("NVIDIA GeForce GTX 1660", "WAN21_T2V", FP16, BF16),  # its float16 is broken: kept so, computed in float32
])
def test_bfloat16_first_and_float16_where_the_card_or_the_file_has_only_that(
        describe, card: str, kind: str, file_dtype: torch.dtype, expected: torch.dtype) -> None:
    describe(card)
    assert chosen(kind, file_dtype) == expected


def test_a_cpu_computes_in_float32() -> None:
    assert chosen("WAN21_T2V", BF16) == FP32
