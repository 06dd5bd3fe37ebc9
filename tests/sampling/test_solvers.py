"""Solvers against ordinary differential equations with known answers; presets against the published numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pack.nodes.common.types import MemoryBlock, ModelFacts
from pack.nodes.sampling.chunk_loop import (
    Clip,
    ClipModel,
    Held,
    count_forwards,
    sample_chunk,
    sample_clip,
    seeded_noise,
)
from pack.nodes.sampling.positions import local_positions, runs
from pack.nodes.sampling.presets import PRESETS, custom_preset, find_preset, memory_spec, shifted
from pack.nodes.sampling.solvers import make_solver
from pack.nodes.sampling.strategy import choose_strategy

FACTS = ModelFacts("wan", 30, 24, 128, 14336, (1, 2, 2), 48, 16, 0, 2)


def integrate(name: str, steps: int) -> float:
    """Error of x at sigma_end for data ~ N(mean, spread^2), whose ideal estimate and flow are known in closed form."""
    mean, spread, start, end = 0.7, 0.5, 0.99, 0.05
    sigmas = tuple(start + (end - start) * i / steps for i in range(steps + 1))

    def estimate(x, sigma):
        variance = (1 - sigma) ** 2 * spread**2 + sigma**2
        return mean + (1 - sigma) * spread**2 / variance * (x - (1 - sigma) * mean)

    def width(sigma):
        return math.sqrt((1 - sigma) ** 2 * spread**2 + sigma**2)

    solver = make_solver(name, sigmas, lambda: torch.zeros(1))
    x = torch.tensor([1.3], dtype=torch.float64)
    truth = (1 - end) * mean + (x - (1 - start) * mean) / width(start) * width(end)
    for i in range(steps):
        x = solver.step(i, x, estimate(x, sigmas[i]))
    return float((x - truth).abs())


def order(name: str) -> float:
    return math.log2(integrate(name, 20) / integrate(name, 40))


def test_euler_is_first_order_and_unipc_is_better():
    assert order("euler") == pytest.approx(1, abs=0.2)
    assert order("unipc") > 1.8
    assert integrate("unipc", 80) < integrate("euler", 80) / 10


def test_unipc_first_step_is_an_euler_step():
    sigmas = (0.9998, 0.93727, 0.83306, 0.0)
    x, x0 = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    euler, unipc = (make_solver(name, sigmas, lambda: x) for name in ("euler", "unipc"))
    assert torch.allclose(euler.step(0, x, x0), unipc.step(0, x, x0), atol=1e-9)


@pytest.mark.parametrize("name", ["renoise", "euler", "unipc"])
def test_last_step_returns_the_clean_estimate(name):
    solver = make_solver(name, (0.8, 0.4, 0.0), lambda: torch.ones(3))
    x = solver.step(0, torch.zeros(3), torch.full((3,), 2.0))
    assert torch.equal(solver.step(1, x, torch.full((3,), 5.0)), torch.full((3,), 5.0))


def test_renoise_mixes_fresh_noise_at_the_next_level():
    solver = make_solver("renoise", (1.0, 0.25, 0.0), lambda: torch.full((2,), 8.0))
    assert torch.equal(solver.step(0, torch.zeros(2), torch.full((2,), 4.0)), torch.full((2,), 0.75 * 4 + 0.25 * 8))


def test_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="unknown solver, but got 'magic'; allowed: renoise, euler, unipc"):
        make_solver("magic", (1.0, 0.0), lambda: torch.zeros(1))


def test_presets_hold_the_published_noise_levels():
    assert PRESETS["self_forcing"].sigmas == pytest.approx((1, 0.9375, 0.83333, 0.625, 0), abs=1e-5)
    assert PRESETS["toyworld"].sigmas == pytest.approx((1, .9545, .9, .8333, .75, .6429, .5, .3, 0), abs=1e-4)
    assert shifted((1.0, 0.5), 1.0) == (1.0, 0.5, 0.0)
    for preset in (preset for preset in PRESETS.values() if preset.strategy == "rolling"):
        assert preset.sink % preset.chunk == 0 and preset.window % preset.chunk == 0
        assert preset.sigmas[-1] == 0 and all(a > b for a, b in zip(preset.sigmas, preset.sigmas[1:], strict=False))


def test_seconds_become_whole_chunks():
    spec = memory_spec("longlive_2", window_s=4.0, sink_s=0.0)
    assert (spec.window_latents, spec.sink_latents) == (24, 0)
    assert memory_spec("longlive_2", window_s=4.1).window_latents == 32
    assert memory_spec("toyworld").capacity_latents == 9
    with pytest.raises(ValueError, match="unknown checkpoint preset, but got 'sora'"):
        find_preset("sora")


def test_a_custom_recipe_is_found_by_its_memory():
    recipe = custom_preset("Mine", 16, 3, 3, 6, steps=4, shift=5.0)
    spec = memory_spec("custom", custom=recipe)
    assert find_preset(spec) is recipe and recipe.sigmas == pytest.approx(PRESETS["self_forcing"].sigmas)
    assert (spec.preset, spec.sink_latents, spec.window_latents, spec.fps) == ("custom", 3, 6, 16.0)
    assert custom_preset("", 16, 1, 0, 20, sigmas="1.0, 0.5 0.25, 0").sigmas == (1.0, 0.5, 0.25, 0.0)
    with pytest.raises(ValueError, match="the checkpoint is custom, but got no recipe.*Connect Custom Checkpoint"):
        find_preset("custom")


@pytest.mark.parametrize(("options", "text"), [
    ({"chunk": 0}, "the chunk cannot be used, but got 0; allowed: 1 to 64 latents"),
    ({"sink": 4}, "the sink cannot be used, but got 4; allowed: 0 or multiples of the chunk, 3"),
    ({"window": -3}, "the window cannot be used, but got -3"),
    ({"pin": 2}, "the pin cannot be used, but got 2"),
    ({"fps": 0.0}, "frames per second cannot be used, but got 0.0; allowed: more than 0"),
    ({"steps": 0}, "steps cannot be used, but got 0; allowed: 1 to 100"),
    ({"shift": 0.0}, "the shift cannot be used, but got 0.0"),
    ({"shot_gap": -1}, "the gap at a cut cannot be used, but got -1"),
    ({"solver": "magic"}, "the solver cannot be used, but got 'magic'; allowed: renoise, euler, unipc"),
    ({"sigmas": "0.5, 0.6"}, "sigmas cannot be used, but got 0.5, 0.6; allowed: falling numbers"),
    ({"sigmas": "1, x"}, "sigmas cannot be used, but got 1, x"),
    ({"sigmas": ","}, "sigmas cannot be used, but got ','"),
])
def test_a_recipe_that_means_nothing_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        custom_preset(**({"label": "", "fps": 16.0, "chunk": 3, "sink": 3, "window": 6} | options))


def test_the_recipe_decides_the_strategy():
    spec = memory_spec("longlive_2")
    assert choose_strategy(spec, FACTS)[0] == "rolling" and "LongLive 2.0" in choose_strategy(spec, FACTS)[1]
    frames = replace(custom_preset("SVD", 7, 1, 0, 0), strategy="latent")
    strategy, reason = choose_strategy(memory_spec("custom", custom=frames), FACTS)
    assert strategy == "latent" and "because SVD was trained on whole clips" in reason
    with pytest.raises(ValueError, match="a recipe for causal Wan models, but got 'hunyuan'.*Choose on Persistent"):
        choose_strategy(spec, replace(FACTS, family="hunyuan"))


def test_noise_depends_on_seed_and_absolute_chunk_alone():
    shape = (1, 2, 3, 4, 4)
    first, again, other = (seeded_noise(seed, shape)(7) for seed in (1, 1, 2))
    a, b = first(), first()
    assert torch.equal(a, again()) and torch.equal(b, again()) and not torch.equal(a, b)
    assert not torch.equal(a, other()) and not torch.equal(a, seeded_noise(1, shape)(8)())


def toy_loop(memory, latents, calls=None):
    """A model whose estimate is its noise plus what it remembers: enough to see order, seeds and commits."""
    preset = PRESETS["toyworld"]

    def denoise(x, sigma, memory, clean):
        return 0.5 * x + sum(block.latents.mean() for block in memory.blocks)

    def encode(x0, memory, precisions, prompt):
        if calls is not None:
            calls.append([block.start for block in memory.blocks])
        return tuple((object(), None) for _ in precisions)

    model = ClipModel(denoise, encode, torch.device("cpu"))
    held = Held(memory)
    clip = Clip(preset, latents, seeded_noise(5, (1, 2, 3, 4, 4)), prompt=torch.ones(1, 4))
    return sample_clip(model, held, clip), held.memory


def test_two_short_clips_equal_one_long_one():
    from pack.nodes.memory.state import empty_memory

    memory = empty_memory(memory_spec("toyworld"))
    long, _ = toy_loop(memory, 12)
    first, between = toy_loop(memory, 6)
    second, _ = toy_loop(between, 6)
    assert torch.equal(torch.cat((first, second), 2), long)
    branch, _ = toy_loop(between, 6)
    assert torch.equal(branch, second)  # the same value in, the same clip out


def test_missing_caches_are_rebuilt_in_order():
    from dataclasses import replace

    from pack.nodes.memory.state import empty_memory

    _, memory = toy_loop(empty_memory(memory_spec("toyworld")), 9)
    bare = replace(memory, blocks=tuple(replace(block, kv=None) for block in memory.blocks))
    calls = []
    toy_loop(bare, 3, calls)
    assert calls == [[], [0], [0, 3], [0, 3, 6]]  # three rebuilt, then the new chunk


def test_every_forward_is_counted_also_those_that_recache():
    from pack.nodes.common.progress import Progress
    from pack.nodes.memory.state import empty_memory

    recaching = memory_spec("toyworld", prompt_change="recache")
    _, memory = toy_loop(empty_memory(recaching), 9)
    bare = replace(memory, blocks=tuple(replace(block, kv=None) for block in memory.blocks))
    forwards, shown, groups = [], [], []

    def encode(x0, memory, precisions, prompt):
        groups.append((x0.shape[2], prompt))
        forwards.append(0)
        return tuple((object(), None) for _ in precisions)

    model = ClipModel(lambda x, s, m, c: forwards.append(s) or x, encode, torch.device("cpu"))
    clip = Clip(PRESETS["toyworld"], 3, seeded_noise(5, (1, 2, 3, 4, 4)))
    sample_clip(model, Held(bare), clip, Progress(update=lambda done, total: shown.append((done, total))))
    own = memory.blocks[0].prompt  # the sink alone and under its own prompt, the window together, the new chunk
    assert own is not None and groups == [(3, own), (6, None), (3, None)]
    assert len(forwards) == count_forwards(clip, bare, False) == 2 + 8 + 1
    assert shown == [(i + 1, 11) for i in range(11)]


def test_given_latents_stay_as_they_are():
    given, seen = torch.full((1, 2, 1, 4, 4), 7.0), []

    def denoise(x, sigma, memory, clean):
        seen.append((clean, x[:, :, :1].mean().item()))
        return x * 0

    preset = PRESETS["toyworld"]
    model = ClipModel(denoise, None, torch.device("cpu"))
    x0 = sample_chunk(model, None, preset, lambda: torch.randn(1, 2, 3, 4, 4), given=given)
    assert seen == [(1, 7.0)] * 8 and torch.equal(x0[:, :, :1], given) and not x0[:, :, 1:].any()


def test_a_frame_wise_checkpoint_is_seeded_with_the_image_alone():
    from pack.nodes.memory.state import empty_memory

    preset, steps = PRESETS["causal_forcing_framewise"], []
    model = ClipModel(lambda x, s, m, c: steps.append(m.latents_done) or x, lambda x, m, p, t: ((object(), None),),
                      torch.device("cpu"))
    clip = Clip(preset, 2, seeded_noise(5, (1, 2, 1, 4, 4)), given=torch.full((1, 2, 1, 4, 4), 7.0))
    memory = empty_memory(memory_spec("causal_forcing_framewise"))
    held = Held(memory)
    samples = sample_clip(model, held, clip)
    assert (samples[:, :, 0] == 7).all() and steps == [1] * 4 and held.memory.latents_done == 2
    assert count_forwards(clip, memory, False) == 1 + 4 + 1


def test_cuts_open_a_gap_in_position():
    block = MemoryBlock(0, torch.zeros(2, 2, 1, 1))
    blocks = (block, replace(block, start=2, cuts=1), replace(block, start=4, cuts=2))
    assert local_positions(blocks, 2, 8) == ((0, 1, 10, 11, 20, 21), 22)
    assert local_positions(blocks, 3, 0) == (tuple(range(6)), 6)
    assert local_positions((), 3, 8) == ((), 0)
    assert runs((0, 1, 10, 11, 12)) == [(0, 2), (10, 3)]


def test_cancel_stops_within_a_step():
    from pack.nodes.common.progress import Progress
    from pack.nodes.memory.state import empty_memory

    class Cancelled(Exception):
        pass

    seen = []

    def check():
        if len(seen) == 3:
            raise Cancelled

    model = ClipModel(lambda x, s, m, c: seen.append(s) or x, lambda x, m, p, t: (), torch.device("cpu"))
    with pytest.raises(Cancelled):
        sample_clip(model, Held(empty_memory(memory_spec("toyworld"))),
                    Clip(PRESETS["toyworld"], 6, seeded_noise(0, (1, 1, 3, 2, 2))), Progress(check_cancel=check))
    assert len(seen) == 3
