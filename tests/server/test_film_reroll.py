"""Clips made again by choice, through the real server: what is sampled, what is kept, and that it stays so."""

from __future__ import annotations

import copy

import pytest

from .films import (
    CLIPS,
    clip_digests,
    forget,
    render_inputs,
    run,
    run_and_read,
    run_until_interrupted,
    stage,
    with_scene,
)

pytestmark = [pytest.mark.server, pytest.mark.slow]


def with_choice(prompt: dict, regenerate: str, clip: int, seed: int) -> dict:
    changed = copy.deepcopy(prompt)
    render_inputs(changed).update(regenerate=regenerate, regenerate_clip=clip, regenerate_seed=seed)
    return changed


def test_only_and_from_make_their_clips_and_what_was_chosen_stays(server, film):
    run(server, film)
    first = clip_digests(server, film)

    only = with_choice(film, "only", 3, 11)
    executed, status = run_and_read(server, only)
    assert stage(executed, "sample") == [2]
    assert status == (f"{CLIPS - 1} reused, 1 generated (clip 3). Kept as they were, made with the memory of another "
                      "take of clip 3: clips 4 to 6.")
    chosen = clip_digests(server, only)
    assert [a == b for a, b in zip(first, chosen, strict=True)] == [True, True, False, True, True, True]
    assert run(server, only) == []
    forget(server)
    executed, status = run_and_read(server, only)
    assert stage(executed, "sample") == [] and status == f"{CLIPS} reused, 0 generated."
    assert stage(run(server, film), "sample") == [] and clip_digests(server, film) == chosen

    later = with_choice(film, "from", 5, 12)
    run_until_interrupted(server, later, "clip05_sample", 2)  # in the last clip
    executed, status = run_and_read(server, later)
    assert stage(executed, "sample") == [5] and status == f"{CLIPS - 1} reused, 1 generated (clip 6)."
    longer = clip_digests(server, later)
    assert longer[:4] == chosen[:4] and not set(longer[4:]) & set(chosen[4:])
    assert stage(run(server, film), "sample") == []

    back = with_choice(film, "only", 3, render_inputs(film)["seed"])
    assert stage(run(server, back), "sample") == [2]
    assert clip_digests(server, back)[:4] == first[:4]


def test_only_with_a_new_text_changes_its_own_clip(server, film):
    run(server, film)
    first = clip_digests(server, film)
    changed = with_choice(with_scene(film, 1, "{hero} waves in the cave"), "only", 2, render_inputs(film)["seed"])
    assert stage(run(server, changed), "sample") == [1]
    after = clip_digests(server, changed)
    assert [a == b for a, b in zip(first, after, strict=True)] == [True, False, True, True, True, True]


def test_the_clip_must_be_in_the_film(server, film):
    from pack.scripts.harness.errors import CannotContinue

    with pytest.raises(CannotContinue, match="clip to make again is not in the film, but got 7; allowed: 1 to 6"):
        run(server, with_choice(film, "only", 7, 1))
