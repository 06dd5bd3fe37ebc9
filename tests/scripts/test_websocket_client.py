"""Our WebSocket against a real one (aiohttp's) and against bytes that come in awkward pieces."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import pytest
from pack.scripts.harness.client import parse_event
from pack.scripts.harness.websocket import WebSocket


@pytest.fixture(scope="module")
def aiohttp_port():
    """A real WebSocket server that sends one message of every kind and size, pings, and closes."""
    web = pytest.importorskip("aiohttp.web")

    async def talk(request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.send_str("short")
        await ws.ping(b"are you there")
        await ws.send_str("ü" * 40_000)  # a 16-bit length
        await ws.send_bytes(bytes(range(256)) * 400)  # a 64-bit length
        await ws.close()
        return ws

    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_get("/ws", talk)
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield runner.addresses[0][1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def raw_server(pieces: list[bytes], gap: threading.Event | None = None) -> int:
    """A server that sends `pieces` one by one, each after the first only when `gap` is set."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        while b"\r\n\r\n" not in connection.recv(4096):
            pass
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + pieces[0])
        for piece in pieces[1:]:
            if gap is not None:
                gap.wait(10)
            connection.sendall(piece)
        connection.recv(1)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    return bytes([(0x80 if final else 0) | opcode, len(payload)]) + payload


def test_every_kind_of_message_arrives_when_the_server_is_a_real_one(aiohttp_port):
    ws = WebSocket("127.0.0.1", aiohttp_port, "/ws")
    assert ws.receive(5) == "short"
    assert ws.receive(5) == "ü" * 40_000
    assert ws.receive(5) == bytes(range(256)) * 400
    with pytest.raises(ConnectionError):
        ws.receive(5)


def test_nothing_is_lost_when_a_timeout_cuts_a_message():
    go_on = threading.Event()
    whole = frame(1, b"hello") + frame(1, b"again")
    ws = WebSocket("127.0.0.1", raw_server([whole[:4], whole[4:]], go_on), "/")
    assert ws.receive(0.1) is None
    go_on.set()
    assert ws.receive(5) == "hello"
    assert ws.receive(5) == "again"


def test_fragments_become_one_message_when_a_ping_comes_between():
    port = raw_server([frame(1, b"one ", final=False) + frame(9, b"x") + frame(0, b"two") + frame(1, b"next")])
    ws = WebSocket("127.0.0.1", port, "/")
    assert ws.receive(5) == "one two"
    assert ws.receive(5) == "next"


def test_connecting_fails_clearly_when_the_server_speaks_no_websocket(aiohttp_port):
    with pytest.raises(ConnectionError, match="no WebSocket at /nothing"):
        WebSocket("127.0.0.1", aiohttp_port, "/nothing")


def test_an_event_is_read_when_it_is_text_json_or_a_preview():
    assert parse_event('{"type": "executing", "data": {"node": "3"}}') == ("executing", {"node": "3"})
    text = struct.pack(">II", 3, 2) + b"12" + b"chunk 1 of 2"
    assert parse_event(text) == ("text", {"node": "12", "text": "chunk 1 of 2"})
    assert parse_event(struct.pack(">II", 1, 1) + b"jpeg") == ("", {})
