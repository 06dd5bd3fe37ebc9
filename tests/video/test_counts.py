"""Frame counts of films, from latents to the last frame of the file: exact for every length, overlap and frame rate."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack.nodes.interpolation.retime import Tally, exact_fps, output_count, retime
from pack.nodes.memory.latent_memory import latents_of, overlap_frames
from pack.nodes.video.decode import CONTEXT_LATENTS, frame_count

RATES = st.sampled_from([6.0, 8.0, 12.5, 15.0, 16.0, 23.976, 24.0, 25.0, 29.97, 30.0, 48.0, 59.94, 60.0])
CLIPS = st.lists(st.integers(1, 40), min_size=1, max_size=6)  # latents
CALMLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy


def clip_counts(clips: list[int]) -> list[int]:
    """Frames of each clip's file: every later clip is decoded behind the latents before it."""
    done, counts = 0, []
    for latents in clips:
        counts.append(frame_count(latents, min(done, CONTEXT_LATENTS)))
        done += latents
    return counts


@CALMLY
@given(CLIPS)
def test_a_film_in_clips_has_the_frames_of_the_film_in_one_go(clips):
    counts = clip_counts(clips)
    assert sum(counts) == 4 * sum(clips) - 3 and counts[1:] == [4 * latents for latents in clips[1:]]


@CALMLY
@given(st.integers(1, 200), st.integers(0, 3))
def test_an_overlap_is_as_many_latents_as_its_frames_encode_to(latents, more):
    frames = overlap_frames(latents)
    assert frames == 4 * latents - 3 and latents_of(frames) == latents == latents_of(frames + more)


@CALMLY
@given(CLIPS, st.integers(1, 4))
def test_what_a_clip_was_given_of_the_one_before_is_not_in_the_film_twice(clips, overlap):
    """Latent memory: a later clip is sampled with its overlap in front, which becomes context and is dropped."""
    frames = frame_count(clips[0], 0)
    for latents in clips[1:]:
        sampled = overlap + latents
        kept = frame_count(sampled - overlap, overlap)
        assert kept == overlap_frames(sampled) - overlap_frames(overlap)
        frames += kept
    assert frames == sum(clip_counts(clips))


@CALMLY
@given(CLIPS, RATES, RATES)
def test_the_film_at_another_rate_has_every_frame_that_its_seconds_hold(clips, source, target):
    count, rate, wanted = sum(clip_counts(clips)), exact_fps(source), exact_fps(target)
    film = output_count(count, rate, wanted)
    seconds = Fraction(count) / rate
    assert (film - 1) / wanted < seconds <= film / wanted
    numbers = (torch.full((1, 1, 3), float(number)) for number in range(count))
    made = list(retime(numbers, count, rate, wanted, None, Tally()))
    assert len(made) == film
    shown = [int(frame[0, 0, 0]) for frame in made]
    assert shown == [min(count - 1, int(j * rate / wanted)) for j in range(film)]
