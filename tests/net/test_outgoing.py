"""The client of halo's own calls, against servers that mean well and servers that do not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from halo.net import outgoing as outgoing_room
from halo.net.outgoing import (
    ANSWER_BYTES_MAX,
    CONNECTIONS_MAX,
    PIECES_MAX,
    CallFailed,
    Outgoing,
    open_outgoing,
    trust_nobody,
)
from halo.net.sips import SIP_BYTES, WIRE_BYTES_MAX
from scripts.measuring import fcm_stand_in

Talk = Callable[[trio.SocketStream], Awaitable[None]]


class Server:
    """Talks as it is told with everybody who connects."""

    def __init__(self, talk: Talk) -> None:
        self.url = ""
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self._talk = talk

    async def converse(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._talk(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has had enough
        finally:
            self.open -= 1


@asynccontextmanager
async def open_server(talk: Talk) -> AsyncIterator[Server]:
    server = Server(talk)
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, server.converse, 0, host="127.0.0.1"))
        server.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        yield server
        nursery.cancel_scope.cancel()


def saying(head: bytes, again: bytes = b"", pause_seconds: float = 0.0) -> Talk:
    """Once `head` to a request, then `again` for ever."""

    async def talk(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(head)
        while again:
            await stream.send_all(again)
            await trio.sleep(pause_seconds)
        await trio.sleep_forever()

    return talk


@pytest.fixture
async def client() -> AsyncIterator[Outgoing]:
    async with open_outgoing(trust_nobody()) as outgoing:
        yield outgoing


class TestConnections:
    async def test_one_connection_serves_call_after_call(self, client: Outgoing) -> None:
        async with open_server(fcm_stand_in.converse) as server:
            for _ in range(20):
                assert (await client.post(server.url, b"{}", {})).status == 200
            assert server.connections == 1

    async def test_an_idle_connection_is_kept_for_as_long_as_it_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outgoing_room, "KEPT_SECONDS", 0.0)
        async with open_server(fcm_stand_in.converse) as server, open_outgoing(trust_nobody()) as client:
            for _ in range(3):
                await client.post(server.url, b"{}", {})
                await trio.sleep(0.002)
            assert server.connections == 3

    async def test_no_more_are_open_than_so_many_whoever_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outgoing_room, "CONNECTIONS_MAX", 4)
        async with open_server(fcm_stand_in.converse) as server, open_outgoing(trust_nobody()) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(client.post, server.url, b"{}", {})
            assert server.most_open == 4
        assert CONNECTIONS_MAX > 4

    async def test_a_connection_that_the_server_has_closed_meanwhile_is_not_used_again(self, client: Outgoing) -> None:
        closed = trio.Event()

        async def answer_once(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(fcm_stand_in.SENT)
            await stream.aclose()
            closed.set()

        async with open_server(answer_once) as server:
            for _ in range(3):
                assert (await client.post(server.url, b"{}", {})).status == 200
                await closed.wait()
                closed = trio.Event()
            assert server.connections == 3


class TestHostility:
    @pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
    async def test_no_redirect_is_followed_with_the_token(self, client: Outgoing, status: int) -> None:
        async with open_server(fcm_stand_in.converse) as thief:
            head = f"HTTP/1.1 {status} Elsewhere\r\nlocation: {thief.url}\r\ncontent-length: 0\r\n\r\n".encode()
            async with open_server(saying(head)) as server:
                answer = await client.post(server.url, b"{}", {"authorization": "Bearer secret"})
            assert answer.status == status
            assert thief.connections == 0

    @pytest.mark.parametrize(
        ("head", "again"),
        [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b"x"),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
            (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ],
    )
    async def test_an_answer_that_trickles_is_given_up(
        self, client: Outgoing, head: bytes, again: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outgoing_room, "CALL_SECONDS", 0.3)
        async with open_server(saying(head, again, 0.02)) as server:
            with pytest.raises(CallFailed, match="no answer in time"):
                await client.post(server.url, b"{}", {})

    @pytest.mark.parametrize(
        ("head", "again"),
        [
            (b"", b"HTTP/1.1 100 \r\n\r\n" * 1_000),
            (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 1_000),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 1_000),
        ],
    )
    async def test_a_flood_ends_the_call_and_everybody_else_has_many_turns_meanwhile(
        self, client: Outgoing, head: bytes, again: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Turns, not milliseconds: what is looked at in one of them is bounded, whatever the machine."""
        monkeypatch.setattr(outgoing_room, "CALL_SECONDS", 60.0)  # it is not time that ends it
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with open_server(saying(head, again)) as server, trio.open_nursery() as nursery:
            nursery.start_soon(count)
            with pytest.raises(CallFailed, match="Error"):
                await client.post(server.url, b"{}", {})
            nursery.cancel_scope.cancel()
        assert turns > 100 * 1024 // SIP_BYTES  # h11 takes no head above 100 KB

    async def test_a_flood_of_chunks_is_cut_and_everybody_else_has_a_turn_after_each(
        self, client: Outgoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outgoing_room, "CALL_SECONDS", 60.0)
        head, chunk = b"HTTP/1.1 503 Flood\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with open_server(saying(head, chunk * 1_000)) as server, trio.open_nursery() as nursery:
            nursery.start_soon(count)
            answer = await client.post(server.url, b"{}", {})
            nursery.cancel_scope.cancel()
        assert (answer.status, answer.body) == (503, b"x" * PIECES_MAX)
        assert turns > PIECES_MAX

    async def test_a_body_without_end_is_cut_and_its_connection_used_no_more(self, client: Outgoing) -> None:
        async with open_server(saying(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536)) as server:
            for _ in range(2):
                assert await client.post(server.url, b"{}", {}) is not None
                answer = await client.post(server.url, b"{}", {})
                assert (answer.status, len(answer.body)) == (200, ANSWER_BYTES_MAX)
            assert server.connections == 4
        assert WIRE_BYTES_MAX > ANSWER_BYTES_MAX

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffffff1\r\nx",
            b"HTTP/1.1 200 OK\r\nx: \0\r\n\r\n",
            b"\xff" * 1_000 + b"\r\n\r\n",
        ],
    )
    async def test_what_is_not_http_is_no_answer(self, client: Outgoing, head: bytes) -> None:
        async with open_server(saying(head)) as server:
            with pytest.raises(CallFailed, match="Error"):
                await client.post(server.url, b"{}", {})

    async def test_after_all_of_that_a_good_server_is_still_reached(self, client: Outgoing) -> None:
        async with open_server(saying(b"HTTP/1.1 \r\n\r\n")) as bad, open_server(fcm_stand_in.converse) as good:
            async with trio.open_nursery() as nursery:
                for _ in range(CONNECTIONS_MAX + 1):
                    nursery.start_soon(_fail, client, bad.url)
            assert (await client.post(good.url, b"{}", {})).status == 200


async def _fail(client: Outgoing, url: str) -> None:
    with pytest.raises(CallFailed):
        await client.post(url, b"{}", {})
