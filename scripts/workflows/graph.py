"""Turns a list of nodes into a workflow file (format 0.4), in the form in which the graph editor saves it.

Inputs, outputs and the order of widgets come from the /object_info of a running ComfyUI, so that a renamed input stops
the build. Sizes follow the editor's own sums: 20 pixels a socket, 24 a widget; Nodes 2.0 takes 28 a widget and more
below them (measured in frontend 1.58.1), and the room between nodes is made for that.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import Any

from harness.workflow_api import BYPASSED, WIDGET_TYPES, widget_names

GROUPS = {1: "1. Load", 2: "2. Plan", 3: "3. Write", 4: "4. Render", 5: "5. Finish"}
PACKS = {True: {"cnr_id": "videomemory", "ver": "0.1.0"}, False: {"cnr_id": "comfy-core", "ver": "0.3.75"}}
WIDTH, GAP, TOP, ROW = 380, 40, 80, 480  # pixels
ROOM = {"VideoMemoryPromptSchedule": 420, "VideoMemoryBudgetGate": 240, "VideoMemoryRenderShort": 220,
        "VideoMemoryMemoryReport": 290, "CLIPTextEncode": 140, "LoadImage": 280,
        "VideoMemorySpatialReport": 330}  # for texts, pictures and panels
GROWS = {"VideoMemoryPersistentMemory": 60, "VideoMemoryMemoryReport": 300,
         "VideoMemoryAssembleShort": 300, "SaveVideo": 300, "PreviewImage": 260,
         "VideoMemorySpatialReport": 300, "PreviewAny": 100}  # what a run adds below: a text, a film
VIEW = {"scale": 0.6, "offset": [120, 160]}  # beside and below the editor's own bars
EDITOR_ONLY = {"LoadImage": ["image"]}  # values of widgets that the editor adds
NOTE = "MarkdownNote"


@dataclass(frozen=True)
class Node:
    """One node: its group (1 to 5), widgets that differ from their defaults, and {input: "key.output number"}.

    models: (file, link, folder) of each file that the editor may offer to fetch. lane, row: place within a group that
    is wider than one node; row -1 = below the node before it in its lane. is_bypassed: it only hands on what comes in,
    until somebody switches it on. box: title of the sub-graph that the node lies in (subgraphs.py); "" = none.
    """

    key: str
    kind: str
    group: int
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    models: tuple[tuple[str, str, str], ...] = ()
    lane: int = 0
    row: int = -1
    title: str = ""
    is_bypassed: bool = False
    box: str = ""


def workflow(name: str, nodes: list[Node], notes: dict[int, str], object_info: dict) -> dict:
    """The workflow file `name` as a dictionary; raises ValueError for what the nodes do not have."""
    places, groups = _layout(nodes, notes, object_info)
    all_nodes = [*nodes, *(Node(f"note{group}", NOTE, group, {"": text}) for group, text in notes.items())]
    numbers = {node.key: i for i, node in enumerate(all_nodes, 1)}
    links, taken = _links(nodes, numbers, object_info)
    order = {key: i for i, key in enumerate(_running_order(all_nodes))}
    saved = [saved_node(node, numbers[node.key], order[node.key], places[node.key], taken, object_info)
             for node in all_nodes]
    return {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"videomemory/{name}")), "revision": 0,
            "last_node_id": len(all_nodes), "last_link_id": len(links), "nodes": saved, "links": links,
            "groups": groups, "config": {}, "extra": {"ds": VIEW}, "version": 0.4}


def sockets(kind: str, object_info: dict) -> list[dict]:
    """All inputs in the editor's order: plain sockets first, then widgets; each with its name, type and shape."""
    definition = object_info[kind]
    plain, widgets = [], []
    for group in ("required", "optional"):
        for name in (definition.get("input_order") or {}).get(group) or []:
            spec = definition["input"][group][name]
            is_list = isinstance(spec[0], list)
            options = spec[1] if len(spec) > 1 else {}
            shape = {"shape": 7} if group == "optional" else {}
            one = {"localized_name": name, "name": name, **shape, "type": "COMBO" if is_list else spec[0]}
            if (is_list or spec[0] in WIDGET_TYPES) and not options.get("forceInput"):
                widgets.append({**one, "widget": {"name": name}})
            else:
                plain.append(one)
    return [*plain, *widgets]


def _values(node: Node, object_info: dict) -> list:
    """Values of the node's widgets in the editor's order."""
    if node.kind == NOTE:
        return list(node.widgets.values())
    definition, given, values = object_info[node.kind], dict(node.widgets), []
    for name in widget_names(definition):
        values.append("fixed" if name is None else given.pop(name) if name in given else _default(definition, name))
    if given:
        raise ValueError(f"{node.kind} has no widget {', '.join(given)}: correct the node {node.key}.")
    return [*values, *EDITOR_ONLY.get(node.kind, [])]


