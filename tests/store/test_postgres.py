import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import trio

from halo.errors import StoreUnavailable
from halo.store.pool import ACQUIRE_SECONDS
from halo.store.postgres import DEADLINE_SECONDS, Dedicated, Postgres, Transaction, open_postgres
from halo.store.queries import parse_query
from tests.store.postmaster import Postmaster, run_postmaster


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url, size=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def _postmaster() -> Iterator[Postmaster]:
    home = Path(tempfile.mkdtemp(prefix="halo-own-"))
    try:
        with run_postmaster(home) as running:
            yield running
    finally:
        shutil.rmtree(home)


@pytest.fixture
def postmaster(_postmaster: Postmaster) -> Postmaster:
    """Running, whatever the test before has left."""
    if not _postmaster.is_running:
        _postmaster.start()
    return _postmaster


async def one(db: Postgres | Dedicated) -> int:
    row = await db.fetch_one("SELECT 1 AS one")
    assert row is not None
    return int(row.one)


# ---- statements and connections


async def test_connections_are_made_when_needed_and_kept(db: Postgres) -> None:
    assert db.pool.connections_open == 0
    for _ in range(3):
        assert await one(db) == 1
    assert (db.pool.connections_open, db.pool.in_use, db.pool.statements) == (
        1,
        0,
        3 + 1,
    )  # one sets the transaction timeout


async def test_rows_a_row_and_counts(db: Postgres) -> None:
    query = parse_query("insert", "INSERT INTO live_config VALUES (%(key)s, %(value)s)")
    assert await db.execute(query, {"key": "a", "value": "1"}) == 1
    assert [row.key for row in await db.fetch_all("SELECT * FROM live_config")] == ["a"]
    assert await db.fetch_one("SELECT * FROM live_config WHERE key = 'b'") is None


async def test_an_sql_error_is_psycopgs_own_and_leaves_the_pool_clean(db: Postgres) -> None:
    for wrong in ("SELEC 1", "SELECT 1 / 0", "SELECT * FROM absent", "INSERT INTO live_config VALUES (NULL, NULL)"):
        with pytest.raises(psycopg.Error):
            await db.execute(wrong)
    assert await one(db) == 1
    assert (db.pool.connections_open, db.pool.in_use) == (1, 0)


async def test_a_statement_left_inside_a_transaction_costs_the_connection(db: Postgres) -> None:
    await db.execute("BEGIN")
    assert db.pool.connections_open == 0


async def test_a_cancelled_statement_gives_its_place_back(db: Postgres) -> None:
    for _ in range(5):  # more than there are places
        with trio.move_on_after(0.05):
            await db.execute("SELECT pg_sleep(30)")
    assert await one(db) == 1
    assert (db.pool.connections_open, db.pool.in_use, db.pool.waiting) == (1, 0, 0)


async def test_the_pool_never_has_more_than_its_size_and_never_leaks(db: Postgres) -> None:
    async def use(number: int) -> None:
        with trio.move_on_after(0.001 * (number % 7)):
            await db.fetch_all("SELECT pg_sleep(0.004)")
        assert db.pool.connections_open <= 2

    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(use, number)
    assert (db.pool.in_use, db.pool.waiting) == (0, 0)
    assert await one(db) == 1


async def test_who_waits_too_long_for_a_connection_is_refused(database_url: str) -> None:
    async with open_postgres(database_url, size=1, acquire_timeout_seconds=0.05) as db, trio.open_nursery() as nursery:
        nursery.start_soon(db.fetch_all, "SELECT pg_sleep(30)")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StoreUnavailable):
            await one(db)
        assert (db.pool.waiting, db.pool.acquire_failures) == (0, 1)
        nursery.cancel_scope.cancel()


