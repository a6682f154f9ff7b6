"""Who is connected: replaced, capped, kept alive, cut when dead, closed when expired, on a clock that jumps."""

import gc
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from halo import protocol
from halo.clock import Clock
from halo.decoding import FrameDecoder
from halo.net.connection import Connection, Limits
from halo.net.connections import CLOSED_AT_ONCE, PING_SECONDS, PONG_SECONDS, Connections
from halo.net.stream import PING_FRAME, SocketStream
from halo.net.tokens import Identity, Tokens
from halo.session import Party

START = 1_795_521_600_000
FAR = START + 10**9


class TrioClock:
    def now(self) -> int:
        return START + round(trio.current_time() * 1000)


class FakeStream:
    """A socket in memory: what was written, when the client was last heard, whether it was aborted."""

    pending_frames = 0

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.pinged_at: list[float] = []
        self.last_received = trio.current_time()
        self.aborted_at: float | None = None
        self.answers_pings = True

    def write(self, data: bytes) -> None:
        if data == PING_FRAME:
            self.pinged_at.append(trio.current_time())
            if self.answers_pings:
                self.last_received = trio.current_time() + 0.05
        else:
            self.written.append(data)

    def abort(self) -> None:
        self.aborted_at = self.aborted_at or trio.current_time()


class Socket(Connection):
    """A connection of which only the part that `Connections` sees is alive."""

    decoder = FrameDecoder.CHAT

    def __init__(self, connections: Connections, identity: Identity, path: str = "/v1/lobby") -> None:
        self.stream = FakeStream()
        limits = Limits(messages_per_10s=20, bytes_per_s=20_000)
        super().__init__(
            cast(SocketStream, self.stream), path, identity, limits, cast(Clock, TrioClock()), cast(Tokens, None)
        )
        self._held = None
        self.is_lobby = path == "/v1/lobby"
        connections.add(self)

    async def welcome(self) -> None:
        raise AssertionError("not part of these tests")

    async def take(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> None:
        raise AssertionError("not part of these tests")

    def token_renewed(self) -> None:
        raise AssertionError("not part of these tests")

    @property
    def code(self) -> int | None:
        return self._close_code

    def frames(self) -> list[dict[str, Any]]:
        return [json.loads(frame[frame.index(b'{"') :]) for frame in self.stream.written]


def who(user: str = "u-1", jti: str = "t-1", family: str = "f-1", expires_at: int = FAR) -> Identity:
    return Identity(user_id=user, user_type=Party.CUSTOMER, auth_session_id=family, jti=jti, expires_at=expires_at)


def new_connections(per_user_at_most: int = 5) -> Connections:
    return Connections(TrioClock(), per_user_at_most)


@asynccontextmanager
async def served(connections: Connections) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(connections.serve)
        yield
        nursery.cancel_scope.cancel()


# ---- who replaces whom


async def test_the_same_token_on_the_same_path_replaces(autojump_clock: MockClock) -> None:
    connections = new_connections()
    first, second = Socket(connections, who()), Socket(connections, who())
    assert (first.code, second.code) == (4002, None)


@pytest.mark.parametrize("other", [who(jti="t-2"), who(user="u-2", jti="t-1")])
async def test_another_token_or_user_replaces_nobody(autojump_clock: MockClock, other: Identity) -> None:
    connections = new_connections()
    first = Socket(connections, who())
    Socket(connections, other)
    assert first.code is None


async def test_the_same_token_on_another_path_replaces_nobody(autojump_clock: MockClock) -> None:
    connections = new_connections()
    first = Socket(connections, who(), "/v1/lobby")
    Socket(connections, who(), "/v1/chat/x")
    assert first.code is None


async def test_one_socket_too_many_replaces_the_users_oldest(autojump_clock: MockClock) -> None:
    connections = new_connections(3)
    mine = [Socket(connections, who(jti=f"t-{number}")) for number in range(5)]
    stranger = Socket(connections, who(user="u-2"))
    assert [socket.code for socket in mine] == [4002, 4002, None, None, None]
    assert stranger.code is None


async def test_whoever_is_closing_already_does_not_count(autojump_clock: MockClock) -> None:
    connections = new_connections(2)
    first, second = (Socket(connections, who(jti=f"t-{number}")) for number in range(2))
    first.close(1000)
    Socket(connections, who(jti="t-9"))
    assert second.code is None


async def test_0_lifts_the_cap(autojump_clock: MockClock) -> None:
    connections = new_connections(0)
    assert [Socket(connections, who(jti=f"t-{number}")).code for number in range(50)] == [None] * 50


# ---- keepalive


async def test_every_socket_is_pinged_once_in_twenty_seconds_each_in_its_own_second(autojump_clock: MockClock) -> None:
    connections = new_connections()
    sockets = [Socket(connections, who(user=f"u-{number}")) for number in range(40)]
    async with served(connections):
        await trio.sleep(99.5)
    assert {len(socket.stream.pinged_at) for socket in sockets} == {5}
    assert {
        round(later - earlier)
        for s in sockets
        for earlier, later in zip(s.stream.pinged_at, s.stream.pinged_at[1:], strict=False)
    } == {PING_SECONDS}
    seconds = [socket.stream.pinged_at[0] for socket in sockets]
    assert max(seconds.count(second) for second in seconds) == 2  # 40 sockets over 20 seconds
    assert connections.cut_as_dead == 0


async def test_who_does_not_answer_a_ping_is_cut_ten_seconds_later(autojump_clock: MockClock) -> None:
    connections = new_connections()
    dead, alive = Socket(connections, who()), Socket(connections, who(user="u-2"))
    dead.stream.answers_pings = False
    await trio.sleep(0.5)
    async with served(connections):
        await trio.sleep(2 * PING_SECONDS + PONG_SECONDS + 1)
    (pinged, *_) = dead.stream.pinged_at
    assert dead.stream.aborted_at == pytest.approx(pinged + PONG_SECONDS)
    assert dead.code == 4000
    assert (alive.stream.aborted_at, alive.code) == (None, None)
    assert connections.cut_as_dead >= 1
    assert PING_SECONDS + PONG_SECONDS <= 30  # a half-open client is found within 30 s (spec 5)


async def test_any_byte_counts_as_an_answer(autojump_clock: MockClock) -> None:
    connections = new_connections()
    chatty = Socket(connections, who())
    chatty.stream.answers_pings = False
    async with served(connections):
        for _ in range(60):
            await trio.sleep(2)
            chatty.stream.last_received = trio.current_time()
    assert chatty.stream.aborted_at is None


async def test_connected_means_heard_within_the_keepalive(autojump_clock: MockClock) -> None:
    connections = new_connections()
    assert not connections.is_connected("u-1")
    assert connections.answered_age_ms("u-1") is None
    old, fresh = Socket(connections, who()), Socket(connections, who(jti="t-2"))
    await trio.sleep(31)
    assert not connections.is_connected("u-1")
    fresh.stream.last_received = trio.current_time() - 4
    assert connections.is_connected("u-1")
    assert connections.answered_age_ms("u-1") == 4_000
    fresh.close(1000)  # who is leaving is not there
    assert not connections.is_connected("u-1")
    assert old.code is None


# ---- expiry


async def test_a_socket_whose_token_ends_is_closed_within_a_second(autojump_clock: MockClock) -> None:
    connections = new_connections()
    socket = Socket(connections, who(expires_at=START + 5_400))
    async with served(connections):
        await trio.sleep(5.3)
        assert socket.code is None
        await trio.sleep(1.1)
        assert socket.code == 4401


async def test_a_newer_token_counts_and_the_older_one_is_forgotten(autojump_clock: MockClock) -> None:
    connections = new_connections()
    socket = Socket(connections, who(expires_at=START + 5_000))
    socket.identity = replace(socket.identity, expires_at=START + 60_000)
    connections.watch_expiry(socket)
    async with served(connections):
        await trio.sleep(30)
        assert socket.code is None
        await trio.sleep(31.5)
        assert socket.code == 4401


async def test_a_socket_that_is_gone_is_held_by_nothing_until_its_token_ends(autojump_clock: MockClock) -> None:
    """Else somebody who reconnects in a loop fills the memory with the dead (X3)."""
    connections = new_connections()
    socket = Socket(connections, who())
    for _ in range(100):
        connections.watch_expiry(socket)
    gone = weakref.ref(socket)
    connections.remove(socket)
    del socket
    gc.collect()
    assert gone() is None
    assert len(connections) == 0


# ---- telling and closing


async def test_a_frame_goes_to_the_users_lobby_sockets_only(autojump_clock: MockClock) -> None:
    connections = new_connections()
    lobby, chat = Socket(connections, who()), Socket(connections, who(), "/v1/chat/x")
    stranger = Socket(connections, who(user="u-2"))
    frame = protocol.Typing(sender="mitra", on=True)
    connections.tell("u-1", frame)
    connections.tell("nobody", frame)
    assert (len(lobby.frames()), len(chat.frames()), len(stranger.frames())) == (1, 0, 0)


async def test_a_family_or_a_user_is_closed_whole_with_the_code_that_says_why(autojump_clock: MockClock) -> None:
    connections = new_connections()
    one = Socket(connections, who(jti="t-1", family="f-1"))
    two = Socket(connections, who(jti="t-2", family="f-2"))
    stranger = Socket(connections, who(user="u-2", family="f-3"))
    connections.close_auth_session("f-1", 4401)
    connections.close_auth_session("unknown", 4401)
    assert (one.code, two.code, stranger.code) == (4401, None, None)
    connections.close_user("u-1", 4403)
    assert (one.code, two.code, stranger.code) == (4401, 4403, None)  # the first reason stands


async def test_who_removed_itself_is_found_by_nobody(autojump_clock: MockClock) -> None:
    connections = new_connections()
    socket = Socket(connections, who())
    assert connections.sockets_of("u-1") == (socket,)
    connections.remove(socket)
    assert connections.sockets_of("u-1") == ()
    connections.close_user("u-1", 4403)
    connections.close_auth_session("f-1", 4401)
    async with served(connections):
        await trio.sleep(60)
    assert socket.code is None
    assert socket.stream.pinged_at == []


async def test_everybody_is_sent_away_spread_over_the_time(autojump_clock: MockClock) -> None:
    connections = new_connections()
    sockets = [Socket(connections, who(user=f"u-{number}")) for number in range(4)]
    await connections.send_all_away(100, 2_000, "draining")
    assert [socket.frames() for socket in sockets] == [
        [{"type": "reconnect", "after_ms": 100 + 500 * place, "reason": "draining"}] for place in range(4)
    ]
    assert {socket.code for socket in sockets} == {4000}
    with trio.move_on_after(1) as patience:
        await connections.wait_empty()
    assert patience.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.wait_empty)
        for socket in list(connections):
            connections.remove(cast(Socket, socket))
    await connections.wait_empty()


