"""The low-rank side path against the same LoRA merged into the weight, and the names and counts of LoRA files."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.loading.lora import add_side_path, comfy_names, describe_coverage, side_path


def matrices(out: int, columns: int, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, columns, generator=generator) * 0.05


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_two_loras_add_up() -> None:
    (up1, down1), (up2, down2) = matrices(24, 40, 4, 1), matrices(24, 40, 7, 2)
    path = side_path([(up1, down1, 0.5), (up2.half(), down2.half(), -2.0)])
    x, weight = torch.randn(2, 3, 40), torch.randn(24, 40)
    y = add_side_path(x @ weight.T, x, path)
    expected = x @ (weight + 0.5 * up1 @ down1 - 2.0 * up2.half().float() @ down2.half().float()).T
    assert path.down.shape == (11, 40) and relative(y, expected) < 1e-6


@pytest.mark.parametrize(("other", "expected"), [(torch.float32, torch.float32), (torch.float16, torch.float32),
                                                 (torch.float8_e4m3fn, torch.bfloat16)])
@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_lora_in_fp8_adds_up_with_others(fp8: torch.dtype, other: torch.dtype, expected: torch.dtype) -> None:
    first, second = ([part.to(dtype) for part in matrices(24, 40, 4, seed)] for seed, dtype in ((1, other), (2, fp8)))
    path = side_path([(*first, 1.0), (*second, 0.5)])
    assert path.up.dtype == path.down.dtype == expected
    assert torch.equal(path.up.float(), torch.cat([part.float() for part in (first[0], second[0])], dim=1))


def test_a_single_lora_is_not_copied_and_strength_zero_is_nothing() -> None:
    up, down = matrices(24, 40, 4, 1)
    path = side_path([(up[..., None, None], down[..., None, None], 1.0), (up, down, 0.0)])
    assert path.up.data_ptr() == up.data_ptr() and path.down.data_ptr() == down.data_ptr()
    assert side_path([(up, down, 0.0)]) is None and side_path([]) is None


def test_in_bf16_it_is_as_exact_as_the_merged_weight() -> None:
    """bf16 itself costs more than 1e-3, so the yardstick is the merged weight in bf16, both against float64."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(512, 512, generator=generator).bfloat16(), torch.randn(64, 512, generator=generator)
    up, down = matrices(512, 512, 16, 5)
    x = x.bfloat16()
    exact = x.double() @ (weight.double() + 0.8 * up.double() @ down.double()).T
    merged = x @ (weight.float() + 0.8 * up @ down).bfloat16().T
    ours = add_side_path(x @ weight.T, x, side_path([(up, down, 0.8)]))
    assert relative(ours, exact) < 1.5 * relative(merged, exact)


def test_pefts_names_become_comfys() -> None:
    lora = {"base_model.model.blocks.0.ffn.0.lora_A.weight": torch.zeros(1),
            "base_model.model.model._fsdp_wrapped_module.blocks.1.ffn.0.lora_A.weight": torch.zeros(1)}
    assert list(comfy_names(lora)) == [f"diffusion_model.blocks.{i}.ffn.0.lora_A.weight" for i in range(2)]
    assert list(comfy_names({"lora_unet_x.alpha": torch.zeros(1)})) == ["lora_unet_x.alpha"]


@pytest.mark.parametrize(("unmatched", "line"), [
    ([], "a: 20 of 20 keys matched"),
    (["x"], "a: 19 of 20 keys matched; not used: x"),
    (list("vwxyz"), "WARNING: a: 15 of 20 keys matched; not used: v, w, x and 2 more")])
def test_coverage_is_loud_when_few_matched(unmatched: list[str], line: str) -> None:
    assert describe_coverage("a", 20, unmatched) == line
