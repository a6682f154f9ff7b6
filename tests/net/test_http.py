"""`halo.net.http`: a real Quart application behind a real socket, and the bytes that other servers do not survive."""

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from quart import request as quart_request
from quart_trio import QuartTrio
from structlog.testing import capture_logs

from halo.clock import SystemClock
from halo.net import http_connection, stream
from halo.net.admission import Gate
from halo.net.flusher import Flusher
from halo.net.guard import Door, open_listener
from halo.net.http import serve_http
from halo.net.http_connection import PATIENCE_SECONDS, Phase

SECRET = "topsecrettoken"
GET = b"GET /hello HTTP/1.1\r\nHost: halo.test\r\n\r\n"


class Held:
    """An answer that waits until the test lets it go."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self.released = trio.Event()


def application(held: Held) -> QuartTrio:
    app = QuartTrio("halo")

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": quart_request.headers.get("X-Name", "you")}

    @app.post("/size")
    async def size() -> dict[str, int]:
        return {"size": len(await quart_request.get_data())}

    @app.get("/slow")
    async def slow() -> str:
        await trio.sleep(0.3)
        return "done"

    @app.get("/held")
    async def hold() -> str:
        held.reached.set()
        await held.released.wait()
        return "done"

    @app.get("/never")
    async def never() -> str:
        await trio.sleep_forever()
        raise AssertionError

    @app.get("/medium")
    async def medium() -> bytes:
        return b"x" * 250_000

    @app.get("/large")
    async def large() -> bytes:
        return b"x" * 3_000_000

    return app


class Server:
    """A server under test, and how to reach it."""

    def __init__(self, port: int, stop: trio.Event, faults: Counter[str], gate: Gate) -> None:
        self.port = port
        self.stop = stop
        self.faults = faults
        self.gate = gate
        self.ended = trio.Event()
        self.held = Held()

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def exchange(self, *pieces: bytes) -> bytes:
        """Send bytes, and everything that comes back until the server closes."""
        async with await self.connect() as client:
            for piece in pieces:
                await client.send_all(piece)
            return await everything(client)

    async def assert_serves(self) -> None:
        """The proof after each attack: another client is served."""
        with trio.fail_after(5):
            async with await self.connect() as client:
                await client.send_all(GET)
                assert (await answer(client))[0] == 200

    async def assert_all_gone(self) -> None:
        with trio.fail_after(5):
            while self.gate.total:
                await trio.sleep(0.005)


async def everything(client: trio.SocketStream) -> bytes:
    received = b""
    try:
        while piece := await client.receive_some():
            received += piece
    except trio.BrokenResourceError:
        received += b"<reset>"
    return received


async def answer(client: trio.SocketStream) -> tuple[int, bytes, bytes]:
    """One answer with a content-length: status, head, body."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = await client.receive_some()
        assert piece, received
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = (
        int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += await client.receive_some()
    assert len(body) == length
    return int(head.split()[1]), head, body


@asynccontextmanager
async def open_server(
    app: Any = None, *, bind: str = "127.0.0.1:0", drain_seconds: float = 0.5
) -> AsyncIterator[Server]:
    flusher, faults, stop = Flusher(), Counter[str](), trio.Event()
    gate = Gate(SystemClock(), total_at_most=0, per_address_at_most=0, handshakes_per_s=0, unauthenticated_at_most=0)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(flusher.serve)
            server = Server(0, stop, faults, gate)

            async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
                await serve_http(
                    app or application(server.held),
                    [await open_listener(bind)],
                    stop=stop,
                    door=Door(gate, flusher, faults),
                    drain_seconds=drain_seconds,
                    task_status=task_status,
                )
                server.ended.set()

            (address,) = await nursery.start(serve)
            server.port = int(address.rpartition(":")[2])
            yield server
            stop.set()
            await server.ended.wait()
            nursery.cancel_scope.cancel()


def head(line: bytes = b"GET /hello HTTP/1.1", *more: bytes, host: bytes = b"halo.test") -> bytes:
    return b"\r\n".join((line, b"Host: " + host, *more)) + b"\r\n\r\n"


UPGRADE = (b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")

REFUSED = {
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64), 400),
    "an upgrade to h2c": (
        head(
            b"GET /hello HTTP/1.1",
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        400,
    ),
    "an upgrade to h2c with bad settings": (
        head(b"GET /hello HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: \xff!"),
        400,
    ),
    "an upgrade to h2c and a byte behind it": (
        head(b"GET /hello HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c") + b"\x00",
        400,
    ),
    "a WebSocket": (head(b"GET /hello HTTP/1.1", b"Upgrade: websocket", *UPGRADE), 400),
    "a WebSocket and a byte behind it": (head(b"GET /hello HTTP/1.1", b"Upgrade: websocket", *UPGRADE) + b"\x81", 400),
    "a WebSocket with a protocol that is not ASCII": (
        head(b"GET /hello HTTP/1.1", b"Upgrade: websocket", b"Sec-WebSocket-Protocol: \xe4", *UPGRADE),
        400,
    ),
    "a WebSocket with an extension that is not ASCII": (
        head(b"GET /hello HTTP/1.1", b"Upgrade: websocket", b"Sec-WebSocket-Extensions: \xff", *UPGRADE),
        400,
    ),
    "an upgrade that is not ASCII": (head(b"GET /hello HTTP/1.1", b"Connection: Upgrade", b"Upgrade: \xff"), 400),
    "a connection that is not ASCII": (head(b"GET /hello HTTP/1.1", b"Connection: \xff"), 400),
    "a host that is not IDNA": (head(host=b"xn--a"), 400),
    "a host that is not ASCII": (head(host=b"h\xc3\xa9lo"), 400),
    "a host with a path": (head(host=b"a/b"), 400),
    "no host": (b"GET /hello HTTP/1.1\r\n\r\n", 400),
    "two hosts": (head(b"GET /hello HTTP/1.1", b"Host: b"), 400),
    "a path of 513 bytes": (head(b"GET /" + b"p" * 512 + b" HTTP/1.1"), 414),
    "a path that is not ASCII": (head(b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "a head of 17 KiB in one piece": (head(b"GET /hello HTTP/1.1", b"X-Long: " + b"x" * 17_000), 431),
    "a thousand headers": (
        head(b"GET /hello HTTP/1.1", *(b"X-%d: xxxxxxxxxxxxxxxx" % number for number in range(1000))),
        431,
    ),
    "a head without an end": (head()[:-2] + b"X-Long: " + b"x" * 100_000, 431),
    "a line without an end": (b"G" * 100_000, 431),
    "garbage": (bytes(range(256)) * 4 + b"\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n\n", 400),
    "a length that is no number": (head(b"POST /size HTTP/1.1", b"Content-Length: many"), 400),
    "two lengths": (head(b"POST /size HTTP/1.1", b"Content-Length: 1", b"Content-Length: 2"), 400),
    "an encoding that nobody knows": (head(b"POST /size HTTP/1.1", b"Transfer-Encoding: gzip"), 501),
    "a body that says it is too long": (head(b"POST /size HTTP/1.1", b"Content-Length: 65537"), 413),
    "a body that says it is endless": (head(b"POST /size HTTP/1.1", b"Content-Length: " + b"9" * 19), 413),
    "a body that wants to be asked for and is too long": (
        head(b"POST /size HTTP/1.1", b"Content-Length: 65537", b"Expect: 100-continue"),
        413,
    ),
    "chunks that are too long in all": (
        head(b"POST /size HTTP/1.1", b"Transfer-Encoding: chunked") + (b"8000\r\n" + b"x" * 32_768 + b"\r\n") * 4,
        413,
    ),
    "chunks that are no chunks": (
        head(b"POST /size HTTP/1.1", b"Transfer-Encoding: chunked") + b"zz\r\nhello\r\n",
        400,
    ),
    "a chunk size without an end": (head(b"POST /size HTTP/1.1", b"Transfer-Encoding: chunked") + b"1" * 100_000, 400),
    "both lengths": (
        head(b"POST /size HTTP/1.1", b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n",
        400,
    ),
    "two keys": (head(b"GET /hello HTTP/1.1", b"Authorization: Bearer a", b"Authorization: Bearer b"), 400),
    "the same key twice": (head(b"GET /hello HTTP/1.1", b"Authorization: Bearer a", b"authorization: Bearer a"), 400),
    "two slashes to begin with": (head(b"GET //hello HTTP/1.1"), 400),
    "a hidden slash": (head(b"GET /a%2fhello HTTP/1.1"), 400),
    "a hidden slash in capitals": (head(b"GET /a%2Fhello HTTP/1.1"), 400),
    "a hidden backslash": (head(b"GET /a%5chello HTTP/1.1"), 400),
    "a backslash": (head(b"GET /a\\hello HTTP/1.1"), 400),
    "a dot": (head(b"GET /./hello HTTP/1.1"), 400),
    "a dot at the end": (head(b"GET /hello/. HTTP/1.1"), 400),
    "two dots": (head(b"GET /a/../hello HTTP/1.1"), 400),
    "two dots and a query": (head(b"GET /hello/..?a HTTP/1.1"), 400),
    "hidden dots": (head(b"GET /a/%2e%2E/hello HTTP/1.1"), 400),
    "a dot and a hidden one": (head(b"GET /a/.%2e/hello HTTP/1.1"), 400),
}


async def test_every_malformed_request_gets_its_refusal_and_the_next_client_is_served() -> None:
    async with open_server() as server:
        for what, (sent, status) in REFUSED.items():
            with trio.fail_after(5):
                said = await server.exchange(sent)
            assert said.startswith(b"HTTP/1.1 %d " % status), (what, said[:200])
            assert said.count(b"content-length: ") == 1, (what, said)
            assert b"content-type: application/problem+json\r\n" in said, what
            problem = msgspec.json.decode(said.partition(b"\r\n\r\n")[2])
            assert problem["status"] == status, what
            assert {"type", "title", "detail", "instance", "code", "retryable", "errors"} <= problem.keys()
            await server.assert_serves()
        assert not server.faults
        await server.assert_all_gone()


async def test_dots_and_slashes_that_hide_nothing_are_a_path_or_a_query_like_any_other() -> None:
    async with open_server() as server:
        for target, status in (
            (b"/hello?a=//%2f..", 200),
            (b"/.well-known", 404),
            (b"/a..b/...", 404),
            (b"/a//hello", 404),
        ):
            async with await server.connect() as client:
                await client.send_all(head(b"GET " + target + b" HTTP/1.1"))
                assert (await answer(client))[0] == status, target


async def test_a_body_that_is_too_long_is_refused_with_the_path_that_it_was_sent_to() -> None:
    async with open_server() as server:
        long = head(b"POST /size?a HTTP/1.1", b"Content-Length: 65537")
        after = head() + head(b"GET //hello HTTP/1.1")  # the path of the one before is not that of a broken one
        for sent, instance in ((long, "/size"), (after, None)):
            said = await server.exchange(sent)
            assert msgspec.json.decode(said.rpartition(b"\r\n\r\n")[2])["instance"] == instance


async def test_an_ordinary_request_is_answered_and_the_connection_is_kept() -> None:
    async with open_server() as server, await server.connect() as client:
        for _ in range(3):
            await client.send_all(head(b"GET /hello HTTP/1.1", b"X-Name: B\xfcrger"))
            status, said, body = await answer(client)
            assert (status, msgspec.json.decode(body)) == (200, {"hello": "Bürger"})
            assert b"\r\nserver:" not in said.lower()


async def test_an_answer_leaves_in_one_piece() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(GET)
        assert (await client.receive_some()).endswith(b'{"hello":"you"}\n')


async def test_a_body_of_64_kib_is_accepted_in_one_piece_or_in_many() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"POST /size HTTP/1.1", b"Content-Length: 65536") + b"x" * 65_536)
        assert msgspec.json.decode((await answer(client))[2]) == {"size": 65_536}
        await client.send_all(
            head(b"POST /size HTTP/1.1", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 3000 + b"0\r\n\r\n"
        )
        assert msgspec.json.decode((await answer(client))[2]) == {"size": 3000}


async def test_a_client_that_wants_to_be_asked_for_its_body_is_asked() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"POST /size HTTP/1.1", b"Content-Length: 3", b"Expect: 100-continue"))
        assert (await client.receive_some()).startswith(b"HTTP/1.1 100 ")
        await client.send_all(b"abc")
        assert msgspec.json.decode((await answer(client))[2]) == {"size": 3}


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"GET /slow HTTP/1.1") + GET + GET[:20])
        received = b""
        while received.count(b"HTTP/1.1 200") < 2 or not received.endswith(b"}\n"):
            received += await client.receive_some()
        assert received.index(b"done") < received.index(b"hello")
        await client.send_all(GET[20:])
        assert (await answer(client))[0] == 200


