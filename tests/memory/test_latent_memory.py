"""Overlap arithmetic, anchors and colours of latent memory."""

from __future__ import annotations

import pytest
import torch
from pack.nodes.memory.colour import channel_statistics, hold_colours
from pack.nodes.memory.latent_memory import (
    check_latent_spec,
    clip_start,
    latents_of,
    make_anchor,
    overlap_frames,
    remember,
)
from pack.nodes.memory.state import empty_memory
from pack.nodes.sampling.presets import memory_spec


def after_one_clip(**options):
    memory = empty_memory(memory_spec("wan22_ti2v_5b", **options))
    latents = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    frames = torch.linspace(0, 1, 21)[:, None, None, None].expand(21, 32, 32, 3)
    return remember(memory, latents, frames, make_anchor(latents, frames[0])), latents, frames


def test_overlap_arithmetic():
    assert [overlap_frames(k) for k in (1, 2, 3, 4)] == [1, 5, 9, 13]
    assert [latents_of(n) for n in (1, 5, 9, 13)] == [1, 2, 3, 4]


def test_remembers_the_last_frames_and_the_first_latent():
    memory, latents, frames = after_one_clip(overlap_latents=2)
    assert memory.overlap.shape[0] == 5 and memory.overlap.dtype == torch.uint8
    assert (memory.overlap.float() / 255 - frames[-5:]).abs().max() < 0.5 / 255 + 1e-6
    assert torch.equal(memory.anchor.latents, latents[:, :1]) and memory.latents_done == 6
    start = clip_start(memory, None, False, reanchors=True)
    assert (len(start.frames), start.dropped, start.is_continued) == (5, 2, True)


def test_anchor_comes_back_every_so_many_clips():
    memory, _, _ = after_one_clip(reanchor_clips=1)
    start = clip_start(memory, None, False, reanchors=True)
    assert len(start.frames) == 5 and start.dropped == 2 and start.is_anchored
    assert torch.equal(start.frames[0], torch.zeros(32, 32, 3)) and (start.frames[-1] == 1).all()
    assert not clip_start(memory, None, False, reanchors=False).is_anchored


def test_full_strength_brings_the_end_of_a_clip_to_the_anchors_colours():
    torch.manual_seed(0)
    first, later = torch.randn(3, 50, 8, 8), torch.randn(3, 50, 8, 8) * 2 + 1
    mean, std = channel_statistics(first)
    assert hold_colours(later, mean, std, 0.0) is later
    held = hold_colours(later, mean, std, 1.0, given=2)
    assert torch.equal(held[:, :3], later[:, :3]) and not torch.equal(held[:, 3], later[:, 3])
    now_mean, now_std = channel_statistics(held[:, -1:])
    assert (now_mean - mean).abs().max() < 0.5 and (now_std - std).abs().max() < 0.25
    half = hold_colours(later, mean, std, 0.5, given=2)
    assert torch.allclose(half[:, -1], (later[:, -1] + held[:, -1]) / 2, atol=1e-5)
    change = (held - later).abs().mean((0, 2, 3))
    assert change[3] < change[14] < change[27] < change[-1]  # it grows


def test_a_single_new_latent_is_left_as_it_is():
    latents, one = torch.randn(3, 3, 4, 4), torch.ones(3)
    assert hold_colours(latents, 0 * one, one, 0.5, given=2) is latents
    assert hold_colours(latents, 0 * one, one, 0.5, given=1) is not latents


def test_a_channel_without_spread_is_moved_and_not_blown_up():
    flat, one = torch.full((3, 4, 2, 2), 5.0), torch.ones(3)
    held = hold_colours(flat, 2 * one, one, 1.0)
    assert torch.equal(held[:, 0], flat[:, 0]) and torch.allclose(held[:, -1], torch.full((3, 2, 2), 2.0))


@pytest.mark.parametrize(("options", "said"), [
    ({"overlap_latents": 5}, "overlap does not fit this checkpoint, but got 5; allowed: 1 to 4 latents"),
    ({"colour_hold": 1.5}, "colour hold is out of range, but got 1.5")])
def test_values_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        check_latent_spec(memory_spec("wan22_ti2v_5b", **options), 4)
