"""The recipe of a whole short: which nodes make which clip, and which finished clips are used again.

Pure: it describes the sub-graph, nodes.py builds it. One clip is Prompt for Clip -> Clip Sampler -> Save Clip, and Save
Clip hands the memory on: when the run folder already holds the clip, it asks for no samples and the memory is read from
there. Every node gets its own clip's text and nothing of the others', so that ComfyUI's cache keeps the clips before
the first change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ..common.types import MemorySpec, PromptTimeline, RenderPlan, VideoMemory

Link = list  # [node id, output slot]
AddNode = Callable[..., Callable[[int], Link]]  # (class_type, id, **inputs) -> output(slot)


@dataclass(frozen=True)
class Film:
    """Everything that decides what a film looks like, apart from its texts.

    model_key, clip_key, vae_key: digests of weights and patches (compat.patcher_key). memory: what it starts with.
    """

    model_key: str
    clip_key: str
    vae_key: str
    memory: VideoMemory
    plan: RenderPlan
    seed: int
    carry_memory: bool


@dataclass(frozen=True)
class Sources:
    """Links to the outer nodes that the clips are made with, and the run's settings."""

    model: Link
    clip: Link
    vae: Link
    memory: Link
    plan: Link
    seed: int
    run_name: str
    carry_memory: bool


def fingerprints(film: Film, texts: tuple[str, ...]) -> tuple[str, ...]:
    """One digest per clip: equal exactly when the clip and everything before it would come out the same."""
    state = _digest({
        "model": film.model_key, "clip": film.clip_key, "vae": film.vae_key, "seed": film.seed,
        "carry": film.carry_memory, "memory": _memory_digest(film.memory),
        "plan": _plan_facts(film.plan),
    })
    result = []
    for text in texts:
        state = _digest([state, text])
        result.append(state)
    return tuple(result)


def expand(add: AddNode, sources: Sources, timeline: PromptTimeline, prints: tuple[str, ...]) -> tuple[Link, Link]:
    """Describe the sub-graph; returns links to the finished clips and to the memory after the last one.

    Nodes are named clip00_prompt, clip00_sample, clip00_save, ...: progress displays rely on it.
    """
    clips, memory = None, sources.memory
    for i, (text, fingerprint) in enumerate(zip(timeline.clip_texts, prints, strict=True)):
        sampled = _sample(add, i, sources, timeline, text, memory)
        before = {} if clips is None else {"clips": clips}
        saved = add("VideoMemorySaveClip", f"clip{i:02}_save", samples=sampled(0), vae=sources.vae, memory=sampled(1),
                    run_name=sources.run_name, plan=sources.plan, fingerprint=fingerprint, note=text, **before)
        clips, memory = saved(0), saved(1)
    return clips, memory


def status(total: int, reused: int) -> str:
    """One sentence for the node's status output."""
    kept = f"{reused} of {total} clips were in the run folder already and are used again; " if reused else ""
    return f"{kept}{total - reused} of {total} clips to make."


def count_reused(is_sampled: Callable[[int], bool], total: int) -> int:
    """Clips from the start of the film that need no sampling: the run of True before the first False."""
    return next((i for i in range(total) if not is_sampled(i)), total)


def _sample(add: AddNode, i: int, sources: Sources, timeline: PromptTimeline, text: str,
            memory: Link) -> Callable[[int], Link]:
    alone = timeline._replace(identity="", hero="", scenes=(), clip_texts=(text,))
    prompt = add("VideoMemoryPromptForClip", f"clip{i:02}_prompt", clip=sources.clip, timeline=alone, clip_index=0)
    if i and not sources.carry_memory:
        memory = add("VideoMemoryForget", f"clip{i:02}_forget", memory=memory)(0)
    return add("VideoMemoryClipSampler", f"clip{i:02}_sample", model=sources.model, memory=memory, positive=prompt(0),
               seed=sources.seed, plan=sources.plan)


def _plan_facts(plan: RenderPlan) -> dict:
    """What of a plan changes the pixels: not the predicted peaks or the sentences."""
    return {"width": plan.width, "height": plan.height, "clip_latents": plan.clip_latents,
            "spec": _spec_facts(plan.spec), "decode_tile_px": plan.decode_tile_px}


def _spec_facts(spec: MemorySpec) -> dict:
    """Where K/V rest changes no bit of the film."""
    return {name: value for name, value in asdict(spec).items() if name != "placement"}


def _memory_digest(memory: VideoMemory) -> str:
    digest = hashlib.sha256(json.dumps([_spec_facts(memory.spec), memory.latents_done, memory.origin]).encode())
    for block in memory.blocks:
        digest.update(f"{block.start}".encode())
        digest.update(block.latents.contiguous().numpy().tobytes())
    if memory.tail is not None:  # decoding context of the first clip, also after Forget
        digest.update(memory.tail.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
