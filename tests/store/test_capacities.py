"""Capacity in the mirror: whoever changed is recomputed, a storm at once, a crowd in bounded pieces."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from halo.errors import StoreUnavailable
from halo.store import capacities as room
from halo.store.capacities import Capacities
from halo.store.mirror import Mirror


class Noted:
    """A mirror that notes whom it is to look at, and takes its time."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.on_unrefreshed: list[Callable[[str], None]] = []
        self.away = 0
        self.broken_at = 0
        """At which call it has a fault of its own."""

    async def refresh_capacities(self, mitra_ids: Sequence[str]) -> None:
        self.asked.append(list(mitra_ids))
        if len(self.asked) == self.broken_at:
            raise ZeroDivisionError
        if self.away:
            self.away -= 1
            raise StoreUnavailable
        await trio.sleep(0.5)


@asynccontextmanager
async def served(mirror: Noted) -> AsyncIterator[Capacities]:
    capacities = Capacities(cast(Mirror, mirror))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capacities.serve)
        yield capacities
        nursery.cancel_scope.cancel()


async def test_a_storm_of_changes_is_one_look_at_each_mitra(autojump_clock: MockClock) -> None:
    mirror = Noted()
    async with served(mirror) as capacities:
        for _ in range(100):
            capacities.mark("a")
            capacities.mark("b")
        await trio.sleep(5)
    assert mirror.asked == [["a", "b"]]


async def test_a_change_during_a_look_is_looked_at_again(autojump_clock: MockClock) -> None:
    """What was read may be older than the change."""
    mirror = Noted()
    async with served(mirror) as capacities:
        capacities.mark("a")
        await trio.sleep(0.2)
        capacities.mark("a")
        await trio.sleep(5)
    assert mirror.asked == [["a"], ["a"]]


async def test_a_crowd_is_looked_at_in_bounded_pieces(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "AT_ONCE", 3)
    mirror = Noted()
    async with served(mirror) as capacities:
        for mitra_id in "abcdefgh":
            capacities.mark(mitra_id)
        await trio.sleep(5)
    assert mirror.asked == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]


async def test_a_crash_forgets_those_alone_who_were_being_looked_at(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "AT_ONCE", 2)
    mirror = Noted()
    capacities = Capacities(cast(Mirror, mirror))
    for mitra_id in "abcde":
        capacities.mark(mitra_id)
    mirror.broken_at = 2
    with pytest.raises(ZeroDivisionError):
        await capacities.serve()
    async with trio.open_nursery() as nursery:  # as its supervisor starts it again; nobody marks anybody
        nursery.start_soon(capacities.serve)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert mirror.asked == [["a", "b"], ["c", "d"], ["e"]]


async def test_while_the_rows_cannot_be_read_it_is_tried_again_without_frenzy(autojump_clock: MockClock) -> None:
    mirror = Noted()
    mirror.away = 4
    async with served(mirror) as capacities:
        capacities.mark("a")
        await trio.sleep(10)
    assert mirror.asked == [["a"]] * 5


async def test_who_could_not_be_refreshed_in_the_mirror_is_looked_at_again(autojump_clock: MockClock) -> None:
    mirror = Noted()
    async with served(mirror):
        (mark,) = mirror.on_unrefreshed
        mark("a")
        await trio.sleep(5)
    assert mirror.asked == [["a"]]


async def test_nothing_marked_asks_nothing(autojump_clock: MockClock) -> None:
    mirror = Noted()
    async with served(mirror):
        await trio.sleep(60)
    assert mirror.asked == []
