"""Housekeeping: what is older than a day and asked for by nobody goes, and nothing else."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from halo.clock import Moment
from halo.errors import StoreUnavailable
from halo.store import housekeeping as room
from halo.store.housekeeping import DEAD_PUSHES_KEPT_MS, KEPT_MS, keep_house
from halo.store.postgres import Postgres, open_postgres
from tests.store.rows import NOW, SetClock

OLD, YOUNG = NOW - KEPT_MS - 1000, NOW - KEPT_MS + 60_000


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


async def add_outbox(db: Postgres, status: str, at: Moment) -> None:
    await db.execute(
        """INSERT INTO outbox (kind, user_id, template, collapse_key, status, due_at, created_at)
           VALUES ('push', gen_random_uuid(), 't', %(status)s, %(status)s, at(%(at)s), at(%(at)s))""",
        {"status": status, "at": at},
    )


async def until_kept(db: Postgres, others: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Moment]]:
    """Run until every chore was done at least once; what the others were asked."""
    monkeypatch.setattr(room, "PERIOD_SECONDS", 0.02)
    asked: list[tuple[str, Moment]] = []
    last = trio.Event()

    def chore(name: str, fails: int) -> Callable[[Moment], Awaitable[int]]:
        left = fails

        async def delete(before: Moment) -> int:
            nonlocal left
            await trio.lowlevel.checkpoint()
            asked.append((name, before))
            if name == "last" and not left:
                last.set()
            if left:
                left -= 1
                raise StoreUnavailable
            return 3

        return delete

    chores = {name: chore(name, fails) for name, fails in {**others, "last": 1}.items()}
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_house, db, SetClock(), chores)
            await last.wait()
            nursery.cancel_scope.cancel()
    return asked


async def test_old_operations_go_and_young_ones_stay(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in (OLD, YOUNG):
        await db.execute("INSERT INTO operations (operation_id, at) VALUES (gen_random_uuid(), at(%(at)s))", {"at": at})
    await until_kept(db, {}, monkeypatch)
    assert [row.at for row in await db.fetch_all("SELECT at FROM operations")] == [YOUNG]


async def test_of_the_outbox_only_what_is_settled_goes(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still due, and what could not be delivered at all, an operator must be able to see."""
    for status in ("due", "sent", "cancelled", "expired", "dead"):
        await add_outbox(db, status, OLD)
    await add_outbox(db, "sent", YOUNG)
    await until_kept(db, {}, monkeypatch)
    rows = await db.fetch_all("SELECT status, created_at FROM outbox ORDER BY status")
    assert [(row.status, row.created_at) for row in rows] == [("dead", OLD), ("due", OLD), ("sent", YOUNG)]


async def test_dead_pushes_go_a_week_after_their_time_and_refunds_never(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or they would bury the refunds among the dead letters."""
    ancient, over, lately = (
        NOW - 10 * DEAD_PUSHES_KEPT_MS,
        NOW - DEAD_PUSHES_KEPT_MS - 1,
        NOW - DEAD_PUSHES_KEPT_MS + 60_000,
    )
    kinds = {
        "gone": ("push", "dead", ancient, over),
        "gone, and never had a time": ("push", "dead", over, None),
        "stays: its time was not over until lately": ("push", "dead", ancient, lately),
        "stays: not dead": ("push", "due", ancient, over),
        "stays: money": ("refund", "dead", ancient, None),
        "stays: money with a time": ("refund", "dead", ancient, over),
    }
    for key, (kind, status, created_at, expires_at) in kinds.items():
        await db.execute(
            """INSERT INTO outbox (kind, user_id, template, collapse_key, status, due_at, created_at, expires_at)
               VALUES (%(kind)s, gen_random_uuid(), 't', %(key)s, %(status)s, at(%(created_at)s), at(%(created_at)s), at(%(expires_at)s))""",
            {"kind": kind, "key": key, "status": status, "created_at": created_at, "expires_at": expires_at},
        )
    await until_kept(db, {}, monkeypatch)
    left = {row.collapse_key for row in await db.fetch_all("SELECT collapse_key FROM outbox")}
    assert left == {key for key in kinds if key.startswith("stays")}


async def test_a_chore_that_fails_is_tried_again_and_holds_up_no_other(
    db: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = await until_kept(db, {"first": 1, "second": 0}, monkeypatch)
    assert [name for name, _ in asked][:6] == ["first", "second", "last"] * 2
    assert {before for _, before in asked} == {NOW - KEPT_MS}
    assert any(
        "housekeeping_postponed" in record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING
    )
