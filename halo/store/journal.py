"""The journal: messages of all sessions, many in one commit.

While one INSERT is under way the next batch gathers; whoever appended is told when its rows are durable, and not before (C1).
A failure is told to everyone in the batch: the outcome may be unknown then, and each actor finds out by reading its tail
before it writes again. The journal must never retry on its own: a row that comes late would pass one that came after it.
Read next: `halo/actors/conversation.py`, which numbers the rows.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Final, Protocol

import trio
from psycopg.errors import UniqueViolation

from halo.clock import Moment
from halo.errors import StepOvertaken, StoreUnavailable
from halo.histogram import BATCH_BOUNDS, Histogram
from halo.store.postgres import HotStatement, Postgres
from halo.store.queries import load_queries
from halo.store.values import Value

SQL = load_queries("journal")

ROWS_MAX: Final = 500
"""Rows in one INSERT: at 9 µs a row some 5 ms of Postgres, so that nobody waits long behind a burst."""
GATHER_TURNS: Final = 2
"""Turns of the scheduler between two INSERTs, so that what the sockets hold already goes along: 45 rows a commit instead of 31 at 50
pairs, and 2 µs of Postgres less for each. After a pause there are none: each costs what a lone message costs elsewhere."""

PACE_SECONDS: Final = 0.002
"""From the beginning of one INSERT to that of the next: at most 500 a second are begun, so at 1,500 messages a second three share one.
What comes alone after a pause does not wait at all."""
WAITING_MAX: Final = 50_000
"""Rows that may wait: at 4,000 characters each 200 MB, the bound on memory while Postgres is away."""


class Row(Protocol):
    """One message; `seq` was given by the session's only owner."""

    @property
    def seq(self) -> int: ...

    @property
    def sender(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def body(self) -> str: ...

    @property
    def at(self) -> Moment: ...


class _Batch:
    """What one session appends at once, and its actor, which waits."""

    __slots__ = ("_waiter", "epoch", "failure", "rows", "session_id")

    def __init__(self, session_id: str, epoch: int, rows: Sequence[Row]) -> None:
        self.session_id = session_id
        self.epoch = epoch
        self.rows = rows
        self.failure: Exception | None = None
        self._waiter: trio.lowlevel.Task | None = None

    async def wait_settled(self) -> None:
        """Until `settle`. An Event would cost 3 µs more, and one actor waits at most."""
        self._waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def settle(self) -> None:
        """Its outcome is known; whoever was cancelled meanwhile does not hear it."""
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(waiter)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


class Journal:
    """Group commit of messages.

    Resource handling: `serve` owns one connection of its own for as long as it is whole.
    Error handling: `append` raises `StoreUnavailable` when the outcome is unknown or nothing was written, and `StepOvertaken` when
    another node owns the session or a row of it is already there.
    """

    def __init__(self, db: Postgres) -> None:
        self._db = db
        self._waiting: list[_Batch] = []
        self._rows_waiting = 0
        self._more = trio.Event()
        self._began = float("-inf")
        self.commits = 0
        self.rows = 0
        self.commit_rows = Histogram(BATCH_BOUNDS)
        self.commit_seconds = Histogram()

    async def append(self, session_id: str, epoch: int, rows: Sequence[Row]) -> None:
        """Returns when `rows` are durable."""
        if self._rows_waiting + len(rows) > WAITING_MAX:
            raise StoreUnavailable
        batch = _Batch(session_id, epoch, rows)
        self._waiting.append(batch)
        self._rows_waiting += len(rows)
        self._more.set()
        await batch.wait_settled()
        if batch.failure is not None:
            raise batch.failure

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what waits, for ever; a broken connection is replaced."""
        task_status.started()
        while True:
            await self._more.wait()
            try:
                async with self._db.hot(SQL["append"]) as statement:
                    while True:
                        is_busy = self._more.is_set()
                        await self._more.wait()
                        await self._gather(is_busy)
                        await self._write_next(statement)
            except StoreUnavailable as away:
                self._fail_waiting(away)
                await trio.sleep(0.05)  # Postgres is away: answer at once, but do not spin

    async def _gather(self, is_busy: bool) -> None:
        """Let others come along, where others are to be expected."""
        next_at = self._began + PACE_SECONDS
        if trio.current_time() < next_at:
            await trio.sleep_until(next_at)
        elif is_busy:
            for _ in range(GATHER_TURNS):
                await trio.lowlevel.checkpoint()

    async def _write_next(self, statement: HotStatement) -> None:
        self._began = trio.current_time()
        batches = self._take()
        failure: Exception | None = StoreUnavailable()
        try:
            # A cancelled INSERT has an unknown outcome: on shutdown the batch in hand is finished, within the statement's own deadline.
            with trio.CancelScope(shield=True):
                await self._write(statement, batches)
            failure = None
        finally:  # also after a fault of our own: an actor that is never told would hang for ever
            for batch in batches:
                batch.failure = batch.failure or failure
                batch.settle()

    def _take(self) -> list[_Batch]:
        taken, rows = 0, 0
        for batch in self._waiting:
            if taken and rows + len(batch.rows) > ROWS_MAX:
                break
            taken += 1
            rows += len(batch.rows)
        batches, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._rows_waiting -= rows
        if not self._waiting:
            self._more = trio.Event()
        return batches

    async def _write(self, statement: HotStatement, batches: Sequence[_Batch]) -> None:
        began = perf_counter()
        try:
            written = await _insert(statement, batches)
        except UniqueViolation:
            written = -1
        expected = sum(len(batch.rows) for batch in batches)
        self.commits += 1
        self.commit_rows.observe(expected)
        self.commit_seconds.observe(perf_counter() - began)
        if written == expected:
            self.rows += written
        elif len(batches) == 1:
            batches[0].failure = StepOvertaken("messages")
        elif written < 0:  # nothing was kept: one session's trouble must not be everybody's
            for batch in batches:
                await self._write(statement, [batch])
        else:  # some session has another owner, or stands still by now: a batch is there whole, or not at all
            self.rows += written
            last: dict[str, Value] = {
                "session_ids": [batch.session_id for batch in batches],
                "seqs": [batch.rows[-1].seq for batch in batches],
            }
            there = {
                (row.session_id, row.sender, row.id) for row in await self._db.fetch_all(SQL["list_written"], last)
            }
            for batch in batches:
                if (batch.session_id, batch.rows[-1].sender, batch.rows[-1].id) not in there:
                    batch.failure = StepOvertaken("messages")

    def _fail_waiting(self, away: StoreUnavailable) -> None:
        batches, self._waiting, self._rows_waiting = self._waiting, [], 0
        self._more = trio.Event()
        for batch in batches:
            batch.failure = away
            batch.settle()


async def _insert(statement: HotStatement, batches: Sequence[_Batch]) -> int:
    """The rows of all `batches` in one INSERT; the number of rows that were written."""
    rows = [(batch.session_id, batch.epoch, row) for batch in batches for row in batch.rows]
    return await statement.execute(
        {
            "session_ids": [session_id for session_id, _, _ in rows],
            "epochs": [epoch for _, epoch, _ in rows],
            "seqs": [row.seq for _, _, row in rows],
            "senders": [row.sender for _, _, row in rows],
            "ids": [row.id for _, _, row in rows],
            "bodies": [row.body for _, _, row in rows],
            "ats": [row.at for _, _, row in rows],
        }
    )
