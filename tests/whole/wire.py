"""A client made of bytes: it sends what no library would, and shows every byte that came back.

Unlike `halo.client` it answers nothing by itself but pings (unless told not to), reads only when asked, and can vanish without a word.
"""

import base64
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import trio

from tests.whole.house import PATIENCE_SECONDS, House, Person

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_MASK = b"\x11\x22\x33\x44"


class HandshakeRefused(Exception):
    """The server answered with something else than 101."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.problem: dict[str, Any] = json.loads(body) if body else {}
        super().__init__(f"{status} {self.problem}")


class Closed(Exception):
    """The server said goodbye while something else was waited for."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(str(code))


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """One frame as a client sends it."""
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65_536:
        head += struct.pack("!BH", bit | 126, len(payload))
    else:
        head += struct.pack("!BQ", bit | 127, len(payload))
    if not masked:
        return head + payload
    pad = (_MASK * (len(payload) // 4 + 1))[: len(payload)]
    return head + _MASK + (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(len(payload))


class Wire:
    """One connection after its handshake."""

    def __init__(self, stream: trio.SocketStream, headers: Mapping[str, str], rest: bytes) -> None:
        self.headers = headers
        self.pings = 0
        self.answers_pings = True
        self._stream = stream
        self._buffer = bytearray(rest)
        self._passed: list[dict[str, Any]] = []
        """What came before an answer that was waited for; the next to be received."""

    async def send(self, type_: str, **fields: Any) -> None:
        await self.send_text(json.dumps({"type": type_, **fields}))

    async def send_text(self, text: str | bytes) -> None:
        await self.send_bytes(frame(TEXT, text.encode() if isinstance(text, str) else text))

    async def send_bytes(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_frame(self) -> tuple[int, bytes]:
        """The next frame as it is; raises EOFError at the end, trio.BrokenResourceError at a reset."""
        head = await self._look(2)
        assert head[0] & 0x70 == 0, "no reserved bit is ever set: no extension was agreed upon"
        assert head[1] & 0x80 == 0, "a server does not mask"
        at, length = 2, head[1]
        if length == 126:
            at, length = 4, struct.unpack("!H", (await self._look(4))[2:4])[0]
        elif length == 127:
            at, length = 10, struct.unpack("!Q", (await self._look(10))[2:10])[0]
        payload = (await self._look(at + length))[at : at + length]
        del self._buffer[: at + length]  # only now: whoever is cancelled before has taken nothing
        return head[0] & 0x0F, payload

    async def receive(self, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The next text frame, decoded. Pings are answered on the way. Raises Closed, and what `receive_frame` raises."""
        return self._passed.pop(0) if self._passed else await self._receive(seconds)

    async def _receive(self, seconds: float) -> dict[str, Any]:
        with trio.fail_after(seconds):
            while True:
                opcode, payload = await self.receive_frame()
                if opcode == PING:
                    self.pings += 1
                    if self.answers_pings:
                        await self.send_bytes(frame(PONG, payload))
                elif opcode == TEXT:
                    told: dict[str, Any] = json.loads(payload)
                    assert payload.startswith(b'{"type":"'), "type comes first"
                    return told
                elif opcode == CLOSE:
                    raise Closed(struct.unpack("!H", payload[:2])[0])
                else:
                    assert opcode == PONG, f"opcode {opcode}: {payload!r}"

    async def heed(self) -> NoReturn:
        """Read on and keep what comes, until cancelled: a server takes who reads nothing for dead."""
        while True:
            self._passed.append(await self._receive(PATIENCE_SECONDS * 10))

    async def expect(self, type_: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The next frame of this type; what comes before it is passed over."""
        with trio.fail_after(seconds):
            while (told := await self.receive(seconds))["type"] != type_:
                pass
        return told

    async def ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a frame with an `id` and return its `ack`, `refused` or `pong`; what comes before that is kept."""
        await self.send(type_, **fields)
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                told = await self._receive(PATIENCE_SECONDS)
                if told["type"] in {"ack", "refused", "pong"} and told.get("id") == fields["id"]:
                    return told
                self._passed.append(told)

    async def wait_closed(self, seconds: float = PATIENCE_SECONDS) -> tuple[int, list[dict[str, Any]]]:
        """The close code (1006 without one), and the text frames that came before it; then the closing handshake is finished."""
        told, self._passed = self._passed, []
        with trio.fail_after(seconds):
            try:
                while True:
                    opcode, payload = await self.receive_frame()
                    if opcode == TEXT:
                        told.append(json.loads(payload))
                    elif opcode == CLOSE:
                        code: int = struct.unpack("!H", payload[:2])[0]
                        await self.send_bytes(frame(CLOSE, payload[:2]))
                        return code, told
            except (EOFError, trio.BrokenResourceError):
                return 1006, told

    def abort(self) -> None:
        """Vanish: a reset, as when a phone is thrown into the water."""
        if self._stream.socket.fileno() < 0:
            return
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._stream.socket.close()

    async def _look(self, size: int) -> bytes:
        """The next bytes, which stay where they are."""
        while len(self._buffer) < size:
            more = await self._stream.receive_some(65_536)
            if not more:
                raise EOFError
            self._buffer += more
        return bytes(self._buffer[:size])


@asynccontextmanager
async def open_wire(
    house: House,
    path: str,
    person: Person | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    receive_buffer: int | None = None,
) -> AsyncIterator[Wire]:
    """Connect, shake hands with the token in the Authorization header, and hold the connection open. Raises HandshakeRefused."""
    key = base64.b64encode(os.urandom(16)).decode()
    said = {
        "Host": "halo.test",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        **(person.authorization if person is not None else {}),
        **(headers or {}),
    }
    request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in said.items()) + "\r\n"
    sock = trio.socket.socket()
    if receive_buffer is not None:  # before connecting, or the window has been agreed upon
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            await sock.connect(house.ws_address)
            wire = await _shake_hands(trio.SocketStream(sock), request.encode())
    except BaseException:
        sock.close()
        raise
    try:
        yield wire
    finally:
        wire.abort()


async def _shake_hands(stream: trio.SocketStream, request: bytes) -> Wire:
    await stream.send_all(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await _more(stream)
    head, _, rest = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    if status != 101:
        while len(rest) < int(headers.get("content-length", 0)):
            rest += await _more(stream)
        raise HandshakeRefused(status, headers, rest)
    return Wire(stream, headers, rest)


async def _more(stream: trio.SocketStream) -> bytes:
    more = await stream.receive_some(65_536)
    if not more:
        raise EOFError("the server hung up before it had answered")
    return bytes(more)


def chat_path(session_id: str, after_seq: int | str = 0) -> str:
    return f"/v1/chat/{session_id}?after_seq={after_seq}"
