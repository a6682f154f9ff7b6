"""An answer of Postgres that many callers share: asked by one of them at a time, and kept for a moment.

For the time in which Valkey is away: whatever the number of callers, Postgres sees one query in `seconds`. It must never keep a failure:
those who waited for it are told, who comes later asks again. Read next: `halo/store/available_twin.py`.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from halo.errors import StoreUnavailable

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """See the module. When the caller who asks is cancelled, the next of those who wait asks."""

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float) -> None:
        self.asked = 0
        """How many times Postgres was."""
        self._ask = ask
        self._seconds = seconds
        self._flight = trio.Lock()
        self._kept: tuple[float, T] | None = None
        """Since when, and what."""
        self._failed_at = -float("inf")

    async def load(self) -> T:
        """The answer, at most `seconds` old.

        Raises:
            StoreUnavailable
        """
        came_at = trio.current_time()
        async with self._flight:
            if self._kept is not None and trio.current_time() - self._kept[0] < self._seconds:
                return self._kept[1]
            if self._failed_at > came_at:
                raise StoreUnavailable  # for all who waited: each asking by itself would queue behind a dead server
            asked_at = trio.current_time()
            self.asked += 1
            try:
                answer = await self._ask()
            except StoreUnavailable:
                self._failed_at = trio.current_time()
                raise
            self._kept = asked_at, answer
            return answer
