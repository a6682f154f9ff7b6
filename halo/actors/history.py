"""History: the figures that matter, once in ten seconds for the last hour, in the memory of this node.

For the plots of the status page, so that nobody needs another program to see whether the last minutes were as those before. A restart
begins anew; for longer there is `/metrics`. It must never hold up what it measures: it reads numbers that are there, asks each store one
small question, and a store that is away leaves a gap. Read next: `halo/net/status/charts.py`.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from halo.clock import Clock, Moment
from halo.errors import Refusal

SAMPLE_SECONDS: Final = 10.0
SAMPLES: Final = 361
"""An hour and the sample that begins it: some 60 KB."""
ANSWER_SECONDS: Final = 5.0
"""A store that takes longer has not answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The figures of ten seconds; None where a store did not answer."""

    at: Moment
    sessions: int
    """Living sessions of this node."""
    messages_per_second: float
    """Made durable by this node."""
    commit_ms: float | None
    """What a commit of messages took, on average; None when there was none."""
    lag_ms: float
    """The longest that the event loop was late."""
    postgres_ms: float | None
    """One small question to Postgres, with the wait for a connection."""
    mitras_available: int | None
    """In the whole cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPorts:
    """Where the figures are read."""

    clock: Clock
    sessions: Callable[[], int]
    messages: Callable[[], int]
    """All since the start."""
    commits: Callable[[], tuple[int, float]]
    """Commits of messages since the start, and the seconds that they took together."""
    take_longest_lag: Callable[[], float]
    """By how many seconds the event loop was late at most since the last call; the watchdog measures it."""
    ask_postgres: Callable[[], Awaitable[bool]]
    count_available: Callable[[], Awaitable[int]]
    """Raises a `Refusal` when nobody can tell."""


@dataclass(frozen=True, slots=True)
class _Counters:
    """What only grows, as it was at one moment."""

    messages: int
    commits: int
    commit_seconds: float


class History:
    """See the module. The daemon `history` fills it; whoever reads gets what there is."""

    def __init__(self, ports: HistoryPorts) -> None:
        self._ports = ports
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)

    def list(self) -> Sequence[Sample]:
        """Oldest first."""
        return tuple(self._samples)

    async def serve(self) -> NoReturn:
        while True:
            before, began = self._read(), trio.current_time()
            await trio.sleep(SAMPLE_SECONDS)
            await self._take(before, self._read(), trio.current_time() - began)

    def _read(self) -> "_Counters":
        return _Counters(self._ports.messages(), *self._ports.commits())

    async def _take(self, before: "_Counters", after: "_Counters", took: float) -> None:
        commits, lag_seconds = after.commits - before.commits, self._ports.take_longest_lag()
        asked_at = trio.current_time()
        answered = False
        with trio.move_on_after(ANSWER_SECONDS):
            answered = await self._ports.ask_postgres()
        took_ms = (trio.current_time() - asked_at) * 1000
        self._samples.append(
            Sample(
                at=self._ports.clock.now(),
                sessions=self._ports.sessions(),
                messages_per_second=(after.messages - before.messages) / took,
                commit_ms=(after.commit_seconds - before.commit_seconds) * 1000 / commits if commits else None,
                lag_ms=lag_seconds * 1000,
                postgres_ms=took_ms if answered else None,
                mitras_available=await self._count_available(),
            )
        )

    async def _count_available(self) -> int | None:
        with trio.move_on_after(ANSWER_SECONDS):
            try:
                return await self._ports.count_available()
            except Refusal:
                return None
        return None
