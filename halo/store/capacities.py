"""Capacity in the mirror: recomputed from Postgres after every lifecycle change, never counted up and down (S16–S18).

Whoever changes a session marks its mitra; one daemon reads the counts with their versions, in one snapshot for all who were marked
meanwhile, and writes them. What cannot be read now is tried again; what cannot be written makes the mirror doubted, and the seed that
follows heals it. Read next: `halo/store/mirror.py`.
"""

from typing import Final, NoReturn

import trio

from halo.errors import StoreUnavailable
from halo.store.mirror import Mirror

PAUSE_SECONDS: Final = 0.02
"""Gathers the changes of one storm of steps into one write for each mitra."""
AWAY_SECONDS: Final = 0.5
"""Before Postgres is asked again; until it is back nothing else can change either."""
AT_ONCE: Final = 200
"""Mitras in one statement and one pipeline: some 8 ms for this node, far from `BATCH_ITEMS`."""


class Capacities:
    """Mitras whose living sessions have changed."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        mirror.on_unrefreshed.append(self.mark)
        self._changed: dict[str, None] = {}
        self._more = trio.Event()

    def mark(self, mitra_id: str) -> None:
        self._changed[mitra_id] = None
        self._more.set()

    async def serve(self) -> NoReturn:
        while True:
            if not self._changed:
                self._more = trio.Event()
                await self._more.wait()
            await trio.sleep(PAUSE_SECONDS)
            changed = list(self._changed)
            for first in range(0, len(changed), AT_ONCE):
                await self._refresh(changed[first : first + AT_ONCE])

    async def _refresh(self, mitra_ids: list[str]) -> None:
        for mitra_id in mitra_ids:  # these alone: a crash must not forget those who wait behind them
            self._changed.pop(mitra_id, None)
        try:
            await self._mirror.refresh_capacities(mitra_ids)
        except StoreUnavailable:
            for mitra_id in mitra_ids:
                self.mark(mitra_id)
            await trio.sleep(AWAY_SECONDS)
