"""Another mitra for a session that lost its own, in Postgres: what a step writes about the session's search.

The search itself is a pairing like any other, kept by `halo/store/pairings.py` and moved by its task; only its beginning, its winner
and its end are steps of the session, and stand in the session's own transaction. It must never hand a session to a mitra without
room (A5). Read next: `halo/store/steps.py`, which calls this.
"""

from typing import Final

from halo.clock import Moment
from halo.effects import WinOffer
from halo.errors import MitraDeactivated, OfferResolved
from halo.pairing import PairingStatus
from halo.session import FailureCause, Session
from halo.store import pairings
from halo.store.connection import Values
from halo.store.postgres import Transaction
from halo.store.queries import load_queries

SQL: Final = load_queries("reroutes")


async def open_search(tx: Transaction, pairing_id: str, session: Session, owner: str, at: Moment) -> None:
    """A search for another mitra for `session`, kept by the node `owner`; its first wave may start at `at`."""
    row: Values = {
        "pairing_id": pairing_id,
        "customer_id": session.customer_id,
        "payment_request_id": session.payment_request_id,
        "topic_sensitivity": session.topic_sensitivity,
        "session_id": session.session_id,
        "owner": owner,
        "at": at,
    }
    await tx.execute(SQL["open_search"], row)


async def lock_offer(tx: Transaction, effect: WinOffer, before: Session) -> None:
    """Wait until nobody else moves the mitras, of `before` and of the offer, or the search: what `win_offer` needs to stay as it is.

    Raises:
        OfferResolved: somebody or something was faster.
        MitraDeactivated, CapacityExceeded
    """
    mitras = await tx.fetch_all(SQL["lock_mitras"], {"mitra_ids": sorted({before.mitra_id, effect.mitra_id})})
    if not any(row.mitra_id == effect.mitra_id and row.is_active for row in mitras):
        raise MitraDeactivated
    await pairings.require_room(tx, effect.mitra_id)
    if await pairings.lock_pairing(tx, effect.pairing_id) is not PairingStatus.SEARCHING:
        raise OfferResolved


async def win_offer(tx: Transaction, effect: WinOffer, before: Session, at: Moment) -> None:
    """The offer is accepted and the search matched, under the locks of `lock_offer`.

    Raises:
        OfferResolved: the offer is not open any more.
    """
    won: Values = {
        "offer_id": effect.offer_id,
        "pairing_id": effect.pairing_id,
        "mitra_id": effect.mitra_id,
        "session_id": before.session_id,
        "at": at,
    }
    if await tx.execute(SQL["win"], won) != 1:
        raise OfferResolved
    await pairings.take_open_offers(tx, effect.pairing_id, at)


async def close_search(tx: Transaction, before: Session, cause: FailureCause, at: Moment) -> None:
    """Whatever search the session still has is over; nothing to do when it has failed already."""
    # The step will count its mitra's sessions anew: her row comes before the pairing's, as everywhere, or two steps could deadlock.
    await tx.fetch_all(SQL["lock_mitras"], {"mitra_ids": [before.mitra_id]})
    found = await tx.fetch_one(SQL["find_open_search"], {"session_id": before.session_id})
    if found is not None and await pairings.lock_pairing(tx, found.pairing_id) is PairingStatus.SEARCHING:
        await pairings.withdraw(tx, found.pairing_id, cause, at)
