from collections.abc import AsyncIterator
from uuid import uuid4

import psycopg
import pytest
import trio

from halo.store.connection import TrioConnection
from halo.store.dial import dial
from halo.store.queries import parse_query


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[TrioConnection]:
    opened = await dial(database_url)
    yield opened
    opened.close_now()


async def test_rows_have_their_columns_as_attributes(connection: TrioConnection) -> None:
    result = await connection.run("SELECT 1 AS one, 'two' AS two, NULL AS nothing UNION ALL SELECT 3, 'four', NULL")
    assert [(row.one, row.two, row.nothing) for row in result.rows] == [(1, "two", None), (3, "four", None)]
    assert result.touched == 2


async def test_a_named_query_is_prepared_once_and_reads_the_same_every_time(connection: TrioConnection) -> None:
    query = parse_query("twice", "SELECT %(n)s::bigint * 2 AS twice, now() AS now")
    for number in (1, 2, 3_000_000_000):
        assert (await connection.run(query, {"n": number})).rows[0].twice == 2 * number
    prepared = (await connection.run("SELECT count(*) AS n FROM pg_prepared_statements")).rows[0].n
    assert prepared == 1


async def test_moments_are_milliseconds_and_ids_are_strings_in_both_formats(connection: TrioConnection) -> None:
    session_id = str(uuid4())
    sql = f"SELECT at(1790000000123) AS at, '{session_id}'::uuid AS id, ARRAY[at(5)] AS ats"
    binary = (await connection.run(sql)).rows[0]
    text = await (await connection.execute(sql)).fetchone()
    assert tuple(binary) == (1_790_000_000_123, session_id, [5]) == text


async def test_an_error_leaves_the_connection_whole(connection: TrioConnection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.run("SELECT 1 / 0")
    with pytest.raises(psycopg.errors.SyntaxError):
        await connection.run(parse_query("broken", "SELEC 1"))
    assert connection.is_clean
    assert (await connection.run("SELECT 1 AS one")).rows[0].one == 1


async def test_the_first_error_of_several_statements_is_raised_and_undoes_them_all(connection: TrioConnection) -> None:
    await connection.run("CREATE TABLE kept (n int)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.run_all(
            [("INSERT INTO kept VALUES (1)", {}), ("SELECT 1 / 0", {}), ("INSERT INTO kept VALUES (2)", {})]
        )
    assert connection.is_clean
    assert (await connection.run("SELECT count(*) AS n FROM kept")).rows[0].n == 0


async def test_several_statements_larger_than_every_buffer_do_not_lock_both_sides(connection: TrioConnection) -> None:
    big = "x" * 500_000
    results = await connection.run_all([("SELECT %(text)s::text AS text", {"text": big})] * 20)
    assert [len(result.rows[0].text) for result in results] == [500_000] * 20


async def test_a_cancelled_query_closes_its_connection_at_once(connection: TrioConnection) -> None:
    started = trio.current_time()
    with trio.move_on_after(0.1) as scope:
        await connection.run("SELECT pg_sleep(30)")
    assert scope.cancelled_caught
    assert trio.current_time() - started < 10  # of thirty
    assert connection.closed
    with pytest.raises(psycopg.OperationalError):
        await connection.run("SELECT 1")


async def test_closing_wakes_the_task_that_waits_for_an_answer(connection: TrioConnection) -> None:
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(psycopg.OperationalError):
                await connection.run("SELECT pg_sleep(30)")

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        connection.close_now()


async def test_the_server_ends_a_statement_that_takes_too_long(database_url: str) -> None:
    limits = {
        "statement_timeout": 50,
        "lock_timeout": 50,
        "idle_in_transaction_session_timeout": 50,
        "transaction_timeout": 0,
    }
    connection = await dial(database_url, limits)
    with pytest.raises(psycopg.errors.QueryCanceled):
        await connection.run("SELECT pg_sleep(30)")
    assert connection.is_clean
    connection.close_now()


async def test_every_limit_is_set_on_the_server(connection: TrioConnection) -> None:
    names = "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"
    shown = [(await connection.run(f"SHOW {name}")).rows[0][0] for name in names]
    assert shown == ["10s", "5s", "10s", "30s"]
    assert (await connection.run("SHOW application_name")).rows[0][0] == "halo"


async def test_the_server_looks_after_a_client_that_vanished_as_well(connection: TrioConnection) -> None:
    """Over a Unix socket it shows 0, for there is nothing to look after; what it was told stands in `reset_val`."""
    sql = "SELECT name, reset_val, source FROM pg_settings WHERE name LIKE 'tcp_%'"
    told = {row.name: (row.reset_val, row.source) for row in (await connection.run(sql)).rows}
    assert told == {
        "tcp_keepalives_idle": ("10", "client"),
        "tcp_keepalives_interval": ("5", "client"),
        "tcp_keepalives_count": ("3", "client"),
        "tcp_user_timeout": ("10000", "client"),
    }


async def test_a_warning_of_the_server_is_logged_without_its_details(
    connection: TrioConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await connection.control(b"DO $$ BEGIN RAISE WARNING 'odd' USING DETAIL = 'secret'; RAISE NOTICE 'quiet'; END $$")
    assert [record.name for record in caplog.records] == ["halo.store.connection"]
    assert "odd" in caplog.text
    assert "secret" not in caplog.text


async def test_notifications_arrive_and_waiting_for_them_may_time_out(connection: TrioConnection) -> None:
    await connection.run("LISTEN news")
    await connection.run("SELECT pg_notify('news', 'hello')")
    assert [notify.payload async for notify in connection.notifies(timeout=0.05)] == ["hello"]
    assert connection.is_clean


async def test_what_psycopg_itself_offers_works_over_trio(connection: TrioConnection) -> None:
    await connection.execute("CREATE TABLE copied (n int)")
    cursor = connection.cursor()
    async with cursor.copy("COPY copied FROM STDIN") as copy:
        for number in range(1000):
            await copy.write_row((number,))
    assert (await connection.run("SELECT count(*) AS n FROM copied")).rows[0].n == 1000


async def test_a_silent_connection_that_the_server_has_left_is_known(
    connection: TrioConnection, database_url: str
) -> None:
    assert connection.is_silent
    other = await dial(database_url)
    await other.run("SELECT pg_terminate_backend(%(pid)s, 2000)", {"pid": connection.pgconn.backend_pid})
    other.close_now()
    assert not connection.is_silent


async def test_a_host_without_an_address_and_a_closed_port_are_operational_errors() -> None:
    for url in (
        "postgresql://nobody@host.invalid/x",
        "postgresql://nobody@127.0.0.1:1/x",
        "postgresql:///x?host=/nowhere",
    ):
        with pytest.raises(psycopg.OperationalError):
            await dial(url)


async def test_the_second_address_is_tried_when_the_first_is_away(database_url: str) -> None:
    there = psycopg.conninfo.conninfo_to_dict(database_url)
    both = {**there, "host": f"/nowhere,{there['host']}", "port": f"5432,{there.get('port') or 5432}"}
    connection = await dial(psycopg.conninfo.make_conninfo("", **both))
    assert connection.is_clean
    connection.close_now()


async def test_a_cancelled_connect_leaves_no_socket(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A server that accepts and says nothing."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with trio.move_on_after(0.1) as scope:
        await dial(f"postgresql://nobody@127.0.0.1:{port}/x")
    assert scope.cancelled_caught
    accepted = await listeners[0].accept()
    with trio.fail_after(10):
        while await accepted.receive_some():  # its hello, then the end
            pass
    await accepted.aclose()
    await listeners[0].aclose()
