"""The toy world: its constants, its prompts, and the descriptions ("specs") of its videos.

A video is a few clips joined by hard cuts; a clip is 1 to 3 chunks of 3 latent frames. With the Wan VAE (4x in time,
first frame alone) chunk 0 has 9 pixel frames and every later chunk 12. One hero (shape, body colour, hat colour) acts
in all clips of a video; every cut changes the scene. Specs are a deterministic function of (videos, seed, chunks).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

WIDTH, HEIGHT, FPS = 128, 80, 8
CHUNK_LATENTS = 3
LATENT_SHAPE = (16, CHUNK_LATENTS, HEIGHT // 8, WIDTH // 8)  # of one chunk: channels, latents, height, width
SHAPES = ("circle", "square", "triangle", "star")
COLORS = ("red", "yellow", "green", "cyan", "blue", "pink")
PALETTE = torch.tensor(
    [[225, 40, 45], [245, 215, 40], [45, 185, 60], [40, 210, 215], [50, 80, 230], [235, 70, 200]], dtype=torch.float32
) / 255  # [6, RGB] in 0..1
SCENES = ("forest", "desert", "sea", "city", "snow", "cave")
ACTIONS = ("walks left", "walks right", "jumps", "spins", "waves", "runs away")
WALK_LEFT, WALK_RIGHT, JUMP, SPIN, WAVE, RUN_AWAY = range(6)
EMPTY = len(ACTIONS)  # the action of a clip without the hero

RANDOM_NUMBERS = 24  # uniform numbers per clip: 0-13 place the scenery, 20-23 the hero
CLIP_CHUNKS_SHARES = {1: 0.2, 2: 0.55, 3: 0.25}
IDENTITY_SHARE = 0.25  # later clips whose prompt names the identity
ANONYMOUS_START_SHARE = 0.12  # first clips whose prompt does not
EMPTY_SHARE = 0.12  # taken half and half from "runs away" and from showing nobody
ACTION_SHARES = (0.2, 0.2, 0.16, 0.14, 0.13, 0.17 - EMPTY_SHARE / 2, EMPTY_SHARE / 2)
FIRST_ACTION_SHARES = (0.24, 0.24, 0.2, 0.14, 0.14, 0.04)  # the hero is always in the first clip


@dataclass(frozen=True)
class Specs:
    """What happens in n videos of C chunks; per-clip arrays have C columns: a video has at most as many clips."""

    shape: np.ndarray  # [n] index into SHAPES
    body: np.ndarray  # [n] index into COLORS
    hat: np.ndarray  # [n] index into COLORS, never the body's
    clip: np.ndarray  # [n, C] clip index of each chunk
    scene: np.ndarray  # [n, C] per clip, index into SCENES
    action: np.ndarray  # [n, C] per clip, index into ACTIONS or EMPTY
    names_identity: np.ndarray  # [n, C] per clip: does the prompt name shape and colours?
    uniforms: np.ndarray  # [n, C, RANDOM_NUMBERS] per clip, float32

    def video(self, index: int) -> Specs:
        """The specs of one video, still with a leading axis of length 1."""
        return Specs(**{field.name: getattr(self, field.name)[index : index + 1] for field in fields(self)})


def caption(scene: int, action: int, identity: tuple[int, int, int] | None = None) -> str:
    """The prompt of one clip; `identity` = (shape, body, hat), or None for "the hero"."""
    if action == EMPTY:
        return f"the empty {SCENES[scene]}"
    who = "the hero"
    if identity is not None:
        shape, body, hat = identity
        who = f"a {COLORS[body]} {SHAPES[shape]} hero with a {COLORS[hat]} hat"
    preposition = "by" if SCENES[scene] == "sea" else "in"
    return f"{who} {ACTIONS[action]} {preposition} the {SCENES[scene]}"


def caption_table() -> tuple[list[str], dict[tuple[int, ...], int]]:
    """Every prompt of the world, and its row by (scene, action) or (scene, action, shape, body, hat)."""
    keys: list[tuple[int, ...]] = [(scene, action) for scene in range(len(SCENES)) for action in range(EMPTY + 1)]
    keys += [
        (scene, action, shape, body, hat)
        for scene in range(len(SCENES))
        for action in range(len(ACTIONS))
        for shape in range(len(SHAPES))
        for body in range(len(COLORS))
        for hat in range(len(COLORS))
        if body != hat
    ]
    captions = [caption(key[0], key[1], key[2:] or None) for key in keys]
    return captions, {key: row for row, key in enumerate(keys)}


def frames_of_chunks(chunks: int) -> int:
    """Pixel frames of a video of that many chunks."""
    return 4 * CHUNK_LATENTS * chunks - 3


def chunk_of_frame(chunks: int) -> np.ndarray:
    """The chunk each pixel frame belongs to, [frames]."""
    return (np.arange(frames_of_chunks(chunks)) + 3) // 4 // CHUNK_LATENTS


def sample_specs(videos: int, seed: int, chunks: int = 8, clip_chunks: int | None = None) -> Specs:
    """Describe `videos` random videos; `clip_chunks` fixes the clips' length, otherwise it is 1 to 3 chunks."""
    random = np.random.default_rng([seed, videos, chunks])
    shape, body = random.integers(0, 4, videos), random.integers(0, 6, videos)
    hat = (body + random.integers(1, 6, videos)) % 6
    if clip_chunks:
        clip = np.tile(np.arange(chunks) // clip_chunks, (videos, 1))
    else:
        clip = _random_clips(random, videos, chunks)
    scene = np.zeros((videos, chunks), int)
    scene[:, 0] = random.integers(0, 6, videos)
    for index in range(1, chunks):
        scene[:, index] = (scene[:, index - 1] + random.integers(1, 6, videos)) % 6
    action = random.choice(7, size=(videos, chunks), p=ACTION_SHARES)
    action[:, 0] = random.choice(6, size=videos, p=FIRST_ACTION_SHARES)
    names_identity = random.random((videos, chunks)) < IDENTITY_SHARE
    names_identity[:, 0] = random.random(videos) >= ANONYMOUS_START_SHARE
    uniforms = random.random((videos, chunks, RANDOM_NUMBERS)).astype(np.float32)
    return Specs(shape, body, hat, clip, scene, action, names_identity, uniforms)


def _random_clips(random: np.random.Generator, videos: int, chunks: int) -> np.ndarray:
    lengths = random.choice(list(CLIP_CHUNKS_SHARES), size=(videos, chunks), p=list(CLIP_CHUNKS_SHARES.values()))
    return np.stack([np.repeat(np.arange(chunks), row)[:chunks] for row in lengths])


def chunk_captions(specs: Specs, rows: dict[tuple[int, ...], int]) -> np.ndarray:
    """The row of `caption_table` that describes each chunk, [n, C] int64."""
    out = np.zeros(specs.clip.shape, np.int64)
    for video, chunk in np.ndindex(*specs.clip.shape):
        clip = specs.clip[video, chunk]
        key = (int(specs.scene[video, clip]), int(specs.action[video, clip]))
        if key[1] != EMPTY and specs.names_identity[video, clip]:
            key += (int(specs.shape[video]), int(specs.body[video]), int(specs.hat[video]))
        out[video, chunk] = rows[key]
    return out