async def test_the_queue_of_waiters_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halo.store.pool.WAITERS_MAX", 3)
    async with open_postgres(database_url, size=1) as db, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(db.fetch_all, "SELECT pg_sleep(30)")
        await trio.testing.wait_all_tasks_blocked()
        assert db.pool.waiting == 3
        started = trio.current_time()
        with pytest.raises(StoreUnavailable):
            await one(db)
        assert trio.current_time() - started < ACQUIRE_SECONDS / 2
        nursery.cancel_scope.cancel()


async def test_a_statement_beyond_the_deadline_is_refused_and_its_connection_closed(database_url: str) -> None:
    async with open_postgres(database_url, deadline_seconds=0.1) as db:
        with pytest.raises(StoreUnavailable):
            await db.execute("SELECT pg_sleep(30)")
        assert db.pool.connections_open == 0


async def test_a_connection_that_died_while_idle_is_replaced_without_anybody_noticing(
    db: Postgres, database_url: str
) -> None:
    row = await db.fetch_one("SELECT pg_backend_pid() AS pid")
    assert row is not None
    async with open_postgres(database_url) as other:
        await other.execute("SELECT pg_terminate_backend(%(pid)s, 2000)", {"pid": row.pid})
    assert await one(db) == 1
    assert db.pool.acquire_failures == 0


async def test_a_prepared_statement_survives_a_change_of_its_table(db: Postgres) -> None:
    query = parse_query("star", "SELECT * FROM live_config")
    await db.fetch_all(query)
    await db.execute("ALTER TABLE live_config ADD COLUMN more text")
    with pytest.raises(StoreUnavailable):
        await db.fetch_all(query)
    assert await db.fetch_all(query) == []


async def test_nothing_is_open_after_leaving_and_nothing_can_be_opened(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        assert await db.healthy()
    assert db.pool.connections_open == 0
    assert not await db.healthy()


async def test_a_server_that_is_away_is_refused_at_once_and_not_hammered() -> None:
    async with open_postgres("postgresql://nobody@127.0.0.1:1/x") as db:
        started = trio.current_time()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await one(db)
        assert 0.1 < trio.current_time() - started < DEADLINE_SECONDS
        assert not await db.healthy()


# ---- a connection of one's own


async def test_a_dedicated_connection_keeps_what_belongs_to_its_session(db: Postgres) -> None:
    async with db.dedicated() as mine, db.dedicated() as yours:
        take = "SELECT pg_try_advisory_lock(7) AS held"
        first, second = await mine.fetch_one(take), await yours.fetch_one(take)
        assert first is not None
        assert second is not None
        assert (first.held, second.held) == (True, False)
        assert db.pool.connections_open == 2
    assert db.pool.connections_open == 0


async def test_a_broken_dedicated_connection_stays_broken(db: Postgres) -> None:
    async with db.dedicated() as mine:
        row = await mine.fetch_one("SELECT pg_backend_pid() AS pid")
        assert row is not None
        await db.execute("SELECT pg_terminate_backend(%(pid)s, 2000)", {"pid": row.pid})
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await one(mine)


async def test_tasks_on_one_dedicated_connection_take_turns(db: Postgres) -> None:
    async with db.dedicated() as mine, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one, mine)


async def test_a_hot_statement_writes_whole_columns(db: Postgres) -> None:
    await db.execute("CREATE TABLE hot (id uuid, n bigint, note text, at timestamptz)")
    columns = "%(ids)s::uuid[], %(ns)s::bigint[], %(notes)s::text[], %(ats)s::timestamptz[]"
    query = parse_query("hot", f"INSERT INTO hot SELECT * FROM unnest({columns})")
    ids = [str(uuid4()) for _ in range(3)]
    notes = ["plain", 'quoted "\\{,}', "ünï 👋" * 2000]
    async with db.hot(query) as statement:
        written = await statement.execute(
            {"ids": ids, "ns": [1, -(2**63), 2**63 - 1], "notes": notes, "ats": [0, -1, 10**13]}
        )
        assert written == 3
        assert await statement.execute({"ids": [], "ns": [], "notes": [], "ats": []}) == 0
        with pytest.raises(psycopg.DataError):
            await statement.execute({"ids": ids[:1], "ns": [1], "notes": ["nul\0"], "ats": [0]})
        with pytest.raises(ValueError, match="hexadecimal"):
            await statement.execute({"ids": [ids[0][:-2]], "ns": [1], "notes": ["short"], "ats": [0]})
        assert await statement.execute({"ids": ids[:1], "ns": [5], "notes": ["still whole"], "ats": [0]}) == 1
    rows = await db.fetch_all("SELECT id, n, note, at FROM hot WHERE n <> 5 ORDER BY at")
    assert [tuple(row) for row in rows] == [
        (ids[1], -(2**63), notes[1], -1),
        (ids[0], 1, notes[0], 0),
        (ids[2], 2**63 - 1, notes[2], 10**13),
    ]


