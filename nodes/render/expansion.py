"""The recipe of a whole short: which nodes make which clip, and what a clip is made from.

Pure: it describes the sub-graph, nodes.py builds it. One clip is Prompt for Clip -> Clip Sampler -> Save Clip, and Save
Clip hands the memory on: when the run folder already holds the clip, it asks for no samples and the memory is read from
there. Every node gets its own clip's text and nothing of the others', so that ComfyUI's cache keeps the clips before
the first change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from ..common.types import MemorySpec, PromptTimeline, RenderPlan, VideoMemory
from ..memory.state import film_digest
from ..sampling.presets import find_preset
from .choice import Choice, short

Link = list  # [node id, output slot]
AddNode = Callable[..., Callable[[int], Link]]  # (class_type, id, **inputs) -> output(slot)
UNNAMED = {"label": "My checkpoint", "tested_with": "the user's own recipe"}  # a Custom Checkpoint Recipe as it comes


@dataclass(frozen=True)
class Film:
    """Everything that decides what a film looks like, apart from its texts.

    model_key, clip_key, vae_key: digests of weights and patches (digest.patcher_key). memory: what it starts with.
    others, first: digests of further inputs of Clip Sampler that count (counted.py) by name, of every clip and of the
    first one alone.
    """

    model_key: str
    clip_key: str
    vae_key: str
    memory: VideoMemory
    plan: RenderPlan
    seed: int
    carry_memory: bool
    others: dict[str, str] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def start(self) -> str:
        """Digest of what the film begins with."""
        return _memory_digest(self.memory)

    def owns(self, texts: Sequence[str]) -> tuple[str, ...]:
        """One digest per clip: of all that it is made from, apart from its seed and what came before it."""
        base = {"model": self.model_key, "clip": self.clip_key, "seed": self.seed, "carry": self.carry_memory,
                "plan": _plan_facts(self.plan), "others": self.others}
        vae, sees_frames = {"vae": self.vae_key}, find_preset(self.memory.spec).strategy == "latent"
        return tuple(_digest({**base, "text": text, **({} if i else {"first": self.first}),
                              **(vae if sees_frames or (i == 0 and self.first) else {})})  # else it decodes alone
                     for i, text in enumerate(texts))


@dataclass(frozen=True)
class Sources:
    """Links to the outer nodes that the clips are made with, and the run's settings.

    others, first: further inputs of Clip Sampler (links or values) by name, of every clip and of the first one alone.
    """

    model: Link
    clip: Link
    vae: Link
    memory: Link
    plan: Link
    run_name: str
    carry_memory: bool
    others: dict[str, object] = field(default_factory=dict)
    first: dict[str, object] = field(default_factory=dict)


def expand(add: AddNode, sources: Sources, timeline: PromptTimeline, choices: Sequence[Choice]) -> tuple[Link, Link]:
    """Describe the sub-graph; returns links to the finished clips and to the memory after the last one.

    Nodes are named clip00_prompt, clip00_sample, clip00_save, ...: progress displays rely on it.
    """
    clips, memory = None, sources.memory
    for i, (text, choice) in enumerate(zip(timeline.clip_texts, choices, strict=True)):
        sampled = _sample(add, i, sources, timeline, text, choice.seed, memory)
        before = {} if clips is None else {"clips": clips}
        kept = {"keeps": choice.keeps} if choice.keeps else {}
        saved = add("VideoMemorySaveClip", f"clip{i:02}_save", samples=sampled(0), vae=sources.vae, memory=sampled(1),
                    run_name=sources.run_name, plan=sources.plan, fingerprint=choice.fingerprint, note=text, **kept,
                    **before)
        clips, memory = saved(0), saved(1)
    return clips, memory


def _sample(add: AddNode, i: int, sources: Sources, timeline: PromptTimeline, text: str, seed: int,
            memory: Link) -> Callable[[int], Link]:
    alone = timeline._replace(identity="", hero="", scenes=(), clip_texts=(text,))
    prompt = add("VideoMemoryPromptForClip", f"clip{i:02}_prompt", clip=sources.clip, timeline=alone, clip_index=0,
                 plan=sources.plan)
    if i and not sources.carry_memory:
        memory = add("VideoMemoryForget", f"clip{i:02}_forget", memory=memory)(0)
    return add("VideoMemoryClipSampler", f"clip{i:02}_sample", model=sources.model, memory=memory, positive=prompt(0),
               seed=seed, plan=sources.plan, vae=sources.vae, **sources.others, **({} if i else sources.first))


def _plan_facts(plan: RenderPlan) -> dict:
    """What of a plan changes the film: not the predicted peaks, the sentences, or how it is decoded."""
    return {"width": plan.width, "height": plan.height, "clip_latents": plan.clip_latents,
            "spec": _spec_facts(plan.spec)}


def _spec_facts(spec: MemorySpec) -> dict:
    """Where K/V rest changes no bit of the film, nor does what a recipe is called."""
    if spec.custom is not None:
        spec = replace(spec, custom=replace(spec.custom, **UNNAMED))
    return {name: value for name, value in asdict(spec).items() if name != "placement"}


def _memory_digest(memory: VideoMemory) -> str:
    return short(json.dumps([_spec_facts(memory.spec), film_digest(memory)]))


def _digest(value: object) -> str:
    return short(json.dumps(value, sort_keys=True))
