"""One socket from its welcome to its end, over a real TCP connection; the minutes of a keepalive pass on a clock that jumps."""

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from halo import protocol
from halo.clock import rfc3339
from halo.decoding import FrameDecoder
from halo.errors import MitraOffline, StoreUnavailable
from halo.net.connection import CLOSE_ABUSE, CLOSE_FAULT, LAST_WORDS, Connection, Limits
from halo.net.connections import PING_SECONDS, PONG_SECONDS, TICK_SECONDS, Connections
from halo.net.flusher import Flusher
from halo.net.handshake import open_websocket, receive_head
from halo.net.reader import Reader
from halo.net.stream import PING_FRAME, SocketStream
from halo.net.tap import SocketTap
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

    def __init__(
        self, stream: SocketStream, identity: Identity, connections: Connections, *, hangs: bool, fails: bool = False
    ) -> None:
        limits = Limits(messages_per_10s=20, bytes_per_s=20_000)
        super().__init__(stream, "/v1/lobby", identity, limits, TrioClock(), cast(Tokens, None))
        self.welcomed = trio.Event()
        self.gone_at: float | None = None
        self._connections = connections
        self._hangs = hangs
        self._fails = fails

    async def run(self, stream: SocketStream, reader: Reader) -> None:
        await receive_head(stream)
        self._connections.add(self)
        try:
            async with open_websocket(
                stream,
                message_bytes_max=protocol.FRAME_BYTES_MAX,
                judge=self.judge,
                take=self.read,
                tap=SocketTap(stream, reader, self, protocol.FRAME_BYTES_MAX),
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
        if self._fails:
            await trio.sleep(1)
            raise StoreUnavailable

    def take(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> Awaitable[None] | None:
        if isinstance(frame, protocol.Heartbeat):
            self.answer(protocol.Ack(id=frame.id or ""))
            return None
        return self._wait_for(frame)

    async def _wait_for(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> None:
        await trio.sleep(1)
        if isinstance(frame, protocol.GoOffline):
            raise MitraOffline
        self.answer(protocol.Ack(id=getattr(frame, "id", "")))

    def token_renewed(self) -> None:
        raise AssertionError("not part of these tests")


@asynccontextmanager
async def open_talk(
    connections: Connections, user: str, *, hangs: bool = False, fails: bool = False
) -> AsyncIterator[tuple[Talk, socket.socket]]:
    """A connection that converses, and the client's end of it, which has not said a word."""
    flusher, reader = Flusher(), Reader()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    stream = SocketStream(near, flusher, user)
    identity = Identity(user_id=user, user_type=Party.CUSTOMER, auth_session_id=user, jti=user, expires_at=FAR)
    talk = Talk(stream, identity, connections, hangs=hangs, fails=fails)
    async with trio.open_nursery() as nursery:
        await nursery.start(flusher.serve)
        await nursery.start(reader.serve)
        nursery.start_soon(talk.run, stream, reader)
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
        await connections.send_all_away(0, 2_000, "draining")
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


# ---- what it reads


async def test_frames_are_taken_in_their_order_also_those_that_have_to_be_waited_for(patient_clock: MockClock) -> None:
    connections = Connections(TrioClock(), 5)
    async with open_talk(connections, "u") as (talk, far), open_client(far) as client:
        await talk.welcomed.wait()
        for type_, id_ in (
            ("heartbeat", "1"),
            ("go_online", "2"),
            ("heartbeat", "3"),
            ("go_offline", "4"),
            ("ping", "5"),
        ):
            await client.send_message(json.dumps({"type": type_, "id": id_}))
        told = [json.loads(await client.get_message()) for _ in range(6)][1:]
        assert [(frame["type"], frame["id"]) for frame in told] == [
            ("ack", "1"), ("ack", "2"), ("ack", "3"), ("refused", "4"), ("pong", "5"),
        ]  # fmt: skip
        talk.close(1000)


@pytest.mark.parametrize(
    ("said", "code"), [([b"\xff"], 1003), (["no frame"] * 3, 4400), (["{}"] * 5, 4400), (["x" * 65_537], 1009)]
)
async def test_what_may_not_be_said_closes_the_socket_with_its_code(
    patient_clock: MockClock, said: list[str | bytes], code: int
) -> None:
    connections = Connections(TrioClock(), 5)
    async with open_talk(connections, "u") as (talk, far), open_client(far) as client:
        await talk.welcomed.wait()
        for message in said:
            with contextlib.suppress(ConnectionClosed):
                await client.send_message(message)
        assert (await read_to_end(client))[1] == code


async def test_who_drips_for_too_long_is_closed_as_who_pours(patient_clock: MockClock) -> None:
    """Single bytes cost more than they weigh."""
    connections = Connections(TrioClock(), 5)
    async with open_talk(connections, "u") as (talk, far), open_client(far) as client:
        await talk.welcomed.wait()
        for _ in range(30):
            for _ in range(1_000):
                talk.sip()
            await trio.sleep(1)
        assert talk.close_code == CLOSE_ABUSE
        assert (await read_to_end(client))[1] == CLOSE_ABUSE


@pytest.mark.parametrize("said", ["x" * 1_000, "\u00e4" * 500])
async def test_messages_are_weighed_in_bytes(patient_clock: MockClock, said: str) -> None:
    connections = Connections(TrioClock(), 5)
    async with open_talk(connections, "u") as (talk, far), open_client(far):
        await talk.welcomed.wait()
        weighed: list[int] = []
        talk.judge = weighed.append  # type: ignore[method-assign,assignment]
        talk.hear(said)
        assert weighed == [1_000]
        talk.close(1000)


async def test_what_is_said_live_does_not_pass_a_history_that_could_not_be_read(patient_clock: MockClock) -> None:
    connections = Connections(TrioClock(), 0)
    async with open_talk(connections, "budi", fails=True) as (talk, far), open_client(far) as client:
        talk.send(b'{"type":"message","seq":2}')
        talk.send(LAST_WORDS[0] + b"}")
        told, code = await read_to_end(client)
        assert [frame["type"] for frame in told] == ["welcome", "reconnect"]
        assert code == CLOSE_FAULT


async def test_what_is_said_live_behind_its_last_words_does_not_pass_the_history_either(
    patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever speaks does not know that it is closing, and the loop turns between the last words and the close frame."""
    connections = Connections(TrioClock(), 0)
    async with open_talk(connections, "budi", fails=True) as (talk, far), open_client(far) as client:
        say_last_words = talk._say_last_words

        def say_last_words_and_be_spoken_to() -> None:
            say_last_words()
            talk.send(b'{"type":"message","seq":2}')

        monkeypatch.setattr(talk, "_say_last_words", say_last_words_and_be_spoken_to)
        told, code = await read_to_end(client)
        assert ([frame["type"] for frame in told], code) == (["welcome"], CLOSE_FAULT)
