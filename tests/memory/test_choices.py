"""What people ask of Persistent Memory: seconds and frames become latents, contradictions are refused in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pack.nodes.common.types import MemorySpec
from pack.nodes.memory.choices import Choices, ignored, spec_of
from pack.nodes.memory.words import in_short, promise
from pack.nodes.sampling.presets import PRESETS, custom_preset, memory_spec


@pytest.mark.parametrize("preset", PRESETS)
def test_untouched_settings_give_the_recipes_memory(preset):
    assert spec_of(Choices(preset)) == memory_spec(preset)
    assert ignored(Choices(preset)) == ()


@pytest.mark.parametrize(("choices", "places"), [  # sink, pinned, retrieved, window
    (Choices("longlive_2"), (8, 0, 0, 16)),
    (Choices("longlive_2", prompt_change="pin"), (8, 8, 0, 8)),
    (Choices("longlive_2", retrieved_seconds=1.0), (8, 0, 8, 8)),
    (Choices("longlive_2", 0.0, 0.0, prompt_change="pin", pinned_seconds=2.0, retrieved_seconds=1.0), (0, 16, 8, 8)),
    (Choices("longlive_2", window_seconds=8.0), (8, 0, 0, 48)),
    (Choices("longlive_2", window_seconds=16.0), (8, 0, 0, 96)),
    (Choices("self_forcing", window_seconds=16.0), (0, 0, 0, 66)),
])
def test_seconds_become_whole_chunks(choices, places):
    spec = spec_of(choices)
    assert (spec.sink_latents, spec.pinned_latents, spec.retrieved_latents, spec.window_latents) == places


@pytest.mark.parametrize(("frames", "latents"), [(0, 1), (1, 1), (2, 2), (5, 2), (6, 3), (9, 3), (13, 4)])
def test_frames_of_overlap_are_rounded_up_to_what_the_vae_encodes(frames, latents):
    assert spec_of(Choices("wan22_ti2v_5b", overlap_frames=frames)).overlap_latents == latents


def test_a_recipe_makes_the_memory_of_a_checkpoint_that_is_not_in_the_list():
    recipe = custom_preset("Mine", 12.0, 4, 4, 8, pin=4)
    spec = spec_of(Choices("custom", recipe=recipe, prompt_change="pin"))
    assert (spec.custom, spec.preset, spec.chunk_latents, spec.sink_latents) == (recipe, "custom", 4, 4)
    assert (spec.pinned_latents, spec.window_latents) == (4, 4)
    assert promise(spec).startswith("Mine: 12 frames per second, made in chunks of 4 latents (1.33 s).")


@pytest.mark.parametrize(("choices", "said"), [
    (Choices("custom"), "the checkpoint is custom, but got no recipe"),
    (Choices("toyworld", recipe=custom_preset("Mine", 12.0, 4, 4, 8)), "another checkpoint is chosen, but got 'toyw"),
    (Choices("longlive_2", pinned_seconds=2.0), r"pinned \(seconds\) 2 with 'keep' on a new prompt; allowed: .* 'pin'"),
    (Choices("longlive_1", prompt_change="recache", pinned_seconds=2.0), r"\(seconds\) 2 with 'recache'"),
    (Choices("longlive_2", prompt_change="pin", pinned_seconds=0.0), "pin needs seconds to pin, but got '0'"),
    (Choices("self_forcing", prompt_change="pin"), "the recipe of this checkpoint pins nothing"),
    (Choices("longlive_2", prompt_change="drop"), "unknown prompt_change, but got 'drop'"),
    (Choices("wan21_vace", reanchor_clips=2), "cannot be re-anchored, but got every 2 clips; allowed: 0"),
    (Choices("svd", overlap_frames=5), "Diffusion XT cannot take this overlap, but got 5 frames; allowed: 1 to 1 fr"),
    (Choices("wan22_svi_pro", overlap_frames=1), "cannot take this overlap, but got 1 frames; allowed: 5 to 13 frames"),
    (Choices("wan22_ti2v_5b", overlap_frames=-3), r"'overlap \(frames\)' is below its smallest value"),
    (Choices("wan22_ti2v_5b", reanchor_clips=-1), r"'re-anchor \(every n clips\)' is below its smallest value"),
    (Choices("wan22_ti2v_5b", colour_hold=1.5), "colour hold is out of range"),
    (Choices("sora"), "unknown checkpoint preset, but got 'sora'"),
])
def test_contradictions_are_refused(choices, said):
    with pytest.raises(ValueError, match=said):
        spec_of(choices)


def test_settings_of_the_other_kind_are_left_aside_and_named():
    rolling = Choices("toyworld", overlap_frames=5, reanchor_clips=2, colour_hold=0.5)
    assert spec_of(rolling) == memory_spec("toyworld")
    assert ignored(rolling) == ("overlap (frames)", "re-anchor (every n clips)", "colour hold")
    latent = Choices("wan22_ti2v_5b", 8.0, 2.0, "int8", "ram", "recache", 1.0, 1.0, None, 0, 0, 0.0)
    assert spec_of(latent) == replace(memory_spec("wan22_ti2v_5b"), colour_hold=0.0)
    assert ignored(latent) == ("window (seconds)", "first seconds kept", "precision", "placement", "on a new prompt",
                               "pinned (seconds)", "retrieved (seconds)")
    assert "ignored: window (seconds), first seconds kept" in promise(spec_of(latent), ignored(latent))


@pytest.mark.parametrize(("choices", "inside"), [
    (Choices("longlive_2"), True), (Choices("longlive_2", prompt_change="pin"), True),
    (Choices("longlive_2", retrieved_seconds=1.3), True), (Choices("longlive_2", window_seconds=4.0), False),
    (Choices("longlive_2", prompt_change="pin", retrieved_seconds=1.3), False), (Choices("toyworld", 8.0), False),
    (Choices("self_forcing", 2.0, sink_seconds=1.5), True),
])
def test_the_report_says_whether_the_checkpoint_was_trained_for_it(choices, inside):
    text = promise(spec_of(choices))
    assert ("Inside what the checkpoint was trained with" in text) == inside
    assert ("BEYOND what the checkpoint was trained with" in text) != inside


def test_the_report_of_a_rolling_memory_counts_every_place():
    text = promise(spec_of(Choices("longlive_2", 16.0, -1.0, "4bit", "ram", "pin", -1.0, 2.0)))
    for part in ("sees at most 128 latents (21.33 s)", "(sink): 8 latents (1.33 s), for the whole film",
                 "(pinned): 8 latents (1.33 s)", "(retrieved): 16 latents (2.67 s)", "window: 96 latents (16.00 s)",
                 "104 latents (17.33 s) more in view than its 24 latents (4.00 s)", "Up to 16 chunks",
                 "128 latents (21.33 s), are kept", "in 4 bits (the first seconds in 8)", "copied to the card layer"):
        assert part in text, part
    plain = promise(memory_spec("longlive_2"))
    assert "retrieved): none" in plain and "Up to" not in plain


def test_the_report_of_a_latent_memory_says_frames():
    text = promise(spec_of(Choices("wan22_ti2v_5b", overlap_frames=5, reanchor_clips=3, colour_hold=0.5)))
    for part in ("the last 5 frames of the clip before (2 latents)", "its recipe has 1", "Every 3 clips", "by 0.5",
                 "121 frames at 24 per second"):
        assert part in text, part
    assert "as in its recipe" in promise(memory_spec("wan21_vace")) and "Colours of later clips are free" in promise(
        spec_of(Choices("svd", colour_hold=0.0)))


def test_in_one_sentence():
    spec = MemorySpec("longlive_2", 24.0, 8, 8, 16, "int8", "ram", "pin", 8, 8)
    assert in_short(spec) == ("Memory: 1.33 s from the start, 1.33 s pinned, 1.33 s brought back and the last 2.67 s, "
                              "int8, in RAM.")
    assert in_short(memory_spec("svd")).startswith("Latent memory: the film's first frame, the last frame of the clip")
