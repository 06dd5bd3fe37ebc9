"""A clip that breaks off goes on behind its last finished chunk, and is the same clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from .rolling_films import FILMS, HEIGHT, WIDTH, empty, model, text

FILM = FILMS["longlive_1"]
CLIP_S = 3 * 3 * 4 / 16  # three chunks
FORWARDS = 5  # per chunk: four steps and the clean one


def sample(memory, patcher=None, seed=1, prompt=None, size=1, **options):
    from pack.nodes.sampling.nodes import ClipSampler

    tokens = text() if prompt is None else text(prompt)
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(
            model=patcher or model(16), memory=memory, positive=[[tokens, {}]], seed=seed,
            width=8 * WIDTH * size, height=8 * HEIGHT * size, clip_seconds=CLIP_S, **options).args


class Watch:
    """Of the forwards that are begun; what happens in which. Beside the MODEL: what a patch holds is part of it."""

    begun, action, first = 0, None, 0


def watch(executor, *args, **kwargs):
    Watch.begun += 1
    if Watch.action is not None and Watch.begun >= Watch.first:
        Watch.action()
    return executor(*args, **kwargs)


def watched(action=None, first=0):
    """The MODEL that does something before each of its forwards from the first one on."""
    from comfy.patcher_extension import WrappersMP

    Watch.begun, Watch.action, Watch.first = 0, action, first
    patcher = model(16).clone()
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watched", watch)
    return patcher


def breaks(memory, action, first, **options):
    """Sample until the action stops it."""
    import comfy.model_management as management

    with pytest.raises((torch.OutOfMemoryError, management.InterruptProcessingException)) as stopped:
        sample(memory, watched(action, first), **options)
    return stopped.value


def goes_on(memory, **options):
    """(LATENT, memory, report, forwards) of the whole clip."""
    result = sample(memory, watched(), **options)
    return *result, Watch.begun


def run_out():
    raise torch.OutOfMemoryError("the card is full")


def press_cancel():
    import comfy.model_management as management

    management.interrupt_current_processing(True)


@pytest.fixture(scope="module")
def before():
    """A film of one clip."""
    return sample(empty(FILM), watched())[1]


@pytest.fixture(scope="module")
def unbroken(before):
    return sample(before, watched())


def stored(memory) -> list:
    return [tensor for block in memory.blocks for layer in block.kv.layers
            for tensor in (*layer.k.tensors().values(), *layer.v.tensors().values())]


@pytest.mark.comfy
@pytest.mark.parametrize(("chunk", "step"), [(1, 1), (2, 1), (2, 5), (3, 3)])
def test_cancelled_and_queued_again_it_is_the_same_clip_without_sampling_what_was_done(chunk, step, before, unbroken):
    breaks(before, press_cancel, (chunk - 1) * FORWARDS + step)
    latent, after, report, forwards = goes_on(before)
    assert forwards == (chunk - 1) + (4 - chunk) * FORWARDS  # a finished chunk costs its clean pass
    assert torch.equal(latent["samples"], unbroken[0]["samples"])
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(after.blocks, unbroken[1].blocks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(stored(after), stored(unbroken[1]), strict=True))
    assert ("were kept and not sampled again" in report) == (chunk > 1)
    assert goes_on(before)[3] == 3 * FORWARDS  # whole: nothing is left of it


@pytest.mark.comfy
def test_a_clip_that_was_taken_up_says_nothing_about_its_plan(before, tmp_path):
    """Its time is not that of a clip: only whole ones are kept for the next prediction."""
    from pack.nodes.budget.learned import read_records
    from pack.nodes.common.types import PhaseCost, RenderPlan

    plan = RenderPlan(8 * WIDTH, 8 * HEIGHT, 9, before.spec, 0, 1, 0, (PhaseCost("sampling", 2**20),), ())
    file = tmp_path / "videomemory" / "budget.json"
    breaks(before, press_cancel, 2 * FORWARDS + 2, plan=plan)
    assert "not sampled again" in goes_on(before, plan=plan)[2] and read_records(file) == ()
    goes_on(before, plan=plan)
    assert [record.phase for record in read_records(file)] == ["sampling"]


@pytest.mark.comfy
def test_a_second_break_loses_nothing_of_the_first(before, unbroken):
    breaks(before, press_cancel, 2 * FORWARDS + 2)
    breaks(before, press_cancel, 2)  # while the second chunk is only committed
    latent, _, _, forwards = goes_on(before)
    assert forwards == 2 + FORWARDS and torch.equal(latent["samples"], unbroken[0]["samples"])


@pytest.mark.comfy
def test_memory_that_never_suffices_costs_no_finished_chunk(before, unbroken):
    """All that can be given up is, then the error says what is kept; with room again the clip goes on."""
    error = breaks(before, run_out, 2 * FORWARDS + 2)
    assert "nothing is left to give up" in str(error) and "Of the clip its first 6 latents are kept" in str(error)
    latent, _, _, forwards = goes_on(before)
    assert forwards == 2 + FORWARDS
    assert torch.equal(latent["samples"], unbroken[0]["samples"])


@pytest.mark.comfy
@pytest.mark.parametrize(("action", "kept"), [(run_out, 2), (press_cancel, 0)])
def test_who_plans_with_less_after_memory_ran_out_goes_on_too(action, kept, before, unbroken):
    """After Cancel another precision is another clip: half of it in the old one would be neither. It costs nothing of
    what was kept."""
    breaks(before, action, 2 * FORWARDS + 2)
    smaller = replace(before, spec=replace(before.spec, precision="int8"))
    breaks(smaller, press_cancel, kept + 1)
    assert goes_on(smaller)[3] == kept + (3 - kept) * FORWARDS
    if not kept:
        latent, _, _, forwards = goes_on(before)
        assert forwards == 2 + FORWARDS and torch.equal(latent["samples"], unbroken[0]["samples"])


@pytest.mark.comfy
@pytest.mark.parametrize("changed", [{"seed": 2}, {"prompt": 5}, {"scene_cut": True}, {"negative": 1, "cfg": 3.0},
                                     {"clip": 0}, {"retrieved": 3}, {"size": 2}])
@pytest.mark.parametrize("action", [run_out, press_cancel])
def test_another_clip_takes_nothing_up_and_loses_nothing(changed, action, before):
    breaks(before, action, 2 * FORWARDS + 2)
    memory = empty(FILM) if {"clip", "size"} & set(changed) else before
    if "retrieved" in changed:
        memory = replace(before, spec=replace(before.spec, retrieved_latents=3))
    options = {name: value for name, value in changed.items() if name not in ("clip", "retrieved")}
    if "negative" in options:
        options["negative"] = [[text(8), {}]]
    assert "not sampled again" not in goes_on(memory, **options)[2]
    assert "not sampled again" in goes_on(before)[2]


@pytest.mark.comfy
def test_another_shift_takes_nothing_up(before):
    """A setting of a patch is part of the MODEL."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    def shifted(by, action=None, first=0):
        return ModelSamplingSD3().patch(watched(action, first), by)[0]

    with pytest.raises(torch.OutOfMemoryError):
        sample(before, shifted(8.0, run_out, 2 * FORWARDS + 2))
    assert "not sampled again" not in sample(before, shifted(3.0))[2]
    assert "not sampled again" in sample(before, shifted(8.0))[2]


