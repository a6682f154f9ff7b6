"""Lean sockets: all of a process on one epoll, which one Trio task waits for; frames go in and out without a task for each.

A task a socket costs a wake-up of 25 µs and 10 KB; a hundred thousand mitras cannot pay that. So `Wires` reads whatever is ready, some
sockets at a time, and hands each text frame to its listener. What the kernel does not take at once waits here and leaves when it may. It
must never call a listener that raises: listeners note, and return. Read next: `halo/load/handshake.py`, how a wire begins.
"""

import select
import socket
import ssl
from types import TracebackType
from typing import Final, NoReturn, Protocol, Self

import trio

from halo.load.frames import CLOSE, PING, PONG, TEXT, FrameStrange, client_frame, take_frames

AT_A_TIME: Final = 64
"""Sockets read between two looks at the timers: about a millisecond, so that nobody's intended moment passes unseen."""
ABNORMAL: Final = 1006
"""As WebSocket numbers a connection that ended without a close frame."""
READ_BYTES: Final = 65_536


class Listener(Protocol):
    """Who a wire belongs to."""

    def taken(self, payload: bytes) -> None: ...

    def closed(self, code: int) -> None: ...


class Wire:
    """One open socket. Resource handling: it owns the socket, and `cut` ends it at once, any number of times."""

    __slots__ = ("_arrived", "_fd", "_leaving", "_listener", "_socket", "_wires", "is_open", "is_paused")

    def __init__(self, wires: "Wires", sock: socket.socket, listener: Listener, arrived: bytes) -> None:
        self._wires = wires
        self._socket = sock
        self._fd = sock.fileno()
        self._listener = listener
        self._arrived = bytearray(arrived)
        self._leaving = bytearray()
        self.is_open = True
        self.is_paused = False

    def say(self, payload: bytes) -> None:
        """One text frame; nothing on a wire that is closed, whose listener has been told."""
        self._put(client_frame(TEXT, payload))

    def pause(self) -> None:
        """Read no more, as an app that hangs; its system's buffers fill up."""
        self.is_paused = True
        self._wires.watch(self._fd, 0)

    def cut(self) -> None:
        """Gone, without a goodbye and without telling the listener."""
        if self.is_open:
            self.is_open = False
            self._wires.forget(self._fd)
            self._socket.close()

    def wake(self, events: int) -> None:
        """The epoll says that something can be done."""
        if events & select.EPOLLOUT:
            self._push()
        if self.is_open and not self.is_paused and events & ~select.EPOLLOUT:
            self._read()
        elif self.is_open and self.is_paused and events & (select.EPOLLHUP | select.EPOLLERR):
            self._end(ABNORMAL)

    def attend(self) -> None:
        """What came together with the answer to the handshake."""
        if self._arrived:
            self._hear()

    def _read(self) -> None:
        try:
            while True:
                data = self._socket.recv(READ_BYTES)
                if not data:
                    self._end(ABNORMAL)
                    return
                self._arrived += data
                if not isinstance(self._socket, ssl.SSLSocket):
                    break  # level-triggered: what is left is told again. TLS keeps a rest that no epoll sees.
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self._end(ABNORMAL)
            return
        self._hear()

    def _hear(self) -> None:
        try:
            for opcode, payload in take_frames(self._arrived):
                if opcode == TEXT:
                    self._listener.taken(payload)
                elif opcode == PING:
                    self._put(client_frame(PONG, payload))
                elif opcode == CLOSE:
                    self._end(int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005)
                if not self.is_open:
                    return
        except FrameStrange:
            self._end(1002)

    def _put(self, frame: bytes) -> None:
        if not self.is_open:
            return
        if self._leaving:
            self._leaving += frame
            return
        try:
            sent = self._socket.send(frame)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError:
            return  # the read side tells the listener, once
        if sent < len(frame):
            self._leaving += frame[sent:]
            self._wires.watch(self._fd, (0 if self.is_paused else select.EPOLLIN) | select.EPOLLOUT)

    def _push(self) -> None:
        try:
            sent = self._socket.send(self._leaving)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._leaving.clear()
            sent = 0
        del self._leaving[:sent]
        if not self._leaving:
            self._wires.watch(self._fd, 0 if self.is_paused else select.EPOLLIN)

    def _end(self, code: int) -> None:
        self.cut()
        self._listener.closed(code)


class Wires:
    """All wires of a process. Resource handling: leaving its block cuts them all."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._wires)

    def close(self) -> None:
        """Cut all of them."""
        for wire in list(self._wires.values()):
            wire.cut()
        self._epoll.close()

    def add(self, sock: socket.socket, listener: Listener, arrived: bytes = b"") -> Wire:
        """A connected, non-blocking socket whose handshake is over."""
        wire = Wire(self, sock, listener, arrived)
        self._wires[sock.fileno()] = wire
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return wire

    def watch(self, descriptor: int, events: int) -> None:
        if descriptor in self._wires:
            self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        if self._wires.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    async def serve(self) -> NoReturn:
        """Read and write whatever may be, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, events in self._epoll.poll(0, AT_A_TIME):
                wire = self._wires.get(descriptor)
                if wire is not None:
                    wire.wake(events)
