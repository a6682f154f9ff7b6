"""The mirror held against Postgres on both real stores: who is found, who is not, and what mends it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from halo.clock import SystemClock
from halo.store.mirror import Mirror
from halo.store.postgres import Postgres, open_postgres
from halo.store.valkey import open_valkey
from halo.store.watched_mirror import WatchedMirror
from tests.store.rows import add_mitra, new_id


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
async def mirror(db: Postgres, valkey_url: str) -> AsyncIterator[WatchedMirror]:
    async with open_valkey(valkey_url, "") as valkey, trio.open_nursery() as nursery:
        real = Mirror(valkey, db, SystemClock(), 90_000)
        nursery.start_soon(real.serve)
        with trio.fail_after(10):
            while not real.trusted:
                await trio.sleep(0.01)
        yield WatchedMirror(db, real)
        nursery.cancel_scope.cancel()


async def test_a_capacity_that_the_mirror_has_wrong_is_found_and_written_anew(
    db: Postgres, mirror: WatchedMirror
) -> None:
    right, wrong = await add_mitra(db, is_online=True), await add_mitra(db, is_online=True)
    await mirror.refresh_capacities([right, wrong])
    assert await mirror.list_wrong_capacities() == []
    real = mirror._mirror
    await real._valkey.call(("SET", real.keys.capacity(wrong), 3))
    assert await mirror.list_wrong_capacities() == [wrong]
    assert await mirror.list_wrong_among([right, wrong]) == [wrong]
    await mirror.refresh_capacities([wrong])
    assert await mirror.list_wrong_capacities() == []


async def test_nothing_is_found_of_nobody(mirror: WatchedMirror) -> None:
    assert await mirror.list_wrong_capacities() == []
    assert await mirror.list_wrong_among([]) == []


@asynccontextmanager
async def of_four(db: Postgres, mirror: WatchedMirror) -> AsyncIterator[tuple[Mirror, dict[str, str]]]:
    """The mirror, and a mitra of each standing as both sides have it."""
    mitras = {
        "online": await add_mitra(db, is_online=True),
        "offline": await add_mitra(db),
        "deactivated": await add_mitra(db),
        "unknown": new_id(),
    }
    await db.execute("UPDATE mitras SET is_active = false WHERE mitra_id = %(id)s::uuid", {"id": mitras["deactivated"]})
    await mirror.reseed()
    assert await mirror.list_wrong_standings() == []
    yield mirror._mirror, mitras


@pytest.mark.parametrize(
    ("who", "command", "key"),
    [
        ("online", "SREM", "online"),
        ("online", "SADD", "deactivated"),
        ("offline", "SADD", "online"),
        ("deactivated", "SADD", "online"),
        ("deactivated", "SREM", "deactivated"),
        ("unknown", "SADD", "online"),
    ],
)
async def test_whoever_the_mirror_has_otherwise_than_postgres_is_found_and_it_is_built_anew(
    db: Postgres,
    mirror: WatchedMirror,
    who: str,
    command: str,
    key: str,
) -> None:
    async with of_four(db, mirror) as (real, mitras):
        await real._valkey.call((command, getattr(real.keys, key), mitras[who]))
        assert await mirror.list_wrong_standings() == [mitras[who]]
        assert await mirror.list_wrong_standings_among(list(mitras.values())) == [mitras[who]]
        await mirror.reseed()
        assert await mirror.list_wrong_standings() == []


async def test_who_changes_between_two_looks_is_wrong_in_the_first_only(db: Postgres, mirror: WatchedMirror) -> None:
    """Postgres has committed it and the mirror is about to hear of it: the order of every change."""
    async with of_four(db, mirror) as (real, mitras):
        mitra = mitras["online"]
        await db.execute("UPDATE mitras SET is_online = false WHERE mitra_id = %(id)s::uuid", {"id": mitra})
        assert await mirror.list_wrong_standings() == [mitra]
        await real.went_offline(mitra)
        assert await mirror.list_wrong_standings_among([mitra]) == []


async def test_everybody_is_compared_however_many_they_are(
    db: Postgres,
    mirror: WatchedMirror,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("halo.store.watched_mirror.MITRAS_AT_ONCE", 2)
    mitras = [await add_mitra(db, is_online=True) for _ in range(5)]
    await mirror.reseed()
    real = mirror._mirror
    for mitra_id in mitras:
        await real._valkey.call(("SREM", real.keys.online, mitra_id))
    assert sorted(await mirror.list_wrong_standings()) == sorted(mitras)
    assert sorted(await mirror.list_wrong_standings_among(mitras)) == sorted(mitras)


async def test_while_the_mirror_is_not_believed_nobody_is_found_in_it(db: Postgres, mirror: WatchedMirror) -> None:
    async with of_four(db, mirror) as (real, mitras):
        await real._valkey.call(("SREM", real.keys.online, mitras["online"]))
        real._seeded = None
        assert await mirror.list_wrong_standings() == []
        assert await mirror.list_wrong_standings_among(list(mitras.values())) == []
