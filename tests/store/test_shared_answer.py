from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.errors import StoreUnavailable
from halo.store.shared_answer import SharedAnswer


@dataclass
class Source:
    """Answers with the number of the question, once it may."""

    asked: int = 0
    away: bool = False
    may: trio.Event = field(default_factory=trio.Event)

    async def ask(self) -> int:
        self.asked += 1
        number = self.asked
        await self.may.wait()
        if self.away:
            raise StoreUnavailable
        return number


async def test_all_who_ask_together_share_one_query_and_it_is_kept_for_a_moment(autojump_clock: MockClock) -> None:
    source = Source()
    shared = SharedAnswer(source.ask, 1.0)
    answers: list[int] = []

    async def load() -> None:
        answers.append(await shared.load())

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(load)
        await wait_all_tasks_blocked()
        source.may.set()
    assert answers == [1] * 50
    await trio.sleep(0.9)
    assert await shared.load() == 1
    await trio.sleep(0.2)
    assert (await shared.load(), shared.asked) == (2, 2)


async def test_when_the_one_who_asks_is_cancelled_the_next_asks(autojump_clock: MockClock) -> None:
    source = Source()
    shared = SharedAnswer(source.ask, 1.0)
    answers: list[int] = []
    first = trio.CancelScope()

    async def load(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await shared.load())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, first)
        await wait_all_tasks_blocked()
        nursery.start_soon(load, trio.CancelScope())
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        source.may.set()
    assert answers == [2]


async def test_a_failure_is_told_to_all_who_waited_and_is_not_kept(autojump_clock: MockClock) -> None:
    source = Source(away=True)
    shared = SharedAnswer(source.ask, 1.0)
    told = 0

    async def load() -> None:
        nonlocal told
        with pytest.raises(StoreUnavailable):
            await shared.load()
        told += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(load)
        await wait_all_tasks_blocked()
        await trio.sleep(0.1)
        source.may.set()
    assert (told, source.asked) == (20, 1)
    source.away = False
    assert await shared.load() == 2
