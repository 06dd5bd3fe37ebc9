"""Puts nodes into sub-graphs, in the form in which the graph editor saves them.

Nodes with the same `box` become one sub-graph. What they take from outside becomes its inputs, what others take from
them its outputs. Numbers are unique in the whole file, because newer editors give new ones where they are not.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from . import graph
from .graph import GAP, WIDTH, Node, height_of, saved_node, sockets

INPUTS, OUTPUTS = -10, -20  # the editor's numbers for the two ends of a sub-graph
END = 120  # pixels, width of an end


@dataclass(frozen=True)
class Box:
    """A sub-graph: its nodes, and the sources ("key.output number") at its inputs, by name, and at its outputs."""

    title: str
    kind: str
    nodes: list[Node]
    inputs: dict[str, str]
    outputs: list[str]


def workflow(name: str, nodes: list[Node], notes: dict[int, str], object_info: dict) -> dict:
    """The workflow file `name` as a dictionary; raises ValueError for what the nodes do not have."""
    boxes = _boxes(name, nodes)
    definitions = {box.kind: _definition(box, nodes, object_info) for box in boxes}
    outside = {output: f"{box.title}.{slot}" for box in boxes for slot, output in enumerate(box.outputs)}
    faces = {box.nodes[0].key: Node(box.title, box.kind, box.nodes[0].group, {}, box.inputs, title=box.title)
             for box in boxes}
    roots = [faces.get(node.key, node) for node in nodes if not node.box or node.key in faces]
    roots = [replace(node, links={name: outside.get(source, source) for name, source in node.links.items()})
             for node in roots]
    saved = graph.workflow(name, roots, notes, {**object_info, **definitions})
    for node in saved["nodes"]:
        if node["type"] in definitions:
            node["properties"] = {"proxyWidgets": []}
    return {**saved, **_inside(saved["last_node_id"], boxes, object_info)} if boxes else saved


def _boxes(name: str, nodes: list[Node]) -> list[Box]:
    boxes = []
    for title in dict.fromkeys(node.box for node in nodes if node.box):
        inner = [node for node in nodes if node.box == title]
        keys, inputs = {node.key for node in inner}, {}
        for socket, source in (link for node in inner for link in node.links.items()):
            if _key(source) not in keys and inputs.setdefault(socket, source) != source:
                raise ValueError(f"{title} takes {socket} from {inputs[socket]} and from {source}: an input of a "
                                 f"sub-graph has one source; connect both sockets to the same one.")
        outputs = {source for node in nodes if node.key not in keys for source in node.links.values()
                   if _key(source) in keys}
        kind = str(uuid.uuid5(uuid.NAMESPACE_URL, f"videomemory/{name}/{title}"))
        boxes.append(Box(title, kind, inner, inputs, sorted(outputs)))
    return boxes


def _key(source: str) -> str:
    return source.split(".")[0]


def _definition(box: Box, nodes: list[Node], object_info: dict) -> dict:
    """What /object_info would say of the box, if it were a node; sources are outside of it or in another box."""
    kinds = {node.key: node.kind for node in nodes}
    types = {name: object_info[kinds[_key(source)]]["output"][int(source.split(".")[1])]
             for name, source in box.inputs.items()}
    outputs = [_output(box, source, object_info) for source in box.outputs]
    return {"input": {"required": {name: [kind] for name, kind in types.items()}},
            "input_order": {"required": list(types)}, "output": [one["output"] for one in outputs],
            "output_name": [one["output_name"] for one in outputs]}


def _inside(last_number: int, boxes: list[Box], object_info: dict) -> dict:
    """The file's `definitions`, and its last number."""
    subgraphs = []
    for box in boxes:
        subgraphs.append(_subgraph(box, last_number, object_info))
        last_number += len(box.nodes)
    return {"last_node_id": last_number, "definitions": {"subgraphs": subgraphs}}


def _subgraph(box: Box, last_number: int, object_info: dict) -> dict:
    numbers = {node.key: last_number + i for i, node in enumerate(box.nodes, 1)}
    links, taken = _links(box, numbers, object_info)
    places = [(40 + i * (WIDTH + GAP), 80, height_of(node, object_info)) for i, node in enumerate(box.nodes)]
    nodes = [saved_node(node, numbers[node.key], i, place, taken, object_info)
             for i, (node, place) in enumerate(zip(box.nodes, places, strict=True))]
    right = 40 + len(nodes) * (WIDTH + GAP) + GAP
    names = [_output(box, source, object_info)["output_name"] for source in box.outputs]
    return {"id": box.kind, "version": 1,
            "state": {"lastGroupId": 0, "lastNodeId": max(numbers.values()), "lastLinkId": len(links),
                      "lastRerouteId": 0},
            "revision": 0, "config": {}, "name": box.title,
            "inputNode": {"id": INPUTS, "bounding": [-40 - END, 80, END, 40 + 20 * len(box.inputs)]},
            "outputNode": {"id": OUTPUTS, "bounding": [right, 80, END, 40 + 20 * len(names)]},
            "inputs": _ends(box.kind, list(box.inputs), "origin", INPUTS, links, -60),
            "outputs": _ends(box.kind, names, "target", OUTPUTS, links, right + 20),
            "widgets": [], "nodes": nodes, "groups": [], "links": links, "extra": {}}


def _output(box: Box, source: str, object_info: dict) -> dict:
    """{output: type, output_name: label} of a node inside."""
    key, slot = source.split(".")
    definition = object_info[next(node.kind for node in box.nodes if node.key == key)]
    return {what: definition[what][int(slot)] for what in ("output", "output_name")}


def _links(box: Box, numbers: dict[str, int], object_info: dict) -> tuple[list[dict], dict]:
    """The links inside, and {(node, input name): link, (node, output number): [links]}."""
    links, taken, entries = [], {}, list(box.inputs)

    def add(origin: tuple[int, int], target: tuple[int, int], kind: str) -> int:
        links.append({"id": len(links) + 1, "origin_id": origin[0], "origin_slot": origin[1], "target_id": target[0],
                      "target_slot": target[1], "type": kind})
        return len(links)

    for node in box.nodes:
        names = {one["name"]: (slot, one["type"]) for slot, one in enumerate(sockets(node.kind, object_info))}
        for name, source in node.links.items():
            key, slot = source.split(".")
            origin = (numbers[key], int(slot)) if key in numbers else (INPUTS, entries.index(name))
            taken[node.key, name] = add(origin, (numbers[node.key], names[name][0]), names[name][1])
            taken.setdefault((key, int(slot)), []).append(len(links))
    for end, source in enumerate(box.outputs):
        key, slot = source.split(".")
        taken.setdefault((key, int(slot)), []).append(
            add((numbers[key], int(slot)), (OUTPUTS, end), _output(box, source, object_info)["output"]))
    return links, taken


def _ends(kind: str, names: list[str], side: str, number: int, links: list[dict], x: float) -> list[dict]:
    """The inputs or the outputs of a sub-graph, each with its links inside."""
    ends = []
    for slot, name in enumerate(names):
        mine = [link for link in links if (link[f"{side}_id"], link[f"{side}_slot"]) == (number, slot)]
        ends.append({"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}/{side}/{name}")), "name": name,
                     "type": mine[0]["type"], "linkIds": [link["id"] for link in mine], "localized_name": name,
                     "pos": [x, 100 + 20 * slot]})
    return ends
