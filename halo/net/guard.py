"""The guard around every connection: what one socket does ends that socket, and nothing else. Both servers stand behind it.

Libraries raise on bytes that nobody foresaw (spec 7 lists those found by trial), and in Trio an exception that nobody catches ends
the whole server. So each connection's task runs inside `guarded`, which is a supervisor: it logs, counts, closes that stream by
force, and lets only a cancellation through. `serve_guarded` accepts, asks the gate, and turns away with an HTTP answer whoever is
one too many. Never log bytes, tokens, paths or text here; an exception's message may contain all of them.
Read next: `halo/net/handshake.py` (WebSocket) and `halo/net/http.py`, the two kinds of conversation that are held behind it.
"""

import errno
import ipaddress
import socket
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import h11
import structlog
import trio
from wsproto.utilities import ProtocolError

from halo.net.admission import Admission, Gate, NotAdmitted
from halo.net.flusher import Flusher
from halo.net.refusal import refusal_response
from halo.net.stream import SocketStream

PEER_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)
"""Every telephone in a tunnel causes these; they are logged as information."""

PEERS_DOING: Final = (OSError, UnicodeError, h11.ProtocolError, ProtocolError)
"""What a stranger can cause from outside, logged as a warning; anything else is a fault of ours and an error."""

NOT_A_FAULT: Final = (trio.Cancelled, KeyboardInterrupt, SystemExit)

OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE_WHEN_OUT_SECONDS: Final = 0.1
"""Accepting again at once would spin; the waiting clients stay in the kernel's queue meanwhile."""
SILENCE_WHEN_OUT_SECONDS: Final = 10.0
"""One line in this time about being out of descriptors, not ten a second."""

ACCEPTS_PER_WAKE: Final = 32
"""About 1 ms of accepting, then everybody else has a turn."""

BACKLOG: Final = 1024
SEND_BUFFER_BYTES: Final = 64 * 1024
"""The kernel's part of what a slow reader may hold. Its own default grows to megabytes a socket, and hides the slowness from us."""

FAREWELLS_AT_MOST: Final = 64
"""How many who were turned away may be answered politely at once; the rest of a flood is simply cut off."""
FAREWELL_SECONDS: Final = 0.5

Conversation = Callable[[SocketStream, Admission], Awaitable[None]]

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")


@dataclass(frozen=True, slots=True)
class Door:
    """What stands at one listener: who is admitted, who sends for its connections, and how they ended when they ended badly."""

    gate: Gate
    flusher: Flusher
    faults: Counter[str] = field(default_factory=Counter)
    """How many connections ended by which type of exception."""
    turned_away: Counter[str] = field(default_factory=Counter)
    """How many were not admitted, by why."""


class PublicBindRefused(Exception):
    """This listener may only be bound to the machine itself."""


class BindRefused(Exception):
    """The system does not let this address be listened on; the message is one sentence for the operator."""


class BindMalformed(ValueError):
    """A bind is `host:port`, such as `127.0.0.1:8800` or `[::1]:0`."""


async def guarded(stream: SocketStream, conversation: Callable[[], Awaitable[None]], faults: Counter[str]) -> None:
    """Run `conversation` and close `stream` whatever happens in it. Raises nothing but Cancelled, KeyboardInterrupt, SystemExit.

    `faults` counts by the name of the exception's type.
    """
    try:
        await conversation()
    except NOT_A_FAULT:
        raise
    except BaseExceptionGroup as group:
        passing, rest = group.split(NOT_A_FAULT)
        for fault in _leaves(rest):
            _report(fault, stream.peer, faults)
        if passing is not None:
            raise passing from None
    except Exception as fault:  # noqa: BLE001  # a supervisor: whatever it is, it ends here
        _report(fault, stream.peer, faults)
    finally:
        await trio.aclose_forcefully(stream)


async def open_listener(bind: str, *, loopback_only: bool = True, setting: str = "The bind") -> socket.socket:
    """A listening socket for `host:port`, which the setting of this name gave; port 0 picks a free one.

    Raises:
        BindMalformed, PublicBindRefused, BindRefused
    """
    sock = await open_bound(bind, loopback_only=loopback_only, setting=setting)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _refused(bind, setting, error) from error
    return sock


