"""Searches in Postgres: opened, sent in waves, given up, cancelled, taken up again; each one transaction, guarded by status and wave.

Whoever moves a search locks in one order: mitra, payment, pairing, offers. A wave takes no lock on mitras, because the sweeps update
thousands of them in one statement; so a mitra deactivated in the same instant may still be asked, and is refused when accepting.
It must never decide: moves and causes come from `halo/pairing.py`. Read next: `halo/store/offers.py`, the mitra's side.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import uuid4

from halo import protocol
from halo.clock import Moment
from halo.errors import CapacityExceeded, IdReused, InvalidState, NotFound, StepOvertaken
from halo.outbox import PUSH_PATIENCE_MS
from halo.outcomes import NEWS_MS
from halo.pairing import Offer, OfferStatus, PairingStatus, PairingView, Search, cause_of, check_payment, evidence_of
from halo.payment import Payment, PaymentStatus
from halo.session import FailureCause
from halo.store.connection import Values
from halo.store.nodes import LOCK_CLASS
from halo.store.payments import payment_of
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.trace import current_traceparent

SQL: Final = load_queries("pairings")


class Pairings:
    """The rows of searches, as kept by the node `owner`."""

    def __init__(self, db: Postgres, owner: str) -> None:
        self._db = db
        self._owner = owner

    async def open(
        self, pairing_id: str, customer_id: str, payment_request_id: str, topic_sensitivity: protocol.Topic, at: Moment
    ) -> PairingView:
        """A search with this id and payment; the same call again gives the search as it is by then.

        Raises:
            NotFound, InvalidState, PaymentInUse: as `halo.pairing.check_payment`.
            IdReused: the id belongs to a search with another payment, or of somebody else.
            StoreUnavailable
        """
        row: Values = {
            "pairing_id": pairing_id,
            "customer_id": customer_id,
            "payment_request_id": payment_request_id,
            "topic_sensitivity": topic_sensitivity,
            "owner": self._owner,
            "at": at,
        }

        async def write(tx: Transaction) -> PairingView:
            payment = await lock_payment(tx, payment_request_id)
            found = await tx.fetch_one(SQL["find_pairing"], {"pairing_id": pairing_id})
            if found is not None:
                if (found.customer_id, found.payment_request_id) != (customer_id, payment_request_id):
                    raise IdReused("This id was used before for another pairing.")
                return _view(found)
            check_payment(payment, customer_id)
            if await tx.execute(SQL["insert_pairing"], row) != 1:
                raise IdReused("This id was used before for another pairing.")
            return PairingView(pairing_id=pairing_id, status=PairingStatus.SEARCHING)

        return await self._db.transact(write, str(uuid4()))

    async def load_view(self, pairing_id: str, customer_id: str) -> PairingView:
        """Raises NotFound for a pairing that is not this customer's, StoreUnavailable."""
        row = await self._db.fetch_one(SQL["find_pairing"], {"pairing_id": pairing_id})
        if row is None or row.customer_id != customer_id:
            raise NotFound("There is no such pairing.")
        return _view(row)

    async def load(self, pairing_id: str) -> Search:
        """The whole search in one snapshot. Raises NotFound, StoreUnavailable."""
        return await load_search(self._db, pairing_id)

    async def send_wave(
        self, search: Search, mitra_ids: Sequence[str], *, absent: Collection[str], deadline_at: Moment, at: Moment
    ) -> int:
        """Time out what is still open, and ask those of `mitra_ids` who may be asked, in this order; how many that were.

        None of them: the search stays in its wave. Those in `absent` are not in the lobby and are asked by push at once.

        Raises:
            StepOvertaken: the search is no longer searching in `search.wave`.
            StoreUnavailable
        """
        wave: Values = {
            "pairing_id": search.pairing_id,
            "wave": search.wave + 1,
            "deadline_at": deadline_at,
            "at": at,
            "mitra_ids": list(mitra_ids),
            "offer_ids": [str(uuid4()) for _ in mitra_ids],
            "absent": list(absent),
            "owner": self._owner,
            "patient_until": at + PUSH_PATIENCE_MS,
            "without_mitra_ids": list(search.without_mitra_ids),
            "traceparent": current_traceparent(),
        }

        async def write(tx: Transaction) -> int:
            await _lock_searching(tx, search)
            await _resolve_open_offers(tx, search.pairing_id, OfferStatus.TIMED_OUT, at)
            offered = await tx.execute(SQL["insert_offers"], wave)
            if offered:
                await tx.execute(SQL["advance_wave"], wave)
                await tx.execute(SQL["insert_offer_pushes"], wave)
            return offered

        return await self._db.transact(write, str(uuid4()))

    async def give_up(self, search: Search, at: Moment) -> None:
        """Fail the search with its one cause and an audit row.

        Raises:
            StepOvertaken: the search is no longer searching in `search.wave`.
            StoreUnavailable
        """

        async def write(tx: Transaction) -> None:
            await _lock_searching(tx, search)
            await fail_search(tx, search.pairing_id, at)

        await self._db.transact(write, str(uuid4()))

    async def cancel(self, pairing_id: str, customer_id: str, at: Moment) -> PairingView:
        """The customer gives up; cancelling what is over changes nothing.

        Raises:
            NotFound: not this customer's.
            InvalidState: a mitra was faster.
            StoreUnavailable
        """

        async def write(tx: Transaction) -> PairingView:
            row = await tx.fetch_one(SQL["lock_pairing"], {"pairing_id": pairing_id})
            if row is None or row.customer_id != customer_id:
                raise NotFound("There is no such pairing.")
            if row.status == PairingStatus.MATCHED:
                raise InvalidState("A mitra has accepted; the session can be ended instead.")
            if row.status != PairingStatus.SEARCHING:
                return _view(row)
            if row.rerouted_session_id is not None:
                raise InvalidState("It seeks another mitra for a session; the session can be ended instead.")
            await withdraw(tx, pairing_id, FailureCause.CUSTOMER_CANCELLED, at)
            return (await load_search(tx, pairing_id)).view()

        return await self._db.transact(write, str(uuid4()))

    async def take_up(self, not_before: Moment, kept: Collection[str] = ()) -> list[str]:
        """Keep every search that no living node keeps, nor this one in `kept`. Their deadlines fall at `not_before` or later (spec 4, fine print).

        Raises StoreUnavailable.
        """
        values: Values = {"owner": self._owner, "lock_class": LOCK_CLASS, "not_before": not_before, "kept": list(kept)}

        async def write(tx: Transaction) -> list[str]:
            return [row.pairing_id for row in await tx.fetch_all(SQL["take_up"], values)]

        return await self._db.transact(write, str(uuid4()))


