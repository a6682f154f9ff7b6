"""The lease of this node: an advisory lock that says that it lives, and a beat that says until when it kept its clocks.

The lock goes when the connection goes, so a node that was killed is known to be dead at once. The beat is written every second; what
lies between the last beat of a dead node and now is downtime, and is credited (spec 1 B). After a gap of its own, because Postgres
was away, the node credits its own sessions before it acts on any deadline. Each beat also measures how far the node's clock is from
Postgres'. Read next: `halo/actors/registry.py`, which takes sessions up.
"""

import uuid
from collections.abc import Callable
from typing import Final

import structlog
import trio

from halo.clock import Clock
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
GAP_SECONDS: Final = 3.0
"""Two beats missed: from here on nobody knows whether the clocks are kept, and no deadline is acted upon."""
SKEW_MAX_MS: Final = 2_000
"""Spec 1 B: a node whose clock is further from Postgres' must not start."""
RECONNECT_SECONDS: Final = 0.2


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
        self._last_beat = -float("inf")
        self._alarmed = False

    def keeps_clocks(self) -> bool:
        return trio.current_time() - self._last_beat <= GAP_SECONDS

    async def open(self) -> None:
        """Enter this node among the living.

        Raises:
            ClockSkewed, StoreUnavailable
        """
        await self._db.execute(SQL["delete_dead_nodes"], {"node_id": self.node_id})
        row = await self._db.fetch_one(SQL["insert_node"], {"node_id": self.node_id})
        assert row is not None  # INSERT … RETURNING
        self._lock_key = row.lock_key
        self.skew_ms = await self._measure_skew()
        if abs(self.skew_ms) > SKEW_MAX_MS:
            raise ClockSkewed(
                f"This machine's clock is {self.skew_ms} ms ahead of Postgres'; at most {SKEW_MAX_MS} ms are accepted."
            )

    async def serve(
        self, on_gap: Callable[[int], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Hold the lock and beat, for ever; `on_gap(milliseconds)` is called when the beat returns after having been away."""
        started = False
        while True:
            try:
                async with self._db.dedicated() as connection:
                    await self._hold_lock(connection)
                    while True:
                        await self._beat(connection, on_gap)
                        if not started:
                            started = True
                            task_status.started()
                        await trio.sleep(BEAT_SECONDS)
            except StoreUnavailable:
                await trio.sleep(RECONNECT_SECONDS)

    async def _hold_lock(self, connection: Dedicated) -> None:
        while True:
            row = await connection.fetch_one(SQL["hold_lock"], {"lock_class": LOCK_CLASS, "lock_key": self._lock_key})
            if row is not None and row.held:
                return
            await trio.sleep(RECONNECT_SECONDS)  # our own broken connection has not been noticed by the server yet

    async def _beat(self, connection: Dedicated, on_gap: Callable[[int], None]) -> None:
        asked = self._clock.now()
        row = await connection.fetch_one(SQL["beat"], {"node_id": self.node_id})
        if row is None:  # somebody cleaned us away after a day of silence
            raise StoreUnavailable("The row of this node is gone.")
        now = trio.current_time()
        gap_seconds = now - self._last_beat
        if GAP_SECONDS < gap_seconds < float("inf"):
            log.warning("clocks_were_not_kept", gap_ms=round(gap_seconds * 1000))
            on_gap(round(gap_seconds * 1000))
        self._last_beat = now
        self._notice_skew((asked + self._clock.now()) // 2 - row.alive_at)

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
