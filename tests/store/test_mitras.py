from collections.abc import AsyncIterator

import pytest
import trio

from halo.errors import MitraDeactivated, NotFound
from halo.session import Party
from halo.store.auth_sessions import AuthSessions
from halo.store.mitras import MitraPresence, Mitras
from halo.store.postgres import Postgres, open_postgres
from tests.store.rows import (
    NOW,
    SetClock,
    add_customer,
    add_mitra,
    add_offer,
    add_pairing,
    add_payment,
    add_session,
    count,
    new_id,
)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def mitras(db: Postgres, clock: SetClock) -> Mitras:
    return Mitras(db, clock)


async def idle_since(db: Postgres, mitra_id: str) -> int:
    row = await db.fetch_one("SELECT idle_since FROM mitras WHERE mitra_id = %(id)s", {"id": mitra_id})
    assert row is not None
    return int(row.idle_since)


# ---- online


async def test_going_online_counts_as_a_heartbeat(mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db)
    status = await mitras.go_online(mitra_id, NOW)
    assert (status.is_online, status.last_heartbeat_at, status.capacity) == (True, NOW, 0)
    assert await mitras.load_status(mitra_id) == status


async def test_going_online_again_keeps_the_place_in_the_queue(mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db)
    await mitras.go_online(mitra_id, NOW)
    await mitras.go_online(mitra_id, NOW + 5000)
    assert await idle_since(db, mitra_id) == NOW


async def test_coming_back_online_goes_to_the_end_of_the_queue(mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db)
    await mitras.go_online(mitra_id, NOW)
    assert not (await mitras.go_offline(mitra_id, NOW + 1)).is_online
    await mitras.go_online(mitra_id, NOW + 5000)
    assert await idle_since(db, mitra_id) == NOW + 5000


async def test_going_online_late_never_moves_a_heartbeat_back(mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db)
    await db.execute("UPDATE mitras SET last_heartbeat_at = at(%(at)s)", {"at": NOW + 9000})
    assert (await mitras.go_online(mitra_id, NOW)).last_heartbeat_at == NOW + 9000


async def test_going_offline_is_no_heartbeat_and_leaves_sessions_alone(mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db, is_online=True)
    await add_session(db, await add_customer(db), mitra_id, "active")
    status = await mitras.go_offline(mitra_id, NOW)
    assert (status.is_online, status.last_heartbeat_at, status.capacity) == (False, None, 1)


async def test_a_mitra_who_does_not_exist_is_not_found(mitras: Mitras, db: Postgres) -> None:
    for call in (
        mitras.go_online(new_id(), NOW),
        mitras.go_offline(new_id(), NOW),
        mitras.load_status(new_id()),
        mitras.deactivate(new_id(), "op"),
        mitras.activate(new_id(), "op"),
    ):
        with pytest.raises(NotFound):
            await call
    assert await count(db, "mitras") == await count(db, "operator_actions") == 0


async def test_capacity_counts_every_status_that_holds_a_slot(mitras: Mitras, db: Postgres) -> None:
    mitra_id, customer = await add_mitra(db), await add_customer(db)
    for status in ("pending_payment", "active", "extending", "closing", "rerouting", "ended"):
        await add_session(db, customer, mitra_id, status)
    await add_session(db, customer, await add_mitra(db), "active")
    assert (await mitras.load_status(mitra_id)).capacity == 5


# ---- deactivation


async def test_deactivation_locks_out_at_once_and_says_what_is_left_to_do(
    mitras: Mitras, db: Postgres, clock: SetClock
) -> None:
    auth = AuthSessions(db, clock)
    family = await auth.open(Party.MITRA)
    mitra_id, customer = family.user_id, await add_customer(db)
    await mitras.go_online(mitra_id, NOW)
    living = await add_session(db, customer, mitra_id, "active")
    await add_session(db, customer, mitra_id, "ended")
    pairing = await add_pairing(db, customer, await add_payment(db, customer, "confirmed", is_extension=False))
    offer = await add_offer(db, pairing, mitra_id)
    others = await add_offer(db, pairing, await add_mitra(db))
    await db.execute(
        """INSERT INTO outbox (kind, user_id, template, collapse_key, due_at)
           VALUES ('push', %(id)s, 'offer', 'offer:' || %(offer)s::text, now()),
                  ('push', %(id)s, 'offer', 'offer:' || %(others)s::text, now())""",
        {"id": mitra_id, "offer": offer, "others": others},
    )

    done = await mitras.deactivate(mitra_id, "op")

    assert done.auth_session_ids == [family.auth_session_id]
    assert (done.offer_ids, done.pairing_ids, done.session_ids) == ([offer], [pairing], [living])
    status = await mitras.load_status(mitra_id)
    assert (status.is_active, status.is_online) == (False, False)
    assert not await auth.is_alive(family.auth_session_id)
    assert await count(db, "offers", "status = 'cancelled' AND offer_id = %(id)s", id=offer) == 1
    assert await count(db, "offers", "status = 'open' AND offer_id = %(id)s", id=others) == 1
    assert await count(db, "outbox", "status = 'cancelled' AND collapse_key = 'offer:' || %(id)s::text", id=offer) == 1
    assert await count(db, "outbox", "status = 'due'") == 1
    with pytest.raises(MitraDeactivated):
        await mitras.go_online(mitra_id, NOW)


