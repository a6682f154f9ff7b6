"""A mailbox: what waits for one actor, bounded, taken all at once.

One consumer, many producers, no locks: everything runs in one thread and `put` never waits. A full mailbox refuses by name, so that a
slow actor costs its own askers and nobody else. Read next: `halo/actors/session.py`.
"""

from typing import Generic, TypeVar

import trio

from halo.errors import Busy

T = TypeVar("T")

CAPACITY = 512
"""Two participants with five devices each may hand in 20 messages in 10 s; what is beyond is a fault or an attack."""


class Mailbox(Generic[T]):
    """Items in the order of their arrival."""

    __slots__ = ("_capacity", "_items", "_waiter")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._items: list[T] = []
        self._capacity = capacity
        self._waiter: trio.lowlevel.Task | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, *, urgent: bool = False) -> None:
        """Hand in `item` for the consumer's next turn; what is `urgent` (the alarm, a stop) finds room in any case.

        Raises:
            Busy: the mailbox is full; the item was not taken.
        """
        if len(self._items) >= self._capacity and not urgent:
            raise Busy
        self._items.append(item)
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(waiter)

    async def take_all(self) -> list[T]:
        """Everything that waits, at least one item; a checkpoint in any case."""
        if self._items:
            await trio.lowlevel.checkpoint()
        while not self._items:
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        items, self._items = self._items, []
        return items

    def drain(self) -> list[T]:
        """Everything that waits, without waiting: for a consumer that gives up."""
        items, self._items = self._items, []
        return items

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED
