"""The alarm of one session: a single moment at which its mailbox gets a `Due`.

That moment is the soonest of the session's deadline and its next timer; or, while something waits for the store to come back, the
next try. It must never decide anything: it rings, and `halo/actors/duties.py` looks at what is due. Nor may it be a second truth
beside the deadline in the session's row: whoever changes the session sets it anew. The bell of the node rings it
(`halo/actors/bell.py`), so that ten thousand of one age do not ring together. Read next: `halo/actors/duties.py`.
"""

from math import inf
from typing import NoReturn

import trio

from halo.actors.commands import Due, Item
from halo.actors.mailbox import Mailbox
from halo.actors.ports import Ports
from halo.clock import Moment
from halo.session import Session
from halo.timers import next_timer

AWAY_RETRY_MS = 250
"""How soon a deadline that met an unreachable store is tried again: recovery must show within 2 s."""


class Alarm:
    """One moment to come; setting it replaces the earlier one."""

    __slots__ = ("_bell", "_is_rung", "_mailbox", "_ports", "_retry_at", "_waiter", "last_timer_at")

    def __init__(self, mailbox: Mailbox[Item], ports: Ports) -> None:
        self._mailbox = mailbox
        self._ports = ports
        self._bell = ports.bell
        self._is_rung = False
        self._waiter: trio.lowlevel.Task | None = None
        self._retry_at: Moment | None = None
        """Set while something waits for the store to come back: a deadline, a credit, or the outcome of a commit."""
        self.last_timer_at = ports.clock.now()

    async def serve(self) -> NoReturn:
        try:
            while True:
                while not self._is_rung:
                    self._waiter = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._abort)
                self._is_rung = False
                self._mailbox.put(Due(), urgent=True)
        finally:
            self._bell.leave(self)

    def ring(self) -> None:
        """Called by the bell."""
        self._is_rung = True
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(waiter)

    def ring_in_turn(self) -> None:
        """There is something to catch up with: as soon as this session may."""
        self._bell.line_up(self)

    def take_turn(self) -> bool:
        """Whether this session may ask the store for what nobody asked for; then `turn_over` is owed. Otherwise it rings again."""
        return self._bell.take_turn(self)

    def turn_over(self) -> None:
        self._bell.turn_over()

    def stand_back(self) -> None:
        """It has rung, and no turn is needed."""
        self._bell.stand_back(self)

    def set(self, session: Session) -> None:
        """To the deadline of `session` or its next timer, whichever comes first; a retry comes before both."""
        if self._retry_at is not None:
            self._move(self._retry_at)
            return
        moments = (session.deadline_at, self.next_timer(session))
        self._move(min((moment for moment in moments if moment is not None), default=None))

    def ring_soon(self, after_ms: int = AWAY_RETRY_MS) -> None:
        """The store is away: a deadline, a credit, a payment or a commit must not be lost to that (spec 2)."""
        self._retry_at = self._ports.clock.now() + after_ms
        self._move(self._retry_at)

    def retrying(self) -> None:
        """The try that `ring_soon` asked for is under way: from now on the deadline and the timers count again."""
        self._retry_at = None

    def next_timer(self, session: Session) -> Moment | None:
        return next_timer(session, self.last_timer_at, self._ports.facts.config())

    def _move(self, moment: Moment | None) -> None:
        now = self._ports.clock.now()
        self._bell.set(self, inf if moment is None else trio.current_time() + max(0, moment - now) / 1000)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED
