"""Who can be asked for a session now, read from the mirror: the longest idle for pairing, the counts for beacon and operators.

Available is who is online, not deactivated, fresh and has room (S20). A search looks at the head of the line only; a count looks at
everybody, page by page, once in two seconds for the whole cluster: one caller counts while the others read the old value. When the mirror
is not trusted the twin answers from Postgres. It must never hold Valkey or the event loop for more than a few milliseconds. Read
next: `halo/store/mirror.py`, `halo/store/available_twin.py`.
"""

from halo.store.mirror import Mirror  # isort: skip  (trio_asyncio first)

import json
from collections.abc import Collection
from datetime import datetime
from typing import Final, TypeAlias
from uuid import uuid4

import structlog

from halo.availability import Available
from halo.clock import Clock, rfc3339
from halo.store.available_twin import AvailableTwin
from halo.store.mirror_keys import COUNT_ONLINE, READ_SNAPSHOT, WALK_WAITING, WRITE_SNAPSHOT
from halo.store.valkey_wire import Reply

HEAD: Final = 64
"""How many of the line a search looks at first: mostly enough, for who has waited longest is seldom stale or excluded."""
PAGE: Final = 1_000
"""How many it looks at afterwards, and a count always: some 2 ms during which Valkey serves nobody else."""
SNAPSHOT_MS: Final = 10_000
"""S05 lives so long: what is shown when nobody counts any more, because those who should have died."""
RECOUNT_MS: Final = 2_000
"""A beacon changes at most so often (spec 4), so counting more often would tell nobody."""
LOCK_MS: Final = 2_000
"""For one count: of 100,000 it takes half a second; one that died delays the next by this."""

Place: TypeAlias = tuple[str, str]
"""In the line: behind which mitra, and since when she is idle, as Valkey writes it."""
LINE_BEGINS: Final[Place] = ("", "")

log = structlog.get_logger()


class AvailableMitras:
    """See the module. Every method raises `StoreUnavailable` when neither store answers."""

    def __init__(self, mirror: Mirror, twin: AvailableTwin, clock: Clock, stale_after_ms: int) -> None:
        self._mirror = mirror
        self._twin = twin
        self._clock = clock
        self._stale_after_ms = stale_after_ms
        self._keys = mirror.keys
        self.counts = 0
        """How many times this node has counted for the cluster."""

    async def find_available(self, limit: int, exclude: Collection[str]) -> list[str]:
        """At most `limit` mitras with room, longest idle first."""
        found: dict[str, None] = {}
        place, size = LINE_BEGINS, HEAD
        while len(found) < limit:
            # Who was found is excluded from the next page: the line may have moved meanwhile.
            reply = await self._walk(place, size, limit - len(found), *exclude, *found)
            if reply is None:
                return await self._twin.find_available(limit, exclude)
            looked_at, ids, place = reply
            found.update((mitra_id.decode("ascii"), None) for mitra_id in ids)
            if looked_at < size:
                break
            size = PAGE
        return list(found)

    async def count_available(self) -> Available:
        """How many there are, and as of when: at most some seconds ago, the same for the whole cluster (S21)."""
        keys, token = self._keys, uuid4().hex
        names = (keys.seeded, keys.snapshot, keys.snapshot_lock)
        script = ("EVAL", READ_SNAPSHOT, len(names), *names, token, LOCK_MS, SNAPSHOT_MS - RECOUNT_MS)
        reply = await self._mirror.read(script)
        available = None
        if reply is not None:
            snapshot, is_ours = reply
            available = await self._count(token) if is_ours else _decode(snapshot)
        # No snapshot yet, while somebody counts the first: Postgres knows, and is asked once a second at most.
        return await self._twin.count_available() if available is None else available

    async def count_online(self) -> int:
        """How many said that they are online and were not deactivated since (S22): stale and full ones too, unlike those available."""
        names = (self._keys.seeded, self._keys.online)
        count = await self._mirror.read(("EVAL", COUNT_ONLINE, len(names), *names))
        return await self._twin.count_online() if count is None else int(count)

    async def _count(self, token: str) -> Available | None:
        now, count, place = self._clock.now(), 0, LINE_BEGINS
        while True:
            reply = await self._walk(place, PAGE, 0)
            if reply is None:
                return None
            looked_at, available, place = reply
            count += available
            if looked_at < PAGE:
                break
        self.counts += 1
        counted = Available(count=count, as_of=now)
        names = (self._keys.snapshot, self._keys.snapshot_lock)
        await self._mirror.read(
            ("EVAL", WRITE_SNAPSHOT, len(names), *names, token, _encode(counted), SNAPSHOT_MS)
        )  # whether it landed does not matter: the count is right, and the lock ends by itself
        return counted

    async def _walk(self, behind: Place, size: int, want: int, *exclude: str) -> tuple[int, Reply, Place] | None:
        """How many were looked at, who of them is available, and where to go on; None when the mirror cannot tell. With `want` 0
        their number instead."""
        keys = self._keys
        names = (keys.seeded, keys.online, keys.deactivated, keys.waiting)
        since = rfc3339(self._clock.now() - self._stale_after_ms)
        line = (keys.heartbeat(""), since, *behind, size, want)
        reply = await self._mirror.read(("EVAL", WALK_WAITING, len(names), *names, *line, *exclude))
        if reply is None:
            return None
        looked_at, found, last, idle_since = reply
        return looked_at, found, (last.decode("ascii"), idle_since.decode("ascii"))


def _encode(available: Available) -> str:
    return json.dumps({"available_mitras": available.count, "as_of": rfc3339(available.as_of)})


def _decode(snapshot: bytes) -> Available | None:
    """None for nothing, and for what we did not write."""
    if not snapshot:
        return None
    try:
        told = json.loads(snapshot)
        as_of = round(datetime.fromisoformat(told["as_of"]).timestamp() * 1000)
        return Available(count=int(told["available_mitras"]), as_of=as_of)
    except (ValueError, TypeError, KeyError):
        log.warning("availability_snapshot_unreadable")
        return None
