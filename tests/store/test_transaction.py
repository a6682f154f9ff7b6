from collections.abc import AsyncIterator
from uuid import uuid4

import psycopg
import pytest
import trio

from halo.errors import StepOvertaken, StoreUnavailable
from halo.store.postgres import CommitUnknown, OperationRepeated, Postgres, Transaction, open_postgres
from tests.store.cutting_proxy import CuttingProxy, Fault, open_cutting_proxy

COUNT = "SELECT count(*) AS n FROM effects"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as opened:
        await opened.execute("CREATE TABLE effects (effect_id bigint GENERATED ALWAYS AS IDENTITY, note text)")
        yield opened


@pytest.fixture
async def proxy(db: Postgres, database_url: str) -> AsyncIterator[CuttingProxy]:
    async with open_cutting_proxy(database_url) as opened:
        yield opened


@pytest.fixture
async def cut(proxy: CuttingProxy) -> AsyncIterator[Postgres]:
    """The same database, seen through the proxy."""
    async with open_postgres(proxy.url) as opened:
        yield opened


async def effects(db: Postgres) -> int:
    row = await db.fetch_one(COUNT)
    assert row is not None
    return int(row.n)


class Work:
    """One effect, and how often it was tried."""

    def __init__(self) -> None:
        self.runs = 0

    async def __call__(self, tx: Transaction) -> str:
        self.runs += 1
        note = f"run {self.runs}"
        assert await tx.execute("INSERT INTO effects (note) VALUES (%(note)s)", {"note": note}) == 1
        return note


async def test_what_the_work_returns_is_returned_and_its_effect_is_there(db: Postgres) -> None:
    assert await db.transact(Work(), str(uuid4())) == "run 1"
    assert await effects(db) == 1


async def test_the_operation_is_recorded_even_when_the_work_writes_nothing(db: Postgres) -> None:
    async def idle(tx: Transaction) -> None:
        assert isinstance(tx, Transaction)

    operation_id = str(uuid4())
    await db.transact(idle, operation_id)
    row = await db.fetch_one("SELECT count(*) AS n FROM operations WHERE operation_id = %(id)s", {"id": operation_id})
    assert row is not None
    assert row.n == 1


async def test_an_operation_of_an_earlier_call_is_refused_and_writes_nothing(db: Postgres) -> None:
    operation_id = str(uuid4())
    await db.transact(Work(), operation_id)
    with pytest.raises(OperationRepeated):
        await db.transact(Work(), operation_id)
    assert await effects(db) == 1


async def test_what_the_work_raises_undoes_everything(db: Postgres) -> None:
    async def overtaken(tx: Transaction) -> None:
        await Work()(tx)
        raise StepOvertaken("chat_sessions")

    operation_id = str(uuid4())
    with pytest.raises(StepOvertaken):
        await db.transact(overtaken, operation_id)
    assert await effects(db) == 0
    assert await db.transact(Work(), operation_id) == "run 1"
    assert db.pool.in_use == 0
    assert db.pool.connections_open == 1


async def test_a_constraint_violation_is_psycopgs_own_and_is_not_tried_again(db: Postgres) -> None:
    async def twice(tx: Transaction) -> None:
        for _ in range(2):
            await tx.execute("INSERT INTO customers (customer_id) VALUES ('00000000-0000-0000-0000-000000000001')")

    with pytest.raises(psycopg.errors.UniqueViolation):
        await db.transact(twice, str(uuid4()))
    assert db.retries == 0
    assert await db.healthy()


async def test_a_swallowed_error_does_not_pass_for_a_commit(db: Postgres) -> None:
    async def careless(tx: Transaction) -> None:
        await Work()(tx)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await tx.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await db.transact(careless, str(uuid4()))
    assert await effects(db) == 0


async def test_several_statements_give_their_row_counts_before_the_commit(db: Postgres) -> None:
    async def guarded(tx: Transaction) -> None:
        insert = "INSERT INTO effects (note) VALUES (%(note)s)"
        first, guard = await tx.execute_all(
            [(insert, {"note": "one"}), ("UPDATE effects SET note = 'x' WHERE note = 'absent'", {})]
        )
        assert first.touched == 1
        if guard.touched != 1:
            raise StepOvertaken("effects")

    with pytest.raises(StepOvertaken):
        await db.transact(guarded, str(uuid4()))
    assert await effects(db) == 0


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.ANSWER_LOST])
async def test_a_connection_cut_during_commit_has_one_effect(
    db: Postgres, proxy: CuttingProxy, cut: Postgres, fault: Fault
) -> None:
    proxy.faults = [fault]
    work = Work()
    answer = await cut.transact(work, str(uuid4()))
    assert await effects(db) == 1
    assert cut.unknown_commits == 1
    # Lost on the way: done again, and the second run's answer counts. Done but unanswered: the first run's answer is kept.
    assert (work.runs, answer) == ((2, "run 2") if fault is Fault.LOST else (1, "run 1"))


