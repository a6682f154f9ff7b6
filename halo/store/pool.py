"""The pool: a few connections, shared out one at a time.

Connections are made when they are needed, and the one used last is given out first. What must never happen here: a connection in
doubt goes back on the shelf; waiters pile up before a server that hangs; a server that is away is hammered. Who waits in vain
gets `StoreUnavailable`, soon. Read next: `halo/store/postgres.py`, its only user.
"""

from typing import Final

import psycopg
import trio

from halo.errors import StoreUnavailable
from halo.store.connection import TrioConnection
from halo.store.dial import dial

ACQUIRE_SECONDS: Final = 2.0
"""All connections busy for this long means that Postgres hardly moves; queueing on would only make it worse."""
WAITERS_MAX: Final = 1_000
"""Who waits holds a task and its frame in memory; with 8 connections at 200 µs, 1,000 waiters are 25 ms of work."""
PAUSES_SECONDS: Final = (0.02, 0.1, 0.25, 0.5)
"""Between tries, and between attempts to connect: the last one repeats, so a server that is back is found within half a second."""


def pause_seconds(failed: int) -> float:
    """How long to wait after so many failures in a row, from 1."""
    return PAUSES_SECONDS[min(failed, len(PAUSES_SECONDS)) - 1]


class Pool:
    """Connections to one database.

    Resource handling: whoever borrows gives back, whoever connects discards; `close_now` ends all that is open.
    Error handling: `StoreUnavailable` when there is no connection to be had in time; then nothing is left behind.
    """

    def __init__(self, url: str, size: int, acquire_timeout_seconds: float) -> None:
        self._url = url
        self._slots = trio.Semaphore(size, max_value=size)
        self._acquire_timeout_seconds = acquire_timeout_seconds
        self._idle: list[TrioConnection] = []
        self._open: set[TrioConnection] = set()
        self._closed = False
        self._failed_in_a_row = 0
        self._next_attempt_at = -float("inf")
        self.in_use = 0
        self.waiting = 0
        self.acquire_failures = 0
        self.statements = 0

    @property
    def connections_open(self) -> int:
        """Pooled and dedicated ones."""
        return len(self._open)

    def close_now(self) -> None:
        """Close every connection, for good; whoever uses one gets an error at once."""
        self._closed = True
        for connection in list(self._open):
            self.discard(connection)
        self._idle.clear()

    async def borrow(self) -> TrioConnection:
        """One connection, which `_give_back` takes again. Not a context manager: that would cost a third of a statement."""
        await self._take_slot()
        try:
            connection = self._take_idle() or await self.connect()
        except BaseException:
            self._slots.release()
            raise
        self.in_use += 1
        return connection

    async def _take_slot(self) -> None:
        try:
            self._slots.acquire_nowait()
            return
        except trio.WouldBlock:
            pass
        if self.waiting < WAITERS_MAX:
            self.waiting += 1
            try:
                with trio.move_on_after(self._acquire_timeout_seconds):
                    await self._slots.acquire()
                    return
            finally:
                self.waiting -= 1
        self.acquire_failures += 1
        raise StoreUnavailable

    def _take_idle(self) -> TrioConnection | None:
        """The one used last: its server process is warm, and the others may be closed one day by their server."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_silent:
                return connection
            self.discard(connection)
        return None

    def give_back(self, connection: TrioConnection) -> None:
        """Keep it for the next, or close it when it is in doubt."""
        self.in_use -= 1
        self._slots.release()
        self._count(connection)
        if connection.is_clean and not self._closed:
            self._idle.append(connection)
        else:
            self.discard(connection)

    def discard(self, connection: TrioConnection) -> None:
        """Close it and forget it."""
        self._count(connection)
        self._open.discard(connection)
        connection.close_now()

    def _count(self, connection: TrioConnection) -> None:
        self.statements += connection.statements
        connection.statements = 0

    async def connect(self) -> TrioConnection:
        """One attempt, after the pause that the last failed ones call for: a server that is away is not hammered."""
        await trio.sleep_until(self._next_attempt_at)
        if self._closed:
            raise StoreUnavailable
        try:
            connection = await dial(self._url)
        except psycopg.Error as error:
            self._failed_in_a_row += 1
            self._next_attempt_at = trio.current_time() + pause_seconds(self._failed_in_a_row)
            self.acquire_failures += 1
            raise StoreUnavailable from error
        self._failed_in_a_row = 0
        self._open.add(connection)
        return connection
