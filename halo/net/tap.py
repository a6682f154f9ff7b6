"""A WebSocket's bytes on their way to the library, with the ordinary messages taken out.

The library's task for this socket sleeps in `receive_some` and is woken for what it alone knows: pings, closes, fragments, the end. An
ordinary message or a pong is handed to its listener at once, in the task that reads all sockets, and wakes nobody. What the listener has to
wait for is awaited in the library's task, and until then nothing more is read from this peer: nothing overtakes, and nobody can
pile up work. Never look at what a message says. Read next: `halo/net/reader.py`, `halo/net/frames.py`.
"""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import outcome
import trio

from halo.net.frames import FrameCutter, pong_payload
from halo.net.reader import Reader
from halo.net.stream import SocketStream

RECEIVE_BYTES: Final = 4096
"""Read at once: the smallest frames that fit in cost a millisecond, and a message of usual length comes whole."""

Work = Callable[[], Awaitable[None]]
_Found = bytes | Awaitable[None]
"""What is for the library's task: bytes to return, or what has to be awaited first."""


class Listener(Protocol):
    """Who takes the messages of one socket."""

    def hear(self, text: str) -> Awaitable[None] | None:
        """One whole message, now; what has to be waited for is returned, and nothing more is read until it is done."""

    def pong(self, payload: bytes) -> None:
        """The answer to a ping: one from every socket every 20 s, which is all that most of them say."""

    def sip(self) -> None:
        """Bytes came that make no whole frame yet: to be counted, or a client that sends single bytes costs us unseen."""


class SocketTap(trio.abc.Stream):
    """What the library takes for the socket, from the handshake on.

    Resource handling: it borrows the stream; `detach` gives it back, after which the stream can be read as any other. Only the
    reader's turn reads, once for each socket: a peer that pours is never read twice while another waits.
    """

    __slots__ = (
        "_cutter", "_fd", "_hung_up", "_is_closed", "_is_reading", "_listener", "_may_read", "_owed", "_reader", "_stream", "_waiting",
    )  # fmt: skip

    def __init__(self, stream: SocketStream, reader: Reader, listener: Listener, payload_bytes_max: int) -> None:
        self._stream = stream
        self._reader = reader
        self._listener = listener
        self._cutter = FrameCutter(payload_bytes_max)
        self._may_read = False
        """The kernel has told of bytes, and they may not all be read."""
        self._hung_up = False
        """Nothing tells of the end a second time: read on until it comes."""
        self._is_closed = False
        self._is_reading = False
        """The listener is hearing: whatever it causes (`do`, a close) is looked at when it is done, and wakes nobody twice."""
        self._waiting: trio.lowlevel.Task | None = None
        self._owed: list[Callable[[], _Found | None]] = []
        """What is to be looked at first; hardly ever anything. A deque would cost each socket 600 bytes, empty."""
        self._fd = stream.fd
        stream.on_close = self._closed

    def attach(self) -> None:
        """The handshake is answered: from now on the listener hears. Until then the library reads the request's head, and nothing else."""
        if not self._is_closed:
            self._reader.add(self._fd, self)

    def detach(self) -> None:
        """Somebody else reads the stream from now on."""
        if not self._is_closed:  # else the descriptor may be another socket's by now
            self._stream.on_close = None
            self._reader.remove(self._fd)

    def do(self, work: Work) -> None:
        """`work` in the socket's own task, before anything more is read from it."""
        self._owed.append(work)
        self._look_again()

    # ---- for the library

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next frame that is not for the listener; empty at the end."""
        if self._stream.has_unread:  # the request's head, maybe in several pieces
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            found = self._owed.pop(0)() if self._owed else self._cut()
            if found is None and not self._owed:
                if self._is_closed:
                    raise trio.ClosedResourceError("this stream was closed")
                if self._may_read:
                    self._reader.ask_again(self._fd)
                found = await self._wait()
            if isinstance(found, bytes):
                return found
            if found is not None:
                await found

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

    # ---- for the reader

    def readable(self, hung_up: bool) -> bool:
        self._may_read = True
        self._hung_up = self._hung_up or hung_up
        task = self._waiting
        if task is None:
            return False  # it asks again when it comes back
        self._is_reading = True
        found: outcome.Outcome[_Found | None] = outcome.capture(task.context.run, self._read)
        self._is_reading = False
        if isinstance(found, outcome.Value) and found.value is None and not (self._owed or self._is_closed):
            return self._may_read
        if self._waiting is None:  # its own listener has cancelled it
            self._owed.append(found.unwrap)
        else:
            self._wake(found)
        return False

    def _read(self) -> _Found | None:
        """Read once, and hand over what came until something is for the library's task."""
        try:
            received = self._stream.receive_now(RECEIVE_BYTES)
        except trio.BrokenResourceError:
            # The end, for the library. An exception that goes from one task to another keeps its frames, and they the socket and its
            # actor, until the garbage collector comes by.
            return b""
        if received is None:
            self._may_read = False
            return None
        if not received:
            return received
        if len(received) < RECEIVE_BYTES and not self._hung_up:
            self._may_read = False  # a short read has emptied the socket; what comes later is told anew
        self._cutter.feed(received)
        found = self._cut()
        if found is None and self._cutter.has_part:
            self._listener.sip()
        return found

    def _cut(self) -> _Found | None:
        """Hand over whole messages and pongs from what was read until something is for the library's task."""
        while (frame := self._cutter.next()) is not None:
            if isinstance(frame, str):
                waiting = self._listener.hear(frame)
                if waiting is not None:
                    return waiting
            elif (payload := pong_payload(frame)) is not None:
                self._listener.pong(payload)
            else:
                return frame
        return None

    # ---- waiting

    async def _wait(self) -> _Found | None:
        self._waiting = trio.lowlevel.current_task()
        found: _Found | None = await trio.lowlevel.wait_task_rescheduled(self._abort)
        return found

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self, found: outcome.Outcome[_Found | None]) -> None:
        task, self._waiting = self._waiting, None
        assert task is not None
        trio.lowlevel.reschedule(task, found)

    def _look_again(self) -> None:
        if self._waiting is not None and not self._is_reading:
            self._wake(outcome.Value(None))

    def _closed(self) -> None:
        """The stream was closed, by us or by force."""
        self._is_closed = True
        self._stream.on_close = None  # or the two would keep each other until the garbage is collected
        self._reader.remove(self._fd)
        self._look_again()