async def test_a_repeated_deactivation_still_names_the_sessions_that_live(mitras: Mitras, db: Postgres) -> None:
    """The first caller may have died before it ended them."""
    mitra_id = await add_mitra(db)
    living = await add_session(db, await add_customer(db), mitra_id, "closing")
    await mitras.deactivate(mitra_id, "op")
    again = await mitras.deactivate(mitra_id, "op")
    assert (again.session_ids, again.auth_session_ids, again.offer_ids) == ([living], [], [])


async def test_a_session_that_seeks_another_mitra_is_not_among_those_to_end(mitras: Mitras, db: Postgres) -> None:
    """Its customer must not lose the search with the mitra who is gone."""
    mitra_id, customer = await add_mitra(db), await add_customer(db)
    await add_session(db, customer, mitra_id, "rerouting")
    living = await add_session(db, customer, mitra_id, "extending")
    assert (await mitras.deactivate(mitra_id, "op")).session_ids == [living]


async def test_an_activated_mitra_may_go_online_but_is_not_online_yet(mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db, is_online=True)
    await mitras.deactivate(mitra_id, "op")
    status = await mitras.activate(mitra_id, "op")
    assert (status.is_active, status.is_online) == (True, False)
    assert (await mitras.go_online(mitra_id, NOW)).is_online


async def test_who_locked_out_whom_is_on_the_trail(mitras: Mitras, db: Postgres) -> None:
    mitra_id = await add_mitra(db)
    await mitras.deactivate(mitra_id, "ann")
    await mitras.activate(mitra_id, "bob")
    rows = await db.fetch_all("SELECT operator, action, subject, outcome FROM operator_actions ORDER BY action_id")
    assert [tuple(row) for row in rows] == [
        ("ann", "deactivate_mitra", mitra_id, "done"),
        ("bob", "activate_mitra", mitra_id, "done"),
    ]


async def test_nobody_is_online_after_going_online_and_deactivation_meet(mitras: Mitras, db: Postgres) -> None:
    for _ in range(10):
        mitra_id = await add_mitra(db)

        async def go_online(mitra_id: str = mitra_id) -> None:
            try:
                await mitras.go_online(mitra_id, NOW)
            except MitraDeactivated:
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_online)
            nursery.start_soon(mitras.deactivate, mitra_id, "op")
            nursery.start_soon(go_online)
        status = await mitras.load_status(mitra_id)
        assert (status.is_active, status.is_online) == (False, False)


# ---- lists


async def test_mitras_are_listed_by_presence_page_by_page(mitras: Mitras, db: Postgres) -> None:
    online = {await add_mitra(db, is_online=True) for _ in range(5)}
    offline = {await add_mitra(db) for _ in range(3)}
    locked_out = await add_mitra(db, is_online=True)
    await mitras.deactivate(locked_out, "op")
    pages: list[list[str]] = []
    after = None
    while page := await mitras.list(limit=4, after=after):
        pages.append([status.mitra_id for status in page])
        after = pages[-1][-1]
    assert [len(page) for page in pages] == [4, 4, 1]
    assert {mitra_id for page in pages for mitra_id in page} == online | offline | {locked_out}
    for presence, expected in (
        (MitraPresence.ONLINE, online),
        (MitraPresence.OFFLINE, offline),
        (MitraPresence.DEACTIVATED, {locked_out}),
    ):
        assert {status.mitra_id for status in await mitras.list(presence)} == expected
