"""Turns a workflow file of the graph editor (format 0.4) into the prompt that ComfyUI's /prompt takes.

The editor does this in the browser when Run is pressed. What it takes: links of the file, values of the widgets (stored
by position, in the order of the node's definition), the definitions from /object_info. A node inside a sub-graph gets
the editor's name for it: the number of the sub-graph's node, a colon, its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import CannotContinue

NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
MUTED, BYPASSED = 2, 4
INPUTS, OUTPUTS = -10, -20  # the nodes of a sub-graph that stand for its own inputs and outputs
FACE = "-1"  # "a widget of the sub-graph's own node", where a node's number is expected
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True)
class Constant:
    """A link that ends in a PrimitiveNode: a value instead of a node's output."""

    value: Any


@dataclass(frozen=True)
class Graph:
    """The workflow, or the inside of one node that is a sub-graph.

    nodes: by number. links: {number: (source, output)}. inputs: names of the sub-graph's inputs by number; widgets:
    those that stand for a widget inside. ends: {output of the sub-graph: link into it}. definitions: all sub-graphs of
    the file by id. path: what precedes the numbers of its nodes ("12:"). around, face: the graph that this one lies in
    and the node that shows it there; None for the workflow itself.
    """

    nodes: dict[int, dict]
    links: dict[int, tuple[int, int]]
    inputs: dict[int, str]
    widgets: frozenset[str]
    ends: dict[int, int]
    definitions: dict[str, dict]
    path: str = ""
    around: Graph | None = None
    face: dict | None = None

    def inside(self, face: dict) -> Graph:
        """The graph that the node `face` shows."""
        definition = self.definitions[face["type"]]
        if self._is_within(face["type"]):
            raise CannotContinue(f"The sub-graph {definition.get('name')} contains itself: take it out of itself in "
                                 f"the graph editor and save the workflow again.")
        links, nodes = definition.get("links", []), {node["id"]: node for node in definition["nodes"]}
        inputs = {slot: one["name"] for slot, one in enumerate(definition.get("inputs", []))}
        widgets = frozenset(inputs[link["origin_slot"]] for link in links if link["origin_id"] == INPUTS
                            and nodes[link["target_id"]]["inputs"][link["target_slot"]].get("widget"))
        return Graph(nodes, {link["id"]: (link["origin_id"], link["origin_slot"]) for link in links}, inputs, widgets,
                     {link["target_slot"]: link["id"] for link in links if link["target_id"] == OUTPUTS},
                     self.definitions, f"{self.path}{face['id']}:", self, face)

    def _is_within(self, kind: str) -> bool:
        return self.face is not None and (self.face["type"] == kind or self.around._is_within(kind))


def prompt_from_workflow(workflow: dict, object_info: dict) -> dict:
    """The API prompt {node id: {class_type, inputs, _meta}} of an editor workflow.

    Muted and bypassed nodes, Reroute, PrimitiveNode, notes and sub-graphs are resolved as the editor does. Raises
    CannotContinue for a node that this ComfyUI does not have, and for a sub-graph that contains itself.
    """
    definitions = {one["id"]: one for one in (workflow.get("definitions") or {}).get("subgraphs") or []}
    links = {link[0]: (link[1], link[2]) for link in workflow.get("links", [])}
    nodes = {node["id"]: node for node in workflow["nodes"]}
    return _prompt_of(Graph(nodes, links, {}, frozenset(), {}, definitions), object_info)


def _prompt_of(graph: Graph, object_info: dict) -> dict:
    prompt = {}
    for node in graph.nodes.values():
        if node["type"] in (*NOTES, REROUTE, PRIMITIVE) or not _runs(node):
            continue
        if node["type"] in graph.definitions:
            prompt |= _prompt_of(graph.inside(node), object_info)
            continue
        if node["type"] not in object_info:
            raise CannotContinue(f"The workflow needs the node {node['type']} (id {graph.path}{node['id']}), which "
                                 f"this ComfyUI does not have: update ComfyUI, or install the pack that brings it.")
        inputs = _widget_inputs(node, object_info[node["type"]])
        for slot in node.get("inputs") or []:
            origin = _origin(slot.get("link"), graph)
            if isinstance(origin, Constant):
                inputs[slot["name"]] = origin.value
            elif origin is not None:
                inputs[slot["name"]] = [origin[0], origin[1]]
        prompt[f"{graph.path}{node['id']}"] = {"class_type": node["type"], "inputs": inputs,
                                               "_meta": {"title": node.get("title") or node["type"]}}
    return prompt


