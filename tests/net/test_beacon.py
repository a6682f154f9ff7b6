import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.availability import Available
from halo.errors import StoreUnavailable
from halo.net.beacon import LOOK_SECONDS, QUIET_SECONDS, SLICE, WELCOME_SECONDS, Beacon
from tests.pure.story import NOON


@dataclass
class Count:
    """What the mirror would count; `away` as if both stores were."""

    now: int = 7
    away: bool = False
    hung: bool = False
    asked: int = 0

    async def count_available(self) -> Available:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.hung:
            await trio.sleep(5)
        if self.away or self.hung:
            raise StoreUnavailable
        return Available(count=self.now, as_of=NOON)


@dataclass(eq=False)
class Ear:
    heard: list[tuple[float, int]] = field(default_factory=list)

    def send(self, frame: bytes) -> None:
        told = json.loads(frame)
        assert (told["type"], told["as_of"]) == ("beacon", "2026-11-24T12:00:00.000Z")
        self.heard.append((trio.current_time(), told["available_mitras"]))

    @property
    def counts(self) -> list[int]:
        return [count for _, count in self.heard]


@pytest.fixture
def count() -> Count:
    return Count()


@pytest.fixture
async def beacon(count: Count, nursery: trio.Nursery) -> Beacon:
    lit = Beacon(count)
    nursery.start_soon(lit.serve)
    return lit


async def test_who_comes_hears_at_once_and_then_what_changes_only(
    count: Count, beacon: Beacon, autojump_clock: MockClock
) -> None:
    ear = Ear()
    await beacon.add(ear)
    assert ear.counts == [7]
    await trio.sleep(10)
    assert ear.counts == [7]
    count.now = 8
    await trio.sleep(QUIET_SECONDS + LOOK_SECONDS)
    assert ear.counts == [7, 8]


async def test_nobody_hears_two_beacons_within_two_seconds_and_nobody_misses_the_last_change(
    count: Count, beacon: Beacon, autojump_clock: MockClock
) -> None:
    ears = [Ear() for _ in range(30)]
    for position, ear in enumerate(ears):
        count.now = position
        await beacon.add(ear)
        await trio.sleep(0.37)
    count.now = 99
    await trio.sleep(QUIET_SECONDS + LOOK_SECONDS + 0.01)
    for ear in ears:
        moments = [at for at, _ in ear.heard]
        assert all(later - at >= QUIET_SECONDS for at, later in pairwise(moments))
        assert ear.counts[-1] == 99


async def test_a_thousand_who_come_at_once_cost_one_look(
    count: Count, beacon: Beacon, autojump_clock: MockClock
) -> None:
    ears = [Ear() for _ in range(1000)]
    async with trio.open_nursery() as crowd:
        for ear in ears:
            crowd.start_soon(beacon.add, ear)
    assert count.asked == 1
    assert all(ear.counts == [7] for ear in ears)


async def test_with_nobody_listening_nobody_asks(count: Count, beacon: Beacon, autojump_clock: MockClock) -> None:
    await trio.sleep(60)
    assert count.asked == 0
    ear = Ear()
    await beacon.add(ear)
    beacon.remove(ear)
    beacon.remove(ear)
    await trio.sleep(60)
    assert (count.asked <= 2, len(beacon), ear.counts) == (True, 0, [7])


async def test_with_both_stores_away_nothing_is_told_until_one_is_back(
    count: Count, beacon: Beacon, autojump_clock: MockClock
) -> None:
    count.away = True
    ear = Ear()
    await beacon.add(ear)
    await trio.sleep(5)
    assert ear.counts == []
    count.away = False
    await trio.sleep(LOOK_SECONDS)
    assert ear.counts == [7]


async def test_a_store_that_hangs_does_not_keep_a_socket_from_going_live(
    count: Count, beacon: Beacon, autojump_clock: MockClock
) -> None:
    count.hung = True
    ear, began = Ear(), trio.current_time()
    await beacon.add(ear)
    assert trio.current_time() - began <= WELCOME_SECONDS
    count.hung = False
    await trio.sleep(7)
    assert ear.counts == [7]


async def test_thousands_are_told_in_slices_and_who_leaves_meanwhile_is_not_told(
    count: Count, beacon: Beacon, autojump_clock: MockClock
) -> None:
    last = Ear()

    class Leaver(Ear):
        def send(self, frame: bytes) -> None:
            super().send(frame)
            if len(self.heard) == 2:
                beacon.remove(last)

    ears = [Leaver(), *(Ear() for _ in range(2 * SLICE)), last]
    for ear in ears:
        await beacon.add(ear)
    count.now = 8
    await trio.sleep(QUIET_SECONDS + LOOK_SECONDS)
    await wait_all_tasks_blocked()
    assert [ear.counts for ear in ears[:-1]] == [[7, 8]] * (len(ears) - 1)
    assert last.counts == [7]
