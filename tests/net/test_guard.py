"""`halo.net.guard` and `halo.net.handshake`: bytes that end other servers end one connection here, and the next one is served."""

import base64
import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio_websocket
from structlog.testing import capture_logs

from halo.clock import Clock, SystemClock
from halo.net import guard
from halo.net.admission import Admission, Gate
from halo.net.flusher import Flusher
from halo.net.guard import BindMalformed, BindRefused, Door, PublicBindRefused, guarded, open_listener, serve_guarded
from halo.net.handshake import CONNECT_SECONDS, open_websocket, parse_head, receive_head, refuse
from halo.net.reader import Reader
from halo.net.refusal import HeadRefused
from halo.net.stream import SocketStream, websocket_text_frame
from halo.net.tap import SocketTap
from tests.store.rows import SetClock

SECRET = "topsecrettoken"


HEAD_SECONDS = 1.0
"""For a head: a busy client has sent its own by then, and the tests of those who send none do not take long."""


class Echo:
    """A WebSocket server that says back what it hears, built as halo's own listener is; and how to reach it."""

    def __init__(self, port: int, gate: Gate, faults: Counter[str], connections: trio.Nursery) -> None:
        self.port = port
        self.gate = gate
        self.faults = faults
        self.connections = connections

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def exchange(self, sent: bytes) -> bytes:
        """Send bytes, and everything that comes back until the server closes."""
        async with await self.connect() as stream:
            await stream.send_all(sent)
            return await everything(stream)

    async def upgraded(self) -> trio.SocketStream:
        stream = await self.connect()
        await stream.send_all(request())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 101 ")
        return stream

    async def assert_serves(self) -> None:
        """The proof after each attack: another client is served."""
        with trio.fail_after(5):
            async with trio_websocket.open_websocket("127.0.0.1", self.port, "/echo", use_ssl=False) as ws:
                await ws.send_message("still there?")
                assert await ws.get_message() == "still there?"

    async def assert_all_gone(self) -> None:
        with trio.fail_after(5):
            while self.gate.total:
                await trio.sleep(0.005)


async def everything(stream: trio.SocketStream) -> bytes:
    received = b""
    try:
        while piece := await stream.receive_some():
            received += piece
    except trio.BrokenResourceError:
        received += b"<reset>"
    return received


async def talk(stream: SocketStream, admission: Admission, judge: Callable[[int], int | None] | None = None) -> None:
    """One conversation of the echo server."""
    try:
        with trio.fail_after(HEAD_SECONDS):
            head = await receive_head(stream)
    except HeadRefused as no:
        await refuse(stream, no)
        return
    admission.authenticated()
    offered = "halo.v1" if "halo.v1" in head.subprotocols else None
    async with open_websocket(stream, message_bytes_max=1000, subprotocol=offered, judge=judge) as ws:
        while True:
            message = await ws.get_message()
            if message == "close":
                await ws.aclose(4000)
            elif message == "fault":
                raise LookupError(SECRET)
            else:
                await ws.send_message(message)


class Ear:
    """The echo of one socket with a tap: built as halo's own connections are."""

    def __init__(self, stream: SocketStream, judge: Callable[[int], int | None] | None) -> None:
        self._stream, self._judge = stream, judge
        self.conversing = trio.CancelScope()
        self.close_code = 1000

    def hear(self, text: str) -> None:
        code = None if self._judge is None else self._judge(len(text.encode()))
        if code is None:
            self.take(text)
        else:
            self._close(code)

    def pong(self, payload: bytes) -> None:
        self._weigh(len(payload))

    def sip(self) -> None:
        self._weigh(0)

    def _weigh(self, size: int) -> None:
        code = None if self._judge is None else self._judge(size)
        if code is not None:
            self._close(code)

    def take(self, message: str | bytes) -> None:
        if message == "close":
            self._close(4000)
        elif message == "fault":
            raise LookupError(SECRET)
        elif isinstance(message, str):
            self._stream.write(websocket_text_frame(message.encode()))

    def _close(self, code: int) -> None:
        self.close_code = code
        self.conversing.cancel()


