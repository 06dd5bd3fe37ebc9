"""The key of a MODEL that other packs have patched: the same while it is loaded and after it has sampled."""

from __future__ import annotations

import dataclasses
import functools
import types

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


class Attention:
    """As KJNodes' patches of cross attention: settings that it also leaves on the model's module."""

    def __init__(self, context, nag_scale):
        self.nag_context = context
        self.nag_scale = nag_scale

    def __get__(self, obj, objtype=None):
        def wrapped(self_module, *args, **kwargs):
            self_module.nag_context = self.nag_context
            self_module.nag_scale = self.nag_scale
            return type(self_module).forward(self_module, *args, **kwargs)

        return types.MethodType(wrapped, obj)


class Counting:
    """Settings beside what changes in every step."""

    def __init__(self, scale, step=0, last=None, seen=(), cache=None):
        self.scale, self.step, self.last, self.seen = scale, step, last, seen
        self.cache = {} if cache is None else cache
        self.calls = 0

    def __call__(self, executor, *args, **kwargs):
        def keep(result):
            self.last = result
            return result

        self.step += 1
        self.calls += 1
        self.seen = (*self.seen, self.step)
        self.cache[self.step] = args
        return keep(executor(*args, **kwargs))


class CountingModule(torch.nn.Module):
    def __init__(self, block, scale):
        super().__init__()
        self.held, self.scale, self.calls = (block,), scale, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        self.held[0].times_called = self.calls
        return self.held[0](*args, **kwargs)


class Holding:
    """The settings of one object inside another."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, executor, *args, **kwargs):
        return self.inner(executor, *args, **kwargs)


@dataclasses.dataclass
class State:
    step: int = 0


def counting_function(scale):
    steps, state = 0, State()

    def wrapper(executor, *args, **kwargs):
        nonlocal steps
        steps += 1
        state.step += 1
        return executor(*args, **kwargs) + 0 * scale

    return wrapper


def attention(scale, context=0.0):
    patcher = model(16).clone()
    for i, block in enumerate(patcher.model.diffusion_model.blocks):
        rows = torch.zeros(64, 256)
        rows[1, 1] = context
        patch = Attention(rows, scale).__get__(block.cross_attn)
        patcher.add_object_patch(f"diffusion_model.blocks.{i}.cross_attn.forward", patch)
    return patcher


def module(scale):
    patcher = model(16).clone()
    patcher.add_object_patch(BLOCK, CountingModule(patcher.get_model_object(BLOCK), scale))
    return patcher


def wrapper(make, scale):
    from comfy.patcher_extension import WrappersMP

    patcher = model(16).clone()
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "theirs", make(scale))
    return patcher


PATCHES = {
    "attention": attention, "module": module, "object": functools.partial(wrapper, Counting),
    "inside": functools.partial(wrapper, lambda scale: Holding(Counting(scale))),
    "function": functools.partial(wrapper, counting_function),
}


def sample(patcher):
    from pack.nodes.sampling.nodes import ClipSampler

    from ..sampling.rolling_films import FILMS, HEIGHT, WIDTH, empty, text

    with torch.inference_mode():
        ClipSampler.EXECUTE_NORMALIZED(model=patcher, memory=empty(FILMS["longlive_1"]), positive=[[text(), {}]],
                                       seed=1, width=8 * WIDTH, height=8 * HEIGHT, clip_seconds=0.75)


@pytest.mark.parametrize("patch", PATCHES)
def test_a_setting_of_somebodys_object_is_another_key_and_what_it_counts_is_not(patch):
    """Counted before and after: what changes while it samples would make every clip again."""
    from pack.nodes.common.digest import patcher_key

    weak, strong, again = (PATCHES[patch](scale) for scale in (5.0, 11.0, 5.0))
    key = patcher_key(weak)
    assert key == patcher_key(again) != patcher_key(strong)
    sample(weak)
    assert patcher_key(weak) == key
    sample(weak)
    assert len({*while_loaded(weak), key}) == 1


def test_another_prompt_of_somebodys_patch_is_another_key():
    from pack.nodes.common.digest import patcher_key

    assert patcher_key(attention(5.0, 0.1)) == patcher_key(attention(5.0, 0.1)) != patcher_key(attention(5.0, 0.2))


def test_objects_that_cannot_be_looked_into_are_no_error():
    from pack.nodes.common.digest import patcher_key

    class Slots:
        __slots__ = ("scale",)

        def __init__(self, scale):
            self.scale = scale

    class Circle:
        def __init__(self, other):
            self.other = self

    patcher = model(16).clone()
    patcher.model_options["transformer_options"]["theirs"] = [Slots(1), Circle(1), State(), object(), iter("a"), len,
                                                               type("Made", (), {"__module__": None})()]
    assert patcher_key(patcher) == patcher_key(patcher)
