"""One socket's bytes: a Trio stream that waits before it reads, and a buffer that lets every task write without waiting.

The hot path writes with `SocketStream.write`, a plain function: it appends to the socket's buffer, and one `Flusher` per process
sends each such buffer once per scheduler tick, so that an ack and a delivery for the same socket leave in one system call.
`send_all` (trio-websocket's handshake, pongs and closes) goes through the same buffer. Therefore whatever was written leaves
whole and in order, and a cancelled sender never cuts a frame in half. A peer that does not read is closed by force.

Never block in here outside of `await`, never let an `OSError` of one socket reach the flusher that serves them all, and never
look at what the bytes mean. How full the buffer may become is the caller's decision: `pending_frames`, `pending_bytes`.
Read next: `halo/net/flusher.py`; then `halo/net/guard.py`, which accepts the sockets.
"""

import contextlib
import operator
import socket
import struct
from collections.abc import Callable
from typing import Final

import trio

from halo.net.flusher import Flusher

WRITE_DEADLINE_SECONDS: Final = 10.0
"""How long a peer may read nothing while bytes wait for it. Spec 5: a reader that does not read is closed within 10 s."""

WRITE_FLOOR_BYTES: Final = 16 * 1024
"""What must leave in each `WRITE_DEADLINE_SECONDS`, so that a peer that sips a byte at a time cannot hold a full buffer for hours.
The bandwidth of the slowest telephone (1.6 KiB/s); a smaller backlog simply has to be empty by then."""

DEFAULT_RECEIVE_BYTES: Final = 64 * 1024
CHUNKS_PER_SEND: Final = 64
"""Far below the kernel's IOV_MAX of 1,024, which would fail with EMSGSIZE; and 64 frames a call make the call itself cheap."""

GOODBYE_SECONDS: Final = 1.0
GOODBYE_BYTES: Final = 256 * 1024
"""Closing a socket with unread input resets it, and the reset may destroy our last answer on its way. So `aclose_gently` reads on
for a moment: long enough for a client across the world, short and small enough to be of no use to somebody who pours."""

PING_FRAME: Final = b"\x89\x00"
"""A WebSocket ping without payload, as a server sends it."""

