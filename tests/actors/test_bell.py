"""The bell of all alarms rings who is due, a part at a time, and calls those who wait in the line as turns become free."""

from math import inf

import trio
from trio.testing import MockClock

from halo.actors import bell
from halo.actors.bell import RUNG_AT_ONCE, Bell


class Ear:
    """An alarm that only notes when it was rung."""

    def __init__(self) -> None:
        self.rung_at: list[float] = []

    def ring(self) -> None:
        self.rung_at.append(trio.current_time())


class Turns(trio.abc.Instrument):
    """How many alarms were rung in the fullest turn of the event loop."""

    def __init__(self, ears: list[Ear]) -> None:
        self._ears = ears
        self._before = 0
        self.fullest = 0

    def after_io_wait(self, timeout: float) -> None:
        self._before = sum(len(ear.rung_at) for ear in self._ears)

    def before_io_wait(self, timeout: float) -> None:
        self.fullest = max(self.fullest, sum(len(ear.rung_at) for ear in self._ears) - self._before)


async def test_each_is_rung_once_at_its_moment_and_in_their_order(autojump_clock: MockClock) -> None:
    tower, ears = Bell(1), [Ear() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tower.serve)
        began = trio.current_time()
        for ear, after in zip(ears, (30.0, 10.0, 20.0), strict=True):
            tower.set(ear, began + after)
        await trio.sleep(100)
        assert [ear.rung_at for ear in ears] == [[began + 30], [began + 10], [began + 20]]
        assert len(tower) == 0
        nursery.cancel_scope.cancel()


async def test_who_is_moved_rings_at_the_new_moment_only_and_who_is_put_off_never(autojump_clock: MockClock) -> None:
    tower, sooner, never = Bell(1), Ear(), Ear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tower.serve)
        began = trio.current_time()
        tower.set(sooner, began + 50)
        tower.set(never, began + 5)
        await trio.sleep(1)
        tower.set(sooner, began + 7)  # while the bell sleeps until later
        tower.set(never, inf)
        await trio.sleep(100)
        assert sooner.rung_at == [began + 7]
        assert never.rung_at == []
        nursery.cancel_scope.cancel()


async def test_many_of_one_moment_are_rung_in_parts_with_turns_of_the_loop_between(autojump_clock: MockClock) -> None:
    """Ten thousand sessions of one age kept the loop for 70 to 190 ms."""
    tower, ears = Bell(1), [Ear() for _ in range(10 * RUNG_AT_ONCE)]
    turns = Turns(ears)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tower.serve)
        for ear in ears:
            tower.set(ear, trio.current_time() + 60)
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(61)
        trio.lowlevel.remove_instrument(turns)
        nursery.cancel_scope.cancel()
    assert all(len(ear.rung_at) == 1 for ear in ears)
    assert turns.fullest == RUNG_AT_ONCE


async def test_alarms_that_are_moved_again_and_again_do_not_pile_up() -> None:
    tower, ear = Bell(1), Ear()
    for second in range(10 * bell.STALE_ENTRIES):
        tower.set(ear, float(second))
    assert len(tower) == 1
    assert len(tower._heap) <= 2 + bell.STALE_ENTRIES


async def test_as_many_as_there_are_turns_go_first_and_the_others_are_called_in_their_order(
    autojump_clock: MockClock,
) -> None:
    tower, ears = Bell(2), [Ear() for _ in range(5)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tower.serve)
        assert [tower.take_turn(ear) for ear in ears] == [True, True, False, False, False]
        await trio.sleep(10)
        assert not any(ear.rung_at for ear in ears)  # nobody is woken to find that it has to wait
        assert tower.waiting == 3
        tower.turn_over()
        assert [len(ear.rung_at) for ear in ears] == [0, 0, 1, 0, 0]
        assert not tower.take_turn(ears[4])  # it was not called
        assert tower.take_turn(ears[2])
        tower.turn_over()
        tower.turn_over()
        assert [len(ear.rung_at) for ear in ears] == [0, 0, 1, 1, 1]
        nursery.cancel_scope.cancel()


async def test_a_turn_that_the_called_does_not_need_or_is_too_dead_to_take_goes_to_the_next(
    autojump_clock: MockClock,
) -> None:
    tower, (holder, calm, dead, last) = Bell(1), [Ear() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tower.serve)
        assert tower.take_turn(holder)
        for ear in (calm, dead, last):
            tower.line_up(ear)
        tower.turn_over()
        tower.stand_back(calm)
        tower.leave(dead)
        assert len(last.rung_at) == 1
        assert tower.take_turn(last)
        nursery.cancel_scope.cancel()


async def test_who_is_called_and_does_not_come_holds_up_nobody(autojump_clock: MockClock) -> None:
    """Its actor waits for something else."""
    tower, (holder, busy, last) = Bell(1), [Ear() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tower.serve)
        assert tower.take_turn(holder)
        tower.line_up(busy)
        tower.line_up(last)
        tower.turn_over()
        assert not last.rung_at
        await trio.sleep(2 * bell.LINE_SECONDS)
        assert len(last.rung_at) == 1
        assert tower.take_turn(last)
        assert not tower.take_turn(busy)
        tower.turn_over()
        assert len(busy.rung_at) == 2
        nursery.cancel_scope.cancel()
