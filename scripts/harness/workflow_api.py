"""Turns a workflow file of the graph editor (format 0.4) into the prompt that ComfyUI's /prompt takes.

The editor does this in the browser when Run is pressed. What it takes: links of the file, values of the widgets (stored
by position, in the order of the node's definition), the definitions from /object_info. Sub-graphs are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import CannotContinue

NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
MUTED, BYPASSED = 2, 4
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True)
class Constant:
    """A link that ends in a PrimitiveNode: a value instead of a node's output."""

    value: Any


def prompt_from_workflow(workflow: dict, object_info: dict) -> dict:
    """The API prompt {node id: {class_type, inputs, _meta}} of an editor workflow.

    Muted and bypassed nodes, Reroute, PrimitiveNode and notes are resolved as the editor does. Raises CannotContinue
    for a node that this ComfyUI does not have, and for sub-graphs.
    """
    if (workflow.get("definitions") or {}).get("subgraphs"):
        raise CannotContinue("The workflow contains sub-graphs, which only the graph editor can resolve: unpack them "
                             "there (right click, Unpack Subgraph) and save it again.")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow.get("links", [])}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in (*NOTES, REROUTE, PRIMITIVE) or node.get("mode") in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise CannotContinue(f"The workflow needs the node {node['type']} (id {node['id']}), which this ComfyUI "
                                 f"does not have: update ComfyUI, or install the pack that brings it.")
        inputs = _widget_inputs(node, object_info[node["type"]])
        for slot in node.get("inputs") or []:
            if slot.get("link") is None:
                continue
            origin = _origin(slot["link"], nodes, links)
            if isinstance(origin, Constant):
                inputs[slot["name"]] = origin.value
            elif origin is not None:
                inputs[slot["name"]] = [str(origin[0]), origin[1]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs,
                                   "_meta": {"title": node.get("title") or node["type"]}}
    return prompt


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


def _origin(link: int, nodes: dict, links: dict) -> tuple[int, int] | Constant | None:
    """(node id, output) that a link really comes from; None when it ends in a muted node or in nothing."""
    while link is not None:
        if link not in links:
            return None
        source, slot = links[link]
        node = nodes.get(source)
        if node is None or node.get("mode") == MUTED:
            return None
        if node["type"] == PRIMITIVE:
            return Constant((node.get("widgets_values") or [None])[0])
        if node["type"] == REROUTE:
            link = node["inputs"][0].get("link")
        elif node.get("mode") == BYPASSED:
            link = _link_through(node, slot)
        else:
            return source, slot
    return None


def _link_through(node: dict, slot: int) -> int | None:
    """The link into a bypassed node that stands for its output: same place and type, else the first of the type."""
    wanted = node["outputs"][slot]["type"]
    inputs = node.get("inputs") or []
    opposite = inputs[slot:slot + 1]
    matching = [one for one in (*opposite, *inputs) if one["type"] == wanted]
    return matching[0].get("link") if matching else None
