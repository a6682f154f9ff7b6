from pathlib import Path

import psycopg
import pytest
import trio

from halo.errors import StoreUnavailable
from halo.store.migrations import SchemaMismatch, migrate
from halo.store.postgres import open_postgres

FIRST = "CREATE TABLE people (name text);\n-- several statements\nINSERT INTO people VALUES ('first; ''one''');"
SECOND = "ALTER TABLE people ADD COLUMN greeting text;\nUPDATE people SET greeting = 'hello ' || name;"


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    (tmp_path / "0001_people.sql").write_text(FIRST)
    return tmp_path


async def test_files_are_applied_in_order_and_once_with_data_between(empty_database_url: str, steps: Path) -> None:
    assert await migrate(empty_database_url, steps) == ["0001_people"]
    async with open_postgres(empty_database_url) as db:
        await db.execute("INSERT INTO people VALUES ('second')")
        (steps / "0002_greetings.sql").write_text(SECOND)
        assert await migrate(empty_database_url, steps) == ["0002_greetings"]
        assert await migrate(empty_database_url, steps) == []
        greetings = await db.fetch_all("SELECT greeting FROM people ORDER BY 1")
        assert [row.greeting for row in greetings] == ["hello first; 'one'", "hello second"]
        applied = await db.fetch_all("SELECT name, applied_at FROM schema_migrations ORDER BY name")
        assert [row.name for row in applied] == ["0001_people", "0002_greetings"]
        assert applied[0].applied_at <= applied[1].applied_at


async def test_several_nodes_that_start_at_once_apply_each_file_once(empty_database_url: str, steps: Path) -> None:
    (steps / "0002_greetings.sql").write_text(SECOND)
    applied: list[list[str]] = []

    async def start() -> None:
        applied.append(await migrate(empty_database_url, steps))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(start)
    assert sorted(applied) == [[]] * 5 + [["0001_people", "0002_greetings"]]


async def test_a_changed_file_is_refused(empty_database_url: str, steps: Path) -> None:
    await migrate(empty_database_url, steps)
    (steps / "0001_people.sql").write_text(FIRST + " ")
    with pytest.raises(SchemaMismatch, match="0001_people was changed"):
        await migrate(empty_database_url, steps)


async def test_a_database_of_a_newer_halo_is_refused(empty_database_url: str, steps: Path) -> None:
    newer = steps / "0002_greetings.sql"
    newer.write_text(SECOND)
    await migrate(empty_database_url, steps)
    newer.unlink()
    with pytest.raises(SchemaMismatch, match="0002_greetings, which this version of halo does not know"):
        await migrate(empty_database_url, steps)


async def test_a_file_that_slips_in_before_an_applied_one_is_refused(empty_database_url: str, steps: Path) -> None:
    (steps / "0003_later.sql").write_text("SELECT 1")
    await migrate(empty_database_url, steps)
    (steps / "0002_greetings.sql").write_text(SECOND)
    with pytest.raises(SchemaMismatch, match="0002_greetings is new"):
        await migrate(empty_database_url, steps)


async def test_a_file_that_fails_leaves_nothing_of_itself(empty_database_url: str, steps: Path) -> None:
    (steps / "0002_broken.sql").write_text("CREATE TABLE half (n int); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(empty_database_url, steps)
    async with open_postgres(empty_database_url) as db:
        assert await db.fetch_one("SELECT to_regclass('half') AS half") == (None,)
        assert [row.name for row in await db.fetch_all("SELECT name FROM schema_migrations")] == ["0001_people"]
    (steps / "0002_broken.sql").write_text("CREATE TABLE whole (n int)")
    assert await migrate(empty_database_url, steps) == ["0002_broken"]


@pytest.mark.parametrize("name", ["1_short.sql", "0002-dash.sql", "0001_again.sql"])
async def test_a_badly_named_file_is_refused_before_anything_is_done(
    empty_database_url: str, steps: Path, name: str
) -> None:
    (steps / name).write_text("SELECT 1")
    with pytest.raises(SchemaMismatch, match=name.removesuffix(".sql")):
        await migrate(empty_database_url, steps)
    async with open_postgres(empty_database_url) as db:
        assert await db.fetch_one("SELECT to_regclass('schema_migrations') AS it") == (None,)


async def test_a_migration_that_is_given_up_lets_the_next_node_work(empty_database_url: str, steps: Path) -> None:
    (steps / "0002_slow.sql").write_text("SELECT pg_sleep(0.5)")
    with trio.move_on_after(0.2) as scope:
        await migrate(empty_database_url, steps)
    assert scope.cancelled_caught
    with trio.fail_after(10):
        assert (await migrate(empty_database_url, steps))[-1] == "0002_slow"


async def test_a_database_that_is_away_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await migrate("postgresql://nobody@127.0.0.1:1/x")


async def test_the_packages_own_files_apply_to_an_empty_database(empty_database_url: str) -> None:
    assert (await migrate(empty_database_url))[0] == "0001_foundation"
    assert await migrate(empty_database_url) == []
