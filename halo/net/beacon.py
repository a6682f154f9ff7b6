"""The beacon on the lobby sockets: customers see how many mitras are available, when they come and whenever that changes.

One daemon asks, for all sockets of this node; a socket hears at most one beacon in two seconds, and none that says what it has heard. It
must never wait for a socket, nor tell thousands in one go: everybody else's frames would stand behind them. Read next:
`halo/store/available.py`, which counts once for the whole cluster.
"""

from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import trio

from halo import protocol
from halo.availability import Available
from halo.clock import rfc3339
from halo.errors import StoreUnavailable

LOOK_SECONDS: Final = 1.0
"""Between two looks at the count, which itself is taken anew once in two seconds: a change is told within three."""
QUIET_SECONDS: Final = 2.0
"""A socket hears no two beacons within this (spec 4)."""
WELCOME_SECONDS: Final = 0.5
"""How long a welcome waits for the first beacon at most: with both stores away the socket goes live without it."""
SLICE: Final = 200
"""Sockets told before the others get their turn: some 2 ms."""


class Availability(Protocol):
    async def count_available(self) -> Available: ...


class Listener(Protocol):
    """A lobby socket of a customer."""

    def send(self, frame: bytes) -> None: ...


@dataclass(slots=True)
class _Told:
    """What one listener heard last."""

    count: int | None
    at: float


class Beacon:
    """See the module.

    Resource handling: a listener is added when it is open and removed when it is gone, by itself.
    Error handling: while neither store answers nothing is told; who waits hears as soon as one does.
    """

    def __init__(self, availability: Availability) -> None:
        self._availability = availability
        self._told: dict[Listener, _Told] = {}
        self._looking = trio.Lock()
        self._seen: tuple[float, Available] | None = None
        """When this node last looked, and what it saw."""
        self._somebody = trio.Event()

    def __len__(self) -> int:
        return len(self._told)

    async def add(self, listener: Listener) -> None:
        """Tell `listener` how it stands, and from now on what changes."""
        told = self._told[listener] = _Told(None, -float("inf"))
        self._somebody.set()
        with trio.move_on_after(WELCOME_SECONDS):
            available = await self._look()
            if available is not None:
                self._tell(listener, told, available.count, _encode(available))

    def remove(self, listener: Listener) -> None:
        """Forget it; it may be gone already."""
        self._told.pop(listener, None)

    async def serve(self) -> NoReturn:
        """Look once a second while somebody listens."""
        while True:
            if not self._told:
                self._somebody = trio.Event()
                await self._somebody.wait()
            await trio.sleep(LOOK_SECONDS)
            available = await self._look()
            if available is not None:
                await self._tell_all(available)

    async def _look(self) -> Available | None:
        """The count, at most `LOOK_SECONDS` old; None while it cannot be had. A thousand who connect at once look once."""
        async with self._looking:
            if self._seen is None or trio.current_time() - self._seen[0] >= LOOK_SECONDS:
                try:
                    self._seen = trio.current_time(), await self._availability.count_available()
                except StoreUnavailable:
                    return None
            return self._seen[1]

    async def _tell_all(self, available: Available) -> None:
        frame = _encode(available)
        for position, (listener, told) in enumerate(tuple(self._told.items()), start=1):
            if listener in self._told:  # it may have gone while the others had their turn
                self._tell(listener, told, available.count, frame)
            if position % SLICE == 0:
                await trio.lowlevel.checkpoint()

    def _tell(self, listener: Listener, told: _Told, count: int, frame: bytes) -> None:
        now = trio.current_time()
        if told.count != count and now - told.at >= QUIET_SECONDS:
            told.count, told.at = count, now
            listener.send(frame)


def _encode(available: Available) -> bytes:
    return protocol.encode(protocol.Beacon(available_mitras=available.count, as_of=rfc3339(available.as_of)))
