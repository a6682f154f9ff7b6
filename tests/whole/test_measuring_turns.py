"""The longest turn of the event loop is found, and who made it."""

import gc
import time

import trio

from scripts.measuring.turns import watched

BUSY_MS = 20.0


def be_busy() -> None:
    until = time.thread_time() + BUSY_MS / 1000
    while time.thread_time() < until:
        pass


async def sit(number: int) -> None:
    del number
    be_busy()


async def test_the_longest_turn_tells_its_kinds_of_tasks_and_the_longest_step_its_task() -> None:
    with watched() as (turns, _):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(sit, number, name=f"session {number}")
        await trio.lowlevel.checkpoint()
    assert turns.longest_cpu_ms >= 3 * BUSY_MS
    assert turns.longest_ms >= 3 * BUSY_MS
    assert turns.longest_step[0] >= BUSY_MS
    assert turns.longest_step[1].startswith("session ")
    kind, ms, steps = turns.longest_parts[0]
    assert (kind, steps) == ("session …", 3)
    assert ms >= 3 * BUSY_MS


async def test_garbage_collections_are_timed_and_nothing_of_it_stays_afterwards() -> None:
    callbacks = list(gc.callbacks)
    with watched() as (_, collections):
        gc.collect()
    assert collections.full == 1
    assert collections.longest_ms > 0
    assert gc.callbacks == callbacks
