"""How searches stand, many at once and in one statement: enough to see that somebody has moved one, not to move it.

It must never lock, and never grow into reading whole searches; `halo/store/pairings.py` does that. Read next:
`halo/actors/readings.py`, which asks.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from halo.pairing import PairingStatus
from halo.payment import PaymentStatus
from halo.session import FailureCause
from halo.store.postgres import Postgres
from halo.store.queries import load_queries

SQL: Final = load_queries("searches")


@dataclass(frozen=True, slots=True)
class SearchState:
    """One search in the snapshot of the statement."""

    pairing_id: str
    status: PairingStatus
    wave: int
    open_offers: int
    payment_status: PaymentStatus


@dataclass(frozen=True, slots=True)
class FailedSearch:
    """A search for another mitra that came to nothing."""

    session_id: str
    pairing_id: str
    cause: FailureCause


class SearchStates:
    """The states of searches."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def list_states(self, pairing_ids: Collection[str]) -> list[SearchState]:
        """Those of `pairing_ids` that there are, in no order. Raises StoreUnavailable."""
        rows = await self._db.fetch_all(SQL["list_states"], {"pairing_ids": list(pairing_ids)})
        return [
            SearchState(
                row.pairing_id, PairingStatus(row.status), row.wave, row.open_offers, PaymentStatus(row.payment_status)
            )
            for row in rows
        ]

    async def list_failed(self, session_ids: Collection[str]) -> list[FailedSearch]:
        """The searches for another mitra for these sessions that nobody answered. Raises StoreUnavailable."""
        rows = await self._db.fetch_all(SQL["list_failed"], {"session_ids": list(session_ids)})
        return [FailedSearch(row.session_id, row.pairing_id, FailureCause(row.cause)) for row in rows]
