"""The lease of a node: a lock that dies with its connection, a beat that says until when clocks were kept, a clock that agrees."""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from halo.clock import SystemClock
from halo.errors import StoreUnavailable
from halo.store import nodes as room
from halo.store.nodes import LOCK_CLASS, ClockSkewed, NodeLease
from halo.store.postgres import Postgres, open_postgres
from tests.store.ground import find_holder, only, open_node, open_session_row
from tests.store.rows import count


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@dataclass
class Skewed:
    """The system's clock, some way off."""

    by_ms: int = 0

    def now(self) -> int:
        return SystemClock().now() + self.by_ms


async def until(db: Postgres, sql: str, **values: Any) -> None:
    with trio.fail_after(10):
        while not (await db.fetch_all(sql, values)):
            await trio.sleep(0.02)


async def test_a_node_that_serves_holds_its_lock_and_keeps_clocks(db: Postgres) -> None:
    async with open_node(db) as lease:
        assert await find_holder(db, lease) is not None
        assert lease.keeps_clocks()
        assert abs(lease.skew_ms) < 1000
    assert await find_holder(db, lease) is None


async def test_before_its_first_beat_it_keeps_no_clock(db: Postgres) -> None:
    lease = NodeLease(db, SystemClock())
    await lease.open()
    assert not lease.keeps_clocks()


async def test_the_beat_moves_on(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.01)
    async with open_node(db) as lease:
        first = (await only(db, "SELECT alive_at FROM nodes")).alive_at
        await until(db, "SELECT 1 FROM nodes WHERE alive_at > at(%(first)s) + interval '50 ms'", first=first)
        assert lease.keeps_clocks()


async def test_two_nodes_have_two_locks(db: Postgres) -> None:
    async with open_node(db) as one, open_node(db) as other:
        assert await find_holder(db, one) != await find_holder(db, other)


async def test_a_connection_that_is_killed_frees_the_lock_at_once_and_it_is_taken_again(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.01)
    async with open_node(db) as lease:
        before = await find_holder(db, lease)
        await db.fetch_one("SELECT pg_terminate_backend(%(pid)s)", {"pid": before})
        with trio.fail_after(10):
            while await find_holder(db, lease) in {before, None}:
                await trio.sleep(0.02)
        assert lease.keeps_clocks()  # a gap of a fraction of a second is none


async def test_a_lock_that_is_had_again_is_told_before_the_next_beat_however_short_it_was_gone(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node may have taken sessions meanwhile, and no gap tells of that."""
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.01)
    gaps: list[tuple[int, int]] = []
    told: list[bool] = []
    lease = NodeLease(db, SystemClock())
    await lease.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.serve, lambda *gap: gaps.append(gap), lambda: False, lambda: told.append(True))
        assert told == []
        await db.fetch_one("SELECT pg_terminate_backend(%(pid)s)", {"pid": await find_holder(db, lease)})
        with trio.fail_after(10):
            while not told:
                await trio.sleep(0.01)
        assert await find_holder(db, lease) is not None
        nursery.cancel_scope.cancel()
    assert told == [True]


async def test_a_node_that_dies_is_newly_dead_once(db: Postgres) -> None:
    async with open_node(db) as me:
        assert await me.list_newly_dead() == []
        async with open_node(db) as other:
            assert await me.list_newly_dead() == []
        assert await me.list_newly_dead() == [other.node_id]
        assert await me.list_newly_dead() == []
        third = NodeLease(db, SystemClock())
        await third.open()
        assert await me.list_newly_dead() == [third.node_id]
        async with trio.open_nursery() as nursery:
            await nursery.start(third.serve, lambda *_: None, lambda: False, lambda: None)
            assert await me.list_newly_dead() == []
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while await find_holder(db, third) is not None:
                await trio.sleep(0.005)
        assert await me.list_newly_dead() == [third.node_id]


async def test_a_gap_is_told_once_and_as_long_as_it_was(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GAP_MS", 1_000)
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(room, "RECONNECT_SECONDS", 1.2)
    gaps: list[tuple[int, int]] = []
    lease = NodeLease(db, SystemClock())
    await lease.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.serve, lambda since, until: gaps.append((since, until)), lambda: False, lambda: None)
        await trio.sleep(0.1)
        assert gaps == []
        await db.fetch_one("SELECT pg_terminate_backend(%(pid)s)", {"pid": await find_holder(db, lease)})
        with trio.fail_after(10):
            while lease.keeps_clocks():
                await trio.sleep(0.01)
            while not gaps:
                await trio.sleep(0.01)
        assert lease.keeps_clocks()
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert len(gaps) == 1
    [(since, until)] = gaps
    assert 1_200 <= until - since < 60_000


async def test_the_credit_is_told_before_clocks_are_kept_again(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a deadline could slip through between the two (T3)."""
    monkeypatch.setattr(room, "GAP_MS", 200)
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.4)  # every beat comes after a gap
    kept: list[bool] = []
    lease = NodeLease(db, SystemClock())
    await lease.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.serve, lambda *_: kept.append(lease.keeps_clocks()), lambda: False, lambda: None)
        with trio.fail_after(10):
            while len(kept) < 2:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert set(kept) == {False}