async def test_garbage_behind_a_request_is_refused_after_that_requests_answer() -> None:
    async with open_server() as server:
        said = await server.exchange(GET + b"\x00\x01\x02garbage\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 400 " in said
        await server.assert_serves()
        assert not server.faults


async def test_a_client_that_resets_at_any_moment_harms_nobody() -> None:
    async with open_server() as server:
        for sent in (
            b"",
            GET[:10],
            GET,
            GET * 50,
            head(b"POST /size HTTP/1.1", b"Content-Length: 10") + b"x",
            head(b"GET /slow HTTP/1.1"),
            head(b"GET /large HTTP/1.1"),
        ):
            client = await server.connect()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if sent:
                await client.send_all(sent)
            await client.aclose()
            await server.assert_serves()
        await server.assert_all_gone()
        assert not server.faults


async def test_a_client_that_closes_its_half_still_gets_its_answer() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"GET /slow HTTP/1.1"))
        await client.send_eof()
        assert (await everything(client)).endswith(b"done")


async def test_a_client_that_closes_its_half_before_its_request_is_complete_is_let_go() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"POST /size HTTP/1.1", b"Content-Length: 10") + b"x")
        await client.send_eof()
        assert await everything(client) == b""
        await server.assert_all_gone()


@pytest.mark.parametrize(
    ("phase", "sent", "status"),
    [
        (Phase.IDLE, b"", None),
        (Phase.IDLE, GET, 200),
        (Phase.HEAD, GET[:-2], 408),
        (Phase.BODY, head(b"POST /size HTTP/1.1", b"Content-Length: 10") + b"x", 408),
        (Phase.BODY, head(b"POST /size HTTP/1.1", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n", 408),
        (Phase.ANSWER, head(b"GET /never HTTP/1.1"), 500),
    ],
)
async def test_each_phase_ends_at_its_deadline(
    phase: Phase, sent: bytes, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PATIENCE_SECONDS, phase, 0.4)
    async with open_server() as server:
        before = trio.current_time()
        said = await server.exchange(*([sent] if sent else []))
        assert 0.05 < trio.current_time() - before < 5
        assert said[9:12] == (b"%d" % status if status else b"")
        await server.assert_all_gone()
        await server.assert_serves()
        assert not server.faults


async def test_dripping_bytes_does_not_prolong_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATIENCE_SECONDS, Phase.HEAD, 0.3)
    monkeypatch.setitem(PATIENCE_SECONDS, Phase.BODY, 0.3)
    async with open_server() as server:
        for whole in (GET[:-4] + b"\r\nX-Drip: " + b"x" * 500, head(b"POST /size HTTP/1.1", b"Content-Length: 500")):
            async with await server.connect() as client, trio.open_nursery() as nursery:

                async def drip(client: trio.SocketStream = client, whole: bytes = whole) -> None:
                    await client.send_all(whole[:60])
                    try:
                        for byte in whole[60:] + b"x" * 500:
                            await client.send_all(bytes((byte,)))
                            await trio.sleep(0.005)
                    except trio.BrokenResourceError:
                        return
                    raise AssertionError("the server listened to the end")

                nursery.start_soon(drip)
                with trio.fail_after(5):
                    assert (await answer(client))[0] == 408
        await server.assert_serves()


async def test_the_deadlines_are_those_of_the_specification() -> None:
    assert 5 <= PATIENCE_SECONDS[Phase.IDLE] <= 15
    assert PATIENCE_SECONDS[Phase.HEAD] <= 10
    assert stream.WRITE_DEADLINE_SECONDS == 10


async def test_a_client_that_does_not_read_is_cut_off_at_the_write_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WRITE_DEADLINE_SECONDS", 0.3)
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"GET /large HTTP/1.1") * 3)
        await server.assert_serves()
        await server.assert_all_gone()
        assert (await everything(client)).endswith(b"<reset>")