@pytest.mark.comfy
def test_a_damaged_file_counts_as_none_and_a_folder_that_takes_none_costs_no_clip(before, unbroken, tmp_path):
    breaks(before, press_cancel, 2 * FORWARDS + 2)
    (file,) = (tmp_path / "videomemory" / "unfinished").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert torch.equal(goes_on(before)[0]["samples"], unbroken[0]["samples"])
    file.parent.rmdir()
    file.parent.write_text("a file where the folder should be")
    assert torch.equal(goes_on(before)[0]["samples"], unbroken[0]["samples"])


class Kv:
    """Stands for the keys and values of a chunk."""


@pytest.mark.parametrize("ran_out", [False, True])
def test_what_is_given_up_or_forgotten_is_freed_while_the_clip_is_made(ran_out):
    """Nothing but the memory at work holds K/V: neither those that were stored anew nor those that left the window."""
    import gc
    import weakref

    from pack.nodes.memory.state import commit, empty_memory
    from pack.nodes.sampling.chunk_loop import Clip, ClipModel, Held, sample_clip, seeded_noise
    from pack.nodes.sampling.presets import PRESETS, memory_spec

    memory, alive = empty_memory(memory_spec("toyworld")), []
    for _ in range(3):
        memory = commit(memory, torch.zeros(2, 3, 4, 4), Kv())
    began_with, held = [weakref.ref(block.kv) for block in memory.blocks], Held(memory)
    del memory

    def denoise(x, sigma, memory, clean):
        gc.collect()
        alive.append(sum(ref() is not None for ref in began_with))
        if ran_out and len(alive) == 2:
            raise torch.OutOfMemoryError("the card is full")
        return x

    def give_up(held):
        blocks = tuple(replace(block, kv=Kv()) for block in held.memory.blocks)
        held.memory = replace(held.memory, blocks=blocks)
        return True

    model = ClipModel(denoise, lambda *_: ((Kv(), None),), torch.device("cpu"))
    sample_clip(model, held, Clip(PRESETS["toyworld"], 9, seeded_noise(5, (1, 2, 3, 4, 4))), retreat=give_up)
    assert alive[:2] == [3, 3]
    assert alive[2] == (0 if ran_out else 3)
    assert alive[-1] == (0 if ran_out else 1)  # the sink's


def test_only_the_newest_files_stay(tmp_path):
    import os

    from pack.nodes.sampling.presets import memory_spec
    from pack.nodes.sampling.unfinished import KEPT, Unfinished

    shape, spec = (1, 2, 4, 3, 3), memory_spec("toyworld")
    (tmp_path / "killed.safetensors.partial").write_text("")
    os.utime(tmp_path / "killed.safetensors.partial", (0, 0))
    for i in range(KEPT + 3):
        one = Unfinished(tmp_path, [i], spec)
        assert one.keep(torch.full(shape, float(i)), "its first 4 latents") == ""
        os.utime(one.path, (i, i))
    assert {path.name for path in tmp_path.iterdir()} == {
        Unfinished(tmp_path, [i], spec).path.name for i in range(3, KEPT + 3)}
    assert Unfinished(tmp_path, [KEPT], spec).chunks((1, 2, 9, 3, 3)).mean() == KEPT
    assert Unfinished(tmp_path, [KEPT], replace(spec, precision="int8")).chunks((1, 2, 9, 3, 3)) is None
    assert Unfinished(tmp_path, [KEPT], replace(spec, placement="ram")).chunks((1, 2, 9, 3, 3)) is not None
    assert Unfinished(tmp_path, [KEPT], spec).chunks((1, 2, 3, 3, 3)) is None
    assert Unfinished(tmp_path, [KEPT], spec).chunks((1, 3, 9, 3, 3)) is None