async def test_a_hot_statement_takes_only_columns_that_it_can_encode(db: Postgres) -> None:
    query = parse_query("odd", "SELECT * FROM unnest(%(flags)s::boolean[])")
    with pytest.raises(TypeError, match="flags"):
        async with db.hot(query):
            pass


# ---- a server that dies, hangs and returns


async def effect(tx: Transaction) -> None:
    await tx.execute("INSERT INTO outage VALUES (1)")


async def test_a_killed_server_is_found_again_when_it_returns(postmaster: Postmaster) -> None:
    async with open_postgres(postmaster.url) as db:
        await db.execute("CREATE TABLE IF NOT EXISTS operations (operation_id uuid PRIMARY KEY)")
        await db.execute("CREATE TABLE outage (n int)")
        await db.transact(effect, str(uuid4()))
        postmaster.send(signal.SIGKILL)
        with trio.fail_after(10):
            while await db.healthy():  # its orphaned processes answer until they have noticed
                pass
        refused = 0
        with trio.move_on_after(1.0):
            while True:
                with pytest.raises(StoreUnavailable):
                    await one(db)
                refused += 1
        assert refused >= 2
        assert (db.pool.in_use, db.pool.connections_open) == (0, 0)
        await trio.to_thread.run_sync(postmaster.start)
        with trio.fail_after(10):
            while not await db.healthy():
                pass
        await db.transact(effect, str(uuid4()))
        rows = await db.fetch_all("SELECT n FROM outage")
        assert len(rows) == 2
        await db.execute("DROP TABLE outage")


async def test_a_hung_server_is_refused_within_the_deadline_and_nobody_piles_up(postmaster: Postmaster) -> None:
    async with open_postgres(postmaster.url, size=3, deadline_seconds=0.6, acquire_timeout_seconds=0.3) as db:
        assert await db.healthy()
        slowest = 0.0

        async def ask() -> None:
            nonlocal slowest
            started = trio.current_time()
            with pytest.raises(StoreUnavailable):
                await one(db)
            slowest = max(slowest, trio.current_time() - started)

        postmaster.send_all(signal.SIGSTOP)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(ask)
            assert slowest < 10  # one after the other, 200 calls would take forty seconds
            assert (db.pool.in_use, db.pool.waiting, db.pool.connections_open) == (0, 0, 0)
        finally:
            postmaster.send_all(signal.SIGCONT)
        with trio.fail_after(10):
            while not await db.healthy():
                pass


async def test_a_server_that_shuts_down_is_unavailable_and_not_an_error(postmaster: Postmaster) -> None:
    async with open_postgres(postmaster.url) as db, trio.open_nursery() as nursery:
        refused: list[bool] = []

        async def sleep() -> None:
            with pytest.raises(StoreUnavailable):
                await db.fetch_all("SELECT pg_sleep(30)")
            refused.append(True)

        nursery.start_soon(sleep)
        with trio.fail_after(10):
            while not db.pool.connections_open:
                await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.to_thread.run_sync(postmaster.stop)
            while not refused:
                await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.to_thread.run_sync(postmaster.start)
        assert await db.healthy()