async def talk_tapped(
    reader: Reader, judge: Callable[[int], int | None] | None, stream: SocketStream, admission: Admission
) -> None:
    """One conversation of the echo server, read as production reads."""
    try:
        with trio.fail_after(HEAD_SECONDS):
            head = await receive_head(stream)
    except HeadRefused as no:
        await refuse(stream, no)
        return
    admission.authenticated()
    offered = "halo.v1" if "halo.v1" in head.subprotocols else None
    ear = Ear(stream, judge)
    async with open_websocket(
        stream,
        message_bytes_max=1000,
        subprotocol=offered,
        judge=judge,
        take=ear.take,
        tap=SocketTap(stream, reader, ear, 1000),
    ) as ws:
        with ear.conversing:
            await ws.wait_closed()
        await ws.aclose(ear.close_code)


@pytest.fixture(params=[False, True], ids=["library", "tap"])
def tapped(request: pytest.FixtureRequest) -> bool:
    """Whether the ordinary messages pass by the library, as in production."""
    return bool(request.param)


@asynccontextmanager
async def open_echo(
    conversation: Callable[[SocketStream, Admission], Awaitable[None]] | None = None,
    clock: Clock | None = None,
    *,
    tapped: bool = False,
    judge: Callable[[int], int | None] | None = None,
    **limits: int,
) -> AsyncIterator[Echo]:
    caps = {"total_at_most": 0, "per_address_at_most": 0, "handshakes_per_s": 0, "unauthenticated_at_most": 0} | limits
    gate, faults, flusher, reader = Gate(clock or SystemClock(), **caps), Counter[str](), Flusher(), Reader()
    if conversation is None:
        conversation = partial(talk_tapped, reader, judge) if tapped else partial(talk, judge=judge)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(flusher.serve)
            await nursery.start(reader.serve)
            listener = await open_listener("127.0.0.1:0")
            serve = partial(
                serve_guarded, [listener], conversation, door=Door(gate, flusher, faults), connections=nursery
            )
            (address,) = await nursery.start(serve)
            yield Echo(int(address.rpartition(":")[2]), gate, faults, nursery)
            nursery.cancel_scope.cancel()


def request(path: bytes = b"/echo", *, drop: bytes = b"", extra: bytes = b"", **changed: bytes) -> bytes:
    headers = {
        b"Host": b"halo.test",
        b"Connection": b"Upgrade",
        b"Upgrade": b"websocket",
        b"Sec-WebSocket-Version": b"13",
        b"Sec-WebSocket-Key": base64.b64encode(bytes(16)),
    }
    headers |= {name.encode().replace(b"_", b"-"): value for name, value in changed.items()}
    lines = [name + b": " + value for name, value in headers.items() if name != drop]
    return b"GET " + path + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n" + extra + b"\r\n"


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    first = (0x80 if final else 0) | reserved | opcode
    mask = 0x80 if masked else 0
    if len(payload) < 126:
        head = bytes((first, mask | len(payload)))
    elif len(payload) < 65_536:
        head = struct.pack("!BBH", first, mask | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, mask | 127, len(payload))
    return head + (bytes(4) if masked else b"") + payload  # a mask of zeros leaves the payload as it is


def close_code(received: bytes) -> int:
    """The code of the close frame at the start of what the server said."""
    assert received[:1] == b"\x88", received
    return int.from_bytes(received[2:4], "big")