def _default(definition: dict, name: str) -> Any:
    group = "required" if name in definition["input"].get("required", {}) else "optional"
    spec = definition["input"][group][name]
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options") or [""]
    return options.get("default", choices[0])


def _links(nodes: list[Node], numbers: dict[str, int], object_info: dict) -> tuple[list, dict]:
    """The links of the file, and {(node, input name): link, (node, output number): [links]}."""
    links, taken, kinds = [], {}, {node.key: node.kind for node in nodes}
    for node in nodes:
        names = [one["name"] for one in sockets(node.kind, object_info)]
        for name, source in node.links.items():
            key, slot = source.split(".")
            if name not in names or key not in kinds:
                raise ValueError(f"{node.kind} has no input {name}, or there is no {key}: correct {node.key}.")
            kind = object_info[kinds[key]]["output"][int(slot)]
            links.append([len(links) + 1, numbers[key], int(slot), numbers[node.key], names.index(name),
                          kind if isinstance(kind, str) else "COMBO"])
            taken[node.key, name] = len(links)
            taken.setdefault((key, int(slot)), []).append(len(links))
    return links, taken


def saved_node(node: Node, number: int, order: int, place: tuple, taken: dict, object_info: dict) -> dict:
    x, y, height = place
    base = {"id": number, "type": node.kind, "pos": [x, y], "size": [WIDTH, height], "flags": {}, "order": order,
            "mode": BYPASSED if node.is_bypassed else 0}
    if node.kind == NOTE:
        return {**base, "inputs": [], "outputs": [], "title": "About this step", "properties": {},
                "widgets_values": _values(node, object_info), "color": "#432", "bgcolor": "#653"}
    definition = object_info[node.kind]
    outputs = [{"localized_name": label, "name": label, "type": kind, "links": taken.get((node.key, slot))}
               for slot, (label, kind) in enumerate(zip(definition["output_name"], definition["output"], strict=True))]
    models = [dict(zip(("name", "url", "directory"), one, strict=True)) for one in node.models]
    return {**base,
            "inputs": [{**one, "link": taken.get((node.key, one["name"]))} for one in sockets(node.kind, object_info)],
            "outputs": outputs, **({"title": node.title} if node.title else {}),
            "properties": {"Node name for S&R": node.kind, **PACKS[node.kind.startswith("VideoMemory")],
                           **({"models": models} if models else {})},
            "widgets_values": _values(node, object_info)}


def height_of(node: Node, object_info: dict, widget: int = 24, below: int = 14) -> int:
    if node.kind == NOTE:
        return 260
    plain = sum("widget" not in one for one in sockets(node.kind, object_info))
    widgets = len(_values(node, object_info))
    return (max(plain, len(object_info[node.kind]["output"]), 1) * 20 + widgets * widget + (below if widgets else 6)
            + ROOM.get(node.kind, 0))


def _reach(node: Node, object_info: dict) -> int:
    """How far down a node comes in the roomier renderer, after a run."""
    return height_of(node, object_info, widget=28, below=38) + GROWS.get(node.kind, 0)


def _layout(nodes: list[Node], notes: dict[int, str], object_info: dict) -> tuple[dict, list]:
    """{key: (x, y, height)} of nodes and notes, and the groups around them, from left to right."""
    places, groups, x = {}, [], 40
    for group, title in GROUPS.items():
        members = [node for node in nodes if node.group == group]
        lanes = 1 + max((node.lane for node in members), default=0)
        bottoms = [TOP] * lanes
        for node in [*members, replace(Node(f"note{group}", NOTE, group), row=-1)]:
            is_note = node.kind == NOTE
            y = max(bottoms) if is_note else TOP + node.row * ROW if node.row >= 0 else bottoms[node.lane]
            places[node.key] = (x + node.lane * (WIDTH + GAP), y, height_of(node, object_info))
            bottoms[node.lane] = y + _reach(node, object_info) + 2 * GAP
        width = lanes * (WIDTH + GAP)
        groups.append({"id": group, "title": title, "bounding": [x - 20, 10, width, max(bottoms) - 2 * GAP + 10],
                       "color": "#3f789e", "font_size": 24, "flags": {}})
        x += width + GAP
    missing = set(GROUPS) - set(notes)
    if missing:
        raise ValueError(f"Groups {missing} have no note: write one for each of {', '.join(GROUPS.values())}.")
    return places, groups


def _running_order(nodes: list[Node]) -> list[str]:
    """Keys in the order in which the nodes can run: sources first."""
    waiting, done = list(nodes), []
    while waiting:
        ready = [node for node in waiting if all(link.split(".")[0] in done for link in node.links.values())]
        if not ready:
            raise ValueError(f"The links go in a circle: correct {', '.join(node.key for node in waiting)}.")
        done += [node.key for node in ready]
        waiting = [node for node in waiting if node not in ready]
    return done
