"""The key of a MODEL that other packs have patched: the same while it is loaded and after it has sampled."""

from __future__ import annotations

import pytest
import torch

from ..sampling.rolling_films import model

pytestmark = pytest.mark.comfy

BLOCK = "diffusion_model.blocks.0"


class Compiled(torch.nn.Module):
    """What torch.compile makes of a block: a module around it."""

    def __init__(self, block):
        super().__init__()
        self._orig_mod = block

    def forward(self, *args, **kwargs):
        return self._orig_mod(*args, **kwargs)

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "_orig_mod" else getattr(self._orig_mod, name)


def while_loaded(patcher) -> tuple[str, str, str]:
    """Its key before, while and after ComfyUI has its patches in the model."""
    from pack.nodes.common.digest import patcher_key

    before = patcher_key(patcher)
    patcher.patch_model()
    try:
        loaded = patcher_key(patcher)
    finally:
        patcher.unpatch_model()
    return before, loaded, patcher_key(patcher)


@pytest.mark.parametrize("names", [[BLOCK], [f"{BLOCK}.self_attn"], [BLOCK, f"{BLOCK}.self_attn"],
                                   ["diffusion_model", BLOCK]])
@pytest.mark.parametrize("lora", [False, True])
def test_key_is_the_same_while_compiled_blocks_are_in_the_model(names, lora):
    patcher = model(16).clone()
    for name in names:
        patcher.add_object_patch(name, Compiled(patcher.get_model_object(name)))
    if lora:
        weight = patcher.get_model_object("diffusion_model.blocks.1.self_attn.q.weight")
        patcher.add_patches({"diffusion_model.blocks.1.self_attn.q.weight": ("diff", (torch.ones_like(weight),))}, 0.1)
    assert len(set(while_loaded(patcher))) == 1


def test_key_is_the_same_while_torch_compile_is_in_the_model():
    patcher = model(16).clone()
    patcher.add_object_patch(BLOCK, torch.compile(patcher.get_model_object(BLOCK), backend="eager"))
    assert len(set(while_loaded(patcher))) == 1
