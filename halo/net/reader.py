"""The one task that reads all WebSockets: one look at the kernel for whoever has spoken, and a plain call for each.

A task that waits for its own socket costs an arming of epoll, a switch and a walk through its frames for each message. Here the
sockets stand in an epoll of their own, armed once and edge-triggered, and this task waits for that epoll in Trio's. It must never
wait for a socket, and never let one socket's fault reach the others: `SocketTap.readable` raises nothing.
Read next: `halo/net/tap.py`; the other direction is `halo/net/flusher.py`.
"""

import select
from typing import Final, NoReturn, Protocol

import trio

EVENTS_PER_WAKE: Final = 64
"""Sockets read before everybody else has a turn: some 2 ms of work."""
_INTEREST: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Readable(Protocol):
    """What the reader asks of a socket."""

    def readable(self, hung_up: bool) -> bool:
        """Read once without waiting. Whether there may be more, to be asked for again without a new event. Raises nothing."""


class Reader:
    """Tells sockets that bytes have come. One per process.

    Resource handling: it owns one epoll until `serve` ends; whoever adds a socket removes it before the descriptor is closed.
    """

    __slots__ = ("_epoll", "_sockets")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, Readable] = {}

    def add(self, fd: int, socket: Readable) -> None:
        """From now on `socket` is told; also of what lies there already."""
        self._epoll.register(fd, _INTEREST)
        self._sockets[fd] = socket

    def remove(self, fd: int) -> None:
        """`fd` is read by somebody else now, or is about to be closed. Callable any number of times."""
        if self._sockets.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def ask_again(self, fd: int) -> None:
        """There may be more on `fd` than was read: if there is, it is told once more, behind all who have spoken meanwhile.

        The kernel looks anew and wakes `serve`, which may sleep; a list of our own would wait for somebody else to speak.
        """
        if fd in self._sockets and not self._epoll.closed:
            self._epoll.modify(fd, _INTEREST)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Until cancelled; from then on nothing is read."""
        task_status.started()
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fd, event in self._epoll.poll(0, EVENTS_PER_WAKE):
                    socket = self._sockets.get(fd)  # None: one that was told before has closed it
                    if socket is not None and socket.readable(bool(event & _HUNG_UP)):
                        self.ask_again(fd)
        finally:
            self._epoll.close()
