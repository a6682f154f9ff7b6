"""One socket from its welcome to its end, over a real TCP connection; the minutes of a keepalive pass on a clock that jumps."""

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from halo import protocol
from halo.clock import rfc3339
from halo.decoding import FrameDecoder
from halo.net.connection import Connection, Limits
from halo.net.connections import PING_SECONDS, PONG_SECONDS, TICK_SECONDS, Connections
from halo.net.flusher import Flusher
from halo.net.handshake import open_websocket, receive_head
from halo.net.stream import PING_FRAME, SocketStream
from halo.net.tokens import Identity, Tokens
from halo.session import Party
from tests.net.test_connections import FAR, START, TrioClock

SETTLED_SECONDS = 0.01
"""Real time in which nothing happened, before the clock jumps: a byte on its way through the loopback is not nothing."""
WELCOME = protocol.LobbyWelcomeCustomer(role="customer", sessions=(), server_time=rfc3339(START))


@pytest.fixture
def patient_clock() -> MockClock:
    return MockClock(autojump_threshold=SETTLED_SECONDS)


class Talk(Connection):
    """A connection that says welcome, and then, if there is a history, hangs in it."""

    decoder = FrameDecoder.LOBBY
    is_lobby = True

    def __init__(self, stream: SocketStream, identity: Identity, connections: Connections, *, hangs: bool) -> None:
        limits = Limits(messages_per_10s=20, bytes_per_s=20_000)
        super().__init__(stream, "/v1/lobby", identity, limits, TrioClock(), cast(Tokens, None))
        self.welcomed = trio.Event()
        self.gone_at: float | None = None
        self._connections = connections
        self._hangs = hangs

    async def run(self, stream: SocketStream) -> None:
        await receive_head(stream)
        self._connections.add(self)
        try:
            async with open_websocket(
                stream, message_bytes_max=protocol.FRAME_BYTES_MAX, judge=self.judge, take=self.read
            ) as websocket:
                await self.converse(websocket)
        finally:
            self._connections.remove(self)
            self.gone_at = trio.current_time()

    async def welcome(self) -> None:
        await self.say(WELCOME)
        self.welcomed.set()
        if self._hangs:
            await trio.sleep_forever()

    async def take(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> None:
        raise AssertionError("not part of these tests")

    def token_renewed(self) -> None:
        raise AssertionError("not part of these tests")


@asynccontextmanager
async def open_talk(
    connections: Connections, user: str, *, hangs: bool = False
) -> AsyncIterator[tuple[Talk, socket.socket]]:
    """A connection that converses, and the client's end of it, which has not said a word."""
    flusher = Flusher()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    stream = SocketStream(near, flusher, user)
    identity = Identity(user_id=user, user_type=Party.CUSTOMER, auth_session_id=user, jti=user, expires_at=FAR)
    talk = Talk(stream, identity, connections, hangs=hangs)
    async with trio.open_nursery() as nursery:
        await nursery.start(flusher.serve)
        nursery.start_soon(talk.run, stream)
        try:
            yield talk, far
        finally:
            far.close()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_client(far: socket.socket) -> AsyncIterator[WebSocketConnection]:
    """A client that answers pings by itself."""
    async with trio.open_nursery() as nursery:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        yield await wrap_client_stream(nursery, stream, "halo.test", "/v1/lobby")
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def read_to_end(client: WebSocketConnection) -> tuple[list[dict[str, Any]], int | None]:
    """What came, and the close code."""
    told: list[dict[str, Any]] = []
    try:
        while True:
            told.append(json.loads(await client.get_message()))
    except ConnectionClosed as closed:
        return told, None if closed.reason is None else closed.reason.code


def read_all(far: socket.socket) -> bytes:
    """What lies there, up to the end of file or the reset that must have come already."""
    far.setblocking(False)
    heard = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := far.recv(65_536):
            heard += piece
    return heard


# ---- keepalive


async def test_a_client_that_fell_silent_is_cut_within_its_thirty_seconds_and_one_that_answers_stays(
    patient_clock: MockClock,
) -> None:
    connections = Connections(TrioClock(), 5)
    async with (
        trio.open_nursery() as nursery,
        open_talk(connections, "alive") as (alive, alive_end),
        open_talk(connections, "dead") as (dead, dead_end),
        open_client(alive_end) as client,
    ):
        dead_end.sendall(
            b"GET /v1/lobby HTTP/1.1\r\nHost: halo.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await dead.welcomed.wait()
        silent_since = trio.current_time()
        await nursery.start(connections.serve)
        await trio.sleep(4 * PING_SECONDS)
        assert dead.gone_at is not None
        assert dead.gone_at - silent_since <= PING_SECONDS + PONG_SECONDS + TICK_SECONDS
        assert connections.cut_as_dead == 1
        assert not connections.is_connected("dead")
        assert alive.gone_at is None
        assert connections.is_connected("alive")
        heard = read_all(dead_end)
        assert PING_FRAME in heard
        assert b"\x88\x02" not in heard  # no goodbye: nobody was there to hear it
        connections.close_user("alive", 1000)
        assert await read_to_end(client) == ([json.loads(protocol.encode(WELCOME))], 1000)
        nursery.cancel_scope.cancel()


# ---- the last words


@pytest.mark.parametrize("hangs", [False, True])
async def test_who_is_sent_away_hears_when_to_return_also_in_the_middle_of_its_history(
    patient_clock: MockClock, hangs: bool
) -> None:
    connections = Connections(TrioClock(), 5)
    async with open_talk(connections, "u", hangs=hangs) as (talk, far), open_client(far) as client:
        await talk.welcomed.wait()
        connections.send_all_away(0, 2_000, "draining")
        welcome, reconnect = (result := await read_to_end(client))[0]
        assert welcome["type"] == "welcome"
        assert reconnect == {"type": "reconnect", "after_ms": 0, "reason": "draining"}
        assert result[1] == 4000


async def test_nothing_live_takes_the_place_of_a_history_that_was_cut_off(patient_clock: MockClock) -> None:
    """A client that saw seq 9 would never ask for what came before it."""
    connections = Connections(TrioClock(), 5)
    async with open_talk(connections, "u", hangs=True) as (talk, far), open_client(far) as client:
        await talk.welcomed.wait()
        talk.answer(protocol.Ack(id="m-1", seq=9, at=rfc3339(START)))
        talk.answer(protocol.Typing(sender="mitra", on=True))
        talk.close(4000)
        told, code = await read_to_end(client)
        assert ([frame["type"] for frame in told], code) == (["welcome"], 4000)
