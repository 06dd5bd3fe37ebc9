"""ComfyUI-VideoMemory: long, character-coherent video on small cards, as ComfyUI nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension

from .nodes import NODE_CLASSES
from .nodes.budget.bridge_route import add_routes as add_budget_routes
from .nodes.video.bridge_route import add_routes as add_film_routes

WEB_DIRECTORY = "./js"


class VideoMemoryExtension(ComfyExtension):
    async def get_node_list(self) -> list:
        return NODE_CLASSES


async def comfy_entrypoint() -> VideoMemoryExtension:
    add_budget_routes()
    add_film_routes()
    return VideoMemoryExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