# ---- pieces that `halo/store/offers.py` shares


async def lock_payment(tx: Transaction, payment_request_id: str) -> Payment | None:
    """The payment, locked until the caller's transaction ends, with `in_use` as of now."""
    row = await tx.fetch_one(SQL["lock_payment"], {"payment_request_id": payment_request_id})
    if row is None:
        return None
    use = await tx.fetch_one(SQL["check_use"], {"payment_request_id": payment_request_id})
    return payment_of(row, in_use=use is not None and use.in_use)


async def lock_pairing(tx: Transaction, pairing_id: str) -> PairingStatus:
    """The status, which stays until the caller's transaction ends. Raises NotFound."""
    row = await tx.fetch_one(SQL["lock_pairing"], {"pairing_id": pairing_id})
    if row is None:
        raise NotFound("There is no such pairing.")
    return PairingStatus(row.status)


async def load_search(source: Postgres | Transaction, pairing_id: str) -> Search:
    """One statement, so one snapshot. Raises NotFound."""
    rows = await source.fetch_all(SQL["find_search"], {"pairing_id": pairing_id})
    if not rows:
        raise NotFound("There is no such pairing.")
    first = rows[0]
    return Search(
        pairing_id=first.pairing_id,
        customer_id=first.customer_id,
        payment_request_id=first.payment_request_id,
        topic_sensitivity=first.topic_sensitivity,
        status=PairingStatus(first.status),
        wave=first.wave,
        deadline_at=first.deadline_at,
        session_id=first.session_id,
        cause=first.cause,
        rerouted_session_id=first.rerouted_session_id,
        session_deadline_at=first.session_deadline_at,
        without_mitra_ids=tuple(first.without_mitra_ids),
        payment_status=PaymentStatus(first.payment_status),
        duration_minutes=first.duration_minutes,
        amount=first.amount,
        currency=first.currency,
        offers=tuple(
            Offer(
                offer_id=row.offer_id,
                mitra_id=row.mitra_id,
                wave=row.offer_wave,
                status=OfferStatus(row.offer_status),
                deadline_at=row.offer_deadline_at,
            )
            for row in rows
            if row.offer_id is not None
        ),
    )


