"""Who is available, by Postgres: the twin of the mirror's readers, for the time in which Valkey is away or cannot be trusted.

Each question is asked by one caller at a time and its answer kept for a moment, so Postgres sees a bounded number of queries whatever
the number of callers. What is a second old does no harm: a wave is checked against the rows once more when it is sent. It must never pass
over somebody whose heartbeat Postgres has merely not been told yet. Read next: `halo/store/sql/queries/available.sql`.
"""

from collections.abc import Collection
from typing import Final

from halo.availability import Available
from halo.clock import Clock
from halo.store.mirror_twin import Rows
from halo.store.queries import load_queries
from halo.store.shared_answer import SharedAnswer

SQL: Final = load_queries("available", "list_available", "count_available", "count_online")

KEPT_SECONDS: Final = 1.0
"""At most one query a second of each kind from a node: with 10,000 mitras some 20 ms of Postgres."""
LISTED_AT_MOST: Final = 500
"""Waves ask some tens of mitras; a search that was refused by the 500 longest idle gives up."""


class AvailableTwin:
    """Answers from Postgres.

    `lag_ms`: how much later Postgres hears of a heartbeat than the mirror does. Nobody who is fresh may be passed over, so verdicts are late
    by that much.
    """

    def __init__(self, postgres: Rows, clock: Clock, stale_after_ms: int, lag_ms: int) -> None:
        self._postgres = postgres
        self._clock = clock
        self._patience_ms = stale_after_ms + lag_ms
        self._listed = SharedAnswer(self._list_available, KEPT_SECONDS)
        self._available = SharedAnswer(self._count_available, KEPT_SECONDS)
        self._online = SharedAnswer(self._count_online, KEPT_SECONDS)

    @property
    def queries(self) -> int:
        """How many Postgres was sent."""
        return self._listed.asked + self._available.asked + self._online.asked

    async def find_available(self, limit: int, exclude: Collection[str]) -> list[str]:
        """At most `limit` mitras with room, longest idle first. Raises StoreUnavailable."""
        excluded = frozenset(exclude)
        listed = await self._listed.load()
        return [mitra_id for mitra_id in listed if mitra_id not in excluded][:limit]

    async def count_available(self) -> Available:
        """Raises StoreUnavailable."""
        return await self._available.load()

    async def count_online(self) -> int:
        """Raises StoreUnavailable."""
        return await self._online.load()

    async def _list_available(self) -> list[str]:
        values = {"heard_since": self._clock.now() - self._patience_ms, "limit": LISTED_AT_MOST}
        return [row[0] for row in await self._postgres.fetch_all(SQL["list_available"], values)]

    async def _count_available(self) -> Available:
        now = self._clock.now()
        [row] = await self._postgres.fetch_all(SQL["count_available"], {"heard_since": now - self._patience_ms})
        return Available(count=row[0], as_of=now)

    async def _count_online(self) -> int:
        [row] = await self._postgres.fetch_all(SQL["count_online"])
        return int(row[0])
