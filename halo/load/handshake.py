"""How a wire begins: connect, encrypt where the URL says so, ask for the WebSocket, and hand the bare socket to `Wires`.

It must never retry: who is refused decides what that means. On loopback the 28,000 ports of one source address are soon used up, so a
connection says which of the loopback's other addresses it comes from. Read next: `halo/load/wires.py`.
"""

import base64
import secrets
import socket
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import trio

from halo.load.wires import Listener, Wire, Wires

PORTS_PER_ADDRESS: Final = 20_000
"""Of one source address, well below what Linux hands out by default (28,232)."""
BACK_SECONDS: Final = (0.05, 0.5)
"""Between two tries, by chance: a crowd that tries in step keeps knocking the door in."""
CONNECTING_AT_ONCE: Final = 64
"""Where connecting is not what is measured."""
FINAL_STATUS: Final = frozenset({400, 401, 403, 404})
"""Refusals after which another try is of no use."""
HEAD_BYTES_MOST: Final = 16_384
NARROW_BYTES: Final = 4_096
"""What the system may keep for somebody who does not read; its own megabytes would hide that from the server for minutes."""
CONNECT_SECONDS: Final = 30.0
"""For the whole handshake: longer than any listener keeps somebody waiting, and a storm's worst case still has its figure."""


class HandshakeRefused(Exception):
    """The server answered with another status than 101."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"the handshake was refused with {status}")


class HandshakeFailed(Exception):
    """Nobody answered, or the connection broke."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where WebSockets are opened: the URL once taken apart."""

    host: str
    port: int
    prefix: str
    tls: ssl.SSLContext | None

    @property
    def is_loopback(self) -> bool:
        return self.host.startswith("127.")

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(url: str, *, verify: bool = True) -> Address:
    """Of a `ws://` or `wss://` URL."""
    parts: SplitResult = urlsplit(url)
    tls = None
    if parts.scheme == "wss":
        tls = ssl.create_default_context()
        if not verify:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
    return Address(parts.hostname or "", parts.port or (443 if tls else 80), parts.path.rstrip("/"), tls)


async def open_wire(
    wires: Wires, address: Address, path: str, token: str, listener: Listener, number: int = 0, is_narrow: bool = False
) -> Wire:
    """An open wire of whoever `token` says; `number` spreads many connections over source addresses, a narrow one has room for 4 KB.

    Raises:
        HandshakeRefused: with the status.
        HandshakeFailed: nobody answered within `CONNECT_SECONDS`, or not as a WebSocket server does.
    """
    sock: socket.socket | None = None
    try:
        with trio.fail_after(CONNECT_SECONDS):
            sock = await _connect(address, number, is_narrow=is_narrow)
            if address.tls is not None:
                sock = await _encrypt(sock, address)
            rest = await _ask(sock, address, path, token)
    except BaseException as fault:
        if sock is not None:
            sock.close()
        if isinstance(fault, OSError | trio.TooSlowError):
            reason = "no answer in time" if isinstance(fault, trio.TooSlowError) else fault
            raise HandshakeFailed(f"{address.authority}: {reason}") from fault
        raise
    return wires.add(sock, listener, rest)


async def _connect(address: Address, number: int, *, is_narrow: bool) -> socket.socket:
    [(family, kind, _, _, place), *_] = await trio.socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    )
    sock = socket.socket(family, kind)
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if is_narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW_BYTES)
        if address.is_loopback and number >= PORTS_PER_ADDRESS:
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect
            sock.bind((f"127.0.0.{2 + number // PORTS_PER_ADDRESS}", 0))
        error = sock.connect_ex(place)
        if error not in {0, 115}:  # EINPROGRESS
            raise OSError(error, "cannot connect")
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "cannot connect")
    except BaseException:
        sock.close()
        raise
    return sock


async def _encrypt(sock: socket.socket, address: Address) -> ssl.SSLSocket:
    assert address.tls is not None  # asked for by the URL
    wrapped = address.tls.wrap_socket(sock, server_hostname=address.host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                wrapped.do_handshake()
                return wrapped
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(wrapped)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(wrapped)
    except BaseException:
        wrapped.close()
        raise


async def _ask(sock: socket.socket, address: Address, path: str, token: str) -> bytes:
    """What came after the head of the answer."""
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    request = (
        f"GET {address.prefix}{path} HTTP/1.1\r\nHost: {address.authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: halo.v1\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    sock.send(request.encode())  # below any socket's first buffer
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) > HEAD_BYTES_MOST:
            raise HandshakeFailed(f"{address.authority} did not answer as a WebSocket server does")
        try:
            more = sock.recv(HEAD_BYTES_MOST)
        except (BlockingIOError, ssl.SSLWantReadError):
            await trio.lowlevel.wait_readable(sock)
            continue
        if not more:
            raise HandshakeFailed(f"{address.authority} hung up before it had answered")
        head += more
    first, _, rest = head.partition(b"\r\n\r\n")
    status = first.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or not status[1].isdigit():
        raise HandshakeFailed(f"{address.authority} did not answer as a WebSocket server does")
    if int(status[1]) != 101:
        raise HandshakeRefused(int(status[1]))
    return rest