REFUSED_HEADS = {
    "a host that is not IDNA": (request(Host=b"xn--a"), 400),
    "a host that is not ASCII": (request(Host=b"h\xc3\xa9lo"), 400),
    "a host that is no host": (request(Host=b"a b/c"), 400),
    "no host": (request(drop=b"Host"), 400),
    "two hosts": (request(extra=b"Host: other\r\n"), 400),
    "a connection that is not ASCII": (request(Connection=b"Upgrade, \xff"), 400),
    "two connections": (request(extra=b"Connection: close\r\n"), 400),
    "a key that is not ASCII": (request(Sec_WebSocket_Key=b"\xff" * 24), 400),
    "a key that is too short": (request(Sec_WebSocket_Key=b"aGFsbw=="), 400),
    "no key": (request(drop=b"Sec-WebSocket-Key"), 400),
    "two keys": (request(extra=b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"), 400),
    "a protocol that is not ASCII": (request(Sec_WebSocket_Protocol=b"halo.v1, \xe4"), 400),
    "an extension that is not ASCII": (request(Sec_WebSocket_Extensions=b"\x80"), 400),
    "a version that is not ASCII": (request(Sec_WebSocket_Version=b"13\xa0"), 400),
    "another version": (request(Sec_WebSocket_Version=b"8"), 426),
    "no upgrade": (request(drop=b"Upgrade"), 426),
    "an upgrade to something else": (request(Upgrade=b"h2c"), 426),
    "a token in a wrong alphabet": (request(Authorization=b"Bearer \xff"), 400),
    "POST": (request().replace(b"GET ", b"POST "), 405),
    "HTTP/1.0": (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 405),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n\n", 400),
    "garbage": (bytes(range(256)) + b"\r\n\r\n", 400),
    "an empty line": (b"\r\n\r\n", 400),
    "a path of 513 bytes": (request(b"/" + b"p" * 512), 414),
    "a path that is not ASCII": (request(b"/\xc3\xa9"), 400),
    "a head of 17 KiB in one piece": (request(extra=b"X-Long: " + b"x" * 17_000 + b"\r\n"), 431),
    "a head without an end": (request()[:-2] + b"X-Long: " + b"x" * 40_000, 431),
    "a byte behind the head": (request() + b"\x81", 400),
    "a body": (request(extra=b"Content-Length: 1\r\n"), 400),
    "a chunked body": (request(extra=b"Transfer-Encoding: chunked\r\n"), 400),
}


async def test_every_malformed_head_gets_its_refusal_and_the_next_client_is_served(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo:
        for what, (sent, status) in REFUSED_HEADS.items():
            with trio.fail_after(5):
                answer = await echo.exchange(sent)
            assert answer.startswith(b"HTTP/1.1 %d " % status), (what, answer)
            assert b"application/problem+json" in answer, what
            assert not answer.endswith(b"<reset>"), what
            await echo.assert_serves()
        assert not echo.faults
        await echo.assert_all_gone()


async def test_a_path_of_512_bytes_and_a_head_of_almost_16_kib_are_accepted(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo, await echo.connect() as stream:
        await stream.send_all(
            request(b"/" + b"p" * 511 + b"?" + b"q" * 1000, extra=b"X-Long: " + b"x" * 14_000 + b"\r\n")
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")


async def test_a_head_may_come_byte_by_byte_in_time_and_with_bare_line_feeds(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo, await echo.connect() as stream:
        for byte in request().replace(b"\r\n", b"\n"):
            await stream.send_all(bytes((byte,)))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")


async def test_a_head_that_does_not_arrive_in_time_frees_its_place() -> None:
    async with open_echo() as echo, await echo.connect() as stream:
        await stream.send_all(request()[:-1])
        with trio.fail_after(5):
            assert await everything(stream) in (b"", b"<reset>")
        await echo.assert_all_gone()
        assert echo.faults == {"TooSlowError": 1}
        await echo.assert_serves()


async def test_a_client_that_resets_at_any_moment_harms_nobody(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo:
        for sent in (b"", b"GET ", request(), request(Host=b"xn--a"), request() + frame(1, b"hello")):
            stream = await echo.connect()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if sent:
                await stream.send_all(sent)
            await stream.aclose()
            await echo.assert_serves()
        stream = await echo.upgraded()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        await echo.assert_serves()
        await echo.assert_all_gone()


async def test_the_peers_address_is_known_after_its_reset() -> None:
    known: list[str] = []

    async def ask_late(stream: SocketStream, _admission: Admission) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        async with trio.open_nursery() as nursery:
            request_ = await trio_websocket.wrap_server_stream(nursery, Prefilled(stream))
            known.append(str(request_.remote))
            nursery.cancel_scope.cancel()

    class Prefilled(trio.abc.Stream):
        """The stream after its reset, with a request that was read before it."""

        def __init__(self, inner: SocketStream) -> None:
            self.inner, self.first = inner, request()

        async def receive_some(self, _max_bytes: int | None = None) -> bytes:
            if self.first:
                data, self.first = self.first, b""
                return data
            return await trio.sleep_forever()

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await self.inner.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await self.inner.wait_send_all_might_not_block()

        async def aclose(self) -> None:
            await self.inner.aclose()

        def __repr__(self) -> str:
            return repr(self.inner)

    async with open_echo(ask_late) as echo:
        stream = await echo.connect()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        await echo.assert_all_gone()
        assert known == ["<SocketStream 127.0.0.1>"]
        assert not echo.faults


WRONG_FRAMES = {
    "an unmasked frame": (frame(1, b"hello", masked=False), 1002),
    "a reserved bit": (frame(1, b"hello", reserved=0x40), 1002),
    "another reserved bit": (frame(1, b"hello", reserved=0x10), 1002),
    "a reserved opcode": (frame(3, b"hello"), 1002),
    "a reserved control opcode": (frame(0xB), 1002),
    "a continuation of nothing": (frame(0, b"hello"), 1002),
    "a text within a text": (frame(1, b"a", final=False) + frame(1, b"b"), 1002),
    "a fragmented ping": (frame(9, b"", final=False), 1002),
    "a ping of 126 bytes": (frame(9, b"p" * 126), 1002),
    "a close of one byte": (frame(8, b"x"), 1002),
    "a close with a code that nobody may send": (frame(8, struct.pack("!H", 1005)), 1002),
    "text that is not UTF-8": (frame(1, b"\xff\xfe"), 1007),
    "text that ends within a character": (frame(1, b"\xe2\x82"), 1007),
    "a frame that is too big": (frame(1, b"x" * 1001), 1009),
    "a length in more bytes than need be": (b"\x81\xfe\x00\x05" + bytes(4) + b"hello", 1002),
    "a frame that is too big in bytes only": (frame(1, "ä".encode() * 501), 1009),
    "a message that is too big in all": (frame(1, b"x" * 900, final=False) + frame(0, b"x" * 900), 1009),
}


async def test_every_wrong_frame_is_answered_with_its_close_code_and_the_next_client_is_served(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo:
        for what, (sent, code) in WRONG_FRAMES.items():
            stream = await echo.upgraded()
            async with stream:
                await stream.send_all(sent + frame(9, b"and a ping behind it"))
                with trio.fail_after(5):
                    received = await everything(stream)
            assert close_code(received) == code, (what, received)
            await echo.assert_serves()
        await echo.assert_all_gone()
        assert not echo.faults


async def test_a_ping_after_our_close_is_ignored(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo:
        stream = await echo.upgraded()
        async with stream:
            await stream.send_all(frame(1, b"close"))
            assert close_code(await stream.receive_some()) == 4000
            await stream.send_all(frame(9, b"later still") + frame(8, struct.pack("!H", 4000)))
            assert await everything(stream) == b""
        await echo.assert_all_gone()
        assert not echo.faults
        await echo.assert_serves()


async def test_a_client_that_does_not_answer_our_close_is_dropped_in_time(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo:
        stream = await echo.upgraded()
        async with stream:
            await stream.send_all(frame(1, b"close"))
            assert close_code(await stream.receive_some()) == 4000
            with trio.fail_after(5):
                await everything(stream)
        await echo.assert_all_gone()


async def test_messages_pings_and_fragments_are_answered_as_they_should_be(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo, await echo.upgraded() as stream:
        await stream.send_all(frame(9, b"1") + frame(1, b"he", final=False) + frame(9) + frame(0, b"llo"))
        expected = b"\x8a\x011" + b"\x8a\x00" + b"\x81\x05hello"
        received = b""
        while len(received) < len(expected):
            received += await stream.receive_some()
        assert received == expected


async def test_the_judge_sees_every_frame_also_the_empty_ones(tapped: bool) -> None:
    seen: list[int] = []

    def judge(size: int) -> int | None:
        seen.append(size)
        return 4429 if len(seen) > 200 else None

    async with open_echo(tapped=tapped, judge=judge) as echo:
        stream = await echo.upgraded()
        async with stream:
            await stream.send_all(
                frame(1, b"abc", final=False) + frame(10, b"pong") + frame(0, b"", final=False) * 1000
            )
            assert close_code(await everything(stream)) == 4429
        assert seen[:3] == [3, 4, 0]
        assert len(seen) == 201
        await echo.assert_all_gone()
        assert not echo.faults


async def test_a_subprotocol_is_answered_and_the_others_are_readable() -> None:
    head = parse_head(request(Sec_WebSocket_Protocol=b"halo.v1, bearer.abc", extra=b"Sec-WebSocket-Protocol: c\r\n"))
    assert head.subprotocols == ["halo.v1", "bearer.abc", "c"]
    async with open_echo() as echo, await echo.connect() as stream:
        await stream.send_all(request(Sec_WebSocket_Protocol=b"halo.v1, bearer.abc"))
        assert b"Sec-WebSocket-Protocol: halo.v1\r\n" in await stream.receive_some()


async def test_no_compression_is_negotiated() -> None:
    async with open_echo() as echo, await echo.connect() as stream:
        await stream.send_all(request(Sec_WebSocket_Extensions=b"permessage-deflate"))
        assert b"sec-websocket-extensions" not in (await stream.receive_some()).lower()


def test_a_head_is_read_into_its_parts() -> None:
    head = parse_head(request(b"/v1/chat/x?after_seq=3", X_City=b"M\xfcnchen", Origin=b"https://a.example"))
    assert (head.path, head.query) == ("/v1/chat/x", "after_seq=3")
    assert (head.one("origin"), head.one("absent"), head.one("x-city")) == ("https://a.example", None, "München")


async def test_a_fault_of_ours_is_logged_once_without_what_it_says_and_counted(tapped: bool) -> None:
    async with open_echo(tapped=tapped) as echo:
        with capture_logs() as logs:
            stream = await echo.upgraded()
            async with stream:
                await stream.send_all(frame(1, b"fault"))
                await everything(stream)
            await echo.assert_all_gone()
        assert echo.faults == {"LookupError": 1}
        (line,) = [entry for entry in logs if entry["event"] == "connection_fault"]
        assert line["log_level"] == "error"
        assert (line["fault"], line["peer"]) == ("LookupError", "127.0.0.1")
        assert SECRET not in repr(logs)
        await echo.assert_serves()


@pytest.mark.parametrize(
    ("fault", "level"),
    [
        (UnicodeError(SECRET), "warning"),
        (OSError(SECRET), "warning"),
        (trio.BrokenResourceError(SECRET), "info"),
        (KeyError(SECRET), "error"),
        (RecursionError(SECRET), "error"),
        (ExceptionGroup(SECRET, [ExceptionGroup(SECRET, [ValueError(SECRET)])]), "error"),
    ],
)
async def test_the_guard_lets_no_fault_through(fault: Exception, level: str) -> None:
    async def fail() -> None:
        raise fault

    faults = Counter[str]()
    near, far = socket.socketpair()
    with far, capture_logs() as logs:
        stream = SocketStream(near, Flusher(), "10.0.0.1")
        await guarded(stream, fail, faults)
        assert not stream.is_open
        assert far.recv(1) == b""
    assert [entry["log_level"] for entry in logs] == [level]
    assert SECRET not in repr(logs)
    assert faults.total() == 1


async def test_the_guard_lets_a_cancellation_through_and_logs_the_fault_beside_it(claims_errors: list[object]) -> None:
    async def fail_when_cancelled() -> None:
        async def fail() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError(SECRET)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    faults = Counter[str]()
    near, far = socket.socketpair()
    with far:
        stream = SocketStream(near, Flusher())
        with trio.move_on_after(0.01) as scope:
            await guarded(stream, fail_when_cancelled, faults)
            raise AssertionError("the cancellation was swallowed")
        assert scope.cancelled_caught
        assert not stream.is_open
    assert faults == {"KeyError": 1}
    assert len(claims_errors) == 1


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
async def test_the_guard_does_not_keep_the_process_from_ending(leaving: type[BaseException]) -> None:
    async def leave() -> None:
        raise leaving

    near, far = socket.socketpair()
    with far:
        stream = SocketStream(near, Flusher())
        with pytest.raises(leaving):
            await guarded(stream, leave, Counter[str]())
        assert not stream.is_open


async def test_one_address_too_many_is_answered_and_closed() -> None:
    async with open_echo(per_address_at_most=2) as echo:
        first, second = await echo.upgraded(), await echo.upgraded()
        answer = await echo.exchange(request())
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"retry-after: 1\r\n" in answer
        assert b'"code":"RATE_LIMITED"' in answer
        assert not answer.endswith(b"<reset>")
        await first.aclose()
        with trio.fail_after(5):
            while echo.gate.total > 1:
                await trio.sleep(0.005)
        await echo.assert_serves()
        await second.aclose()
        assert echo.gate.refused == {"address_full": 1}


async def test_a_full_node_says_that_it_is_busy() -> None:
    async with open_echo(total_at_most=1) as echo:
        async with await echo.upgraded():
            answer = await echo.exchange(request())
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b'"retryable":true' in answer
        await echo.assert_all_gone()
        await echo.assert_serves()


async def test_those_who_say_nothing_cannot_fill_the_node() -> None:
    async with open_echo(unauthenticated_at_most=3) as echo:
        silent = [await echo.connect() for _ in range(3)]
        assert (await echo.exchange(request())).startswith(b"HTTP/1.1 503 ")
        await echo.assert_all_gone()  # after the time for a head
        await echo.assert_serves()
        for stream in silent:
            await stream.aclose()


async def test_an_address_that_hammers_is_slowed_down() -> None:
    clock = SetClock()
    async with open_echo(clock=clock, handshakes_per_s=2) as echo:
        answers = [await echo.exchange(request(drop=b"Upgrade")) for _ in range(6)]
        assert [answer[9:12] for answer in answers] == [b"426"] * 4 + [b"429"] * 2
        clock.moment += 550
        await echo.assert_serves()


async def test_a_flood_of_the_refused_is_cut_off_and_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FAREWELLS_AT_MOST", 2)
    async with open_echo(total_at_most=1) as echo:
        async with await echo.upgraded():
            crowd, answers, cut_off = [], [], 0
            for _ in range(10):
                try:
                    crowd.append(await echo.connect())
                except OSError:
                    cut_off += 1  # so fast that connecting itself failed
            for stream in crowd[::-1]:
                async with stream:
                    answers.append(await everything(stream))
            assert sum(answer.startswith(b"HTTP/1.1 503 ") for answer in answers) == 2
            assert sum(answer in (b"", b"<reset>") for answer in answers) + cut_off == 8
        await echo.assert_all_gone()
        await echo.assert_serves()


async def test_running_out_of_file_descriptors_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_echo() as echo:
        await echo.assert_serves()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        stream, waiting = socket.socket(), socket.socket()
        with capture_logs() as logs, stream, waiting:
            stream.connect(("127.0.0.1", echo.port))
            await trio.sleep(0.05)
            # the next free number is beyond the limit: accept fails with EMFILE, while both our sockets exist already
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                waiting.connect(("127.0.0.1", echo.port))
                with trio.fail_after(5):
                    while not logs:
                        await trio.sleep(0.005)
                await trio.sleep(0.3)  # it fails again meanwhile, and says so once
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert [entry["event"] for entry in logs] == ["accept_out_of_resources"]
            await echo.assert_serves()


async def test_the_listener_stops_while_its_conversations_go_on() -> None:
    flusher, faults, gate = (
        Flusher(),
        Counter[str](),
        Gate(SystemClock(), total_at_most=0, per_address_at_most=0, handshakes_per_s=0, unauthenticated_at_most=0),
    )
    with trio.fail_after(10):
        async with trio.open_nursery() as connections:
            await connections.start(flusher.serve)
            async with trio.open_nursery() as accepting:
                listener = await open_listener("127.0.0.1:0")
                serve = partial(
                    serve_guarded, [listener], talk, door=Door(gate, flusher, faults), connections=connections
                )
                (address,) = await accepting.start(serve)
                port = int(address.rpartition(":")[2])
                stream = await Echo(port, gate, faults, connections).upgraded()
                accepting.cancel_scope.cancel()
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(frame(1, b"hello"))
                assert await stream.receive_some() == b"\x81\x05hello"
            connections.cancel_scope.cancel()


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
async def test_a_bind_gives_its_real_address(bind: str) -> None:
    with await open_listener(bind) as listener:
        host, _, port = guard.address_of(listener).rpartition(":")
        assert host in ("127.0.0.1", "[::1]")
        assert int(port) > 0
        async with await trio.open_tcp_stream(host.strip("[]"), int(port)):
            pass


@pytest.mark.parametrize(
    "bind", ["", "8800", "127.0.0.1", "127.0.0.1:", ":8800", "127.0.0.1:port", "127.0.0.1:65536", "no such host:1"]
)
async def test_a_bind_that_is_none_is_refused(bind: str) -> None:
    with pytest.raises(BindMalformed):
        await open_listener(bind)


async def test_a_public_bind_must_be_meant() -> None:
    for bind in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(PublicBindRefused):
            await open_listener(bind)
        (await open_listener(bind, loopback_only=False)).close()


async def test_a_port_in_use_is_told_with_the_setting_that_named_it() -> None:
    with await open_listener("127.0.0.1:0") as listener:
        address = guard.address_of(listener)
        with pytest.raises(
            BindRefused, match=rf"^HALO_WS_BIND is {address}, where halo cannot listen: Address already in use;"
        ):
            await open_listener(address, setting="HALO_WS_BIND")


def test_the_time_for_a_handshake_is_what_the_specification_says() -> None:
    assert CONNECT_SECONDS == 5
