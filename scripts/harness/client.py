"""Talking to a running ComfyUI: HTTP for questions and prompts, a WebSocket for what happens meanwhile."""

from __future__ import annotations

import json
import struct
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from .errors import CannotContinue
from .websocket import WebSocket

HOST = "127.0.0.1"
HISTORY_S = 30.0
TEXT_EVENT = 3  # ComfyUI's binary event for a line of text under a node
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
Listener = Callable[[str, dict], None]


class Client:
    """One ComfyUI on the loopback device."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.id = uuid.uuid4().hex
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for our own machine

    def get(self, path: str, timeout_s: float = 30.0) -> Any:
        """The JSON answer to a GET; raises OSError when nobody answers."""
        return json.loads(self.get_bytes(path, timeout_s))

    def get_bytes(self, path: str, timeout_s: float = 30.0) -> bytes:
        with self.opener.open(f"http://{HOST}:{self.port}{path}", timeout=timeout_s) as answer:
            return answer.read()

    def post(self, path: str, data: dict, timeout_s: float = 60.0) -> Any:
        """The JSON answer to a POST, or None where there is none; an HTTP error is raised as urllib's HTTPError."""
        request = urllib.request.Request(f"http://{HOST}:{self.port}{path}", data=json.dumps(data).encode(),
                                         headers={"Content-Type": "application/json"})
        with self.opener.open(request, timeout=timeout_s) as answer:
            body = answer.read()
        return json.loads(body) if body.strip() else None

    def queue(self, prompt: dict) -> str:
        """Queue an API prompt and return its id; a prompt that the server refuses is said in one sentence."""
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": self.id})["prompt_id"]
        except urllib.error.HTTPError as refused:
            raise CannotContinue(refusal_sentence(refused.read().decode(errors="replace"), prompt)) from None

    def run(self, prompt: dict, listen: Listener | None = None, alive: Callable[[], None] = lambda: None) -> dict:
        """Queue `prompt`, wait for its end and return its history entry (keys outputs, status).

        `listen(event, data)` hears every event of this client, `alive()` is asked each second and may raise.
        Raises CannotContinue when a node fails or the run is interrupted.
        """
        events = WebSocket(HOST, self.port, f"/ws?clientId={self.id}")
        try:
            prompt_id = self.queue(prompt)
            while True:
                alive()
                message = events.receive(timeout_s=1.0)
                event, data = parse_event(message) if message is not None else ("", {})
                if event and listen is not None:
                    listen(event, data)
                if event in ENDINGS and data.get("prompt_id") == prompt_id:
                    break
        except ConnectionError as error:
            alive()  # says why, when the server has died
            raise CannotContinue(f"The connection to ComfyUI broke ({error}): run the same command again; finished "
                                 f"clips are kept.") from None
        finally:
            events.close()
        if event != "execution_success":
            raise CannotContinue(failure_sentence(event, data))
        return self._history(prompt_id)

    def _history(self, prompt_id: str) -> dict:
        """The entry of a finished prompt, which ComfyUI writes a moment after it has announced the end."""
        deadline = time.monotonic() + HISTORY_S
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise CannotContinue("ComfyUI finished the run and did not list it: run the same command again; "
                                     "finished clips are kept.")
            time.sleep(0.05)
        return history[prompt_id]

    def interrupt(self) -> None:
        """Ask the running prompt to stop; it does at its next step."""
        self.post("/queue", {"clear": True})
        self.post("/interrupt", {})

    def is_idle(self) -> bool:
        queue = self.get("/queue", timeout_s=2.0)
        return not queue["queue_running"] and not queue["queue_pending"]


def parse_event(message: str | bytes) -> tuple[str, dict]:
    """(event, data) of one WebSocket message; `text` for a node's line of text, "" for previews and the like."""
    if isinstance(message, str):
        parsed = json.loads(message)
        return parsed.get("type", ""), parsed.get("data") or {}
    if len(message) >= 8 and struct.unpack(">I", message[:4])[0] == TEXT_EVENT:
        length = struct.unpack(">I", message[4:8])[0]
        return "text", {"node": message[8:8 + length].decode("utf-8", "replace"),
                        "text": message[8 + length:].decode("utf-8", "replace")}
    return "", {}


def refusal_sentence(body: str, prompt: dict) -> str:
    """ComfyUI's refusal of a prompt in one sentence that names nodes and inputs."""
    try:
        answer = json.loads(body)
    except ValueError:
        return f"ComfyUI refused the workflow and did not say why: {body[:200]!r}."
    reasons = []
    for node_id, found in (answer.get("node_errors") or {}).items():
        name = found.get("class_type") or prompt.get(node_id, {}).get("class_type", "?")
        reasons += [f"{name} (node {node_id}): {one.get('message')}: {one.get('details')}" for one in found["errors"]]
    error = answer.get("error")
    general = error.get("message", "") if isinstance(error, dict) else str(error or "")
    reason = "; ".join(dict.fromkeys(reasons)) or general or body[:200]
    return f"ComfyUI refused the workflow: {reason.rstrip('.')}."


def failure_sentence(event: str, data: dict) -> str:
    """What stopped a run, in one sentence."""
    if event == "execution_interrupted":
        return "The run was interrupted: finished clips are kept, run the same command again to go on."
    message = str(data.get("exception_message", "")).strip()
    return f"{data.get('node_type', 'A node')} failed: {message or data.get('exception_type', 'no message')}"
