"""One way from a graph to a plan: what the graph editor's panel shows, and what scripts/plan.py prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..common.types import TEMPORAL_STRIDE, MemorySpec, PhaseCost, RenderPlan
from ..sampling.latent_presets import LATENT_RECIPES
from ..sampling.presets import find_preset
from .graph import DEFAULTS, Asked, FindFile, read_gate
from .learned import Record, corrections
from .planner import Extras, NothingFits, budget_of, make_plan
from .probe import Budget, Machine
from .report import LATENT_NOTES, STORED_NOTE, report

STORED = frozenset({"int8", "4bit", "window"})  # what a memory that holds something has decided already
PINS = {"keep_precision": ("int8", "4bit"), "keep_placement": ("ram",), "keep_window": ("window",),
        "keep_clip": ("clip",), "keep_on_card": ("offload",)}  # input of the gate -> steps that it forbids


@dataclass(frozen=True)
class Answer:
    """What can be said of a gate. message: for people. plan: None where none fits (asked is known) or none can be made
    (asked is None)."""

    message: str
    asked: Asked | None = None
    budget: Budget | None = None
    plan: RenderPlan | None = None
    phases: tuple[PhaseCost, ...] = ()

    @property
    def fits(self) -> bool | None:
        return None if self.asked is None else self.plan is not None


def answer_graph(graph: Mapping[str, Any], node_id: str, find: FindFile, compute_bytes: int, machine: Machine,
                 vram_gb: float | None = None, is_fused: bool = True, records: Sequence[Record] = ()) -> Answer:
    """The plan of the Budget Gate `node_id`, made from the graph and from headers of files alone.

    vram_gb: another budget than the gate's own. is_fused, records: as for plan_asked. Never raises for what stands in
    the graph: the answer says it.
    """
    try:
        asked = read_gate(graph, node_id, find, 2 if vram_gb else compute_bytes)
        budget = budget_of(machine, asked.values["budget_gb"] if vram_gb is None else vram_gb)
        for_card = machine.unified and not budget.unified
        plan = plan_asked(asked, budget, machine, for_card or is_fused, records)
    except NothingFits as error:
        return Answer(str(error), asked, budget, None, error.phases)
    except TypeError as error:
        return Answer(f"A value in the graph is of another kind than its input: {error}.")
    except (ValueError, OSError) as error:  # Unknown is a ValueError
        return Answer(str(error))
    return Answer("\n".join((*plan.decisions, *notes_of(asked))), asked, budget, plan, plan.phases)


def plan_asked(asked: Asked, budget: Budget, machine: Machine, is_fused: bool = True,
               records: Sequence[Record] = ()) -> RenderPlan:
    """make_plan for what a gate was given.

    is_fused: the attention of this machine keeps no scores. records: what was measured on it before (learned.py).
    """
    values, held = {**DEFAULTS, **asked.values}, STORED if asked.is_stored else frozenset()
    pinned = frozenset().union(*(steps for name, steps in PINS.items() if values[name]))
    card = machine.name or machine.device
    extras = Extras(bool(values["may_shrink"]), 1 if _is_one(values["cfg"], asked.spec) else 2, asked.text_bytes,
                    is_fused, corrections(records, card, asked.facts), card, asked.place)
    plan = make_plan(asked.facts, asked.vae, values["width"], values["height"], values["clip_seconds"], asked.spec,
                     values["profile"], budget, pinned | held, extras)
    return replace(plan, pinned=tuple(sorted(pinned)))


def _is_one(cfg: float, spec: MemorySpec) -> bool:
    """Whether a clip samples the positive prompt alone; 0 = as the recipe says."""
    recipe = LATENT_RECIPES.get(spec.preset)
    return math.isclose(cfg or (recipe.cfg if recipe else 1.0), 1.0)


def notes_of(asked: Asked) -> list[str]:
    """What a plan's report says beside its decisions."""
    notes = [STORED_NOTE] if asked.is_stored else []
    return [*notes, *asked.notes, *(LATENT_NOTES if find_preset(asked.spec).strategy == "latent" else [])]


def answer_text(answer: Answer, machine: Machine) -> str:
    """The answer as the gate's report."""
    if answer.plan is None:
        return answer.message
    return report(answer.plan, machine, answer.budget, notes_of(answer.asked))


def answer_json(answer: Answer, machine: Machine) -> dict[str, Any]:
    """What POST /videomemory/plan returns: sizes in bytes, lengths in frames."""
    if answer.fits is None:
        return {"fits": None, "message": answer.message}
    plan = answer.plan
    shape = {"width": 0, "height": 0, "length": 0, "concessions": []} if plan is None else {
        "width": plan.width, "height": plan.height, "length": plan.clip_latents * TEMPORAL_STRIDE - 3,
        "concessions": list(plan.decisions)}
    return {"fits": answer.fits, "message": answer.message, "card": card_json(machine),
            "phases": [phase_json(cost) for cost in answer.phases], "budget": answer.budget.vram_bytes, **shape}


def phase_json(cost: PhaseCost) -> dict[str, Any]:
    return {"name": cost.phase, "parts": [{"name": name, "bytes": size} for name, size in cost.parts],
            "peak": cost.vram_bytes}


def card_json(machine: Machine) -> dict[str, Any]:
    """The card, or the RAM where there is none. desktop, others: 0 also where they cannot be seen."""
    card = machine.card
    return {"name": card.name if card else machine.device, "total": machine.vram_total_bytes,
            "free": machine.vram_available_bytes, "desktop": (card.desktop_bytes or 0) if card else 0,
            "others": (card.others_bytes or 0) if card else 0}
