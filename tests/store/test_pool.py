"""Who waits for a connection: in the order of coming, as long as the queue moves, and no longer than is worth it.

Connections are stand-ins and the clock jumps; what real ones do is in `tests/store/test_postgres.py`.
"""

from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.errors import StoreUnavailable
from halo.store import pool as room
from halo.store.connection import TrioConnection
from halo.store.pool import ACQUIRE_SECONDS, WAIT_SECONDS, Pool


class StandIn:
    """A connection that does nothing."""

    is_silent = True

    def __init__(self) -> None:
        self.is_clean = True
        self.statements = 0

    def close_now(self) -> None:
        self.is_clean = False


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """Of one connection: with two, those who are served in the same moment run in any order."""

    async def dial(url: str) -> TrioConnection:
        await trio.lowlevel.checkpoint()
        return cast(TrioConnection, StandIn())

    monkeypatch.setattr(room, "dial", dial)
    return Pool("", 1, ACQUIRE_SECONDS)


class Callers:
    """Each takes a connection and keeps it for a while."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.served: list[str] = []
        self.refused: dict[str, float] = {}
        """And when, by the clock of the test."""

    async def call(self, name: str, seconds: float = 0, *, for_many: bool = False, breaks: bool = False) -> None:
        try:
            connection = await self.pool.borrow(for_many=for_many)
        except StoreUnavailable:
            self.refused[name] = trio.current_time()
            return
        self.served.append(name)
        try:
            await trio.sleep(seconds)
        finally:
            if breaks:
                connection.close_now()
            self.pool.give_back(connection)

    @property
    def is_over(self) -> bool:
        return (self.pool.in_use, self.pool.waiting) == (0, 0)


async def test_a_crowd_is_served_in_the_order_of_its_coming(pool: Pool, autojump_clock: MockClock) -> None:
    """Each a millisecond of work, three thousand at once: nobody is refused, though the last waits for three seconds."""
    callers, names = Callers(pool), [str(number) for number in range(3_000)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(callers.call, name, 0.001)
            await trio.lowlevel.checkpoint()
    assert callers.refused == {}
    assert callers.served == names
    assert callers.is_over


async def test_while_the_queue_moves_one_waits_longer_than_it_may_stand_still(
    pool: Pool, autojump_clock: MockClock
) -> None:
    callers = Callers(pool)
    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c"):
            nursery.start_soon(callers.call, name, ACQUIRE_SECONDS * 0.75)
            await wait_all_tasks_blocked()
    assert callers.served == ["a", "b", "c"]
    assert callers.refused == {}


async def test_who_looked_at_the_clock_again_keeps_the_place(pool: Pool, autojump_clock: MockClock) -> None:
    """Those who wait look again when the queue could stand still; whoever came later must not be served before them."""
    callers = Callers(pool)
    async with trio.open_nursery() as nursery:
        for name in ("a", "first", "second"):
            nursery.start_soon(callers.call, name, ACQUIRE_SECONDS * 0.75)
            await wait_all_tasks_blocked()
        await trio.sleep(
            ACQUIRE_SECONDS * 0.875
        )  # `first` has been served since, and `second` has not looked again yet
        nursery.start_soon(callers.call, "late")
    assert callers.served == ["a", "first", "second", "late"]


async def test_where_nothing_moves_all_are_refused_soon(pool: Pool, autojump_clock: MockClock) -> None:
    callers, began = Callers(pool), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(callers.call, "hung", 60)
        await wait_all_tasks_blocked()
        for number in range(100):
            nursery.start_soon(callers.call, str(number))
    assert len(callers.refused) == pool.acquire_failures == 100
    assert {round(at - began, 6) for at in callers.refused.values()} == {ACQUIRE_SECONDS}
    assert callers.is_over


async def test_a_connection_that_came_back_broken_moves_nothing(pool: Pool, autojump_clock: MockClock) -> None:
    """While Postgres is away callers fail one after another, and that is no reason to hope."""
    callers, began = Callers(pool), trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(callers.call, f"broken {number}", ACQUIRE_SECONDS * 0.75)
            await wait_all_tasks_blocked()
        for connection in list(pool._open):  # Postgres goes away
            connection.close_now()
        nursery.start_soon(callers.call, "waits")
    assert callers.refused == {"waits": pytest.approx(began + ACQUIRE_SECONDS)}


async def test_who_waited_for_so_long_that_no_time_is_left_for_the_work_is_refused(
    pool: Pool, autojump_clock: MockClock
) -> None:
    callers, began = Callers(pool), trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(callers.call, str(number), WAIT_SECONDS * 0.3)
            await wait_all_tasks_blocked()
    assert callers.served == ["0", "1", "2", "3"]
    assert {round(at - began, 6) for at in callers.refused.values()} == {WAIT_SECONDS}
    assert sorted(callers.refused) == ["4", "5", "6", "7"]
    assert callers.is_over


async def test_who_asks_for_many_goes_first_also_where_the_queue_is_full(
    pool: Pool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "WAITERS_MAX", 3)
    callers = Callers(pool)
    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c", "d", "one too many"):
            nursery.start_soon(callers.call, name, 0.5)
            await wait_all_tasks_blocked()
        nursery.start_soon(lambda: callers.call("reading room", for_many=True))
        await wait_all_tasks_blocked()
        assert list(callers.refused) == ["one too many"]
    assert callers.served == ["a", "reading room", "b", "c", "d"]


async def test_who_is_cancelled_in_the_queue_leaves_no_gap(pool: Pool, autojump_clock: MockClock) -> None:
    callers = Callers(pool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(callers.call, "a", 1)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as leaving:
            leaving.start_soon(callers.call, "leaves")
            await wait_all_tasks_blocked()
            nursery.start_soon(callers.call, "stays")
            await wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
    assert callers.served == ["a", "stays"]
    assert callers.is_over


async def test_a_turn_that_comes_together_with_a_cancellation_is_not_lost(
    pool: Pool, autojump_clock: MockClock
) -> None:
    """Whichever of the two is first: the connection can be had afterwards."""
    for is_cancelled_first in (False, True):
        callers = Callers(pool)
        held = await pool.borrow()
        async with trio.open_nursery() as leaving:
            leaving.start_soon(callers.call, "leaves")
            await wait_all_tasks_blocked()
            if is_cancelled_first:
                leaving.cancel_scope.cancel()
            pool.give_back(held)
            leaving.cancel_scope.cancel()
        pool.give_back(await pool.borrow())
        assert callers.is_over
