"""Supervision: what crashes is logged, recovered and run again, until its budget is spent; then it is parked.

The only place where actors meet `except Exception`. A crash stays with the one that crashed (X6): the supervisor lets only
cancellation and the end of the process through. Read next: `halo/actors/registry.py`.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import structlog
import trio

from halo.actors.upkeep import Upkeeps

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RestartBudget:
    """At most `restarts` within `period_seconds`; waits double from `first_wait_seconds` on."""

    restarts: int = 5
    period_seconds: float = 60.0
    first_wait_seconds: float = 0.05
    longest_wait_seconds: float = 5.0

    def wait_seconds(self, crashes: int) -> float:
        return float(min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** (crashes - 1)))


async def supervise(
    run: Callable[[], Awaitable[object]],
    *,
    name: str,
    recover: Callable[[Exception], Awaitable[None]],
    parked: Callable[[], None],
    budget: RestartBudget,
    crashed: Callable[[Exception], None] | None = None,
    **context: str | None,
) -> None:
    """Run `run` until it returns.

    Of each crash `crashed` is told, and must not fail. After it `recover` is awaited (it may itself crash, which counts as well), then `run` starts again. Past the budget `parked` is
    called once and supervision ends: whoever it was stays parked until somebody looks.
    """
    crashes: deque[float] = deque()
    fault: Exception | None = None
    while True:
        try:
            if fault is not None:
                await recover(fault)
                fault = None
            await run()
            return
        except Exception as error:  # noqa: BLE001 - the supervisor's whole purpose; Cancelled is a BaseException and passes
            fault = error
        if crashed is not None:
            crashed(fault)
        now = trio.current_time()
        crashes.append(now)
        while crashes[0] < now - budget.period_seconds:
            crashes.popleft()
        if len(crashes) > budget.restarts:
            log.error("actor_parked", actor=name, crashes=len(crashes), exc_info=fault, **context)
            parked()
            return
        log.error("actor_crashed", actor=name, crashes=len(crashes), exc_info=fault, **context)
        await trio.sleep(budget.wait_seconds(len(crashes)))


class DaemonEnded(Exception):
    """A daemon returned or spent its restart budget: the server cannot do its work without it."""


async def keep(
    run: Callable[[], Awaitable[object]], name: str, budget: RestartBudget, upkeeps: Upkeeps | None = None
) -> NoReturn:
    """Run a daemon for ever: a crash restarts it, the end of its budget or a return ends the server. `upkeeps` hears of it.

    Raises:
        DaemonEnded
    """

    async def recover(fault: Exception) -> None:
        del fault  # a daemon holds nothing between its turns

    def parked() -> None:
        raise DaemonEnded(f"{name} has crashed {budget.restarts + 1} times within {budget.period_seconds:.0f} s")

    crashed = None
    if upkeeps is not None:
        upkeeps.begun(name)
        crashed = partial(upkeeps.crashed, name)
    await supervise(run, name=name, recover=recover, parked=parked, budget=budget, crashed=crashed)
    raise DaemonEnded(f"{name} has returned")
