"""The plan's route answers every body with a sentence, and what it reads may go while it looks."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.comfy

GRAPH = {"4": {"class_type": "VideoMemoryBudgetGate", "inputs": {}}}
LARGE = 16 * 2**20
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture
def route():
    from pack.nodes.budget import bridge_route

    return bridge_route


def asked(route, body: bytes, charset: str = "utf-8", pieces: bool = False) -> tuple[int, dict]:
    """Status and answer of a POST to ComfyUI's own kind of server."""
    from aiohttp import test_utils, web

    async def post() -> tuple[int, dict]:
        app = web.Application(client_max_size=2 * LARGE)
        app.router.add_post(route.PLAN, route.post_plan)
        async with test_utils.TestClient(test_utils.TestServer(app)) as client:
            answer = await client.post(route.PLAN, data=in_pieces(body) if pieces else body,
                                       headers={"Content-Type": f"application/json; charset={charset}"})
            return answer.status, json.loads(await answer.read())

    return asyncio.run(post())


async def in_pieces(body: bytes):
    for start in range(0, len(body), 2**20):
        yield body[start:start + 2**20]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"prompt": {}}', DEEP,
                                  b'{"node_id": "4", "prompt": ' + DEEP + b"}"],
                         ids=["empty", "cut", "bytes", "list", "null", "no node", "deep", "deep graph"])
def test_what_is_no_graph_is_told_in_a_sentence(route, body):
    status, answer = asked(route, body)
    assert status == 400 and answer["fits"] is None and "is no graph" in answer["message"]


def test_a_charset_that_nobody_knows_is_no_hindrance(route):
    status, answer = asked(route, json.dumps({"prompt": GRAPH, "node_id": "4"}).encode(), "klingon")
    assert (status, answer) == (200, {"fits": None, "message": "Nothing is connected to memory."})


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("times", [1, 3])
def test_what_is_too_large_is_refused_in_a_sentence(route, pieces, times):
    status, answer = asked(route, b" " * (times * route.MAX_BODY_BYTES + 1), pieces=pieces)
    assert (status, answer) == (413, {"fits": None, "message": route.TOO_LARGE})


def test_a_large_body_is_not_read(route):
    async def read():
        raise AssertionError("was read")

    answer = asyncio.run(route.post_plan(SimpleNamespace(content_length=LARGE + 1, read=read)))
    assert answer.status == 413


def test_what_nobody_foresaw_is_logged_and_told(route, monkeypatch, caplog):
    def fail(*_args, **_rest):
        raise ZeroDivisionError("nobody foresaw it")

    monkeypatch.setattr(route, "answer_graph", fail)
    assert asked(route, json.dumps({"prompt": GRAPH, "node_id": "4"}).encode()) == (
        200, {"fits": None, "message": "The plan could not be made: ComfyUI's log says why. It is made again when the "
                                       "film is queued."})
    assert "nobody foresaw it" in caplog.text


def test_nodes_without_inputs_are_answered(route):
    from pack.nodes.budget.answer import answer_graph
    from pack.nodes.budget.probe import GIB, Machine

    machine = Machine("cpu", True, 24 * GIB, 20 * GIB, 0, 24 * GIB, 20 * GIB)
    memory = {"class_type": "VideoMemoryPersistentMemory"}
    recipe = {"class_type": "VideoMemoryCustomRecipe"}
    gate = {"class_type": "VideoMemoryBudgetGate", "inputs": {"memory": ["3", 0]}}
    for graph in ({"4": gate, "3": memory},
                  {"4": gate, "3": memory | {"inputs": {"preset": "custom", "recipe": ["5", 0]}}, "5": recipe}):
        answer = answer_graph(graph, "4", lambda *_: None, 2, machine)
        assert answer.fits is None and answer.message


class Patcher:
    model = object()

    def loaded_size(self) -> int:
        return 7


class Loaded:
    """As ComfyUI's LoadedModel, whose model may go at any time: it can be read so many times."""

    device = "cpu"

    def __init__(self, times: int) -> None:
        self.left = [Patcher()] * times

    @property
    def model(self) -> Patcher | None:
        return self.left.pop() if self.left else None

    def model_loaded_memory(self) -> int:
        return self.model.loaded_size()


def test_a_model_that_goes_meanwhile_is_no_error(monkeypatch):
    from pack.nodes.budget import bridge

    monkeypatch.setattr(bridge.mm, "current_loaded_models", [Loaded(1), Loaded(0)])
    assert bridge.loaded_models("cpu") == (("object", 7),)