_MEDIUM_HEAD: Final = struct.Struct("!BBH").pack
_LONG_HEAD: Final = struct.Struct("!BBQ").pack

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def websocket_text_frame(payload: bytes) -> bytes:
    """One whole, unmasked text frame as a server sends it. `payload` must be UTF-8 already."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    if length < 65_536:
        return _MEDIUM_HEAD(0x81, 126, length) + payload
    return _LONG_HEAD(0x81, 127, length) + payload


def ping_frame(payload: bytes) -> bytes:
    """A ping that its pong brings back; at most 125 bytes."""
    return bytes((0x89, len(payload))) + payload


class SocketStream(trio.abc.HalfCloseableStream):
    """A connected, non-blocking stdlib socket as a Trio stream with a synchronous `write`.

    Resource handling: it owns the socket. `aclose` gives the kernel what it takes at once and closes; `aclose_gently` waits for
    the peer; `abort` resets. Error handling: as `trio.abc` says, `BrokenResourceError` for the peer's doing (and for the write
    deadline), `ClosedResourceError` for our own, `BusyResourceError` for two tasks in the same method.
    """

    __slots__ = (
        "_broken", "_chunks", "_closed", "_dirty", "_draining", "_ended", "_flusher", "_pending_bytes", "_receiving",
        "_sending", "_sent_bytes", "_socket", "_unread", "_waiting", "fd", "last_received", "on_close", "peer", "received_bytes",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, flusher: Flusher, peer: str = "?") -> None:
        sock.settimeout(0)
        with contextlib.suppress(OSError):  # not TCP, or already reset; the latter shows at the first read
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self.fd = sock.fileno()
        """For whoever watches it in an epoll of its own, until `on_close` is called."""
        self.on_close: Callable[[], None] | None = None
        """Called right before the descriptor is closed, whoever closes it; must not fail."""
        self._flusher = flusher
        self.peer = peer
        """The address as it was at accept. Asking the kernel later fails once the peer has reset the connection."""
        self.last_received = trio.current_time()
        """Trio's clock at the last byte received; the keepalive compares it."""
        self.received_bytes = 0
        """All bytes ever received, for byte rates."""
        self._chunks: list[bytes | memoryview] = []
        self._pending_bytes = 0
        self._sent_bytes = 0
        self._waiting: list[tuple[int, trio.Event]] = []
        self._unread = b""
        self._dirty = self._draining = False
        self._sending = self._receiving = False
        self._closed = self._broken = self._ended = False

    @property
    def pending_frames(self) -> int:
        """How many writes have not wholly left yet."""
        return len(self._chunks)

    @property
    def pending_bytes(self) -> int:
        """How many bytes of them have not left yet."""
        return self._pending_bytes

    @property
    def is_open(self) -> bool:
        """Whether bytes written now have a chance to arrive."""
        return not (self._closed or self._broken or self._ended)

    def write(self, data: bytes) -> None:
        """Send `data` whole, after everything written before, without waiting.

        On a stream that is closed or broken this does nothing: its reader is told, and a writer that serves a hundred other
        sockets must not stumble over this one.
        """
        if self._closed or self._broken or self._ended:
            return
        self._chunks.append(data)
        self._pending_bytes += len(data)
        if not (self._dirty or self._draining):
            self._dirty = True
            self._flusher.mark(self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Like `write`, but returns when the bytes have left. Cancelled, it stops waiting; what it began still leaves whole."""
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._require_writable()
            if data:
                self._chunks.append(bytes(data))
                self._pending_bytes += len(data)
            await self._wait_sent()
        finally:
            self._sending = False

    async def wait_flushed(self) -> None:
        """Until everything written so far has left. For whoever has much to say (a replay) and must not overfill the buffer."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._require_writable()
        await self._wait_sent()

    async def wait_send_all_might_not_block(self) -> None:
        self._begin_sending()
        try:
            await self.wait_flushed()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        self._begin_sending()
        try:
            if self._ended and not self._closed:
                await trio.lowlevel.checkpoint()
                return
            await self.wait_flushed()
            self._ended = True
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._break()
            raise trio.BrokenResourceError("the peer has closed the connection") from error
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait first, then read: on a quiet socket the other order costs a system call and an exception for nothing."""
        wanted = DEFAULT_RECEIVE_BYTES if max_bytes is None else operator.index(max_bytes)
        if wanted < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            if self._unread:
                await trio.lowlevel.checkpoint()
                data, self._unread = self._unread[:wanted], self._unread[wanted:]
                return data
            while True:
                self._require_socket()
                try:
                    await trio.lowlevel.wait_readable(self.fd)
                except trio.ClosedResourceError:
                    self._require_socket()
                    raise
                received = self.receive_now(wanted)
                if received is not None:
                    return received
        finally:
            self._receiving = False

    def receive_now(self, max_bytes: int) -> bytes | None:
        """What lies there, without waiting: empty at the end, None when there is nothing (yet). Passes by what was unread."""
        self._require_socket()
        try:
            data = self._socket.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._break()
            raise trio.BrokenResourceError("the peer has reset the connection") from error
        self.last_received = trio.current_time()
        self.received_bytes += len(data)
        return data

    @property
    def has_unread(self) -> bool:
        """Whether bytes that were put back wait to be received."""
        return bool(self._unread)

    def unread(self, data: bytes) -> None:
        """Put bytes back; they are the next to be received. For whoever had to look at the head of a request first."""
        self._unread = data + self._unread

    async def aclose(self) -> None:
        """Give the kernel what it takes at once, then close. Whatever it does not take is lost, and then the peer sees a reset."""
        if not self._closed:
            if self._chunks and not self._broken:
                self._send_once()
            if self._chunks:
                self._reset_when_closed()
            self._closed = True
            self._close()
        await trio.lowlevel.checkpoint()

    async def aclose_gently(self, seconds: float = GOODBYE_SECONDS) -> None:
        """Close so that the last bytes arrive: say that we are done, read on until the peer hangs up, at most `seconds`."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(seconds):
            await self.send_eof()
            enough = self.received_bytes + GOODBYE_BYTES
            while self.received_bytes < enough and await self.receive_some():
                pass
        await self.aclose()

    def abort(self) -> None:
        """Close by force, now, with a reset; the kernel's own buffer is freed too. Callable from any task, any number of times."""
        self._reset_when_closed()
        self._break()
        self._close()

    def flush(self) -> None:
        """The flusher's part: send once, and ask for a drain when not everything fitted."""
        self._dirty = False
        if self._chunks and not (self._draining or self._closed or self._broken):
            left = -1
            while (
                self._chunks and self._pending_bytes != left
            ):  # a burst is longer than one call takes; the kernel says when it is full
                left = self._pending_bytes
                self._send_once()
            if self._chunks:
                self._draining = self._flusher.drain(self)
                if not self._draining:
                    self._break()

    async def drain(self) -> None:
        """The flusher's part: wait until the socket takes more, again and again, and not for ever."""
        goal = 0
        deadline = -1.0
        try:
            while self._chunks:
                if self._sent_bytes >= goal:
                    goal = self._sent_bytes + WRITE_FLOOR_BYTES
                    deadline = trio.current_time() + WRITE_DEADLINE_SECONDS
                with trio.move_on_at(deadline) as patience:
                    await trio.lowlevel.wait_writable(self.fd)
                if patience.cancelled_caught:
                    self.abort()
                elif self._chunks:
                    self._send_once()
        except trio.ClosedResourceError:
            pass  # closed while we waited; `_close` has told everybody
        finally:
            self._draining = False
            if self._chunks:  # the flusher is cancelled; nobody will ever send these
                self._break()

    def _begin_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True

    async def _wait_sent(self) -> None:
        goal = self._sent_bytes + self._pending_bytes
        self.flush()
        if self._sent_bytes < goal and not self._broken:
            left = trio.Event()
            self._waiting.append((goal, left))
            await left.wait()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if self._sent_bytes < goal:
            self._require_writable()

    def _send_once(self) -> None:
        chunks = self._chunks
        try:
            if len(chunks) == 1:
                sent = self._socket.send(chunks[0])
            else:
                sent = self._socket.sendmsg(chunks[:CHUNKS_PER_SEND])
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._break()
            return
        self._sent_bytes += sent
        self._pending_bytes -= sent
        if not self._pending_bytes:
            chunks.clear()
        else:
            gone = 0
            while sent >= len(chunks[gone]):
                sent -= len(chunks[gone])
                gone += 1
            del chunks[:gone]
            if sent:
                chunks[0] = memoryview(chunks[0])[sent:]
        if self._waiting:
            self._tell(self._sent_bytes)

    def _tell(self, sent_bytes: float) -> None:
        for goal, left in self._waiting:
            if goal <= sent_bytes:
                left.set()
        self._waiting = [entry for entry in self._waiting if entry[0] > sent_bytes]

    def _break(self) -> None:
        """The peer is gone, or as good as: forget what was for it, and wake its reader with an end of file."""
        self._broken = True
        self._chunks.clear()
        self._pending_bytes = 0
        self._tell(float("inf"))
        with contextlib.suppress(OSError):  # the socket may know already, or be closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def _reset_when_closed(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            if self.on_close is not None:
                self.on_close()
            trio.lowlevel.notify_closing(self.fd)
            self._socket.close()
        self._chunks.clear()
        self._pending_bytes = 0
        self._tell(float("inf"))

    def _require_socket(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._socket.fileno() < 0:
            raise trio.BrokenResourceError("the peer did not read, so the connection was closed by force")

    def _require_writable(self) -> None:
        if self._closed or (self._ended and not self._broken):
            raise trio.ClosedResourceError("this stream was closed")
        if self._broken:
            raise trio.BrokenResourceError("the connection is broken")

    def __repr__(self) -> str:
        return f"<SocketStream {self.peer}>"
