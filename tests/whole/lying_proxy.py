"""A socket between the harness and halo that lies once: it loses, repeats, swaps, alters or makes up a frame of a chat.

It lies about the third frame that fits, on the first connection that has three, so what is found can be said beforehand.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any
from urllib.parse import urlsplit

import trio

from halo.load.frames import TEXT, take_frames

LIES_ABOUT = 3


class Lie(Enum):
    """What happens to one frame."""

    NONE = auto()
    DROP = auto()  # a message never comes
    REPEAT = auto()  # a message comes twice
    SWAP = auto()  # a message comes after the next one
    ALTER = auto()  # a message comes with another body
    FORGE = auto()  # a message never reaches the server, and is acknowledged
    HUSH = auto()  # an ack never comes
    ECHO = auto()  # an ack comes twice
    NOT_NOW = auto()  # a message never reaches the server, and is refused for now
    NEVER = auto()  # a message never reaches the server, and is refused for good


ANSWERED_HERE = {Lie.FORGE, Lie.NOT_NOW, Lie.NEVER}
"""The server never hears of it."""


@dataclass
class LyingProxy:
    """The proxy as a test holds it."""

    url: str
    lie: Lie
    has_lied: bool = False


@asynccontextmanager
async def open_lying_proxy(ws_url: str, lie: Lie) -> AsyncIterator[LyingProxy]:
    """In front of the WebSockets at `ws_url`."""
    there = urlsplit(ws_url)
    assert there.port is not None

    async def serve(client: trio.SocketStream) -> None:
        try:
            async with client, await trio.open_tcp_stream(str(there.hostname), there.port or 0) as server:
                await _Relay(proxy, client, server).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side has hung up

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = LyingProxy(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", lie)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()


class _Relay:
    def __init__(self, proxy: LyingProxy, client: trio.SocketStream, server: trio.SocketStream) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._seen = 0
        self._last_seq = 0
        self._held = b""
        self._from_server = bytearray()
        self._from_client = bytearray()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, self._client, self._server, self._to_server, nursery.cancel_scope)
            nursery.start_soon(self._pump, self._server, self._client, self._to_client, nursery.cancel_scope)

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        change: Callable[[bytes], bytes],
        scope: trio.CancelScope,
    ) -> None:
        head, waiting = b"", bytearray()
        async for more in source:
            if b"\r\n\r\n" not in head:
                head += more
                first, end, rest = head.partition(b"\r\n\r\n")
                if end:
                    await sink.send_all(first + end)
                    waiting += rest
            else:
                waiting += more
            if waiting:
                if changed := change(bytes(waiting)):
                    await sink.send_all(changed)
                waiting.clear()
                if self._held and self._proxy.lie in ANSWERED_HERE:
                    held, self._held = self._held, b""
                    await self._client.send_all(held)
        scope.cancel()

    def _to_server(self, data: bytes) -> bytes:
        if self._proxy.lie not in ANSWERED_HERE:
            return data
        out = bytearray()
        self._from_client += data
        while len(self._from_client) >= 8:
            short = self._from_client[1] & 0x7F
            start = 8 if short == 126 else 6
            end = start + (int.from_bytes(self._from_client[2:4]) if short == 126 else short)
            if len(self._from_client) < end:
                break
            whole, payload = bytes(self._from_client[:end]), bytes(self._from_client[start:end])  # the mask is of zeros
            del self._from_client[:end]
            if b'"type":"message"' in payload and self._lies_now():
                self._held = _frame(self._answer(json.loads(payload)["id"]))
            else:
                out += whole
        return bytes(out)

    def _to_client(self, data: bytes) -> bytes:
        out = bytearray()
        self._from_server += data
        for opcode, payload in take_frames(self._from_server):
            frame = json.loads(payload) if opcode == TEXT else {}
            self._last_seq = max(self._last_seq, frame.get("seq") or 0)
            out += self._changed(frame) if opcode == TEXT else bytes((0x80 | opcode, len(payload))) + payload
        return bytes(out)

    def _changed(self, frame: dict[str, Any]) -> bytes:
        lie, whole = self._proxy.lie, _frame(frame)
        if self._held:
            held, self._held = self._held, b""
            return whole + held
        fits = "message" if lie in {Lie.DROP, Lie.REPEAT, Lie.SWAP, Lie.ALTER} else "ack"
        if lie in {Lie.NONE, *ANSWERED_HERE} or frame["type"] != fits or not self._lies_now():
            return whole
        match lie:
            case Lie.REPEAT | Lie.ECHO:
                return whole + whole
            case Lie.ALTER:
                return _frame(frame | {"body": frame["body"][:-1] + "?"})
            case Lie.SWAP:
                self._held = whole
            case _:
                pass  # it never comes
        return b""

    def _answer(self, message_id: str) -> dict[str, Any]:
        if self._proxy.lie is Lie.FORGE:
            return {"type": "ack", "id": message_id, "seq": self._last_seq + 1}
        code, retryable = ("STORE_UNAVAILABLE", True) if self._proxy.lie is Lie.NOT_NOW else ("VALIDATION_ERROR", False)
        return {"type": "refused", "id": message_id, "code": code, "status": 503, "message": "", "retryable": retryable}

    def _lies_now(self) -> bool:
        self._seen += 1
        if self._proxy.has_lied or self._seen != LIES_ABOUT:
            return False
        self._proxy.has_lied = True
        return True


def _frame(frame: dict[str, Any]) -> bytes:
    payload = json.dumps(frame).encode()
    head = bytes((0x81, len(payload))) if len(payload) < 126 else bytes((0x81, 126)) + len(payload).to_bytes(2)
    return head + payload
