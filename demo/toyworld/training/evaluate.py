"""Identity retention over many 4-clip films, the tables of the model card.

Clip 1 names the hero, clips 2 to 4 do not (except `reanchor`); all conditions share prompts and noise. Judged on the
second chunk of every clip, decoded on its own. A condition is `full`, `none`, `window`, `window3`, `reanchor`, `nf4` or
a K/V precision of fake_quant.py; with the prefix `empty-` clip 3 shows an empty scene.

    python evaluate.py FOLDER [--films 48] [--conditions full,none,...] [--json OUT.json]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from classify import NONE, classify
from dit import WanDiT
from fake_quant import KV_PRECISIONS, round_blocks_to_nf4
from sample import CLIP_CHUNKS, SHIFT, STEPS, Memory, Text, decode, load, rollout, sigmas
from text_encoder import TextEncoder
from torch import Tensor
from vae import WanVAE
from world import ACTIONS, COLORS, EMPTY, JUMP, LATENT_SHAPE, SCENES, SHAPES, SPIN, WALK_LEFT, WALK_RIGHT, WAVE, caption

CLIPS, EMPTY_CLIP = 4, 2
CHUNKS = CLIPS * CLIP_CHUNKS
FILM_SEED, NOISE_SEED, BATCH = 11, 123, 8
CONDITIONS = (
    *("full", "none", "window", "reanchor", "empty-full", "empty-window"),
    *("int8", "int4", "int4_groups_of_32", "nf4"),
)


@dataclass(frozen=True)
class Film:
    """What one film shows."""

    identity: tuple[int, int, int]  # shape, body, hat
    scenes: list[int]
    actions: list[int]

    def prompts(self, named_clips: Sequence[int]) -> list[str]:
        """The prompt of every clip; those in `named_clips` name the identity."""
        shown = enumerate(zip(self.scenes, self.actions, strict=True))
        return [caption(*what, self.identity if clip in named_clips else None) for clip, what in shown]


def plan_films(films: int, empty_clip: int | None = None) -> list[Film]:
    """Random films without exits; the first clip is a walk."""
    random = np.random.default_rng(FILM_SEED)
    out = []
    for _ in range(films):
        shape, body = int(random.integers(len(SHAPES))), int(random.integers(len(COLORS)))
        hat = (body + int(random.integers(1, len(COLORS)))) % len(COLORS)
        scenes = random.permutation(len(SCENES))[:CLIPS].tolist()
        actions = [int(random.choice([WALK_LEFT, WALK_RIGHT]))]
        actions += [int(random.choice([WALK_LEFT, WALK_RIGHT, JUMP, SPIN, WAVE])) for _ in range(CLIPS - 1)]
        if empty_clip is not None:
            actions[empty_clip] = EMPTY
        out.append(Film((shape, body, hat), scenes, actions))
    return out


def evaluate(models: tuple[WanDiT, WanVAE, TextEncoder], condition: str, films: int) -> dict[str, object]:
    """Shares per clip of films that show what was asked for, and all three by action over clips 2 to 4."""
    name = condition.removeprefix("empty-")
    plan = plan_films(films, EMPTY_CLIP if name != condition else None)
    latents = _generate(models, name, [film.prompts(range(CLIPS) if name == "reanchor" else (0,)) for film in plan])
    hits = [_judge(models[1], film, one) for film, one in zip(plan, latents, strict=True)]
    hits = np.array(hits)  # [films, clips, 3]
    all_three = hits.all(2)
    actions = np.array([film.actions for film in plan])[:, 1:]
    by_action = {
        ACTIONS[action]: [round(float(all_three[:, 1:][actions == action].mean()), 3), int((actions == action).sum())]
        for action in range(len(ACTIONS))
        if (actions == action).any()
    }
    shares = {part: hits[:, :, index].mean(0).round(3).tolist() for index, part in enumerate(("body", "hat", "shape"))}
    return {**shares, "all_three": all_three.mean(0).round(3).tolist(), "all_three_by_action": by_action}


def _generate(models: tuple[WanDiT, WanVAE, TextEncoder], name: str, prompts: list[list[str]]) -> Tensor:
    """All films of a condition, in batches -> normalised latents [films, 16, 24, h, w]."""
    dit, _, text_encoder = models
    if name == "nf4":
        dit = copy.deepcopy(dit)
        round_blocks_to_nf4(dit)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    levels = sigmas(STEPS, SHIFT)
    noise = torch.randn(len(prompts), CHUNKS, *LATENT_SHAPE, generator=generator)
    fresh = torch.randn(len(prompts), CHUNKS, len(levels), *LATENT_SHAPE, generator=generator)
    latents = []
    for start in range(0, len(prompts), BATCH):
        batch = slice(start, start + BATCH)
        clips = [_batch_text(text_encoder, texts) for texts in zip(*prompts[batch], strict=True)]
        latents.append(
            rollout(
                dit,
                [clip for clip in clips for _ in range(CLIP_CHUNKS)],
                list(noise[batch].transpose(0, 1)),
                levels,
                _memory(name),
                range(0, CHUNKS, CLIP_CHUNKS) if name == "none" else (),
                [list(chunk.transpose(0, 1)) for chunk in fresh[batch].transpose(0, 1)],
            )
        )
    return torch.cat(latents)


def _memory(name: str) -> Memory:
    if name in ("window", "window3"):
        return Memory(sink=0, window=3 if name == "window3" else 2)
    return Memory(compress=KV_PRECISIONS.get(name))


def _batch_text(text_encoder: TextEncoder, texts: Sequence[str]) -> Text:
    embeddings, biases = zip(*(text_encoder.encode_short(text) for text in texts), strict=True)
    return torch.cat(embeddings), torch.cat(biases)


def _judge(vae: WanVAE, film: Film, latents: Tensor) -> list[list[bool]]:
    """Body, hat and shape right, per clip; in an empty clip three times "nobody seen"."""
    shape, body, hat = film.identity
    hits = []
    for clip, action in enumerate(film.actions):
        second_chunk = slice((2 * clip + 1) * LATENT_SHAPE[1], (2 * clip + 2) * LATENT_SHAPE[1])
        seen = classify(decode(vae, latents[None, :, second_chunk])[0])
        if action == EMPTY:
            hits.append([seen.body == NONE] * 3)
        else:
            hits.append([seen.body == body, seen.hat == hat, seen.shape == shape])
    return hits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=48)
    parser.add_argument("--conditions", default=",".join(CONDITIONS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    loaded, results = load(arguments.folder), {}
    for condition in arguments.conditions.split(","):
        results[condition] = evaluate(loaded, condition, arguments.films)
        print(condition, json.dumps(results[condition]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))