async def test_a_gap_stands_in_the_row_until_all_of_it_is_written_down(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed in between leaves the whole of it to the next."""
    monkeypatch.setattr(room, "GAP_MS", 300)
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(room, "RECONNECT_SECONDS", 0.6)
    gaps: list[tuple[int, int]] = []
    owed = True
    lease = NodeLease(db, SystemClock())
    await lease.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.serve, lambda since, until: gaps.append((since, until)), lambda: owed, lambda: None)
        await db.fetch_one("SELECT pg_terminate_backend(%(pid)s)", {"pid": await find_holder(db, lease)})
        await until(db, "SELECT 1 FROM nodes WHERE gap_since IS NOT NULL")
        first = await only(db, "SELECT gap_since, alive_at FROM nodes")
        await until(db, "SELECT 1 FROM nodes WHERE alive_at > at(%(at)s) + interval '50 ms'", at=first.alive_at)
        again = await only(db, "SELECT gap_since FROM nodes")
        assert again.gap_since == first.gap_since
        assert abs(first.gap_since - gaps[0][0]) < 1_000
        owed = False
        await until(db, "SELECT 1 FROM nodes WHERE gap_since IS NULL")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("by_ms", [60_000, -60_000])
async def test_a_clock_that_was_set_or_a_machine_that_slept_is_a_gap(
    db: Postgres, monkeypatch: pytest.MonkeyPatch, claims_errors: list[logging.LogRecord], by_ms: int
) -> None:
    """Forward, as after a sleep, it counts whole; set back while nobody beats, the other clock still counts."""
    monkeypatch.setattr(room, "GAP_MS", 300)
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.6 if by_ms < 0 else 0.05)
    gaps: list[tuple[int, int]] = []
    clock = Skewed()
    lease = NodeLease(db, clock)
    await lease.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.serve, lambda since, until: gaps.append((since, until)), lambda: False, lambda: None)
        assert lease.keeps_clocks()
        clock.by_ms = by_ms
        if by_ms > 0:
            assert not lease.keeps_clocks()
        with trio.fail_after(10):
            while not gaps:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    since, until_ = gaps[0]
    assert until_ - since >= (60_000 if by_ms > 0 else 590)
    assert until_ - since < 120_000
    assert len(claims_errors) == 1  # and the skew is an alarm


async def test_a_lock_of_ours_that_a_dead_connection_holds_is_freed(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has not noticed that it is gone: it would keep this node, and every other, from the sessions for hours."""
    monkeypatch.setattr(room, "LOCK_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(room, "RECONNECT_SECONDS", 0.05)
    lease = NodeLease(db, SystemClock())
    await lease.open()
    lock = {"class": LOCK_CLASS, "key": lease._lock_key}
    async with trio.open_nursery() as nursery:
        async with db.dedicated() as dead:
            await dead.fetch_one("SELECT pg_advisory_lock(%(class)s::integer, %(key)s::integer)", lock)
            holder = await find_holder(db, lease)
            with trio.fail_after(10):
                await nursery.start(lease.serve, lambda *_: None, lambda: False, lambda: None)
            assert await find_holder(db, lease) not in {holder, None}
            assert lease.keeps_clocks()
            with pytest.raises(StoreUnavailable):
                await dead.fetch_one("SELECT 1")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("by_ms", [3_600_000, -3_600_000, 10_000])
async def test_a_node_whose_clock_is_off_does_not_start(db: Postgres, by_ms: int) -> None:
    with pytest.raises(ClockSkewed, match="ms ahead of Postgres'"):
        await NodeLease(db, Skewed(by_ms)).open()


async def test_a_clock_that_goes_wrong_later_is_one_alarm(
    db: Postgres, monkeypatch: pytest.MonkeyPatch, claims_errors: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.01)
    clock = Skewed()
    async with open_node(db, clock) as lease:
        clock.by_ms = 60_000
        with trio.fail_after(10):
            while lease.skew_ms < 59_000:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert len(claims_errors) == 1
        clock.by_ms = 0
        with trio.fail_after(10):
            while lease.skew_ms > 1_000:
                await trio.sleep(0.01)
    assert len(claims_errors) == 1
    assert "clock_skewed" in claims_errors[0].getMessage()


async def test_nodes_that_were_dead_for_a_day_are_forgotten_unless_something_of_theirs_lives(db: Postgres) -> None:
    old = NodeLease(db, SystemClock())
    await old.open()
    with_session = NodeLease(db, SystemClock())
    await with_session.open()
    await open_session_row(db, with_session.node_id)
    await db.execute("UPDATE nodes SET alive_at = now() - interval '25 hours'")
    recent = NodeLease(db, SystemClock())
    await recent.open()
    rows = await db.fetch_all("SELECT node_id FROM nodes")
    assert {row.node_id for row in rows} == {with_session.node_id, recent.node_id}
    assert await count(db, "nodes") == 2
