"""One attempt at a time: a question or a repair of the watchdog whose failure is told, and holds up none of those that follow.

That the store is away is foreseen: a warning, and the next round tries again. Any other error is a fault of the watchdog's own; it goes
through a supervisor without restarts, which logs it with the name of the watch, and it stands as the alarm `watchdog_works` until a round
meets it no more. It must never try twice within a round. Read next: `halo/actors/watchdog.py`, `halo/actors/supervisor.py`.
"""

from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Final

import structlog

from halo.actors.supervisor import RestartBudget, supervise
from halo.errors import StoreUnavailable
from halo.watch import WatchReport

log = structlog.get_logger(__name__)

ONE_ATTEMPT: Final = RestartBudget(restarts=0)


class Attempt(Enum):
    """How it came out."""

    DONE = auto()
    AWAY = auto()
    """The store was: nothing was done, or it was undone."""
    CRASHED = auto()
    """How much was done is not known."""


class Attempts:
    """See the module. Both kinds of failure are counted in `report`."""

    def __init__(self, report: WatchReport) -> None:
        self._report = report
        self._crashed: set[str] = set()

    async def make(self, what: str, name: str, run: Callable[[], Awaitable[object]]) -> Attempt:
        """`run` once; `what` is for the log, `name` the watch."""
        outcome = Attempt.DONE

        async def attempt() -> None:
            nonlocal outcome
            try:
                await run()
            except StoreUnavailable:
                outcome = Attempt.AWAY
                self._report.failed(name)
                log.warning("watchdog_attempt_failed", attempt=what, alarm=name)

        def crashed() -> None:
            nonlocal outcome
            outcome = Attempt.CRASHED
            self._report.failed(name)
            self._crashed.add(name)

        await supervise(
            attempt, name=f"watchdog {what} {name}", recover=_unreached, parked=crashed, budget=ONE_ATTEMPT, alarm=name
        )
        return outcome

    def take_crashed(self) -> list[str]:
        """The watches of which something crashed since the last call."""
        crashed, self._crashed = sorted(self._crashed), set()
        return crashed


async def _unreached(fault: Exception) -> None:
    raise AssertionError("a budget without restarts recovers nothing") from fault
