"""The pool: a few connections, shared out one at a time.

Connections are made when they are needed, and the one used last is given out first. What must never happen here: a connection in
doubt goes back on the shelf; waiters pile up before a server that hangs; a server that is away is hammered; somebody is refused whom
half a second in a queue that moves would have served. Who waits in vain gets `StoreUnavailable`, soon. Read next: `halo/store/postgres.py`, its only user.
"""

from collections import OrderedDict
from typing import Final

import psycopg
import trio

from halo.errors import StoreUnavailable
from halo.store.connection import TrioConnection
from halo.store.dial import dial

ACQUIRE_SECONDS: Final = 2.0
"""No connection came back whole for this long: Postgres hardly moves, and queueing on would only make it worse."""
WAIT_SECONDS: Final = 4.0
"""For a connection, while the queue moves: of the five seconds that a call has, one is left for its work. A statement that is cut off
costs its connection, so who is let in too late would make it slower for everybody."""
WAITERS_MAX: Final = 6_000
"""About as many as are served within `WAIT_SECONDS`: two cores that clients shared did 1,100 transactions a second, of three journeys
each. Who waits has a task already; its place costs half a kilobyte."""
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
        self._free = size
        self._queue: OrderedDict[trio.Event, None] = OrderedDict()
        """Whose turn comes next. A place is kept through every look at the clock, and free ones are handed over: nobody is overtaken."""
        self._moved_at = -float("inf")
        """When a connection came back whole while somebody waited."""
        self._acquire_timeout_seconds = acquire_timeout_seconds
        self._idle: list[TrioConnection] = []
        self._open: set[TrioConnection] = set()
        self._closed = False
        self._failed_in_a_row = 0
        self._next_attempt_at = -float("inf")
        self.in_use = 0
        self.acquire_failures = 0
        self.statements = 0

    @property
    def connections_open(self) -> int:
        """Pooled and dedicated ones."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Callers who wait for a connection."""
        return len(self._queue)

    def close_now(self) -> None:
        """Close every connection, for good; whoever uses one gets an error at once."""
        self._closed = True
        for connection in list(self._open):
            self.discard(connection)
        self._idle.clear()

    async def borrow(self, *, for_many: bool = False) -> TrioConnection:
        """One connection, which `give_back` takes again. Not a context manager: that would cost a third of a statement.

        Who asks `for_many` goes before all who ask for themselves, and is never too many: there are two such, the reading rooms.
        """
        if self._free:
            self._free -= 1
        else:
            await self._queue_up(for_many=for_many)
        try:
            connection = self._take_idle() or await self.connect()
        except BaseException:
            self._free_slot()
            raise
        self.in_use += 1
        return connection

    async def _queue_up(self, *, for_many: bool) -> None:
        if len(self._queue) < WAITERS_MAX or for_many:
            turn = trio.Event()
            self._queue[turn] = None
            if for_many:
                self._queue.move_to_end(turn, last=False)
            try:
                await self._wait_turn(turn)
            except BaseException:
                if turn.is_set():  # it came after the cancellation and before the task ran: the next one has it
                    self._free_slot()
                raise
            finally:
                self._queue.pop(turn, None)
            if turn.is_set():
                return
        self.acquire_failures += 1
        raise StoreUnavailable

    async def _wait_turn(self, turn: trio.Event) -> None:
        """Until it is there, or the queue stands still, or it takes too long."""
        began = trio.current_time()
        while not turn.is_set():
            stands_still_at = max(began, self._moved_at) + self._acquire_timeout_seconds
            until = min(began + max(WAIT_SECONDS, self._acquire_timeout_seconds), stands_still_at)
            if trio.current_time() >= until:
                return
            with trio.move_on_at(until):
                await turn.wait()

    def _free_slot(self) -> None:
        if self._queue:
            turn, _ = self._queue.popitem(last=False)
            turn.set()
        else:
            self._free += 1

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
        self._count(connection)
        if connection.is_clean and not self._closed:
            self._idle.append(connection)
            if self._queue:
                self._moved_at = trio.current_time()
        else:
            self.discard(connection)
        self._free_slot()

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
