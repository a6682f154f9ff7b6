"""The queries behind the mirror against a real Postgres, and the whole mirror over both real stores."""

from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import pytest
import trio

from halo.availability import Presence
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.mirror_twin import NO_MITRA, PAGE, UNKNOWN, MirrorTwin, MitraRow
from halo.store.postgres import Postgres, open_postgres
from halo.store.queries import Query
from halo.store.valkey import open_valkey

NOW = 1_795_464_900_123
STALE_MS = 90_000

ADD_MITRA = """
INSERT INTO mitras (mitra_id, is_active, is_online, last_heartbeat_at, capacity_version)
VALUES (%(mitra_id)s, %(active)s, %(online)s, at(%(heartbeat_at)s::bigint), %(version)s)
"""
ADD_SESSIONS = """
WITH customer AS (INSERT INTO customers (customer_id) VALUES (gen_random_uuid()) RETURNING customer_id),
payment AS (
    INSERT INTO payment_requests (payment_request_id, customer_id, duration_minutes, amount, currency)
    SELECT gen_random_uuid(), customer_id, 30, 100, 'IDR' FROM customer RETURNING payment_request_id, customer_id
)
INSERT INTO chat_sessions (session_id, customer_id, mitra_id, payment_request_id, status, end_reason, deadline_at,
                           duration_minutes, minute_ms, price, currency)
SELECT gen_random_uuid(), customer_id, %(mitra_id)s, payment_request_id, %(status)s,
       CASE WHEN %(status)s = 'ended' THEN 'completed' END,
       CASE WHEN %(status)s <> 'ended' THEN now() END, 30, 60000, 100, 'IDR'
FROM payment
"""


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as opened:
        yield opened


async def add_mitra(postgres: Postgres, **given: Any) -> str:
    row: dict[str, Any] = {
        "mitra_id": str(uuid4()),
        "active": True,
        "online": True,
        "heartbeat_at": NOW,
        "version": 0,
    } | given
    await postgres.execute(ADD_MITRA, row)
    return str(row["mitra_id"])


async def test_presences_are_read_as_they_stand(postgres: Postgres) -> None:
    online = await add_mitra(postgres)
    deactivated = await add_mitra(postgres, active=False, online=False, heartbeat_at=None)
    twin = MirrorTwin(postgres)

    assert await twin.load_presence(online) == Presence(active=True, online=True, heartbeat_at=NOW)
    assert await twin.load_presence(deactivated) == Presence(active=False, online=False, heartbeat_at=None)
    assert await twin.load_presence(str(uuid4())) == UNKNOWN


async def test_whoever_asks_while_a_query_is_under_way_shares_the_next(postgres: Postgres) -> None:
    who = [await add_mitra(postgres, heartbeat_at=NOW + n) for n in range(40)]
    twin = MirrorTwin(postgres)
    found: dict[str, int | None] = {}

    async def ask(mitra_id: str) -> None:
        found[mitra_id] = (await twin.load_presence(mitra_id)).heartbeat_at

    async with trio.open_nursery() as nursery:
        for mitra_id in who:
            nursery.start_soon(ask, mitra_id)

    assert found == {mitra_id: NOW + n for n, mitra_id in enumerate(who)}
    assert twin.queries <= 2


async def test_pages_hold_every_mitra_once_with_the_living_sessions_counted(postgres: Postgres) -> None:
    busy = await add_mitra(postgres, version=7)
    for status in ("pending_payment", "rerouting", "closing", "ended"):
        await postgres.execute(ADD_SESSIONS, {"mitra_id": busy, "status": status})
    await postgres.execute("INSERT INTO mitras (mitra_id) SELECT gen_random_uuid() FROM generate_series(1, 1500)")
    twin = MirrorTwin(postgres)

    rows: dict[str, MitraRow] = {}
    sizes = []
    after = NO_MITRA
    while page := await twin.list_mitras_after(after):
        after = page[-1].mitra_id
        rows.update((row.mitra_id, row) for row in page)
        sizes.append(len(page))

    assert sizes == [PAGE, 1501 - PAGE]
    assert len(rows) == 1501
    assert (rows[busy].capacity, rows[busy].capacity_version, rows[busy].heartbeat_at) == (3, 7, NOW)
    assert {row.capacity for mitra_id, row in rows.items() if mitra_id != busy} == {0}


class FixedClock:
    def now(self) -> int:
        return NOW


class Counted:
    """Postgres, with its statements counted."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self.statements = 0

    async def fetch_all(self, query: Query, values: Mapping[str, Any] = MappingProxyType({})) -> Sequence[Any]:
        self.statements += 1
        return await self._postgres.fetch_all(query, values)


async def test_over_both_real_stores_a_heartbeat_costs_postgres_no_statement(
    postgres: Postgres, valkey_url: str
) -> None:
    who = [await add_mitra(postgres, online=n % 2 == 0) for n in range(20)]
    counted = Counted(postgres)
    async with open_valkey(valkey_url) as valkey:
        mirror = Mirror(valkey, counted, FixedClock(), STALE_MS)
        assert await mirror.seed() == 20
        assert mirror.trusted
        counted.statements = 0

        async with trio.open_nursery() as nursery:
            for mitra_id in who[::2]:
                nursery.start_soon(mirror.heartbeat, mitra_id, NOW + 1)
        seen = [await mirror.reachability(mitra_id) for mitra_id in who]

        assert [one.reachable for one in seen] == [n % 2 == 0 for n in range(20)]
        assert {one.source for one in seen} == {"mirror"}
        assert counted.statements == 0
        (online,) = await valkey.call(("SMEMBERS", Keys().online))
        assert {member.decode() for member in online} == set(who[::2])
