"""Readers who share a statement: in the order of coming, each with its own rows, and nobody's end is another's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.errors import StoreUnavailable
from halo.store import reading_room as room
from halo.store.reading_room import ReadingRoom


@dataclass(frozen=True, slots=True)
class Wish:
    name: str
    limit: int = 1


class Row(NamedTuple):
    place: int
    text: str


class Archive:
    """Answers each wish with its name, `limit` times, and takes a second for it."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.is_away = False

    async def ask(self, wishes: Sequence[Wish]) -> Sequence[Row]:
        self.asked.append([wish.name for wish in wishes])
        await trio.sleep(1)
        if self.is_away:
            raise StoreUnavailable
        if any(wish.name == "wrong" for wish in wishes):
            raise psycopg.DataError
        return [Row(place, wish.name) for place, wish in enumerate(wishes, 1) for _ in range(wish.limit)]


class Readers:
    def __init__(self, rows_max: int = 100) -> None:
        self.archive = Archive()
        self.room = ReadingRoom(self.archive.ask, rows_max)
        self.got: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}

    async def read(self, name: str, limit: int = 1) -> None:
        try:
            self.got[name] = [row.text for row in await self.room.read(Wish(name, limit))]
        except (StoreUnavailable, psycopg.Error) as error:
            self.failed[name] = type(error).__name__

    async def come(self, nursery: trio.Nursery, names: str, limit: int = 1) -> None:
        for name in names:
            nursery.start_soon(self.read, name, limit)
            await wait_all_tasks_blocked()


@pytest.fixture
def readers() -> Readers:
    return Readers()


async def test_one_alone_waits_for_nobody(readers: Readers, autojump_clock: MockClock) -> None:
    with trio.fail_after(1.5):
        await readers.read("a", 2)
    assert readers.got == {"a": ["a", "a"]}


async def test_who_comes_while_one_reads_shares_the_next_statement(readers: Readers, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        await readers.come(nursery, "abcd", 3)
    assert readers.archive.asked == [["a"], ["b", "c", "d"]]
    assert readers.got == {name: [name] * 3 for name in "abcd"}
    assert (readers.room.waiting, readers.room.statements) == (0, 2)


async def test_no_rows_are_an_answer(readers: Readers, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        await readers.come(nursery, "abc", 0)
    assert readers.got == {"a": [], "b": [], "c": []}


async def test_an_answer_holds_no_more_rows_than_it_may(autojump_clock: MockClock) -> None:
    """What all ask for together is the bound on memory; one who alone asks for more is served alone."""
    readers = Readers(rows_max=4)
    async with trio.open_nursery() as nursery:
        await readers.come(nursery, "a")
        await readers.come(nursery, "bcd", 2)
        await readers.come(nursery, "e", 9)
        await readers.come(nursery, "f")
    assert readers.archive.asked == [["a"], ["b", "c"], ["d"], ["e"], ["f"]]
    assert len(readers.got) == 6


async def test_when_the_one_who_reads_leaves_the_next_reads(readers: Readers, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            await readers.come(leaving, "a")
            await readers.come(nursery, "bc")
            leaving.cancel_scope.cancel()
    assert readers.archive.asked == [["a"], ["b", "c"]]
    assert readers.got == {"b": ["b"], "c": ["c"]}


async def test_who_shares_a_statement_is_read_for_again_when_its_reader_leaves(
    readers: Readers, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            await readers.come(nursery, "a")
            await readers.come(leaving, "b")
            await readers.come(nursery, "cd")
            await trio.sleep(1.5)
            leaving.cancel_scope.cancel()
    assert readers.archive.asked == [["a"], ["b", "c", "d"], ["c", "d"]]
    assert readers.got == {name: [name] for name in "acd"}
    assert readers.room.waiting == 0


async def test_who_leaves_while_another_reads_for_it_leaves_nothing_behind(
    readers: Readers, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            await readers.come(nursery, "ab")
            await readers.come(leaving, "c")
            await trio.sleep(1.5)
            leaving.cancel_scope.cancel()
    assert readers.got == {"a": ["a"], "b": ["b"]}
    assert readers.room.waiting == 0
    await readers.read("later")
    assert readers.got["later"] == ["later"]


async def test_whose_turn_came_together_with_its_end_passes_it_on(readers: Readers, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            await readers.come(nursery, "a")
            await readers.come(leaving, "b")
            await readers.come(nursery, "c")
            leaving.cancel_scope.deadline = trio.current_time() + 1  # the moment at which the first statement ends
    assert readers.got.keys() >= {"a", "c"}
    assert readers.room.waiting == 0


async def test_while_postgres_is_away_all_who_wait_are_told_at_once(
    readers: Readers, autojump_clock: MockClock
) -> None:
    """One after the other, each would wait behind all before it for a server that does not answer."""
    readers.archive.is_away = True
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        await readers.come(nursery, "abcd")
    assert readers.failed == dict.fromkeys("abcd", "StoreUnavailable")
    assert trio.current_time() - began == pytest.approx(1)
    readers.archive.is_away = False
    await readers.read("e")
    assert readers.got == {"e": ["e"]}


async def test_one_wrong_wish_is_the_trouble_of_one(readers: Readers, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        await readers.come(nursery, "ab")
        nursery.start_soon(readers.read, "wrong")
        await wait_all_tasks_blocked()
        await readers.come(nursery, "cd")
    assert readers.failed == {"wrong": "DataError"}
    assert readers.got == {name: [name] for name in "abcd"}


async def test_more_than_may_wait_are_refused(
    readers: Readers, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "WAITING_MAX", 3)
    async with trio.open_nursery() as nursery:
        await readers.come(nursery, "abcd")
        assert readers.failed == {"d": "StoreUnavailable"}
    assert len(readers.got) == 3
