"""Postgres as the rest of the store sees it: a few connections, shared out, and transactions whose outcome is known.

Callers meet two kinds of trouble and no third: `StoreUnavailable` when Postgres is away, hung, restarting or overloaded, within a
deadline and with nothing left behind; and psycopg's own errors for what the caller did wrong. What must never happen here: a
COMMIT whose answer was lost is reported as a failure, or done twice (spec 5, unknown commits). Read next:
`halo/store/transaction.py`, `halo/store/hot.py`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

import psycopg
import trio

from halo.errors import StoreUnavailable
from halo.store.connection import Result, TrioConnection, Values
from halo.store.faults import is_away, is_conflict
from halo.store.hot import Dedicated, HotStatement
from halo.store.pool import ACQUIRE_SECONDS, Pool, pause_seconds
from halo.store.queries import Query
from halo.store.transaction import OperationRepeated, Transaction

__all__ = [
    "CommitUnknown",
    "Dedicated",
    "HotStatement",
    "OperationRepeated",
    "Postgres",
    "Transaction",
    "open_postgres",
]

T = TypeVar("T")
_NOTHING: Values = {}

DEADLINE_SECONDS: Final = 5.0
"""For a whole call, waiting for a connection included: a client is told `retryable` before it gives up by itself at 10 s."""
COMMIT_SECONDS: Final = 5.0
"""More, once COMMIT was sent: it cannot be taken back, so its outcome is worth waiting for, even while being cancelled."""
TRIES: Final = 4
"""Before COMMIT: the conflicts and broken connections that one call may meet. With their pauses, some 0.4 s."""


class CommitUnknown(StoreUnavailable):
    """The store went away in the middle of a commit; whether it was done will be known when it is back."""


class Postgres:
    """Statements and transactions on one database.

    Resource handling: connections are made on demand, at most `size` and the dedicated ones; `open_postgres` closes them.
    Error handling: every method raises `StoreUnavailable` when Postgres does not do its part within the deadline; nothing was
    written then, or, for a single statement that writes and for `CommitUnknown`, it is unknown whether it was.
    """

    def __init__(self, pool: Pool, deadline_seconds: float) -> None:
        self.pool = pool
        """Its counters are the metrics of the connections."""
        self._deadline_seconds = deadline_seconds
        self.retries = 0
        self.unknown_commits = 0

    @property
    def connections_open(self) -> int:
        """Pooled and dedicated ones."""
        return self.pool.connections_open

    @property
    def waiting(self) -> int:
        """Callers who wait for a connection."""
        return self.pool.waiting

    @property
    def statements(self) -> int:
        """Sent by calls that are over; a dedicated connection's are counted when it closes."""
        return self.pool.statements

    async def fetch_all(self, query: Query | str, values: Values = _NOTHING) -> list[Any]:
        """The rows of one statement, as named tuples."""
        return (await self._run(query, values)).rows

    async def fetch_for_many(self, query: Query, values: Values) -> list[Any]:
        """The same on behalf of many who wait: goes before all who wait for themselves. For reading rooms only, one statement at a time each."""
        return (await self._run(query, values, for_many=True)).rows

    async def fetch_one(self, query: Query | str, values: Values = _NOTHING) -> Any | None:
        """The first row of one statement, or None."""
        rows = (await self._run(query, values)).rows
        return rows[0] if rows else None

    async def execute(self, query: Query | str, values: Values = _NOTHING) -> int:
        """Run one statement; returns how many rows it touched."""
        return (await self._run(query, values)).touched

    async def healthy(self) -> bool:
        """Whether Postgres answers a question now."""
        try:
            return await self.fetch_one("SELECT 1") is not None
        except StoreUnavailable:
            return False

    async def transact(self, work: Callable[[Transaction], Awaitable[T]], operation_id: str | None = None) -> T:
        """Run `work` in one transaction and commit it; its effect happens once, or not at all and then this raises.

        `work` may be run again, from the start, on another connection: it must change nothing but the database. Without an
        `operation_id` nothing is tried again once COMMIT was sent. What `work` raises undoes the transaction and is raised here.
        A cancellation that comes while COMMIT is under way waits until the outcome is known, at most `COMMIT_SECONDS`.

        Raises:
            OperationRepeated: an earlier call has committed this `operation_id`.
            CommitUnknown: Postgres went away in the middle of COMMIT; the same call with the same id will tell.
            StoreUnavailable: nothing was written.
        """
        attempt = _Attempt(work, operation_id)
        with trio.move_on_after(self._deadline_seconds) as scope:
            tried = 0
            while attempt.commit_sent or tried < TRIES:
                if tried:
                    self.retries += 1
                    await trio.sleep(pause_seconds(tried))
                tried += 1
                scope.shield = (
                    attempt.commit_sent
                )  # a COMMIT that was refused in so many words needs no protection any more
                try:
                    connection = await self.pool.borrow()
                    try:
                        return await attempt.run(connection, scope)
                    finally:
                        self.pool.give_back(connection)
                        self.unknown_commits += attempt.commit_sent
                except psycopg.Error as error:
                    if not is_away(error):
                        raise
                    attempt.failure = error
                except StoreUnavailable as error:
                    attempt.failure = error
                if attempt.commit_sent and operation_id is None:
                    break
        raise (CommitUnknown if attempt.commit_sent else StoreUnavailable) from attempt.failure

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Dedicated]:
        """A connection beside the pool, for one owner. Raises StoreUnavailable when there is none to be had now."""
        with trio.move_on_after(self._deadline_seconds) as scope:
            connection = await self.pool.connect()
        if scope.cancelled_caught:
            raise StoreUnavailable
        try:
            yield Dedicated(connection, self._deadline_seconds)
        finally:
            self.pool.discard(connection)

    @asynccontextmanager
    async def hot(self, query: Query) -> AsyncIterator[HotStatement]:
        """A dedicated connection with one statement ready on it; see `Dedicated.prepare_hot`."""
        async with self.dedicated() as connection:
            yield await connection.prepare_hot(query)

    # ---- single statements

    async def _run(self, query: Query | str, values: Values, *, for_many: bool = False) -> Result:
        failure: Exception | None = None
        with trio.move_on_after(self._deadline_seconds):
            for tried in range(TRIES):
                if tried:
                    self.retries += 1
                    await trio.sleep(pause_seconds(tried))
                try:
                    connection = await self.pool.borrow(for_many=for_many)
                    try:
                        return await connection.run(query, values)
                    finally:
                        self.pool.give_back(connection)
                except psycopg.Error as error:
                    if not is_away(error):
                        raise
                    failure = error
                    if not is_conflict(error):
                        break  # a statement that writes may have been done: only its caller knows whether it may be repeated
        raise StoreUnavailable from failure


