"""From a fresh socket to an open WebSocket: the request's head is read, bounded and judged before any library sees it.

trio-websocket and wsproto raise UnicodeError on heads that are not ASCII, keep a refused handshake's task, and cannot be asked to
refuse early. So the head is read here, whoever is refused gets a plain HTTP answer, and only what is clean and wanted is handed on,
by putting the bytes back into the stream. `OpenWebSocket` mends what wsproto leaves undone after the handshake. Nothing here
knows tokens, sessions or halo's frames. Read next: `halo/net/websocket.py`, the listener that uses this.
"""

import base64
import binascii
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, cast

import h11
import trio
import wsproto.events as ws
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState

from halo.net.head import HEAD_BYTES_MAX, head_too_large, require_clean
from halo.net.refusal import HeadRefused, refusal_response
from halo.net.stream import SocketStream
from halo.net.tap import SocketTap, Work

CONNECT_SECONDS: Final = 5.0
"""From accept to the end of the handshake (spec 7)."""
DISCONNECT_SECONDS: Final = 2.0
"""How long the peer may take to answer our close frame (spec 7)."""
MESSAGES_QUEUED: Final = 1
"""Always drained into a mailbox, which has its own bound; one here keeps the reader from switching tasks for each message."""

HEAD_END: Final = re.compile(rb"\n\r?\n")

TOO_BIG: Final = 1009

FrameJudge = Callable[[int], int | None]
"""Called for each piece of a message, ping and pong that arrives, empty ones too, with its payload's bytes. A number closes the
socket with that code: only so can a flood of fragments that never make a message, or of pings, be counted."""


MessageTaker = Callable[[str | bytes], Awaitable[None] | None]
"""Gets each whole message, one after another, in the task that reads: while what it returns is awaited, nothing more is read."""


PongTaker = Callable[[bytes], None]
"""Gets the payload of each pong."""


class TakerFailed(Exception):
    """The one who takes messages has a fault."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A well-formed request to open a WebSocket."""

    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, in the order sent."""

    def all(self, name: str) -> list[str]:
        """The values of a header that may be repeated; `name` in lower case."""
        return [value for known, value in self.headers if known == name]

    def one(self, name: str) -> str | None:
        """The value of a header that may come once; None when absent. Twice raises `HeadRefused`: which one should be believed?"""
        values = self.all(name)
        if len(values) > 1:
            raise HeadRefused(400, "MALFORMED", f"The header {name} was sent twice.")
        return values[0] if values else None

    @property
    def subprotocols(self) -> list[str]:
        """What the client offers, in its order."""
        return [
            offer.strip() for value in self.all("sec-websocket-protocol") for offer in value.split(",") if offer.strip()
        ]


async def receive_head(stream: SocketStream) -> RequestHead:
    """Read one request's head, at most 16 KiB. Raises `HeadRefused` for all that is not a clean request for a WebSocket.

    Takes as long as the peer does: call it under `CONNECT_SECONDS`. Bytes behind the head are refused, since no client may
    send any before it has our answer. Raises `trio.BrokenResourceError` when the peer hangs up. The head is put back into the stream, for the library
    that answers it.
    """
    head = bytearray()
    looked_at = 0
    while True:
        end = HEAD_END.search(head, max(0, looked_at - 2))
        looked_at = len(head)
        if (end.end() if end else len(head)) > HEAD_BYTES_MAX:
            raise head_too_large()
        if end:
            break
        received = await stream.receive_some(4096)
        if not received:
            raise trio.BrokenResourceError("the peer hung up before its request was complete")
        head += received
    if end.end() != len(head):
        raise HeadRefused(400, "MALFORMED", "Bytes were sent before the handshake was answered.")
    parsed = parse_head(bytes(head))
    stream.unread(bytes(head))
    return parsed


def parse_head(head: bytes) -> RequestHead:
    """Judge one whole head. Raises `HeadRefused`."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    try:
        parser.receive_data(head)
        request = parser.next_event()
    except h11.RemoteProtocolError as error:
        raise HeadRefused(400, "MALFORMED", "This is not an HTTP request.") from error
    if not isinstance(request, h11.Request):
        raise HeadRefused(400, "MALFORMED", "This is not an HTTP request.")
    require_clean(request)
    if request.http_version != b"1.1" or request.method != b"GET":
        raise HeadRefused(
            405, "METHOD_NOT_ALLOWED", "A WebSocket is opened with GET and HTTP/1.1.", headers=(("allow", "GET"),)
        )
    path, _, query = request.target.decode("ascii").partition("?")
    # `require_clean` has seen to it that what anybody believes is ASCII; the rest cannot fail as Latin-1
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers)
    parsed = RequestHead(path, query, headers)
    _require_upgrade(parsed)
    return parsed


