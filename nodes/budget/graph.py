"""What a Budget Gate in a graph would be given, read from the graph and the headers of its files: nothing is loaded.

The graph is in the API's format, {node id: {"class_type": ..., "inputs": {name: value or [node id, slot]}}}. What can
not be known before the graph runs raises Unknown, with the sentence that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from ..common.errors import message
from ..common.types import MemorySpec, ModelFacts, Preset
from ..memory.choices import Choices, spec_of
from ..memory.files import load_memory
from ..sampling.presets import custom_preset
from .cost_model import VaeFacts
from .headers import lora_bytes, model_facts_of, read_model_facts, read_vae_facts, text_encoder_bytes, weight_bytes
from .place import NO_BRANCH, Place, place_of
from .published import published_model, published_text_encoder, published_vae

GATE = "VideoMemoryBudgetGate"
DIFFUSION, CHECKPOINTS = "diffusion_models", "checkpoints"
CARD_BYTES = 2  # per value, on a card: every model of ours computes in 16 bits there
MODELS = {  # class -> (folder, input with the file's name, input with the kind of weights or "")
    "VideoMemoryLoadDiffusionModel": (DIFFUSION, "model_name", "weights"),
    "VideoMemoryLoadCheckpoint": (CHECKPOINTS, "checkpoint_name", "weights"),
    "UNETLoader": (DIFFUSION, "unet_name", ""),
    "CheckpointLoaderSimple": (CHECKPOINTS, "ckpt_name", ""),
    "ImageOnlyCheckpointLoader": (CHECKPOINTS, "ckpt_name", ""),
}
VAES = {"VAELoader": ("vae", "vae_name"),
        **{name: row[:2] for name, row in MODELS.items() if row[0] == CHECKPOINTS}}
TEXT_ENCODERS = {  # class -> (inputs with files' names, input with the kind of weights or "")
    "VideoMemoryLoadTextEncoder": (("text_encoder_name", "second_name"), "weights"),
    "CLIPLoader": (("clip_name",), ""), "DualCLIPLoader": (("clip_name1", "clip_name2"), "")}
NO_FILE = "none"
LORAS = ("VideoMemoryLoadLora", "LoraLoaderModelOnly", "LoraLoader")
DEFAULTS = {"width": 1280, "height": 704, "clip_seconds": 4.0, "budget_gb": 0.0, "profile": "balanced", "cfg": 0.0,
            "keep_precision": False, "keep_placement": False, "keep_window": False, "keep_clip": False,
            "keep_on_card": False, "may_shrink": False,
            "mirage_branch": NO_BRANCH}  # the gate's inputs, and what those of older graphs mean
MAX_LINKS = 200  # on the way up from the gate; a longer way is a circle

FindFile = Callable[[str, str], str | None]  # (folder of models/, name) -> path


class Unknown(ValueError):
    """Why nothing can be said before the graph runs."""


@dataclass(frozen=True)
class Asked:
    """The inputs of a gate. is_stored: its memory holds clips already. values: DEFAULTS as they were typed.

    text_bytes: weights of the text encoder, 0 where it is not known. notes: sentences about what was not looked at.
    place: where the clip is made in a remembered one.
    """

    facts: ModelFacts
    vae: VaeFacts
    spec: MemorySpec
    is_stored: bool
    values: Mapping[str, Any]
    text_bytes: int = 0
    notes: tuple[str, ...] = ()
    place: Place | None = None


def read_gate(graph: Mapping[str, Any], node_id: str, find: FindFile, compute_bytes: int) -> Asked:
    """The inputs of the Budget Gate `node_id`; Unknown where one cannot be known yet.

    compute_bytes: per value, of what the device that is planned for computes in. A number as budget plans for a card,
    which computes in 16 bits.
    """
    reader = _Reader(graph, find)
    if reader.node(node_id).get("class_type") != GATE:
        raise Unknown(f"Node {node_id} is no VRAM Budget Gate.")
    values = {name: reader.value(node_id, name, default) for name, default in DEFAULTS.items()}
    size = CARD_BYTES if values["budget_gb"] else compute_bytes
    spec, is_stored = reader.memory(node_id)
    facts, vae, text = reader.model(node_id, size), reader.vae(node_id, size), reader.text_bytes(node_id, size)
    place = reader.place(node_id, facts, str(values["mirage_branch"]))
    return Asked(facts, vae, spec, is_stored, values, text, tuple(reader.notes), place)


def gates_of(graph: Mapping[str, Any]) -> list[str]:
    """The ids of all Budget Gates of a graph."""
    return [node_id for node_id, node in graph.items() if isinstance(node, dict) and node.get("class_type") == GATE]


class _Reader:
    """Follows links up from a node to what they begin with."""

    def __init__(self, graph: Mapping[str, Any], find: FindFile) -> None:
        self.graph, self.find, self.steps = graph, find, 0
        self.notes: list[str] = []

    def node(self, node_id: str) -> dict:
        node = self.graph.get(str(node_id))
        if not isinstance(node, dict) or not isinstance(node.get("inputs", {}), dict):
            raise Unknown(f"The graph has no node {node_id}.")
        self.steps += 1
        if self.steps > MAX_LINKS:
            raise Unknown("The links run in a circle.")
        return node

    def source(self, node_id: str, name: str) -> tuple[str, dict]:
        """The node at the other end of an input's link."""
        link = self.node(node_id).get("inputs", {}).get(name)
        if not _is_link(link):
            raise Unknown(f"Nothing is connected to {name}.")
        return str(link[0]), self.node(link[0])

    def value(self, node_id: str, name: str, default: Any = None) -> Any:
        """A typed value, also through nodes that only hold one."""
        value = self.node(node_id).get("inputs", {}).get(name, default)
        if not _is_link(value):
            return value
        source_id, source = self.source(node_id, name)
        if "value" not in source.get("inputs", {}):
            raise Unknown(f"{name} comes from {source.get('class_type')}, which tells it only when it runs.")
        return self.value(source_id, "value")

    def model(self, node_id: str, compute_bytes: int) -> ModelFacts:
        """Up through everything that takes a MODEL and hands it on, to the loader."""
        source_id, source = self.source(node_id, "model")
        kind = source.get("class_type")
        if kind in MODELS:
            folder, name, weights = MODELS[kind]
            chosen = str(self.value(source_id, weights)) if weights else "original"
            fp8 = 1 if not weights and str(self.value(source_id, "weight_dtype", "")).startswith("fp8") else 0
            known = self.published(published_model, source_id, folder, name)
            if known is not None:
                self.note(source_id, name, f"the sizes of {known[1]}")
                return model_facts_of(known[0], chosen, compute_bytes, fp8)
            return read_model_facts(self.file(source_id, folder, name), chosen, compute_bytes, fp8)
        if not _is_link(source.get("inputs", {}).get("model")):
            raise Unknown(f"The model comes from {kind}, a loader whose files cannot be looked into from here.")
        facts = self.model(source_id, compute_bytes)
        if kind in LORAS:
            facts = replace(facts, weight_bytes=facts.weight_bytes + lora_bytes(
                self.file(source_id, "loras", "lora_name"), compute_bytes))
        return facts

    def vae(self, node_id: str, compute_bytes: int) -> VaeFacts:
        source_id, source = self.source(node_id, "vae")
        if source.get("class_type") not in VAES:
            raise Unknown(f"The VAE comes from {source.get('class_type')}, a loader whose files cannot be looked into "
                          "from here.")
        known = self.published(partial(published_vae, compute_bytes=compute_bytes), source_id,
                               *VAES[source["class_type"]])
        if known is not None:
            self.note(source_id, VAES[source["class_type"]][1], "the sizes of Wan's VAE")
            return known
        return read_vae_facts(self.file(source_id, *VAES[source["class_type"]]), compute_bytes)

    def memory(self, node_id: str) -> tuple[MemorySpec, bool]:
        source_id, source = self.source(node_id, "memory")
        kind = source.get("class_type")
        if kind == "VideoMemoryPersistentMemory":
            known = {field.name for field in fields(Choices)} - {"recipe"}
            values = {name: self.value(source_id, name) for name in source.get("inputs", {}) if name in known}
            return spec_of(Choices(**values, recipe=self.recipe(source_id))), False
        if kind == "VideoMemoryForget":
            return self.memory(source_id)[0], False
        if kind == "VideoMemoryLoadMemory":
            memory = load_memory(self.file(source_id, "memories", "file"))
            return memory.spec, bool(memory.blocks)
        raise Unknown(f"The memory comes from {kind}, which makes it only when it runs.")

    def place(self, node_id: str, facts: ModelFacts, branch: str) -> Place | None:
        """With an empty cloud: its points are known when the graph runs."""
        is_there = _is_link(self.node(node_id).get("inputs", {}).get("spatial_memory"))
        if is_there:
            self.notes.append("The points of the place are counted when the graph runs: they take RAM alone.")
        return Place(0, facts.latent_channels) if is_there and branch == NO_BRANCH else place_of(None, facts, branch)

    def text_bytes(self, node_id: str, compute_bytes: int) -> int:
        """Of the files behind a connected text encoder; 0 without one, or where another loader made it."""
        if not _is_link(self.node(node_id).get("inputs", {}).get("clip")):
            return 0
        source_id, source = self.source(node_id, "clip")
        kind = source.get("class_type")
        if kind not in TEXT_ENCODERS:
            return self.text_bytes(source_id, compute_bytes)
        names, weights = TEXT_ENCODERS[kind]
        chosen = str(self.value(source_id, weights)) if weights else "original"
        used = [name for name in names if self.value(source_id, name, NO_FILE) != NO_FILE]
        return sum(self.encoder_bytes(source_id, name, chosen, compute_bytes) for name in used)

    def encoder_bytes(self, node_id: str, name: str, weights: str, compute_bytes: int) -> int:
        known = self.published(published_text_encoder, node_id, "text_encoders", name)
        if known is None:
            return text_encoder_bytes(self.file(node_id, "text_encoders", name), weights, compute_bytes)
        self.note(node_id, name, "the sizes of UMT5-XXL")
        return weight_bytes(known, weights, compute_bytes)

    def recipe(self, node_id: str) -> Preset | None:
        if not _is_link(self.node(node_id).get("inputs", {}).get("recipe")):
            return None
        source_id, source = self.source(node_id, "recipe")
        return custom_preset(**{name: self.value(source_id, name) for name in source.get("inputs", {})})

    def published(self, known: Callable[[str], Any], node_id: str, folder: str, name: str) -> Any:
        """What is known of a file that is not here; None where it is here, or nobody knows."""
        chosen = str(self.value(node_id, name))
        return known(chosen) if self.find(folder, chosen) is None else None

    def note(self, node_id: str, name: str, sizes: str) -> None:
        self.notes.append(f"{self.value(node_id, name)} is not here yet: planned with {sizes}, as published.")

    def file(self, node_id: str, folder: str, name: str) -> str:
        chosen = self.value(node_id, name)
        path = self.find(folder, str(chosen)) if chosen else None
        if path is None:
            raise Unknown(message("The plan needs the header of a model file", chosen, f"a file in models/{folder}",
                                  "Put it there, or choose another one."))
        return path


def _is_link(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and not isinstance(value[0], float)