async def test_every_order_of_three_cuts_has_one_effect(db: Postgres, proxy: CuttingProxy, cut: Postgres) -> None:
    """A COMMIT that was done ends the retries, so what is planned after it never comes."""
    orders = [[a, b, c] for a in Fault for b in Fault for c in Fault if Fault.ANSWER_LATE not in {a, b, c}]
    for number, order in enumerate(orders, 1):
        proxy.faults = list(order)
        work = Work()
        answer = await cut.transact(work, str(uuid4()))
        assert await effects(db) == number, order
        assert answer == f"run {work.runs}", order
    assert cut.pool.in_use == 0


async def test_without_an_operation_id_a_cut_commit_is_not_repeated(
    db: Postgres, proxy: CuttingProxy, cut: Postgres
) -> None:
    for fault, there in ((Fault.LOST, 0), (Fault.ANSWER_LOST, 1)):
        proxy.faults = [fault]
        work = Work()
        with pytest.raises(CommitUnknown):
            await cut.transact(work)
        assert (work.runs, await effects(db)) == (1, there)


async def test_a_cancellation_during_commit_waits_for_the_outcome(
    db: Postgres, proxy: CuttingProxy, cut: Postgres
) -> None:
    proxy.faults = [Fault.ANSWER_LATE]
    answers: list[str] = []
    async with trio.open_nursery() as nursery:

        async def transact() -> None:
            answers.append(await cut.transact(Work(), str(uuid4())))

        nursery.start_soon(transact)
        await proxy.committing.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        proxy.release.set()
    assert answers == ["run 1"]
    assert await effects(db) == 1


async def test_a_commit_that_is_never_answered_is_asked_about_on_another_connection(
    db: Postgres, proxy: CuttingProxy, cut: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halo.store.postgres.COMMIT_SECONDS", 1.0)
    proxy.faults = [Fault.ANSWER_LATE]
    with pytest.raises(CommitUnknown):
        await cut.transact(Work(), operation_id := str(uuid4()))
    with pytest.raises(OperationRepeated):
        await cut.transact(Work(), operation_id)
    assert await effects(db) == 1
    assert cut.pool.in_use == 0


async def test_a_cancellation_before_commit_has_no_effect_and_closes_the_connection(db: Postgres) -> None:
    async def slow(tx: Transaction) -> None:
        await Work()(tx)
        await tx.execute("SELECT pg_sleep(30)")

    with trio.move_on_after(0.1) as scope:
        await db.transact(slow, str(uuid4()))
    assert scope.cancelled_caught
    assert db.pool.connections_open == 0
    assert await effects(db) == 0


async def test_a_deadlock_is_tried_again_until_both_are_done(db: Postgres) -> None:
    await db.execute("INSERT INTO effects (note) VALUES ('a'), ('b')")
    both_hold_one = [trio.Event(), trio.Event()]

    async def cross(mine: int) -> None:
        notes = ("a", "b") if mine == 0 else ("b", "a")

        async def work(tx: Transaction) -> None:
            await tx.execute("UPDATE effects SET note = note WHERE note = %(note)s", {"note": notes[0]})
            both_hold_one[mine].set()
            await both_hold_one[1 - mine].wait()
            await tx.execute("UPDATE effects SET note = note WHERE note = %(note)s", {"note": notes[1]})

        await db.transact(work, str(uuid4()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cross, 0)
        nursery.start_soon(cross, 1)
    assert db.retries >= 1


async def test_a_server_process_that_is_ended_in_the_middle_is_survived(db: Postgres) -> None:
    ended = 0

    async def ending(tx: Transaction) -> None:
        nonlocal ended
        await Work()(tx)
        if not ended:
            ended += 1
            row = await tx.fetch_one("SELECT pg_backend_pid() AS pid")
            assert row is not None
            await db.fetch_one("SELECT pg_terminate_backend(%(pid)s, 2000)", {"pid": row.pid})
            await tx.execute("SELECT 1")

    await db.transact(ending, str(uuid4()))
    assert (await effects(db), db.retries) == (1, 1)


async def test_work_that_outlasts_the_deadline_is_undone_and_refused(database_url: str, db: Postgres) -> None:
    async with open_postgres(database_url, deadline_seconds=0.2) as hasty:

        async def slow(tx: Transaction) -> None:
            await Work()(tx)
            await tx.execute("SELECT pg_sleep(30)")

        with pytest.raises(StoreUnavailable) as refused:
            await hasty.transact(slow, str(uuid4()))
        assert not isinstance(refused.value, CommitUnknown)
    assert await effects(db) == 0
