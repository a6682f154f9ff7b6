"""The queries behind the mirror against a real Postgres, and the whole mirror over both real stores."""

from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import pytest
import trio

from halo.availability import Presence
from halo.clock import rfc3339
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.mirror_twin import (
    BEAT_WIDTH,
    ID_WIDTH,
    LAST_MITRA,
    NO_BEAT,
    NO_MITRA,
    PAGE,
    UNKNOWN,
    MirrorTwin,
    PackedPage,
)
from halo.store.postgres import Postgres, Transaction, open_postgres
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
    await postgres.execute("INSERT INTO mitras (mitra_id) SELECT gen_random_uuid() FROM generate_series(1, 2500)")
    pages = await pages_of(MirrorTwin(postgres))

    assert [len(page.states.split("\n")) for page in pages] == [PAGE, 2501 - PAGE]
    assert [page.after for page in pages] == [NO_MITRA, pages[0].last]
    lines = [line.split(" ") for page in pages for line in page.states.split("\n")]
    assert len({mitra_id for mitra_id, *_ in lines}) == 2501
    assert {mitra_id: (int(count), int(version)) for mitra_id, _, count, version, _ in lines if mitra_id == busy} == {
        busy: (3, 7)
    }
    assert {count for mitra_id, _, count, _, _ in lines if mitra_id != busy} == {"0"}
    assert all(page.after < line[:ID_WIDTH] <= page.last for page in pages for line in page.states.split("\n"))


async def test_a_packed_page_says_of_everybody_what_the_rows_say(postgres: Postgres) -> None:
    """With moments whose milliseconds have zeros at either end, and every state that a mitra can be in."""
    moments = (None, NOW, 1_795_464_900_000, 1_795_464_900_001, 1_795_464_900_100, 946_684_800_010)
    who = [
        await add_mitra(postgres, active=n % 5 != 0, online=n % 3 != 0, heartbeat_at=moments[n % 6], version=n)
        for n in range(60)
    ]
    await postgres.execute("UPDATE mitras SET idle_since = at(%(at)s), max_sessions = 1", {"at": NOW})
    for mitra_id in who[::4]:
        await postgres.execute(ADD_SESSIONS, {"mitra_id": mitra_id, "status": "rerouting"})
    twin = MirrorTwin(postgres)
    packed = {}
    for page in await pages_of(twin):
        for place, line in enumerate(page.states.split("\n")):
            packed[line[:ID_WIDTH]] = (page.beats[place * BEAT_WIDTH : (place + 1) * BEAT_WIDTH], line)

    for row in await twin.list_mitras_named(who):
        beat = " " * BEAT_WIDTH if row.heartbeat_at is None else rfc3339(row.heartbeat_at)
        letter = "d" if not row.active else "o" if not row.online else "w" if row.has_room else "f"
        line = f"{row.mitra_id} {letter} {row.capacity} {row.capacity_version} {row.idle_since}"
        assert packed.pop(row.mitra_id) == (beat if letter in "wf" else NO_BEAT, line)
    assert packed == {}


async def test_the_pages_between_two_ids_hold_who_came_meanwhile_as_well(postgres: Postgres) -> None:
    first, last = await add_mitra(postgres, mitra_id=uuid_of(10)), await add_mitra(postgres, mitra_id=uuid_of(20))
    twin = MirrorTwin(postgres)
    await add_mitra(postgres, mitra_id=uuid_of(15))
    page = await twin.find_page_between(first, last)
    assert page is not None
    assert {line[:ID_WIDTH] for line in page.states.split("\n")} == {uuid_of(15), uuid_of(20)}
    assert await twin.find_page_between(last, LAST_MITRA) is None


async def test_the_pages_that_were_written_since_are_known_by_their_places(postgres: Postgres) -> None:
    """The row on which a page ends belongs to it, and not to the next. More may be named: what is open elsewhere in this server is
    not ours to know."""
    for n in range(1, 31):
        await add_mitra(postgres, mitra_id=uuid_of(n))
    begins, twin = [NO_MITRA, uuid_of(10), uuid_of(20)], MirrorTwin(postgres)
    touch = "UPDATE mitras SET capacity_version = capacity_version + 1 WHERE mitra_id = %(id)s"
    _, touched = await twin.list_touched(begins, None)
    assert touched == []
    for n, place in ((1, 0), (10, 0), (11, 1), (20, 1), (21, 2), (30, 2)):
        since, _ = await twin.list_touched(begins, None)
        await postgres.execute(touch, {"id": uuid_of(n)})
        assert place in (await twin.list_touched(begins, since))[1]


async def test_a_row_of_a_transaction_that_was_open_at_the_first_look_counts_as_written_since(
    postgres: Postgres,
) -> None:
    """And one of its subtransactions too, which has a number of its own."""
    for n in (5, 15, 25):
        await add_mitra(postgres, mitra_id=uuid_of(n))
    begins, twin = [NO_MITRA, uuid_of(10), uuid_of(20)], MirrorTwin(postgres)
    looked: list[str] = []

    async def write(tx: Transaction) -> None:
        touch = "UPDATE mitras SET capacity_version = capacity_version + 1 WHERE mitra_id = %(id)s"
        await tx.execute(touch, {"id": uuid_of(5)})
        await tx.execute("SAVEPOINT within")
        await tx.execute(touch, {"id": uuid_of(25)})
        await tx.execute("RELEASE SAVEPOINT within")
        since, touched = await twin.list_touched(begins, None)
        assert touched == []
        looked.append(since)

    await postgres.transact(write)
    assert {0, 2} <= set((await twin.list_touched(begins, looked[-1]))[1])


def uuid_of(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012d}"


async def pages_of(twin: MirrorTwin) -> list[PackedPage]:
    after, pages = NO_MITRA, []
    while page := await twin.find_page_after(after):
        after = page.last
        pages.append(page)
    return pages


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
