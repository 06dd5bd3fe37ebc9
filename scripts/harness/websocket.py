"""The receiving half of a WebSocket, as RFC 6455 describes it: enough to listen to ComfyUI on the loopback device."""

from __future__ import annotations

import base64
import os
import socket
import struct

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FINAL_BIT, MASK_BIT = 0x80, 0x80


class WebSocket:
    """An open connection; `receive` gives one message at a time."""

    def __init__(self, host: str, port: int, path: str, timeout_s: float = 10.0) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
                             f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
                             ).encode())
        while b"\r\n\r\n" not in self.buffer:
            self._fill()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            self.socket.close()
            raise ConnectionError(f"no WebSocket at {path}: {head.splitlines()[0].decode(errors='replace')}")

    def receive(self, timeout_s: float) -> str | bytes | None:
        """The next message (str for text, bytes for binary), or None when none came in `timeout_s` seconds.

        A timeout in the middle of a message loses nothing: what came is kept. Raises ConnectionError when the other
        side has closed.
        """
        self.socket.settimeout(timeout_s)
        try:
            return self._message()
        except TimeoutError:
            return None

    def close(self) -> None:
        self.socket.close()

    def _message(self) -> str | bytes:
        whole, at, kind = b"", 0, 0
        while True:
            final, opcode, payload, at = self._frame(at)
            if opcode == CLOSE:
                raise ConnectionError("the server closed the WebSocket")
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode != PONG:
                kind = opcode or kind  # opcode 0 continues the message
                whole += payload
                if final:
                    self.buffer = self.buffer[at:]
                    return whole.decode("utf-8") if kind == TEXT else whole
            if not whole:
                self.buffer, at = self.buffer[at:], 0  # a control frame between messages is done with

    def _frame(self, at: int) -> tuple[bool, int, bytes, int]:
        """The frame that starts `at` in the buffer: final, opcode, payload, end."""
        first, second = self._bytes(at, 2)
        length, start = second & 0x7F, at + 2
        if length == 126:
            length, start = struct.unpack(">H", self._bytes(start, 2))[0], start + 2
        elif length == 127:
            length, start = struct.unpack(">Q", self._bytes(start, 8))[0], start + 8
        return bool(first & FINAL_BIT), first & 0x0F, self._bytes(start, length), start + length

    def _bytes(self, start: int, count: int) -> bytes:
        while len(self.buffer) < start + count:
            self._fill()
        return self.buffer[start:start + count]

    def _fill(self) -> None:
        more = self.socket.recv(65536)
        if not more:
            raise ConnectionError("the connection to the server is gone")
        self.buffer += more

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a short control frame; a client masks what it sends."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self.socket.sendall(bytes([FINAL_BIT | opcode, MASK_BIT | len(payload)]) + mask + masked)
