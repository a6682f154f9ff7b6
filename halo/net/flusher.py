"""The one task that sends what all tasks have written: once per scheduler tick, one system call for each socket.

Sending from within `write` would cost a call for each frame; a task for each socket would cost a switch and several kilobytes.
This must never wait for a socket itself: one that is full is given a task of its own, for as long as it stays full.
Read next: `halo/net/stream.py`, whose buffers these are.
"""

from typing import Protocol

import trio


class Flushable(Protocol):
    """What the flusher asks of a stream."""

    peer: str

    def flush(self) -> None:
        """Send once without waiting; raises nothing, whatever has become of the socket."""

    async def drain(self) -> None:
        """Wait for room and send, until nothing is left or the peer has had its time. Raises nothing but Cancelled."""


class Flusher:
    """Sends what was written, one system call per socket and tick; gives a task of its own only to sockets that are full.

    One per process. It must outlive the connections: what is written after its end is not sent.
    """

    __slots__ = ("_dirty", "_drains", "_idle")

    def __init__(self) -> None:
        self._dirty: list[Flushable] = []
        self._idle = trio.lowlevel.ParkingLot()
        self._drains: trio.Nursery | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then the bytes still waiting in full sockets are given up and their streams are broken."""
        try:
            async with trio.open_nursery() as self._drains:
                task_status.started()
                while True:
                    if not self._dirty:
                        await self._idle.park()
                    dirty, self._dirty = self._dirty, []
                    for stream in dirty:
                        stream.flush()
        finally:
            self._drains = None

    def mark(self, stream: Flushable) -> None:
        """`stream` has something to send; it leaves in the next tick, with whatever else this tick writes to it."""
        self._dirty.append(stream)
        if len(self._dirty) == 1:
            self._idle.unpark()

    def drain(self, stream: Flushable) -> bool:
        """Start the task that waits until `stream` takes more; False when the flusher is not serving (any more)."""
        if self._drains is None:
            return False
        self._drains.start_soon(stream.drain, name=f"drain {stream.peer}")
        return True
