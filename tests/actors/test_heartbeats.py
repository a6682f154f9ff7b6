from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from halo.actors.heartbeats import mirror_heartbeats
from halo.clock import Moment
from halo.errors import StoreUnavailable


class Mitras:
    """What was heard, and what was written of it; the store is away as often as it is told."""

    def __init__(self) -> None:
        self.heard: dict[str, Moment] = {}
        self.away = 0
        self.written: list[dict[str, Moment]] = []

    def take_unmirrored(self) -> Mapping[str, Moment]:
        heard, self.heard = self.heard, {}
        return heard

    async def record_heartbeats(self, pairs: Iterable[tuple[str, Moment]]) -> int:
        await trio.lowlevel.checkpoint()
        if self.away:
            self.away -= 1
            raise StoreUnavailable
        self.written.append(dict(pairs))
        return len(self.written[-1])


@asynccontextmanager
async def mirrored() -> AsyncIterator[Mitras]:
    mitras = Mitras()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror_heartbeats, mitras, mitras, 10.0)
        yield mitras
        nursery.cancel_scope.cancel()


async def test_all_that_was_heard_since_the_last_cycle_is_one_statement(autojump_clock: MockClock) -> None:
    async with mirrored() as mitras:
        mitras.heard = {"a": 1, "b": 2}
        await trio.sleep(9.9)
        assert mitras.written == []
        await trio.sleep(0.2)
        assert mitras.written == [{"a": 1, "b": 2}]


async def test_a_quiet_cycle_asks_nothing_of_the_store(autojump_clock: MockClock) -> None:
    async with mirrored() as mitras:
        await trio.sleep(60)
        assert mitras.written == []


async def test_what_met_an_absent_store_is_kept_and_merged_with_the_newest(autojump_clock: MockClock) -> None:
    async with mirrored() as mitras:
        mitras.away = 2
        mitras.heard = {"a": 5, "b": 5}
        await trio.sleep(11)
        mitras.heard = {"a": 9, "c": 9}
        await trio.sleep(10)
        mitras.heard = {"b": 3}  # one that came late never moves a heartbeat back (A4)
        await trio.sleep(10)
        assert mitras.written == [{"a": 9, "b": 5, "c": 9}]
        await trio.sleep(20)
        assert len(mitras.written) == 1  # and what was written is forgotten