async def fail_search(tx: Transaction, pairing_id: str, at: Moment) -> None:
    """Fail a search that the caller has locked; the cause is read off the rows once nobody can answer any more."""
    payable = (await load_search(tx, pairing_id)).payable
    await _resolve_open_offers(tx, pairing_id, OfferStatus.TIMED_OUT if payable else OfferStatus.CANCELLED, at)
    search = await load_search(tx, pairing_id)
    await _resolve(tx, search, PairingStatus.FAILED, cause_of(search), at)


async def withdraw(tx: Transaction, pairing_id: str, cause: FailureCause, at: Moment) -> None:
    """End a search that the caller has locked, for a cause that lies outside of it: nobody is asked any more."""
    await _resolve_open_offers(tx, pairing_id, OfferStatus.CANCELLED, at)
    by_customer = cause is FailureCause.CUSTOMER_CANCELLED
    status = PairingStatus.CANCELLED if by_customer else PairingStatus.FAILED
    await _resolve(tx, await load_search(tx, pairing_id), status, cause, at)


async def require_room(tx: Transaction, mitra_id: str) -> None:
    """The mitra can take one more session; asked under the lock on her row only. Raises CapacityExceeded."""
    held = await tx.fetch_one(SQL["count_living"], {"mitra_id": mitra_id})
    if held is None or held.living >= held.max_sessions:
        raise CapacityExceeded


async def take_open_offers(tx: Transaction, pairing_id: str, at: Moment) -> None:
    """Another mitra was first."""
    await _resolve_open_offers(tx, pairing_id, OfferStatus.TAKEN, at)


async def _lock_searching(tx: Transaction, search: Search) -> None:
    row = await tx.fetch_one(SQL["lock_pairing"], {"pairing_id": search.pairing_id})
    if row is None or (row.status, row.wave) != (PairingStatus.SEARCHING, search.wave):
        raise StepOvertaken("pairing")


async def _resolve_open_offers(tx: Transaction, pairing_id: str, status: OfferStatus, at: Moment) -> None:
    await tx.execute(SQL["resolve_open_offers"], {"pairing_id": pairing_id, "status": status, "at": at})


async def _resolve(tx: Transaction, search: Search, status: PairingStatus, cause: FailureCause, at: Moment) -> None:
    values: Values = {
        "pairing_id": search.pairing_id,
        "status": status,
        "cause": cause,
        "evidence": json.dumps(evidence_of(search)),
        "at": at,
        "patient_until": at + PUSH_PATIENCE_MS,
        "news_until": at + NEWS_MS,
        "traceparent": current_traceparent(),
    }
    await tx.execute(SQL["resolve_pairing"], values)


def _view(row: Any) -> PairingView:
    return PairingView(
        pairing_id=row.pairing_id, status=PairingStatus(row.status), session_id=row.session_id, cause=row.cause
    )
