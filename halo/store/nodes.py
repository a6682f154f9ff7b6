"""The lease of this node: an advisory lock that says that it lives, and a beat that says until when it kept its clocks.

The lock goes when the connection goes, so a node that was killed is known to be dead at once. The beat is written every second; what
lies between the last beat of a dead node and now is downtime, and is credited (spec 1 B). After a gap of its own, because Postgres
was away or this machine slept or its clock was set, the node owes its own sessions that time before it acts on anything; the gap
stands in its row until all of it is written down, so that a crash meanwhile loses none of it. Each beat also measures how far the
node's clock is from Postgres'. Read next:
`halo/actors/ownership.py`, which takes sessions up.
"""

import uuid
from collections.abc import Callable
from typing import Final

import structlog
import trio

from halo.clock import Clock, Moment
from halo.errors import StoreUnavailable
from halo.store.hot import Dedicated
from halo.store.postgres import Postgres
from halo.store.queries import load_queries

SQL = load_queries("nodes")
log = structlog.get_logger(__name__)

LOCK_CLASS: Final = 0x4841
"""The first of the two numbers of the advisory lock; the second is the node's `lock_key`."""
BEAT_SECONDS: Final = 1.0
"""One small UPDATE a second; a crash credits at most this much too much, in the customer's favour."""
GAP_MS: Final = 3_000
"""Two beats missed: from here on nobody knows whether the clocks are kept, and no deadline is acted upon."""
SKEW_MAX_MS: Final = 2_000
"""Spec 1 B: a node whose clock is further from Postgres' must not start."""
RECONNECT_SECONDS: Final = 0.2
LOCK_PATIENCE_SECONDS: Final = 5.0
"""A lock of our own that is still held after so long hangs on a connection whose end the server has not noticed: it is ended."""


class ClockSkewed(Exception):
    """This machine's clock and Postgres' are too far apart for deadlines to mean anything."""


class NodeLease:
    """This node's row, lock and beat.

    Error handling: Postgres' absence is waited out; `ClockSkewed` is raised by `open` only, later skew is an alarm.
    """

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self.node_id = str(uuid.uuid4())
        self.skew_ms = 0
        self._db = db
        self._clock = clock
        self._lock_key = 0
        self._beat_at: Moment | None = None
        """The node's clock at the last beat."""
        self._beat_time = -float("inf")
        """Trio's clock at the last beat: the two disagree when the machine slept or its clock was set."""
        self._gap_since: Moment | None = None
        self._alarmed = False
        self._dead: frozenset[str] = frozenset()
        """Other nodes that held no lock when this one looked last."""

    def keeps_clocks(self) -> bool:
        """Whether the last beat is recent by both clocks."""
        return self._beat_at is not None and self._gap_ms() <= GAP_MS

    async def open(self) -> None:
        """Enter this node among the living.

        Raises:
            ClockSkewed, StoreUnavailable
        """
        await self._db.execute(SQL["delete_dead_nodes"], {"node_id": self.node_id})
        await self._insert()
        self.skew_ms = await self._measure_skew()
        if abs(self.skew_ms) > SKEW_MAX_MS:
            raise ClockSkewed(
                f"This machine's clock is {self.skew_ms} ms ahead of Postgres'; at most {SKEW_MAX_MS} ms are accepted."
            )

    async def serve(
        self,
        on_gap: Callable[[Moment, Moment], None],
        owes: Callable[[], bool],
        on_regained: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hold the lock and beat, for ever.

        `on_gap(since, until)` is called before the clocks count as kept again; `owes` says whether anything of it is not credited yet.
        `on_regained()` is called when the lock is held again, however short the time was without it: another node may have taken sessions
        of this one meanwhile, and no gap tells of it.
        """
        started = False
        while True:
            try:
                async with self._db.dedicated() as connection:
                    await self._hold_lock(connection)
                    if started:
                        on_regained()
                    while True:
                        await self._beat(connection, on_gap, owes)
                        if not started:
                            started = True
                            task_status.started()
                        await trio.sleep(BEAT_SECONDS)
            except StoreUnavailable:
                await trio.sleep(RECONNECT_SECONDS)

    async def list_newly_dead(self) -> list[str]:
        """Other nodes that have lost their lock since this was asked last: what they had committed, they may not have told the mirror.

        Raises:
            StoreUnavailable
        """
        rows = await self._db.fetch_all(SQL["list_dead"], {"node_id": self.node_id, "lock_class": LOCK_CLASS})
        before, self._dead = self._dead, frozenset(row.node_id for row in rows)
        return sorted(self._dead - before)

    async def _insert(self) -> None:
        row = await self._db.fetch_one(SQL["insert_node"], {"node_id": self.node_id, "now": self._clock.now()})
        assert row is not None  # INSERT … RETURNING
        self._lock_key = row.lock_key

    async def _hold_lock(self, connection: Dedicated) -> None:
        lock = {"lock_class": LOCK_CLASS, "lock_key": self._lock_key}
        patience = trio.current_time() + LOCK_PATIENCE_SECONDS
        while True:
            row = await connection.fetch_one(SQL["hold_lock"], lock)
            if row is not None and row.held:
                return
            if trio.current_time() > patience:
                log.warning("lease_held_by_a_dead_connection")
                await connection.fetch_all(SQL["wake_lock"], lock)
            await trio.sleep(RECONNECT_SECONDS)

    async def _beat(
        self, connection: Dedicated, on_gap: Callable[[Moment, Moment], None], owes: Callable[[], bool]
    ) -> None:
        asked_at, asked_time, gap_ms = self._clock.now(), trio.current_time(), self._gap_ms()
        if not owes():
            self._gap_since = None
        if gap_ms > GAP_MS and self._gap_since is None:
            self._gap_since = self._beat_at
        row = await connection.fetch_one(
            SQL["beat"], {"node_id": self.node_id, "now": asked_at, "gap_since": self._gap_since}
        )
        if row is None:  # cleaned away after a day of silence
            await self._insert()
            raise StoreUnavailable("The row of this node was gone.")
        if gap_ms > GAP_MS:
            log.warning("clocks_were_not_kept", gap_ms=gap_ms)
            # By whichever clock it was longer: a machine that slept has lost time, and so have sessions when its clock was set forward.
            on_gap(asked_at - gap_ms, asked_at)
        self._beat_at, self._beat_time = asked_at, asked_time
        self._notice_skew((asked_at + self._clock.now()) // 2 - row.now)

    def _gap_ms(self) -> int:
        if self._beat_at is None:
            return 0
        return max(self._clock.now() - self._beat_at, round((trio.current_time() - self._beat_time) * 1000))

    async def _measure_skew(self) -> int:
        asked = self._clock.now()
        row = await self._db.fetch_one(SQL["read_clock"])
        assert row is not None  # one row, always
        return (asked + self._clock.now()) // 2 - int(row.now)

    def _notice_skew(self, skew_ms: int) -> None:
        self.skew_ms = skew_ms
        skewed = abs(skew_ms) > SKEW_MAX_MS
        if skewed and not self._alarmed:
            log.error("clock_skewed", skew_ms=skew_ms)
        self._alarmed = skewed
