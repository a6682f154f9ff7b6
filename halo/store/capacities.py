"""Capacity in the mirror: recomputed from Postgres after every lifecycle change, never counted up and down (S16–S18).

Whoever changes a session marks its mitra; one daemon reads the count and its version in one snapshot and writes both. What
cannot be read or written now is tried again; what is lost heals at the next seed. Read next: `halo/store/mirror.py`.
"""

from typing import Final, NoReturn

import trio

from halo.errors import StoreUnavailable
from halo.store.mirror import Mirror
from halo.store.sessions import Sessions

PAUSE_SECONDS: Final = 0.02
"""Gathers the changes of one storm of steps into one write for each mitra."""
AWAY_SECONDS: Final = 0.5


class Capacities:
    """Mitras whose living sessions have changed."""

    def __init__(self, sessions: Sessions, mirror: Mirror) -> None:
        self._sessions = sessions
        self._mirror = mirror
        self._changed: dict[str, None] = {}
        self._more = trio.Event()

    def mark(self, mitra_id: str) -> None:
        self._changed[mitra_id] = None
        self._more.set()

    async def serve(self) -> NoReturn:
        while True:
            await self._more.wait()
            await trio.sleep(PAUSE_SECONDS)
            self._more = trio.Event()
            changed, self._changed = self._changed, {}
            for mitra_id in changed:
                try:
                    capacity = await self._sessions.load_capacity(mitra_id)
                except StoreUnavailable:
                    self.mark(mitra_id)
                    await trio.sleep(AWAY_SECONDS)
                else:
                    await self._mirror.set_capacity(mitra_id, capacity.count, capacity.version)
