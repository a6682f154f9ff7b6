"""The mirror held against Postgres, a page at a time, for the watchdog: living sessions, and who is online or deactivated (A1, A2, A5).

What differs in one look may be on its way; only who is named again by `list_wrong_…_among` a second later counts. While the mirror is not
believed nobody is misled by it, and nothing is found. It must never write into Valkey but by the mirror's own means.
Read next: `halo/store/mirror.py`, `halo/watch.py`.
"""

from halo.store.mirror import Mirror  # isort: skip  (trio_asyncio first)

from collections.abc import Mapping, Sequence
from typing import Any, Final

from halo.errors import StoreUnavailable
from halo.store.mirror_keys import PRESENCES
from halo.store.postgres import Postgres
from halo.store.queries import load_queries
from halo.sweep import MirrorUnavailable

SQL = load_queries("watchdog")
MITRAS_AT_ONCE: Final = 500
"""Compared with the mirror in one look: one read of a thousand keys."""
NOBODY: Final = "00000000-0000-0000-0000-000000000000"


class WatchedMirror:
    """See the module. Everything raises StoreUnavailable."""

    def __init__(self, db: Postgres, mirror: Mirror) -> None:
        self._db = db
        self._mirror = mirror
        self._after = NOBODY
        """The last mitra whose living sessions were compared."""

    # ---- living sessions

    async def list_wrong_capacities(self) -> list[str]:
        """Mitras of whose living sessions Valkey says something else than Postgres: one page of those online a call."""
        page = await self._db.fetch_all(SQL["list_online_after"], {"after": self._after, "limit": MITRAS_AT_ONCE})
        self._after = page[-1].mitra_id if len(page) == MITRAS_AT_ONCE else NOBODY
        return await self.list_wrong_among([row.mitra_id for row in page])

    async def list_wrong_among(self, mitra_ids: Sequence[str]) -> list[str]:
        """Those of them who are mirrored wrongly."""
        if not mitra_ids:
            return []
        keys = [self._mirror.keys.capacity(mitra_id) for mitra_id in mitra_ids]
        told = await self._mirror.read(("MGET", *keys))
        if told is None:
            return []
        mirrored = dict(zip(mitra_ids, told, strict=True))
        rows = await self._mirror.twin.list_mitras_named(mitra_ids)
        return [row.mitra_id for row in rows if mirrored[row.mitra_id] != str(row.capacity).encode()]

    async def refresh_capacities(self, mitra_ids: Sequence[str]) -> None:
        await self._mirror.refresh_capacities(mitra_ids)

    # ---- who is online, and who is deactivated

    async def list_wrong_standings(self) -> list[str]:
        """Mitras of whom Valkey says otherwise than Postgres that they are online, or deactivated: all of them, page by page.

        Both ways, for neither finds what only the other side has: those whom Postgres has online or deactivated, and those whom
        Valkey has online.
        """
        wrong: dict[str, None] = {}
        after: str | None = NOBODY
        while after is not None:
            rows = await self._db.fetch_all(SQL["list_standing_after"], {"after": after, "limit": MITRAS_AT_ONCE})
            wrong |= dict.fromkeys(await self._differing(rows))
            after = rows[-1].mitra_id if len(rows) == MITRAS_AT_ONCE else None
        try:
            async for page in self._mirror.pages_online():
                wrong |= dict.fromkeys(await self.list_wrong_standings_among(list(page)))
        except MirrorUnavailable as fault:
            raise StoreUnavailable from fault
        return list(wrong)

    async def list_wrong_standings_among(self, mitra_ids: Sequence[str]) -> list[str]:
        """Those of them of whom it is so now."""
        wrong: list[str] = []
        for first in range(0, len(mitra_ids), MITRAS_AT_ONCE):
            asked = {"mitra_ids": list(mitra_ids[first : first + MITRAS_AT_ONCE])}
            wrong += await self._differing(await self._db.fetch_all(SQL["list_standing_of"], asked))
        return wrong

    async def reseed(self) -> None:
        try:
            await self._mirror.reseed()
        except MirrorUnavailable as fault:
            raise StoreUnavailable from fault

    async def _differing(self, rows: Sequence[Any]) -> list[str]:
        if not rows:
            return []
        keys, ids = self._mirror.keys, [row.mitra_id for row in rows]
        names = (keys.seeded, keys.deactivated, keys.online, *map(keys.heartbeat, ids))
        told = await self._mirror.read(("EVAL", PRESENCES, len(names), *names, *ids))
        if told is None:
            return []
        deactivated, online, _ = told
        mirrored: Mapping[str, tuple[bool, bool]] = {
            mitra_id: (bool(is_online), bool(is_deactivated))
            for mitra_id, is_online, is_deactivated in zip(ids, online, deactivated, strict=True)
        }
        return [row.mitra_id for row in rows if mirrored[row.mitra_id] != (row.is_online, row.is_deactivated)]
