"""Ground for tests of the mirror's readers: a real Postgres, a Valkey that may be killed, and both kinds of readers on them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from halo.clock import rfc3339
from halo.store.available import AvailableMitras
from halo.store.available_twin import AvailableTwin
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.mirror_twin import MirrorTwin
from halo.store.postgres import Postgres, open_postgres
from halo.store.valkey import Valkey, open_valkey
from tests.store.rows import NOW, SetClock, add_customer, add_session, new_id
from tests.store.valkey_server import until

STALE_MS = 90_000
KEYS = Keys()


@dataclass
class House:
    db: Postgres
    clock: SetClock
    valkey: Valkey
    mirror: Mirror
    customer_id: str

    def twin(self) -> AvailableTwin:
        """A new one, which has kept nothing. Postgres knows every heartbeat here, so its verdicts lag by nothing."""
        return AvailableTwin(self.db, self.clock, STALE_MS, 0)

    def readers(self) -> AvailableMitras:
        return AvailableMitras(self.mirror, self.twin(), self.clock, STALE_MS)

    async def add_mitra(
        self,
        *,
        active: bool = True,
        online: bool = True,
        heard_ms: int | None = 1_000,
        idle_ms: int = 1_000,
        max_sessions: int = 3,
        sessions: int = 0,
    ) -> str:
        mitra_id = new_id()
        values: dict[str, Any] = {
            "id": mitra_id,
            "active": active,
            "online": online and active,
            "heard": None if heard_ms is None else self.clock.now() - heard_ms,
            "idle": self.clock.now() - idle_ms,
            "max": max_sessions,
        }
        await self.db.execute(
            """INSERT INTO mitras (mitra_id, is_active, is_online, last_heartbeat_at, idle_since, max_sessions)
               VALUES (%(id)s, %(active)s, %(online)s, at(%(heard)s::bigint), at(%(idle)s), %(max)s)""",
            values,
        )
        for _ in range(sessions):
            await self.add_session(mitra_id)
        return mitra_id

    async def add_session(self, mitra_id: str) -> None:
        """As an accept writes it, without telling the mirror."""
        await add_session(self.db, self.customer_id, mitra_id)
        await self._count(mitra_id, self.clock.now())

    async def end_session(self, mitra_id: str) -> None:
        """One of them, if there is any, without telling the mirror."""
        await self.db.execute(
            """UPDATE chat_sessions SET status = 'ended', end_reason = 'completed', deadline_at = NULL
               WHERE session_id = (SELECT session_id FROM chat_sessions WHERE mitra_id = %(id)s AND status <> 'ended' LIMIT 1)""",
            {"id": mitra_id},
        )
        await self._count(mitra_id, self.clock.now())

    async def _count(self, mitra_id: str, at: int) -> None:
        await self.db.execute(
            """UPDATE mitras SET capacity_version = capacity_version + 1, idle_since = greatest(idle_since, at(%(at)s))
               WHERE mitra_id = %(id)s""",
            {"id": mitra_id, "at": at},
        )

    async def set(self, mitra_id: str, **columns: Any) -> None:
        """Plain columns, without telling the mirror; moments as milliseconds."""
        for name, value in columns.items():
            cast = f"at(%({name})s::bigint)" if name in {"last_heartbeat_at", "idle_since"} else f"%({name})s"
            await self.db.execute(
                f"UPDATE mitras SET {name} = {cast} WHERE mitra_id = %(id)s", {"id": mitra_id, name: value}
            )

    async def read(self, *command: str) -> Any:
        (reply,) = await self.valkey.call(command)
        return reply

    async def trusted(self, seconds: float = 30.0) -> float:
        return await until(lambda: self.mirror.trusted, seconds)

    async def in_valkey(self) -> dict[str, Any]:
        """The whole mirror."""
        beats: dict[str, str] = {}
        capacities: dict[str, tuple[str, str]] = {}
        for row in await self.rows():
            beat, count, version = await self.read(
                "MGET", KEYS.heartbeat(row.mitra_id), KEYS.capacity(row.mitra_id), KEYS.capacity_version(row.mitra_id)
            )
            if beat is not None:
                beats[row.mitra_id] = beat.decode()
            if count is not None:
                capacities[row.mitra_id] = (count.decode(), version.decode())
        waiting = await self.read("ZRANGE", KEYS.waiting, "0", "-1", "WITHSCORES")
        return {
            "online": {member.decode() for member in await self.read("SMEMBERS", KEYS.online)},
            "deactivated": {member.decode() for member in await self.read("SMEMBERS", KEYS.deactivated)},
            "waiting": {member.decode(): int(score) for member, score in zip(waiting[::2], waiting[1::2], strict=True)},
            "heartbeats": beats,
            "capacities": capacities,
        }

    async def in_postgres(self) -> dict[str, Any]:
        """The mirror as it should be."""
        rows = await self.rows()
        there = [row for row in rows if row.online and row.active]
        return {
            "online": {row.mitra_id for row in there},
            "deactivated": {row.mitra_id for row in rows if not row.active},
            "waiting": {row.mitra_id: row.idle_since for row in there if row.has_room},
            "heartbeats": {row.mitra_id: rfc3339(row.heartbeat_at) for row in there if row.heartbeat_at is not None},
            "capacities": {row.mitra_id: (str(row.capacity), str(row.capacity_version)) for row in rows},
        }

    async def rows(self) -> list[Any]:
        mitras = await self.db.fetch_all("SELECT mitra_id FROM mitras ORDER BY mitra_id")
        return list(await MirrorTwin(self.db).list_mitras_named([mitra.mitra_id for mitra in mitras]))


@asynccontextmanager
async def open_house(database_url: str, valkey_url: str) -> AsyncIterator[House]:
    async with open_postgres(database_url) as db, open_valkey(valkey_url) as valkey, trio.open_nursery() as nursery:
        clock = SetClock()
        mirror = Mirror(valkey, db, clock, STALE_MS)
        nursery.start_soon(mirror.serve)
        house = House(db, clock, valkey, mirror, await add_customer(db))
        await house.trusted()
        yield house
        nursery.cancel_scope.cancel()


async def change_something(house: House, mitra_ids: list[str], dice: Random) -> None:
    """One step of a random life: Postgres first, then the mirror, as the rooms do it."""
    mitra_id, now = dice.choice(mitra_ids), house.clock.now()
    row = next(row for row in await house.rows() if row.mitra_id == mitra_id)
    match dice.randrange(7):
        case 0 if row.active and not row.online:
            await house.set(mitra_id, is_online=True, last_heartbeat_at=now, idle_since=max(now, row.idle_since))
            await house.mirror.went_online(mitra_id, now)
        case 1:
            await house.set(mitra_id, is_online=False)
            await house.mirror.went_offline(mitra_id)
        case 2 if dice.random() < 0.4:
            await house.set(mitra_id, is_active=False, is_online=False)
            await house.mirror.deactivated(mitra_id)
        case 3:
            await house.set(mitra_id, is_active=True)
            await house.mirror.activated(mitra_id)
        case 4:
            await house.add_session(mitra_id)
            await house.mirror.refresh_capacities([mitra_id])
        case 5:
            await house.end_session(mitra_id)
            await house.mirror.refresh_capacities([mitra_id])
        case _ if row.active and row.online:
            await house.mirror.heartbeat(mitra_id, now)
            await house.set(mitra_id, last_heartbeat_at=max(now, row.heartbeat_at or 0))
    house.clock.moment += dice.randrange(20_000)


__all__ = ["KEYS", "NOW", "STALE_MS", "House", "change_something", "open_house"]