def _require_upgrade(head: RequestHead) -> None:
    if not head.one("host"):
        raise HeadRefused(400, "MALFORMED", "The header host is missing.")
    connection = {token.strip().lower() for value in head.all("connection") for token in value.split(",")}
    if "upgrade" not in connection or (head.one("upgrade") or "").lower() != "websocket":
        raise HeadRefused(
            426, "UPGRADE_REQUIRED", "Only WebSockets are served here.", headers=(("upgrade", "websocket"),)
        )
    if len(head.all("connection")) > 1:
        raise HeadRefused(
            400, "MALFORMED", "The header connection was sent twice."
        )  # wsproto looks at the last one only
    if head.one("sec-websocket-version") != "13":
        version = ("sec-websocket-version", "13")
        raise HeadRefused(
            426, "UPGRADE_REQUIRED", "Only version 13 of the protocol is spoken here.", headers=(version,)
        )
    try:
        key = base64.b64decode(head.one("sec-websocket-key") or "", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        raise HeadRefused(400, "MALFORMED", "The header sec-websocket-key is not 16 bytes in base64.")
    if {"content-length", "transfer-encoding"} & {name for name, _ in head.headers}:
        raise HeadRefused(400, "MALFORMED", "A request for a WebSocket has no body.")


async def refuse(stream: SocketStream, no: HeadRefused) -> None:
    """Answer `no` and close so that the answer arrives; at most a second."""
    stream.write(refusal_response(no.status, no.code, no.detail, headers=no.headers))
    await stream.aclose_gently()


class _HandshakeDone:
    """Stands where wsproto keeps its handshake for the life of the socket: h11, its buffers and the headers, some 3 KB for nothing."""

    def events(self) -> tuple[()]:
        return ()


_HANDSHAKE_DONE: Final = _HandshakeDone()


class OpenWebSocket(WebSocketConnection):
    """trio-websocket's connection, with six of its habits mended.

    Closing does not wait for ever. A protocol error is answered with its close code before the socket goes (wsproto only reports
    it). A ping that arrives after our own close is ignored instead of raising. Limits count bytes, not characters. Every frame is
    shown to a judge. Whole messages are taken by the task that reads them: the library's queue costs a switch of tasks for each.
    """

    judge: FrameJudge | None = None
    take: MessageTaker | None = None
    heard: PongTaker | None = None
    tap: SocketTap | None = None

    def do(self, work: Work) -> None:
        """`work` in the task that reads, before anything more is read. For listeners only."""
        assert self.tap is not None
        self.tap.do(work)

    async def run_reader(self) -> None:
        """Read until either side has closed. To be started before anything else."""
        await self._reader_task()

    async def accept(self, subprotocol: str | None) -> None:
        """Answer the request with 101."""
        request = await self._get_request()
        await request.accept(subprotocol=subprotocol)
        self._wsproto.handshake = _HANDSHAKE_DONE  # type: ignore[assignment]  # all that is asked of it now is its events

    async def aclose(self, code: int = 1000, reason: str | None = None) -> None:
        """The closing handshake, at most `DISCONNECT_SECONDS`; then the socket is closed, whatever the peer does."""
        with trio.move_on_after(DISCONNECT_SECONDS):
            await super().aclose(code, reason)

    async def _handle_close_connection_event(self, event: ws.CloseConnection) -> None:
        if self._wsproto.state is ConnectionState.OPEN:  # nobody closed: the parser gave up on the peer's bytes
            await self.close_with(int(event.code), None)
        else:
            await super()._handle_close_connection_event(event)

    async def _handle_message_event(self, event: ws.BytesMessage | ws.TextMessage) -> None:
        data = event.data
        size = len(data) if isinstance(data, bytes | bytearray) or data.isascii() else len(data.encode())
        if not await self._passes(size):
            return
        self._message_size += size
        if self._message_size > self._max_message_size:
            await self.close_with(TOO_BIG, None)
        self._message_parts.append(bytes(data) if isinstance(data, bytearray) else data)
        if event.message_finished:
            parts, self._message_parts, self._message_size = self._message_parts, [], 0
            await self._hand_over(parts[0] if len(parts) == 1 else _joined(parts))

    async def _hand_over(self, message: str | bytes) -> None:
        if self.take is None:
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # we have closed: nobody waits for it
                await self._send_channel.send(message)
            return
        try:
            waiting = self.take(message)
            if waiting is not None:
                await waiting
        except (
            KeyError
        ) as fault:  # the library's reader takes a KeyError for an event that it does not know, and goes on
            raise TakerFailed from fault

    async def wait_closed(self) -> None:
        """Until the peer has closed, or is gone, while `take` gets what it says. Raises `ConnectionClosed`."""
        await self.get_message()

    async def _handle_ping_event(self, event: ws.Ping) -> None:
        if await self._passes(len(event.payload)):
            await super()._handle_ping_event(event)

    async def _handle_pong_event(self, event: ws.Pong) -> None:
        if self.heard is not None:  # also after our own close: the last word was heard, too
            self.heard(bytes(event.payload))
        if await self._passes(len(event.payload)):
            await super()._handle_pong_event(event)

    async def close_with(self, code: int, reason: str | None) -> None:
        """Send a close frame and stop listening, without waiting for the peer's; whoever reads sees `ConnectionClosed`."""
        self._close_reason = CloseReason(code, reason)
        if self._wsproto.state is ConnectionState.OPEN:
            await self._send(ws.CloseConnection(code=code, reason=reason))
        await self._send_channel.aclose()
        self._close_handshake.set()
        self._reader_running = False
        raise ConnectionClosed(self._close_reason)

    async def _passes(self, size: int) -> bool:
        """Whether a frame still matters: after our own close none does, and a pong to a ping would raise."""
        if self._close_reason is not None and self._wsproto.state is not ConnectionState.OPEN:
            return False
        code = self.judge(size) if self.judge is not None else None
        if code is not None:
            await self.close_with(code, None)
        return True


def _joined(parts: list[bytes | str]) -> bytes | str:
    if isinstance(parts[0], str):
        return "".join(cast("list[str]", parts))
    return b"".join(cast("list[bytes]", parts))


@asynccontextmanager
async def open_websocket(
    stream: SocketStream,
    *,
    message_bytes_max: int,
    subprotocol: str | None = None,
    judge: FrameJudge | None = None,
    take: MessageTaker | None = None,
    heard: PongTaker | None = None,
    tap: SocketTap | None = None,
) -> AsyncIterator[OpenWebSocket]:
    """Accept the request that `receive_head` has put back, and hold the socket open for the body of the block; then close it within `DISCONNECT_SECONDS`.

    With `take` each message goes there as soon as it is whole; without, the body asks for it by `get_message`. With a `tap` on
    `stream` the ordinary messages pass by the library to its listener, and `take` gets only those in fragments or in binary.

    The body ends the conversation by leaving; it chooses the code by `aclose(code)` before. A message larger than
    `message_bytes_max` closes with 1009, wrong frames with 1002, bad UTF-8 with 1007: then `get_message` raises `ConnectionClosed`,
    which may leave the block and ends here. Faults of the library surface here, in a group; `guarded` is there for them.
    """
    socket = OpenWebSocket(
        tap or stream,
        WSConnection(ConnectionType.SERVER),
        message_queue_size=MESSAGES_QUEUED,
        max_message_size=message_bytes_max,
    )
    socket.judge = judge
    socket.take = take
    socket.heard = heard
    socket.tap = tap
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(socket.run_reader, name=f"reader {stream.peer}")
            with trio.fail_after(CONNECT_SECONDS):
                try:
                    await socket.accept(subprotocol)
                except ConnectionClosed as error:
                    raise trio.BrokenResourceError("the peer hung up during the handshake") from error
            if tap is not None:
                tap.attach()
            with suppress(ConnectionClosed):  # the usual end of a conversation
                yield socket
            await socket.aclose()
            nursery.cancel_scope.cancel()  # the reader, which must not read beside `aclose_gently`
        if tap is not None:
            tap.detach()
        await stream.aclose_gently()
    finally:
        await trio.aclose_forcefully(stream)