async def test_a_client_that_reads_slowly_gets_a_large_answer_whole() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"GET /large HTTP/1.1", b"Connection: close"))
        received = b""
        while piece := await client.receive_some(50_000):
            received += piece
            await trio.sleep(0.001)
        assert len(received.partition(b"\r\n\r\n")[2]) == 3_000_000


async def test_the_end_of_an_answer_waits_for_its_reader_longer_than_a_goodbye() -> None:
    async with open_server() as server:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", server.port))
        async with trio.SocketStream(sock) as client:
            await client.send_all(head(b"GET /medium HTTP/1.1", b"Connection: close"))
            await trio.sleep(stream.GOODBYE_SECONDS + 0.2)
            received = await everything(client)
        assert len(received.partition(b"\r\n\r\n")[2]) == 250_000


async def test_stopping_answers_what_is_under_way_and_closes_what_is_idle() -> None:
    async with (
        open_server(drain_seconds=20) as server,
        await server.connect() as idle,
        await server.connect() as kept,
        await server.connect() as busy,
    ):
        await kept.send_all(GET)
        await answer(kept)
        await busy.send_all(head(b"GET /held HTTP/1.1"))
        await server.held.reached.wait()
        server.stop.set()
        assert await everything(idle) == b""
        assert await everything(kept) == b""
        server.held.released.set()
        assert (await everything(busy)).endswith(b"done")
        with pytest.raises(OSError, match="connect"):
            await server.connect()
        with trio.fail_after(5):
            await server.ended.wait()