async def open_bound(bind: str, *, loopback_only: bool = True, setting: str = "The bind") -> socket.socket:
    """The same before it listens: who only asks whether the address is free lets nobody in, and is in no start's way.

    Raises:
        BindMalformed, PublicBindRefused, BindRefused
    """
    host, colon, port = bind.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise BindMalformed(f"{setting} is {bind!r}, which is not host:port.")
    try:
        found = await trio.socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindMalformed(f"{setting} is {bind!r}, but {host!r} is not an address of this machine.") from error
    family, _, _, _, address = found[0]
    if loopback_only and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise PublicBindRefused(
            f"{setting} is {bind!r}, which is open to others; this listener may only be bound to the machine itself."
        )
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # those accepted from it inherit this
        sock.settimeout(0)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _refused(bind, setting, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _refused(bind: str, setting: str, error: OSError) -> BindRefused:
    advice = "; another program listens there, maybe another halo" if error.errno == errno.EADDRINUSE else ""
    return BindRefused(f"{setting} is {bind}, where halo cannot listen: {error.strerror}{advice}.")


def address_of(listener: socket.socket) -> str:
    """`127.0.0.1:8800` or `[::1]:8800`, the real port when 0 was asked for."""
    host, port, *_ = listener.getsockname()
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"


async def serve_guarded(
    listeners: Sequence[socket.socket],
    conversation: Conversation,
    *,
    door: Door,
    connections: trio.Nursery,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Accept until cancelled, and hold a `conversation` with each who is admitted, in a task of `connections`.

    Cancelling this stops accepting and closes `listeners`; the conversations go on until their own nursery is cancelled.
    Reports the listeners' real addresses.
    """
    try:
        async with trio.open_nursery() as nursery:
            farewells = _Farewells(nursery)
            for listener in listeners:
                name = f"accept {address_of(listener)}"
                nursery.start_soon(_accept, listener, conversation, door, connections, farewells, name=name)
            task_status.started([address_of(listener) for listener in listeners])
    finally:
        for listener in listeners:
            trio.lowlevel.notify_closing(listener)
            listener.close()
    raise AssertionError("accepting ends only by cancellation")


async def _accept(
    listener: socket.socket,
    conversation: Conversation,
    door: Door,
    connections: trio.Nursery,
    farewells: "_Farewells",
) -> NoReturn:
    quiet_until = float("-inf")
    while True:
        await trio.lowlevel.wait_readable(listener)
        for _ in range(ACCEPTS_PER_WAKE):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                # Linux also reports here what befell a connection before it was accepted; that one is over, and is the peer's matter.
                if error.errno in OUT_OF_RESOURCES:
                    if trio.current_time() >= quiet_until:
                        quiet_until = trio.current_time() + SILENCE_WHEN_OUT_SECONDS
                        _log.error("accept_out_of_resources", errno=errno.errorcode[error.errno or 0])
                    await trio.sleep(PAUSE_WHEN_OUT_SECONDS)
                    break
                continue
            host = str(address[0]) if isinstance(address, tuple) else "unix"
            stream = SocketStream(sock, door.flusher, host)
            try:
                admission = door.gate.admit(host)
            except NotAdmitted as no:
                door.turned_away[no.cause] += 1
                farewells.turn_away(stream, no)
                continue
            connections.start_soon(_hold, stream, conversation, admission, door.faults, name=f"connection {host}")


async def _hold(stream: SocketStream, conversation: Conversation, admission: Admission, faults: Counter[str]) -> None:
    try:
        await guarded(stream, lambda: conversation(stream, admission), faults)
    finally:
        admission.leave()


class _Farewells:
    """Answers those who are turned away, a few at a time, without ever making the accept loop wait."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._under_way = 0

    def turn_away(self, stream: SocketStream, no: NotAdmitted) -> None:
        if self._under_way >= FAREWELLS_AT_MOST:
            stream.abort()
            return
        code = "RATE_LIMITED" if no.status == 429 else "BUSY"
        detail = (
            "Too many connections; wait a moment."
            if no.status == 429
            else "halo is too busy to take this; it changed nothing."
        )
        after = ("retry-after", str(-(-no.retry_after_ms // 1000)))
        stream.write(refusal_response(no.status, code, detail, retryable=True, headers=(after,)))
        self._under_way += 1
        self._nursery.start_soon(self._part, stream)

    async def _part(self, stream: SocketStream) -> None:
        try:
            await stream.aclose_gently(FAREWELL_SECONDS)
        finally:
            self._under_way -= 1
            await trio.aclose_forcefully(stream)


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif error is not None:
        yield error


def _report(fault: BaseException, peer: str, faults: Counter[str]) -> None:
    """One line: the type and the place, never the message, which may quote what the peer sent."""
    kind = type(fault).__name__
    faults[kind] += 1
    last = None
    for frame, line in traceback.walk_tb(fault.__traceback__):
        last = f"{frame.f_globals.get('__name__', '?')}:{line}"
    say = _log.info if isinstance(fault, PEER_GONE) else _log.warning if isinstance(fault, PEERS_DOING) else _log.error
    say("connection_fault", fault=kind, where=last, peer=peer)
