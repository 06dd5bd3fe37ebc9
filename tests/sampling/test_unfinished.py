"""A clip that breaks off goes on behind its last finished chunk, and is the same clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from .rolling_films import FILMS, HEIGHT, WIDTH, empty, model, text

FILM = FILMS["longlive_1"]
CLIP_S = 3 * 3 * 4 / 16  # three chunks
FORWARDS = 5  # per chunk: four steps and the clean one


def sample(memory, patcher=None, seed=1, prompt=None, **options):
    from pack.nodes.sampling.nodes import ClipSampler

    tokens = text() if prompt is None else text(prompt)
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(
            model=patcher or model(16), memory=memory, positive=[[tokens, {}]], seed=seed, width=8 * WIDTH,
            height=8 * HEIGHT, clip_seconds=CLIP_S, **options).args


def at_forwards(action, first, last=10**6):
    """A MODEL that does something before these of its forwards, and the list of all that were begun."""
    from comfy.patcher_extension import WrappersMP

    begun, patcher = [], model(16).clone()

    def watch(executor, *args, **kwargs):
        begun.append(0)
        if first <= len(begun) <= last:
            action()
        return executor(*args, **kwargs)

    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watched", watch)
    return patcher, begun


def run_out():
    raise torch.OutOfMemoryError("the card is full")


def press_cancel():
    import comfy.model_management as management

    management.interrupt_current_processing(True)


def counted():
    return at_forwards(lambda: None, 0)


@pytest.fixture(scope="module")
def before():
    """A film of one clip, made by the MODEL of `counted`: a wrapper belongs to what K/V are known by."""
    return sample(empty(FILM), counted()[0])[1]


@pytest.fixture(scope="module")
def unbroken(before):
    return sample(before, counted()[0])


@pytest.mark.comfy
@pytest.mark.parametrize(("chunk", "step"), [(1, 1), (2, 1), (2, 5), (3, 3)])
def test_cancelled_and_queued_again_it_is_the_same_clip_without_sampling_what_was_done(chunk, step, before, unbroken):
    import comfy.model_management as management

    patcher, _ = at_forwards(press_cancel, (chunk - 1) * FORWARDS + step)
    with pytest.raises(management.InterruptProcessingException):
        sample(before, patcher)
    patcher, begun = counted()
    latent, after, report = sample(before, patcher)
    assert len(begun) == (chunk - 1) + (4 - chunk) * FORWARDS  # a finished chunk costs its clean pass
    assert torch.equal(latent["samples"], unbroken[0]["samples"])
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(after.blocks, unbroken[1].blocks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(stored(after), stored(unbroken[1]), strict=True))
    assert ("were kept and not sampled again" in report) == (chunk > 1)
    assert len(counted_again(before)) == 3 * FORWARDS  # whole: nothing is left of it


def counted_again(memory):
    patcher, begun = counted()
    sample(memory, patcher)
    return begun


def stored(memory) -> list:
    return [tensor for block in memory.blocks for layer in block.kv.layers
            for tensor in (*layer.k.tensors().values(), *layer.v.tensors().values())]


@pytest.mark.comfy
def test_memory_that_never_suffices_costs_no_finished_chunk(before, unbroken):
    """All that can be given up is, then the error says what is kept; with room again the clip goes on."""
    patcher, _ = at_forwards(run_out, 2 * FORWARDS + 2)
    with pytest.raises(torch.OutOfMemoryError) as refused:
        sample(before, patcher)
    assert "nothing is left to give up" in str(refused.value)
    assert "Of the clip its first 6 latents are kept" in str(refused.value)
    patcher, begun = counted()
    latent, _, _ = sample(before, patcher)
    assert len(begun) == 2 + FORWARDS
    assert torch.equal(latent["samples"], unbroken[0]["samples"])


@pytest.mark.comfy
@pytest.mark.parametrize(("ran_out", "kept"), [(True, 2), (False, 0)])
def test_who_plans_with_less_after_memory_ran_out_goes_on_too(ran_out, kept, before):
    """After Cancel another precision is another clip: half of it in the old one would be neither."""
    import comfy.model_management as management

    patcher, _ = at_forwards(run_out if ran_out else press_cancel, 2 * FORWARDS + 2)
    with pytest.raises((torch.OutOfMemoryError, management.InterruptProcessingException)):
        sample(before, patcher)
    patcher, begun = counted()
    sample(replace(before, spec=replace(before.spec, precision="int8")), patcher)
    assert len(begun) == kept + (3 - kept) * FORWARDS


@pytest.mark.comfy
@pytest.mark.parametrize("changed", [{"seed": 2}, {"prompt": 5}, {"scene_cut": True}, {"negative": 1, "cfg": 3.0},
                                     {"clip": 0}])
def test_another_clip_takes_nothing_up(changed, before):
    import comfy.model_management as management

    patcher, _ = at_forwards(press_cancel, 2 * FORWARDS + 2)
    with pytest.raises(management.InterruptProcessingException):
        sample(before, patcher)
    memory = empty(FILM) if "clip" in changed else before
    options = {name: value for name, value in changed.items() if name != "clip"}
    if "negative" in options:
        options["negative"] = [[text(8), {}]]
    assert "not sampled again" not in sample(memory, counted()[0], **options)[2]
    assert "not sampled again" in sample(before, counted()[0])[2]


@pytest.mark.comfy
def test_a_damaged_file_counts_as_none_and_a_folder_that_takes_none_costs_no_clip(before, unbroken, tmp_path):
    import comfy.model_management as management

    patcher, _ = at_forwards(press_cancel, 2 * FORWARDS + 2)
    with pytest.raises(management.InterruptProcessingException):
        sample(before, patcher)
    (file,) = (tmp_path / "videomemory" / "unfinished").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert torch.equal(sample(before, counted()[0])[0]["samples"], unbroken[0]["samples"])
    file.parent.rmdir()
    file.parent.write_text("a file where the folder should be")
    assert torch.equal(sample(before, counted()[0])[0]["samples"], unbroken[0]["samples"])


def test_only_the_newest_files_stay(tmp_path):
    import os

    from pack.nodes.sampling.unfinished import KEPT, Unfinished

    shape = (1, 2, 4, 3, 3)
    for i in range(KEPT + 3):
        one = Unfinished(tmp_path, f"clip{i}", "way")
        assert one.keep(torch.full(shape, float(i)), "its first 4 latents") == ""
        os.utime(one.path, (i, i))
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {f"clip{i}" for i in range(3, KEPT + 3)}
    assert Unfinished(tmp_path, f"clip{KEPT}", "way").chunks((1, 2, 9, 3, 3)).mean() == KEPT
    assert Unfinished(tmp_path, f"clip{KEPT}", "other").chunks((1, 2, 9, 3, 3)) is None
    assert Unfinished(tmp_path, f"clip{KEPT}", "way").chunks((1, 2, 3, 3, 3)) is None
    assert Unfinished(tmp_path, f"clip{KEPT}", "way").chunks((1, 3, 9, 3, 3)) is None