@pytest.mark.parametrize(
    "sent",
    [
        head(b"GET /never HTTP/1.1"),
        head(b"GET /large HTTP/1.1") * 5,
        GET[:10],
        head(b"POST /size HTTP/1.1", b"Content-Length: 9"),
    ],
)
async def test_no_client_can_hang_the_shutdown(sent: bytes) -> None:
    async with open_server(drain_seconds=0.2) as server, await server.connect() as client:
        await client.send_all(sent)
        await trio.sleep(0.05)
        server.stop.set()
        with trio.fail_after(5):
            await server.ended.wait()


async def test_an_application_that_raises_costs_one_answer_and_its_words_are_not_logged(
    claims_errors: list[object],
) -> None:
    del claims_errors

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["path"] == "/hello":
            body = b"{}"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": body})
        elif scope["path"] == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise KeyError(SECRET)
        elif scope["path"] == "/header":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb")]})
        elif scope["path"] == "/group":
            raise ExceptionGroup(SECRET, [KeyError(SECRET)])
        elif scope["path"] != "/silent":
            raise KeyError(SECRET)

    async with open_server(app) as server:
        with capture_logs() as logs:
            for path, status in (
                (b"/boom", b"500"),
                (b"/group", b"500"),
                (b"/silent", b"500"),
                (b"/half", b"200"),
                (b"/header", b"500"),
            ):
                said = await server.exchange(head(b"GET " + path + b" HTTP/1.1"))
                assert said[9:12] == status, (path, said)
                if status == b"500":
                    assert msgspec.json.decode(said.partition(b"\r\n\r\n")[2])["code"] == "INTERNAL"
                await server.assert_serves()
            assert (await server.exchange(head(b"HEAD /boom HTTP/1.1"))).endswith(b"\r\n\r\n")
        assert SECRET not in repr(logs)
        assert {"http_application_fault"} <= {entry["event"] for entry in logs}


