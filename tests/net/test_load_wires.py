"""The harness' own sockets, against a server of a few lines."""

import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from halo.load.frames import CLOSE, PING, TEXT, client_frame
from halo.load.handshake import Address, HandshakeFailed, HandshakeRefused, address_of, open_wire
from halo.load.wires import Wire, Wires

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
PATIENCE_SECONDS = 30.0


def server_frame(opcode: int, payload: bytes) -> bytes:
    length = len(payload)
    head = bytes((0x80 | opcode, length)) if length < 126 else bytes((0x80 | opcode, 126)) + length.to_bytes(2)
    return head + payload


class Ear:
    """Notes everything."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.codes: list[int] = []

    def taken(self, payload: bytes) -> None:
        self.frames.append(payload)

    def closed(self, code: int) -> None:
        self.codes.append(code)


Answer = Callable[[trio.abc.Stream, bytes], Awaitable[None]]


@asynccontextmanager
async def open_server(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """`answer(stream, head of the request)` for each connection; the address."""

    async def serve(stream: trio.abc.Stream) -> None:
        head = b""
        try:
            while b"\r\n\r\n" not in head:
                more = await stream.receive_some()
                if not more:
                    return
                head += more
            await answer(stream, head)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has hung up
        finally:
            await trio.aclose_forcefully(stream)

    [tcp] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = tcp.socket.getsockname()[1]
    listener: trio.abc.Listener[trio.abc.Stream] = tcp if tls is None else trio.SSLListener(tcp, tls)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"{'ws' if tls is None else 'wss'}://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_pair(answer: Answer) -> AsyncIterator[tuple[Wire, Ear]]:
    ear = Ear()
    with Wires() as wires:
        async with open_server(answer) as url, trio.open_nursery() as nursery:
            nursery.start_soon(wires.serve)
            wire = await open_wire(wires, address_of(url), "/v1/lobby", "the token", ear)
            wire.attend()
            with trio.fail_after(PATIENCE_SECONDS):
                yield wire, ear
            nursery.cancel_scope.cancel()


async def refusal_of(answer: Answer) -> Exception:
    """With what a handshake ends."""
    with Wires() as wires:
        async with open_server(answer) as url:
            try:
                await open_wire(wires, address_of(url), "/v1/lobby", "the token", Ear())
            except (HandshakeRefused, HandshakeFailed) as refused:
                return refused
    raise AssertionError("not refused")


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await trio.sleep(0.001)


async def silent(stream: trio.abc.Stream, _: bytes) -> None:
    await stream.send_all(SWITCHING)
    await trio.sleep_forever()


async def test_the_token_travels_in_a_header_and_never_in_the_path() -> None:
    heads: list[bytes] = []

    async def answer(stream: trio.abc.Stream, head: bytes) -> None:
        heads.append(head)
        await silent(stream, head)

    async with open_pair(answer):
        [head] = heads
    assert head.startswith(b"GET /v1/lobby HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer the token\r\n" in head


async def test_frames_that_came_with_the_handshake_and_after_it_are_taken_in_order() -> None:
    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(SWITCHING + server_frame(TEXT, b"one") + server_frame(TEXT, b"t")[:2])
        await stream.send_all(b"t" + server_frame(TEXT, b"x" * 300))
        await trio.sleep_forever()

    async with open_pair(answer) as (_, ear):
        await until(lambda: len(ear.frames) == 3)
        assert ear.frames == [b"one", b"t", b"x" * 300]


async def test_what_is_said_arrives_and_pings_are_answered_by_themselves() -> None:
    said: list[bytes] = []

    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(SWITCHING + server_frame(PING, b"p"))
        while more := await stream.receive_some():
            said.append(bytes(more))

    async with open_pair(answer) as (wire, _):
        wire.say(b"hello")
        expected = {client_frame(TEXT, b"hello"), client_frame(0xA, b"p")}
        await until(lambda: len(b"".join(said)) == sum(map(len, expected)))
        assert b"".join(said) == client_frame(0xA, b"p") + client_frame(TEXT, b"hello")


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (server_frame(CLOSE, (4001).to_bytes(2)), 4001),
        (server_frame(CLOSE, b""), 1005),
        (b"", 1006),
        (b"\x01\x00", 1002),
    ],
)
async def test_the_end_is_told_once_with_its_code(last: bytes, code: int) -> None:
    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(SWITCHING + last)

    async with open_pair(answer) as (wire, ear):
        await until(lambda: bool(ear.codes))
        wire.say(b"nobody hears this")
        wire.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert ear.codes == [code]
        assert not wire.is_open


async def test_whoever_cuts_a_wire_is_not_told_of_it() -> None:
    async with open_pair(silent) as (wire, ear):
        wire.cut()
        wire.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert ear.codes == []


async def test_what_the_system_does_not_take_at_once_leaves_later_whole_and_in_order() -> None:
    heard = bytearray()
    may_read = trio.Event()

    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(SWITCHING)
        await may_read.wait()
        while more := await stream.receive_some():
            heard.extend(more)

    frames = [f"{number:05}".encode() + b"x" * 60_000 for number in range(200)]  # 12 MB: more than any socket keeps
    async with open_pair(answer) as (wire, _):
        for frame in frames:
            wire.say(frame)
        may_read.set()
        await until(lambda: len(heard) == sum(len(client_frame(TEXT, frame)) for frame in frames))
        assert bytes(heard) == b"".join(client_frame(TEXT, frame) for frame in frames)


async def test_a_paused_wire_takes_nothing_more() -> None:
    go = trio.Event()

    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(SWITCHING)
        await go.wait()
        await stream.send_all(server_frame(TEXT, b"unheard"))
        sent.set()
        await trio.sleep_forever()

    sent = trio.Event()
    async with open_pair(answer) as (wire, ear):
        wire.pause()
        go.set()
        await sent.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert (ear.frames, wire.is_open) == ([], True)


@pytest.mark.parametrize("status", [401, 404, 429, 503])
async def test_a_refused_handshake_says_its_status(status: int) -> None:
    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())

    refused = await refusal_of(answer)
    assert isinstance(refused, HandshakeRefused)
    assert refused.status == status


@pytest.mark.parametrize("said", [b"", b"220 mail.example.test ESMTP\r\n\r\n", b"x" * 40_000])
async def test_who_does_not_speak_websocket_has_failed(said: bytes) -> None:
    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(said)

    assert isinstance(await refusal_of(answer), HandshakeFailed)


async def test_nobody_there_is_a_failure() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with Wires() as wires, pytest.raises(HandshakeFailed, match=f"127.0.0.1:{port}"):
        await open_wire(wires, address_of(f"ws://127.0.0.1:{port}"), "/", "t", Ear())


async def test_many_connections_come_from_several_addresses_of_the_loopback() -> None:
    peers: list[str] = []

    async def answer(stream: trio.abc.Stream, head: bytes) -> None:
        assert isinstance(stream, trio.SocketStream)
        peers.append(stream.socket.getpeername()[0])
        await silent(stream, head)

    with Wires() as wires:
        async with open_server(answer) as url:
            for number in (0, 19_999, 20_000, 99_999):
                await open_wire(wires, address_of(url), "/", "t", Ear(), number)
            assert len(wires) == 4
    assert peers == ["127.0.0.1", "127.0.0.1", "127.0.0.3", "127.0.0.6"]


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's side with a certificate that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "tls.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context


async def test_an_encrypted_wire_takes_more_than_fits_into_one_record(tls: ssl.SSLContext) -> None:
    payload = b"x" * 60_000

    async def answer(stream: trio.abc.Stream, _: bytes) -> None:
        await stream.send_all(SWITCHING + server_frame(TEXT, payload) + server_frame(TEXT, b"last"))
        await trio.sleep_forever()

    ear = Ear()
    with Wires() as wires:
        async with open_server(answer, tls) as url, trio.open_nursery() as nursery:
            nursery.start_soon(wires.serve)
            wire = await open_wire(wires, address_of(url, verify=False), "/", "t", ear)
            wire.attend()
            with trio.fail_after(PATIENCE_SECONDS):
                await until(lambda: len(ear.frames) == 2)
            nursery.cancel_scope.cancel()
    assert ear.frames == [payload, b"last"]


async def test_a_certificate_that_nobody_signed_is_refused(tls: ssl.SSLContext) -> None:
    with Wires() as wires:
        async with open_server(silent, tls) as url:
            with pytest.raises(HandshakeFailed, match="certificate verify failed"):
                await open_wire(wires, address_of(url), "/", "t", Ear())


def test_an_address_is_taken_apart() -> None:
    plain = address_of("ws://[::1]:8800/halo/")
    assert (plain.host, plain.port, plain.prefix, plain.authority, plain.tls) == (
        "::1",
        8800,
        "/halo",
        "[::1]:8800",
        None,
    )
    assert address_of("wss://example.test").port == 443
    assert Address("127.0.0.1", 1, "", None).is_loopback
