"""What the graph editor's panel asks the server: the plan of a gate, and the card. No model is loaded for it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import comfy.model_management as mm
import folder_paths
from aiohttp import web

from .answer import answer_graph, answer_json, card_json
from .bridge import compute_bytes, is_fused, look_around, records

PLAN, VRAM = "/videomemory/plan", "/videomemory/vram"
MEMORIES = "videomemory/memories"  # inside the output folder, where Save Memory writes


def add_routes() -> None:
    """Register both routes with ComfyUI's server; without one (a test, a script) there is nobody to answer."""
    from server import PromptServer  # not importable outside ComfyUI's main program

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.post(PLAN)(post_plan)
        server.routes.get(VRAM)(get_vram)


async def post_plan(request: web.Request) -> web.Response:
    """{"prompt": graph, "node_id": id} -> the plan (answer.answer_json); 400 for anything else."""
    try:
        body = await request.json()
        graph, node_id = body["prompt"], str(body["node_id"])
    except (ValueError, KeyError, TypeError):
        graph = None
    if not isinstance(graph, dict):
        return web.json_response({"fits": None, "message": "The request is no graph: it needs prompt and node_id."},
                                 status=400)
    return web.json_response(await asyncio.to_thread(plan_json, graph, node_id))  # a header may lie on a slow disk


async def get_vram(_request: web.Request) -> web.Response:
    """{"card": ...} for an editor that asks again and again."""
    return web.json_response({"card": card_json(await asyncio.to_thread(look_around, mm.get_torch_device()))})


def plan_json(graph: dict, node_id: str) -> dict[str, Any]:
    device = mm.get_torch_device()
    machine = look_around(device)
    return answer_json(answer_graph(graph, node_id, find_file, compute_bytes(device), machine,
                                    is_fused=is_fused(), records=records()), machine)


def find_file(folder: str, name: str) -> str | None:
    """A file of models/<folder>, or a memory that Save Memory wrote; None where there is none."""
    if folder != "memories":
        return folder_paths.get_full_path(folder, name)
    root = os.path.join(folder_paths.get_output_directory(), MEMORIES)
    path = os.path.abspath(os.path.join(root, name))
    return path if path.startswith(os.path.join(root, "")) and os.path.isfile(path) else None