async def test_an_application_that_cannot_start_stops_the_server_before_it_listens_to_anybody() -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(BaseExceptionGroup) as failed:
        async with open_server(app):
            raise AssertionError("it must not start")
    assert "no database" in repr(failed.value.exceptions)


async def test_it_listens_on_ipv6_too() -> None:
    async with open_server(bind="[::1]:0") as server, await trio.open_tcp_stream("::1", server.port) as client:
        await client.send_all(head(host=b"[::1]:8801"))
        assert (await answer(client))[0] == 200


async def test_a_cancelled_server_is_gone_at_once() -> None:
    flusher, gate = (
        Flusher(),
        Gate(SystemClock(), total_at_most=0, per_address_at_most=0, handshakes_per_s=0, unauthenticated_at_most=0),
    )
    with trio.fail_after(5):
        async with trio.open_nursery() as outer:
            await outer.start(flusher.serve)
            async with trio.open_nursery() as nursery:
                serve = partial(
                    serve_http,
                    application(Held()),
                    [await open_listener("127.0.0.1:0")],
                    stop=trio.Event(),
                    door=Door(gate, flusher, Counter[str]()),
                )
                (address,) = await nursery.start(serve)
                client = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
                await client.send_all(head(b"GET /never HTTP/1.1"))
                await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
            assert b" 200 " not in await everything(client)
            await client.aclose()
            outer.cancel_scope.cancel()
    assert gate.total == 0


def test_the_limits_are_those_of_the_specification() -> None:
    assert http_connection.BODY_BYTES_MAX == 64 * 1024


async def test_a_client_that_pours_without_end_is_cut_off() -> None:
    async with open_server() as server, await server.connect() as client:
        await client.send_all(head(b"POST /size HTTP/1.1", b"Transfer-Encoding: chunked"))
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            while True:
                await client.send_all(b"8000\r\n" + b"x" * 32_768 + b"\r\n")
        await server.assert_all_gone()
        await server.assert_serves()
