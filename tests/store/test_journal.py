"""Group commit of messages: durable before anybody is told, one statement for many sessions, one session's trouble its own."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from halo.errors import StepOvertaken, StoreUnavailable
from halo.store import journal as room
from halo.store.hot import HotStatement
from halo.store.journal import Journal
from halo.store.postgres import Postgres, open_postgres
from tests.store.ground import Line, lines, open_journal, open_session_row
from tests.store.rows import add_customer, add_mitra, add_session, count, new_id

OWNER = new_id()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


async def a_session(db: Postgres) -> str:
    return (await open_session_row(db, OWNER)).session.session_id


async def seqs(db: Postgres, session_id: str) -> list[int]:
    rows = await db.fetch_all("SELECT seq FROM messages WHERE session_id = %(id)s ORDER BY seq", {"id": session_id})
    return [row.seq for row in rows]


async def append(journal: Journal, session_id: str, rows: Sequence[Line], told: dict[str, str], epoch: int = 1) -> None:
    try:
        await journal.append(session_id, epoch, rows)
        told[session_id] = "stored"
    except (StoreUnavailable, StepOvertaken) as fault:
        told[session_id] = type(fault).__name__


async def all_at_once(journal: Journal, batches: Mapping[str, tuple[int, Sequence[Line]]]) -> dict[str, str]:
    """Everybody appends in the same instant; who was told what."""
    told: dict[str, str] = {}
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for session_id, (epoch, rows) in batches.items():
                nursery.start_soon(append, journal, session_id, rows, told, epoch)
    return told


async def test_what_was_appended_is_there_word_by_word_when_append_returns(db: Postgres) -> None:
    session_id = await a_session(db)
    line = Line(1, "mitra", "ä-1", "Grüße 🎉\nzwei Zeilen, 'Zitat' \\ \"{}\"", 1_795_464_900_987)
    async with open_journal(db) as journal:
        await journal.append(session_id, 1, [line])
        row = await db.fetch_one(
            "SELECT seq, sender, id, body, at FROM messages WHERE session_id = %(id)s", {"id": session_id}
        )
    assert tuple(row or ()) == (1, "mitra", "ä-1", line.body, 1_795_464_900_987)


async def test_many_sessions_share_one_commit(db: Postgres) -> None:
    sessions = [await a_session(db) for _ in range(20)]
    async with open_journal(db) as journal:
        await journal.append(sessions[0], 1, lines(1, 1))  # the connection stands
        commits = journal.commits
        told = await all_at_once(journal, {id_: (1, lines(2 if id_ == sessions[0] else 1, 3)) for id_ in sessions})
        assert set(told.values()) == {"stored"}
        assert journal.commits == commits + 1
        assert journal.rows == 1 + 2 + 19 * 3
    assert [await seqs(db, id_) for id_ in sessions] == [[1, 2, 3]] * 20


async def test_a_stale_epoch_writes_nothing_and_fails_alone(db: Postgres) -> None:
    fine, stale, also_fine = [await a_session(db) for _ in range(3)]
    await db.execute("UPDATE chat_sessions SET epoch = 2 WHERE session_id = %(id)s", {"id": stale})
    async with open_journal(db) as journal:
        batches = {fine: (1, lines(1, 2)), stale: (1, lines(1, 2)), also_fine: (1, lines(1, 1))}
        assert await all_at_once(journal, batches) == {fine: "stored", stale: "StepOvertaken", also_fine: "stored"}
        assert await all_at_once(journal, {stale: (1, lines(1, 1))}) == {stale: "StepOvertaken"}
        assert await all_at_once(journal, {stale: (2, lines(1, 1))}) == {stale: "stored"}
        assert journal.rows == 4
    assert [await seqs(db, id_) for id_ in (fine, stale, also_fine)] == [[1, 2], [1], [1]]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("active", "stored"),
        ("closing", "stored"),
        ("pending_payment", "StepOvertaken"),
        ("extending", "StepOvertaken"),
        ("ended", "StepOvertaken"),
    ],
)
async def test_nothing_is_said_in_a_session_that_is_over_or_stands_still_however_late_it_comes(
    db: Postgres, status: str, told: str
) -> None:
    """The owner has stepped on while the rows were under way (C6)."""
    fine = await a_session(db)
    session_id = await add_session(db, await add_customer(db), await add_mitra(db), status)
    async with open_journal(db) as journal:
        batches = {fine: (1, lines(1, 2)), session_id: (1, lines(1, 2))}
        assert await all_at_once(journal, batches) == {fine: "stored", session_id: told}
    assert await seqs(db, session_id) == ([1, 2] if told == "stored" else [])


async def test_a_session_that_does_not_exist_writes_nothing(db: Postgres) -> None:
    fine, nowhere = await a_session(db), new_id()
    async with open_journal(db) as journal:
        told = await all_at_once(journal, {fine: (1, lines(1, 1)), nowhere: (1, lines(1, 1))})
    assert told == {fine: "stored", nowhere: "StepOvertaken"}
    assert await count(db, "messages") == 1


@pytest.mark.parametrize("clash", [Line(1, "mitra", "other"), Line(2, "customer", "customer-1")])
async def test_a_row_that_is_there_already_fails_its_session_alone(db: Postgres, clash: Line) -> None:
    """By its `seq` (another owner wrote it) or by its client id (C3)."""
    fine, taken = await a_session(db), await a_session(db)
    async with open_journal(db) as journal:
        await journal.append(taken, 1, lines(1, 1))
        told = await all_at_once(journal, {fine: (1, lines(1, 2)), taken: (1, [clash])})
        assert told == {fine: "stored", taken: "StepOvertaken"}
    assert [await seqs(db, fine), await seqs(db, taken)] == [[1, 2], [1]]


async def test_a_connection_that_is_killed_fails_those_who_wait_and_service_goes_on(db: Postgres) -> None:
    sessions = [await a_session(db) for _ in range(3)]
    async with open_journal(db) as journal:
        await journal.append(sessions[0], 1, lines(1, 1))
        killed = await db.fetch_one(
            """SELECT pg_terminate_backend(pid) AS done FROM pg_stat_activity
               WHERE datname = current_database() AND query LIKE 'INSERT INTO messages%%'"""
        )
        assert killed is not None
        told = await all_at_once(journal, {id_: (1, lines(2, 2)) for id_ in sessions})
        assert set(told.values()) == {"StoreUnavailable"}
        with trio.fail_after(10):
            while (await all_at_once(journal, {sessions[0]: (1, lines(2, 2))}))[sessions[0]] != "stored":
                pass
    assert await seqs(db, sessions[0]) == [1, 2]
    assert await seqs(db, sessions[1]) == []


async def test_a_large_burst_is_written_in_bounded_pieces_in_its_order(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROWS_MAX", 10)
    session_id = await a_session(db)
    async with open_journal(db) as journal:
        async with trio.open_nursery() as nursery:

            async def appended(first: int, last: int) -> None:
                await journal.append(session_id, 1, lines(first, last))

            for first in range(1, 40, 4):
                nursery.start_soon(appended, first, first + 3)
                await wait_all_tasks_blocked(0) if first == 1 else await trio.lowlevel.checkpoint()
        assert journal.commits >= 5
        assert journal.rows == 40
    assert await seqs(db, session_id) == list(range(1, 41))


async def test_one_batch_larger_than_a_piece_is_written_whole(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROWS_MAX", 10)
    session_id = await a_session(db)
    async with open_journal(db) as journal:
        await journal.append(session_id, 1, lines(1, 25))
        assert journal.commits == 1
    assert len(await seqs(db, session_id)) == 25


async def test_more_than_may_wait_is_refused_at_once(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WAITING_MAX", 5)
    session_id = await a_session(db)
    journal = Journal(db)  # nobody serves: everything waits
    told: dict[str, str] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, journal, session_id, lines(1, 4), told)
        await wait_all_tasks_blocked()
        with pytest.raises(StoreUnavailable):
            await journal.append(session_id, 1, lines(5, 6))
        nursery.start_soon(journal.serve)
        with trio.fail_after(10):
            while not told:
                await trio.sleep(0.01)
        await journal.append(session_id, 1, lines(5, 6))  # and there is room again
        nursery.cancel_scope.cancel()
    assert await seqs(db, session_id) == [1, 2, 3, 4, 5, 6]


async def test_while_postgres_cannot_be_reached_everybody_is_told(database_url: str) -> None:
    nowhere = database_url.replace("host=", "host=%2Fnowhere")
    async with open_postgres(nowhere, deadline_seconds=0.5) as db, open_journal(db) as journal:
        told = await all_at_once(journal, {new_id(): (1, lines(1, 1)) for _ in range(3)})
        assert set(told.values()) == {"StoreUnavailable"}
        again = await all_at_once(journal, {"again": (1, lines(1, 1))})
        assert again == {"again": "StoreUnavailable"}


async def test_after_a_fault_of_our_own_nobody_is_left_waiting(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's supervisor runs `serve` again; the actors of that batch must not hang until somebody restarts halo."""

    class Broken(Exception):
        pass

    async def execute(self: HotStatement, columns: Mapping[str, Sequence[Any]]) -> int:
        await trio.lowlevel.checkpoint()
        raise Broken

    session_id = await a_session(db)
    told: dict[str, str] = {}
    journal = Journal(db)
    with monkeypatch.context() as patch:
        patch.setattr(HotStatement, "execute", execute)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append, journal, session_id, lines(1, 1), told)
                with pytest.raises(Broken):
                    await journal.serve()
    assert told == {session_id: "StoreUnavailable"}


async def test_a_shutdown_finishes_the_batch_in_hand(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id, under_way = await a_session(db), trio.Event()
    told: dict[str, str] = {}
    executed = HotStatement.execute

    async def execute(self: HotStatement, columns: Mapping[str, Sequence[Any]]) -> int:
        under_way.set()
        await trio.sleep(0.05)
        return await executed(self, columns)

    monkeypatch.setattr(HotStatement, "execute", execute)
    async with trio.open_nursery() as appenders:
        async with open_journal(db) as journal:
            appenders.start_soon(append, journal, session_id, lines(1, 1), told)
            await under_way.wait()
    assert told == {session_id: "stored"}
    assert await seqs(db, session_id) == [1]
