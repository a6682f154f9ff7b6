"""What the sweeps write into Postgres: who is set offline, and when everybody was last heard of.

Each is one statement over many rows, guarded so that any number of nodes may run it at once and again. Nobody is ever set offline
because of what stands in Postgres alone (S29): the ids come from the mirror, with the heartbeat that they were judged by. Read
next: `halo/actors/sweeps.py`, `halo/store/sql/queries/sweeps.sql`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

from halo.clock import Moment
from halo.store.postgres import Postgres
from halo.store.queries import load_queries
from halo.store.values import Value

SQL = load_queries("sweeps", "set_stale_offline", "list_offline", "set_online_again", "record_heartbeats")

ENCODED_AT_ONCE: Final = 5_000
"""Moments turned into digits between two looks at the event loop: a millisecond."""


@dataclass(frozen=True, slots=True)
class SetOffline:
    """What became of those who were judged stale."""

    offline: Sequence[str]
    """Offline in Postgres now: set so by this call, or before it."""
    presence_versions: Mapping[str, int]
    """Of those whom this call has set offline: while it stands, nobody has said since whether they are there."""


class SweepRows:
    """The rows of mitras, many at a time. Every method raises StoreUnavailable; running it again harms nobody."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def set_offline(self, seen: Mapping[str, Moment]) -> SetOffline:
        """Set offline whom Postgres, too, has not heard of since the moment that is given with each."""
        values: Mapping[str, Value] = {"mitra_ids": list(seen), "moments": list(seen.values())}
        changed = await self._db.fetch_all(SQL["set_stale_offline"], values)
        offline = await self._db.fetch_all(SQL["list_offline"], values)
        return SetOffline([row.mitra_id for row in offline], {row.mitra_id: row.presence_version for row in changed})

    async def set_online_again(self, presence_versions: Mapping[str, int]) -> list[str]:
        """Take `set_offline` back for those who were heard of in the same instant: for whom it was."""
        values: Mapping[str, Value] = {
            "mitra_ids": list(presence_versions),
            "presence_versions": list(presence_versions.values()),
        }
        return [row.mitra_id for row in await self._db.fetch_all(SQL["set_online_again"], values)]

    async def record_heartbeats(self, beats: Mapping[str, Moment]) -> int:
        """Note when each mitra was last heard of, never backwards: how many moved forward."""
        if not beats:
            return 0
        # As texts, made in parts: as lists 100,000 of them would hold up the event loop for some 100 ms.
        moments, parts = iter(beats.values()), list[str]()
        while part := ",".join(map(str, islice(moments, ENCODED_AT_ONCE))):
            parts.append(part)
            await trio.lowlevel.checkpoint()
        values = {"mitra_ids": "{" + ",".join(beats) + "}", "moments": "{" + ",".join(parts) + "}"}
        return await self._db.execute(SQL["record_heartbeats"], values)