class _Attempt(Generic[T]):
    """What one `transact` must remember from try to try."""

    def __init__(self, work: Callable[[Transaction], Awaitable[T]], operation_id: str | None) -> None:
        self._work = work
        self._operation_id = operation_id
        self._answer: T
        self.commit_sent = False
        """A COMMIT is out whose outcome is unknown; `_answer` is what the work gave before it."""
        self.failure: Exception | None = None

    async def run(self, connection: TrioConnection, scope: trio.CancelScope) -> T:
        transaction = Transaction(connection, self._operation_id)
        try:
            if self.commit_sent:
                try:
                    # Waits for an abandoned COMMIT that is still under way: the index entry is its own.
                    await transaction.open()
                except OperationRepeated:
                    self.commit_sent = False  # its outcome is known now: done
                    return self._answer
                self.commit_sent = scope.shield = False  # not done: this is a try like the first, and may be cancelled
            self._answer = await self._work(transaction)
            await transaction.open()
            await trio.lowlevel.checkpoint_if_cancelled()  # the last moment to go back
            scope.shield = True
            scope.deadline = trio.current_time() + COMMIT_SECONDS
            self.commit_sent = True
            await self._commit(connection, transaction)
            self.commit_sent = False
        except BaseException:
            await self._undo(transaction)
            raise
        return self._answer

    async def _commit(self, connection: TrioConnection, transaction: Transaction) -> None:
        try:
            await transaction.commit()
        except psycopg.Error:
            if connection.is_clean:  # the server said no in so many words, so the outcome is known
                self.commit_sent = False
            raise

    async def _undo(self, transaction: Transaction) -> None:
        """When this fails as well the connection is closed, which undoes it for certain."""
        try:
            await transaction.roll_back()
        except psycopg.Error as error:
            if not is_away(error):
                raise


@asynccontextmanager
async def open_postgres(
    url: str,
    *,
    size: int = 8,
    deadline_seconds: float = DEADLINE_SECONDS,
    acquire_timeout_seconds: float = ACQUIRE_SECONDS,
) -> AsyncIterator[Postgres]:
    """Connections to the database at `url`, made when they are needed: Postgres may be away when this is called."""
    pool = Pool(url, size, acquire_timeout_seconds)
    try:
        yield Postgres(pool, deadline_seconds)
    finally:
        pool.close_now()