def _runs(node: dict) -> bool:
    return node.get("mode") not in (MUTED, BYPASSED)


def widget_names(definition: dict) -> list[str | None]:
    """Names of a node's widgets in the order of its stored values; None for one that only the editor uses."""
    names: list[str | None] = []
    for group in ("required", "optional"):
        order = (definition.get("input_order") or {}).get(group) or (definition["input"].get(group) or {})
        for name in order:
            kind, options = _kind_and_options(definition["input"][group][name])
            if kind not in WIDGET_TYPES or options.get("forceInput"):
                continue
            names.append(name)
            controlled = options.get("control_after_generate", kind == "INT" and name in SEEDS)
            if controlled:
                names += [None] if kind == "INT" else [None, None]  # fixed/randomize; a combo also has a filter
    return names


def _widget_inputs(node: dict, definition: dict) -> dict[str, Any]:
    """Values of the node's widgets by name, as the editor restores them: a missing one at the end gets its default, and
    surplus ones (players, buttons) belong to the editor."""
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        return {name: stored[name] for name in widget_names(definition) if name in stored}
    names = widget_names(definition)
    values = {name: _wrapped(value) for name, value in zip(names, stored, strict=False) if name is not None}
    for name in names[len(stored):]:
        if name is not None and (default := _default(definition, name)) is not None:
            values[name] = default
    return values


def _default(definition: dict, name: str) -> Any:
    group = "required" if name in (definition["input"].get("required") or {}) else "optional"
    spec = definition["input"][group][name]
    kind, options = _kind_and_options(spec)
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
    return options.get("default", choices[0] if kind == "COMBO" and choices else None)


def _kind_and_options(spec: list) -> tuple[str, dict]:
    """("COMBO", options) for a list of choices, the type's name otherwise."""
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    return kind, (spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {})


def _wrapped(value: Any) -> Any:
    return {"__value__": value} if isinstance(value, list) else value  # a bare list would be read as a link


def _origin(link: int | None, graph: Graph) -> tuple[str, int] | Constant | None:
    """(node id, output) that a link really comes from; None when it ends in a muted node or in nothing."""
    while link in graph.links:
        source, slot = graph.links[link]
        if source == INPUTS:
            link, graph = _given(graph, slot), graph.around
            if isinstance(link, Constant):
                return link
            continue
        node = graph.nodes.get(source)
        if node is None or node.get("mode") == MUTED:
            return None
        if node["type"] == PRIMITIVE:
            return Constant((node.get("widgets_values") or [None])[0])
        if node["type"] == REROUTE:
            link = node["inputs"][0].get("link")
        elif node.get("mode") == BYPASSED:
            link = _link_through(node, slot)
        elif node["type"] in graph.definitions:
            graph = graph.inside(node)
            link = graph.ends.get(slot)
        else:
            return f"{graph.path}{source}", slot
    return None


def _given(graph: Graph, slot: int) -> int | Constant | None:
    """What the node that shows this sub-graph has at its input number `slot`: a link, or the value on its face."""
    name, face = graph.inputs[slot], graph.face
    link = next((one.get("link") for one in face["inputs"] if one["name"] == name), None)
    if link is not None:
        return link
    shown = [(str(number), widget) for number, widget in (face.get("properties") or {}).get("proxyWidgets") or []]
    order = shown or [(FACE, one) for one in graph.inputs.values() if one in graph.widgets]
    values = dict(zip(order, face.get("widgets_values") or [], strict=False))
    return Constant(_wrapped(values[FACE, name])) if (FACE, name) in values else None


def _link_through(node: dict, slot: int) -> int | None:
    """The link into a bypassed node that stands for its output: same place and type, else the first of the type."""
    wanted = node["outputs"][slot]["type"]
    inputs = node.get("inputs") or []
    opposite = inputs[slot:slot + 1]
    matching = [one for one in (*opposite, *inputs) if one["type"] == wanted]
    return matching[0].get("link") if matching else None