async def test_who_was_let_in_before_and_comes_after_everybody_was_sent_away_is_sent_after_them(
    autojump_clock: MockClock,
) -> None:
    """Its handshake was under way; nobody would ever tell it."""
    connections = new_connections()
    early = Socket(connections, who())
    await connections.send_all_away(0, 2_000, "draining")
    late = Socket(connections, who(user="u-2"))
    assert late.frames() == [{"type": "reconnect", "after_ms": 0, "reason": "draining"}]
    assert late.code == 4000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.wait_empty)
        connections.remove(early)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        connections.remove(late)


class Closings(trio.abc.Instrument):
    """How many sockets were closed in the fullest turn of the event loop."""

    def __init__(self, sockets: list[Socket]) -> None:
        self._sockets = sockets
        self._before = 0
        self.fullest = 0

    def after_io_wait(self, timeout: float) -> None:
        self._before = sum(socket.is_closing for socket in self._sockets)

    def before_io_wait(self, timeout: float) -> None:
        self.fullest = max(self.fullest, sum(socket.is_closing for socket in self._sockets) - self._before)


@pytest.mark.parametrize("why", ["drain", "expiry"])
async def test_many_are_closed_in_parts_with_turns_of_the_loop_between(autojump_clock: MockClock, why: str) -> None:
    """Ten thousand goodbyes in one turn kept everybody waiting for half a second."""
    connections = new_connections()
    sockets = [
        Socket(connections, who(user=f"u-{number}", expires_at=START + 5_000)) for number in range(5 * CLOSED_AT_ONCE)
    ]
    closings = Closings(sockets)
    async with trio.open_nursery() as nursery:
        trio.lowlevel.add_instrument(closings)
        if why == "drain":
            await connections.send_all_away(0, 2_000, "draining")
        else:
            await nursery.start(connections.serve)
            await trio.sleep(10)
        trio.lowlevel.remove_instrument(closings)
        nursery.cancel_scope.cancel()
    assert all(socket.is_closing for socket in sockets)
    assert closings.fullest == CLOSED_AT_ONCE
