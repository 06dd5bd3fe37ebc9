"""What the graph editor's panel asks the server: the plan of a gate, and the card. No model is loaded for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import suppress
from typing import Any

import comfy.model_management as mm
import folder_paths
from aiohttp import web

from .answer import answer_graph, answer_json, card_json
from .bridge import compute_bytes, is_fused, look_around, records

log = logging.getLogger(__name__)

PLAN, VRAM = "/videomemory/plan", "/videomemory/vram"
MEMORIES = "videomemory/memories"  # inside the output folder, where Save Memory writes
MAX_BODY_BYTES = 16 * 2**20
TOO_LARGE = f"The request is too large: a graph may have {MAX_BODY_BYTES >> 20} MB."
NO_GRAPH = "The request is no graph: it needs prompt and node_id."
FAILED = "The plan could not be made: ComfyUI's log says why. It is made again when the film is queued."


def add_routes() -> None:
    """Register both routes with ComfyUI's server; without one (a test, a script) there is nobody to answer."""
    from server import PromptServer  # not importable outside ComfyUI's main program

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.post(PLAN)(post_plan)
        server.routes.get(VRAM)(get_vram)


async def post_plan(request: web.Request) -> web.Response:
    """{"prompt": graph, "node_id": id} -> the plan (answer.answer_json); 400 or 413 for anything else."""
    body = None
    if (request.content_length or 0) <= MAX_BODY_BYTES:
        with suppress(web.HTTPRequestEntityTooLarge):  # what comes in pieces tells no length
            body = await request.read()
    if body is None or len(body) > MAX_BODY_BYTES:
        return web.json_response(_said(TOO_LARGE), status=413)
    answer, status = await asyncio.to_thread(answer_body, body)  # a header may lie on a slow disk
    return web.json_response(answer, status=status)


async def get_vram(_request: web.Request) -> web.Response:
    """{"card": ...} for an editor that asks again and again."""
    return web.json_response({"card": card_json(await asyncio.to_thread(look_around, mm.get_torch_device()))})


def answer_body(body: bytes) -> tuple[dict[str, Any], int]:
    """What post_plan answers, and its status; never raises."""
    try:
        asked = json.loads(body)
        graph, node_id = asked["prompt"], str(asked["node_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        graph = None
    if not isinstance(graph, dict):
        return _said(NO_GRAPH), 400
    try:
        return plan_json(graph, node_id), 200
    except Exception:  # whatever stands in a graph: the panel shows sentences
        log.exception("VideoMemory: no plan of node %.40r", node_id)
        return _said(FAILED), 200


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


def _said(sentence: str) -> dict[str, Any]:
    return {"fits": None, "message": sentence}
