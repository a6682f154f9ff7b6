"""The mailbox: everything in order, at once, bounded, and nobody waits for ever."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.actors.mailbox import CAPACITY, Mailbox
from halo.errors import Busy


async def test_what_waits_is_taken_all_at_once_in_the_order_of_its_arrival() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for number in range(5):
        mailbox.put(number)
    assert len(mailbox) == 5
    assert await mailbox.take_all() == [0, 1, 2, 3, 4]
    assert len(mailbox) == 0


async def test_a_consumer_that_waits_is_woken_by_the_first_item(autojump_clock: MockClock) -> None:
    mailbox: Mailbox[str] = Mailbox()
    taken: list[list[str]] = []

    async def consume() -> None:
        taken.append(await mailbox.take_all())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await wait_all_tasks_blocked()
        mailbox.put("first")
        mailbox.put("second")  # the consumer is scheduled, but has not run yet
    assert taken == [["first", "second"]]


async def test_a_full_mailbox_refuses_by_name_and_keeps_what_it_has() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for number in range(CAPACITY):
        mailbox.put(number)
    with pytest.raises(Busy):
        mailbox.put(CAPACITY)
    assert await mailbox.take_all() == list(range(CAPACITY))


async def test_what_is_urgent_finds_room_in_a_full_mailbox() -> None:
    mailbox: Mailbox[str] = Mailbox(capacity=1)
    mailbox.put("said")
    mailbox.put("alarm", urgent=True)
    assert await mailbox.take_all() == ["said", "alarm"]


async def test_an_emptied_mailbox_takes_again() -> None:
    mailbox: Mailbox[int] = Mailbox(capacity=1)
    mailbox.put(1)
    await mailbox.take_all()
    mailbox.put(2)
    assert mailbox.drain() == [2]
    assert mailbox.drain() == []


async def test_a_consumer_that_is_cancelled_loses_nothing_and_may_wait_again(autojump_clock: MockClock) -> None:
    mailbox: Mailbox[int] = Mailbox()
    with trio.move_on_after(1) as scope:
        await mailbox.take_all()
    assert scope.cancelled_caught
    mailbox.put(7)  # nobody waits: no task of the past is woken
    assert await mailbox.take_all() == [7]


async def test_taking_is_a_checkpoint_also_when_something_waits() -> None:
    """A busy actor must not starve the others."""
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    with trio.testing.assert_checkpoints():
        await mailbox.take_all()


async def test_a_cancelled_taker_leaves_what_waits_where_it_is() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.take_all()
    assert mailbox.drain() == [1]
