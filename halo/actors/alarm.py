"""The alarm of one session: a single moment at which its mailbox gets a `Due`.

That moment is the soonest of the session's deadline and its next timer; or, while something waits for the store to come back, the
next try. It must never decide anything: it rings, and `halo/actors/duties.py` looks at what is due. Nor may it be a second truth
beside the deadline in the session's row: whoever changes the session sets it anew. Read next: `halo/actors/duties.py`.
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

    __slots__ = ("_at", "_mailbox", "_ports", "_retry_at", "_sleep", "last_timer_at")

    def __init__(self, mailbox: Mailbox[Item], ports: Ports) -> None:
        self._mailbox = mailbox
        self._ports = ports
        self._sleep: trio.CancelScope | None = None
        self._at = inf
        """On Trio's clock, in seconds."""
        self._retry_at: Moment | None = None
        """Set while something waits for the store to come back: a deadline, a credit, or the outcome of a commit."""
        self.last_timer_at = ports.clock.now()

    async def serve(self) -> NoReturn:
        while True:
            with trio.CancelScope(deadline=self._at) as self._sleep:
                await trio.sleep_forever()
            self._at = inf
            self._mailbox.put(Due(), urgent=True)

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
        self._at = inf if moment is None else trio.current_time() + max(0, moment - self._ports.clock.now()) / 1000
        if self._sleep is not None:
            self._sleep.deadline = self._at
