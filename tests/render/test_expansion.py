"""What Render Short expands into, and what counts as made from the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.nodes.common.types import Anchor, PhaseCost, PromptTimeline, RenderPlan, Scene
from pack.nodes.memory.state import commit, empty_memory
from pack.nodes.render.choice import Again, Choice, choose
from pack.nodes.render.expansion import Film, Sources, expand
from pack.nodes.sampling.presets import memory_spec

SPEC = memory_spec("toyworld")
PLAN = RenderPlan(128, 80, 6, SPEC, 0, 4, 2**33, (PhaseCost("sampling", 1000),), ("It fits.",))
FILM = Film("model", "clip", "vae", empty_memory(SPEC), PLAN, 3, True)
TEXTS = tuple(f"scene {i}" for i in range(4))
TIMELINE = PromptTimeline("a red star hero", "the hero", (Scene(0, 12, "x"),), 8.0, 3.0, TEXTS)
SOURCES = Sources(["1", 0], ["2", 0], ["3", 0], ["4", 1], ["4", 0], "run", True)
CHOICES = (Choice("a", 3), Choice("b", 3), Choice("c", 11), Choice("d", 3, "old d"))


def build(sources=SOURCES, choices=CHOICES):
    graph = {}

    def add(kind, id, **inputs):
        graph[id] = (kind, inputs)
        return lambda slot: [id, slot]

    return graph, expand(add, sources, TIMELINE, choices)


def fingerprints(film: Film, texts: tuple[str, ...]) -> list[str]:
    """Of a film of which the folder holds nothing."""
    return [choice.fingerprint for choice in choose(film.owns(texts), film.start(), film.seed, lambda _: [], Again())]


def test_every_clip_hands_its_memory_and_its_files_on():
    graph, (clips, memory) = build()
    assert graph["clip00_sample"][1]["memory"] == ["4", 1]
    for i in range(1, 4):
        assert graph[f"clip{i:02}_sample"][1]["memory"] == [f"clip{i - 1:02}_save", 1]
        assert graph[f"clip{i:02}_save"][1]["clips"] == [f"clip{i - 1:02}_save", 0]
    assert "clips" not in graph["clip00_save"][1]
    assert (clips, memory) == (["clip03_save", 0], ["clip03_save", 1])


def test_a_clip_knows_only_its_own_text():
    """Otherwise a new text for clip 3 would change the cache keys of all the others."""
    graph, _ = build()
    for i in range(4):
        alone = graph[f"clip{i:02}_prompt"][1]["timeline"]
        assert graph[f"clip{i:02}_save"][1]["note"] == TEXTS[i]
        assert alone.clip_texts == (TEXTS[i],) and not (alone.identity or alone.hero or alone.scenes)


def test_every_clip_is_made_as_chosen():
    graph, _ = build()
    assert [graph[f"clip{i:02}_sample"][1]["seed"] for i in range(4)] == [3, 3, 11, 3]
    assert [graph[f"clip{i:02}_save"][1]["fingerprint"] for i in range(4)] == ["a", "b", "c", "d"]
    assert [graph[f"clip{i:02}_save"][1].get("keeps") for i in range(4)] == [None, None, None, "old d"]


def test_further_inputs_go_to_every_clip_and_the_first_frame_to_the_first():
    others, first = {"negative": ["7", 0], "cfg": 5.0}, {"start_image": ["8", 0]}
    graph, _ = build(replace(SOURCES, others=others, first=first))
    for i in range(4):
        inputs = graph[f"clip{i:02}_sample"][1]
        assert (inputs["negative"], inputs["cfg"], inputs["vae"]) == (["7", 0], 5.0, ["3", 0])
        assert inputs.get("start_image") == (["8", 0] if i == 0 else None)


def test_without_carried_memory_every_clip_forgets_first():
    graph, _ = build(sources=replace(SOURCES, carry_memory=False))
    assert "clip00_forget" not in graph
    assert graph["clip02_forget"][1]["memory"] == ["clip01_save", 1]
    assert graph["clip02_sample"][1]["memory"] == ["clip02_forget", 0]


def test_a_new_text_changes_the_prints_from_that_clip_on():
    before, after = fingerprints(FILM, TEXTS), fingerprints(FILM, (*TEXTS[:2], "another", TEXTS[3]))
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    assert len(set(before)) == 4


def anchored():
    return replace(empty_memory(SPEC), anchor=Anchor(torch.ones(16, 1, 10, 16), torch.zeros(80, 128, 3).byte(),
                                                     torch.zeros(16), torch.ones(16)))


@pytest.mark.parametrize("change", [
    {"model_key": "lora"}, {"clip_key": "x"}, {"seed": 4}, {"carry_memory": False},
    {"plan": replace(PLAN, width=256)}, {"plan": replace(PLAN, clip_latents=9)},
    {"plan": replace(PLAN, spec=replace(SPEC, precision="int8"))},
    {"memory": commit(empty_memory(SPEC), torch.ones(16, 3, 10, 16), None)},
    {"memory": replace(empty_memory(SPEC), tail=torch.ones(16, 8, 10, 16))},  # after Forget: what is decoded before it
    {"memory": anchored()}, {"memory": replace(empty_memory(SPEC), overlap=torch.zeros(5, 80, 128, 3).byte())},
    {"others": {"negative": "digest"}}, {"others": {"cfg": "digest"}}, {"first": {"start_image": "digest"}},
])
def test_whatever_changes_the_film_changes_every_print(change):
    before, after = fingerprints(FILM, TEXTS), fingerprints(replace(FILM, **change), TEXTS)
    assert not set(before) & set(after)


def test_another_card_with_the_same_plan_keeps_the_clips():
    """Predicted peaks and sentences differ from card to card; the pixels do not. Tiles equal the whole frame."""
    elsewhere = replace(PLAN, phases=(), decisions=("Plenty of room.",), budget_bytes=2**35, interpolation_batch=8,
                        spec=replace(SPEC, placement="ram"), decode_tile_px=384, decode_caches_in_ram=True)
    assert fingerprints(replace(FILM, plan=elsewhere), TEXTS) == fingerprints(FILM, TEXTS)
