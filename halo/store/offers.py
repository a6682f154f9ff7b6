"""Offers in Postgres: the mitra's yes, no, or absence. The first yes wins, and a slot is never sold twice.

`accept` is one transaction: the mitra's row is locked, so that two yeses of one mitra wait for each other, then the payment, then the
pairing, so that two yeses to one customer do; what is left is one conditional statement. It must never open a session that it did
not also count against the mitra's limit (A5). Read next: `halo/store/sessions.py`, which writes the session itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import uuid4

from halo import protocol
from halo.clock import Moment, rfc3339
from halo.effects import Step
from halo.errors import MitraDeactivated, NotFound, OfferResolved
from halo.pairing import PAYABLE, OfferStatus, PairingStatus, Search
from halo.store import pairings
from halo.store.connection import Values
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.store.steps import insert_session

SQL: Final = load_queries("offers")


class OpenedBefore(NamedTuple):
    """The session of an offer that its mitra had accepted already, as it is by now."""

    session_id: str
    status: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of an accept that was not refused.

    `opened` is the step that opened the session; for the winner's repeat that is None and `before` names the session that the first
    yes has opened; when the payment had failed both are None. With `rerouted_session_id` nothing was decided: the offer is to take
    over that session, whose actor alone may hand it on.
    """

    pairing_id: str
    opened: Step | None
    before: OpenedBefore | None = None
    rerouted_session_id: str | None = None


class Offers:
    """The rows of offers; sessions that an accept opens belong to the node `owner`."""

    def __init__(self, db: Postgres, owner: str) -> None:
        self._db = db
        self._owner = owner

    async def list_open(self, mitra_id: str) -> list[protocol.Offer]:
        """What this mitra is being asked, oldest first. Raises StoreUnavailable."""
        rows = await self._db.fetch_all(SQL["list_open_offers"], {"mitra_id": mitra_id})
        return [
            protocol.Offer(
                offer_id=row.offer_id,
                pairing_id=row.pairing_id,
                topic_sensitivity=row.topic_sensitivity,
                duration_minutes=row.duration_minutes,
                price=row.amount,
                currency=row.currency,
                deadline_at=rfc3339(row.deadline_at),
            )
            for row in rows
        ]

    async def accept(self, offer_id: str, mitra_id: str, open_: Callable[[Search], Step], at: Moment) -> Answered:
        """Open a session, if this is the first yes and the mitra has room; the winner's repeat finds the session that it has opened.

        `open_` makes the session's first step of the locked search. It may be called again, when the transaction is, and must then
        give the same session.

        Raises:
            NotFound: the offer is not this mitra's.
            OfferResolved: it is no longer open.
            MitraDeactivated, CapacityExceeded
            StoreUnavailable: whether the session was opened, the pairing's row will tell.
        """
        offer: Values = {"offer_id": offer_id, "mitra_id": mitra_id, "at": at}

        async def write(tx: Transaction) -> Answered:
            row = await _look_at(tx, offer_id, mitra_id)
            if row.before is None and row.rerouted_session_id is not None:
                return Answered(row.pairing_id, None, rerouted_session_id=row.rerouted_session_id)
            if (
                row.before is None
            ):  # it looks open; the same yes may have been taken while we waited for our own mitra's row
                await _lock_mitra(tx, mitra_id)
                row = await _look_at(tx, offer_id, mitra_id)
            if row.before is not None:
                return Answered(row.pairing_id, None, row.before)
            await pairings.require_room(tx, mitra_id)
            payment = await pairings.lock_payment(tx, row.payment_request_id)
            if await pairings.lock_pairing(tx, row.pairing_id) is not PairingStatus.SEARCHING:
                raise OfferResolved
            if payment is None or payment.status not in PAYABLE:
                await pairings.fail_search(tx, row.pairing_id, at)
                return Answered(row.pairing_id, None)
            opened = open_(await pairings.load_search(tx, row.pairing_id))
            await insert_session(tx, opened, self._owner)
            if (
                await tx.execute(SQL["win"], {**offer, "session_id": opened.session.session_id}) != 1
            ):  # declined or rescinded between our first look and now
                raise OfferResolved
            await pairings.take_open_offers(tx, row.pairing_id, at)
            await tx.execute(SQL["resolve_own_push"], offer)
            return Answered(row.pairing_id, opened)

        return await self._db.transact(write, str(uuid4()))

    async def decline(self, offer_id: str, mitra_id: str, at: Moment) -> str:
        """The mitra's no, once or repeated; the pairing's id.

        Raises:
            NotFound: the offer is not this mitra's.
            OfferResolved: it was resolved otherwise.
            StoreUnavailable
        """
        offer: Values = {"offer_id": offer_id, "mitra_id": mitra_id, "at": at}

        async def write(tx: Transaction) -> str:
            declined = await tx.execute(SQL["decline"], offer)
            row = await tx.fetch_one(SQL["find_offer"], offer)
            if row is None:
                raise NotFound("There is no such offer.")
            if not declined and row.status != OfferStatus.DECLINED:
                raise OfferResolved
            await tx.execute(SQL["resolve_own_push"], offer)
            return str(row.pairing_id)

        return await self._db.transact(write, str(uuid4()))

    async def rescind(self, mitra_id: str, at: Moment) -> list[str]:
        """Withdraw every open offer of this mitra; the ids of the pairings that have lost one. Raises StoreUnavailable."""

        async def write(tx: Transaction) -> list[str]:
            return [
                row.pairing_id for row in await tx.fetch_all(SQL["rescind_offers"], {"mitra_id": mitra_id, "at": at})
            ]

        return await self._db.transact(write, str(uuid4()))


class _Looked(NamedTuple):
    pairing_id: str
    payment_request_id: str
    rerouted_session_id: str | None
    before: OpenedBefore | None


async def _look_at(tx: Transaction, offer_id: str, mitra_id: str) -> _Looked:
    """First without locks: who is late is told so before queueing behind the winner."""
    row = await tx.fetch_one(SQL["find_offer"], {"offer_id": offer_id, "mitra_id": mitra_id})
    if row is None:
        raise NotFound("There is no such offer.")
    before = None if row.session_id is None else OpenedBefore(row.session_id, row.session_status)
    if before is None and row.status != OfferStatus.OPEN:
        raise OfferResolved
    return _Looked(row.pairing_id, row.payment_request_id, row.rerouted_session_id, before)


async def _lock_mitra(tx: Transaction, mitra_id: str) -> None:
    mitra = await tx.fetch_one(SQL["lock_mitra"], {"mitra_id": mitra_id})
    if mitra is None or not mitra.is_active:
        raise MitraDeactivated
