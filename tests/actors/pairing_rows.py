"""The rows of pairing in memory: what the actors' tests have instead of Postgres.

Held to the real rows by `tests/store/test_pairings.py`, which plays the same random histories on both. Every call passes a checkpoint, and
may be told to meet an absent store, before or after its effect.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import trio

from halo import protocol
from halo.clock import Moment
from halo.effects import Step
from halo.errors import (
    CapacityExceeded,
    IdReused,
    InvalidState,
    MitraDeactivated,
    NotFound,
    OfferResolved,
    StepOvertaken,
    StoreUnavailable,
)
from halo.pairing import Offer, OfferStatus, PairingStatus, PairingView, Search, cause_of, check_payment
from halo.payment import Payment, PaymentStatus
from halo.session import FailureCause, SessionStatus


@dataclass(slots=True)
class FakeMitra:
    mitra_id: str
    max_sessions: int = 3
    is_active: bool = True
    is_online: bool = True
    idle_since: Moment = 0
    living: int = 0


@dataclass(frozen=True, slots=True)
class FakeBefore:
    session_id: str
    status: str


@dataclass(frozen=True, slots=True)
class FakeAnswered:
    pairing_id: str
    opened: Step | None
    before: FakeBefore | None = None
    rerouted_session_id: str | None = None


class FakeRows:
    def __init__(self) -> None:
        self.mitras: dict[str, FakeMitra] = {}
        self.payments: dict[str, Payment] = {}
        self.searches: dict[str, Search] = {}
        self.sessions: dict[str, Step] = {}
        self.failures: list[tuple[str, str]] = []
        self.pushes: list[str] = []
        self.away = False
        """Postgres does not answer at all."""
        self.lost_answers: list[str] = []
        """The next call of each of these names is done, but its caller is told that the store is away."""

    # ---- what a test peoples it with

    def add_mitra(self, **fields: int) -> str:
        mitra_id = str(uuid4())
        self.mitras[mitra_id] = FakeMitra(mitra_id, **fields)  # type: ignore[arg-type]  # a test names the fields
        return mitra_id

    def add_payment(self, payment: Payment) -> Payment:
        self.payments[payment.payment_request_id] = payment
        return payment

    def set_payment(self, payment_request_id: str, status: PaymentStatus) -> None:
        self.payments[payment_request_id] = replace(self.payments[payment_request_id], status=status)
        for pairing_id, search in self.searches.items():
            if search.payment_request_id == payment_request_id:
                self.searches[pairing_id] = replace(search, payment_status=status)

    # ---- the customer's side

    async def open(
        self, pairing_id: str, customer_id: str, payment_request_id: str, topic_sensitivity: protocol.Topic, at: Moment
    ) -> PairingView:
        await self._arrive()
        found = self.searches.get(pairing_id)
        if found is not None:
            if (found.customer_id, found.payment_request_id) != (customer_id, payment_request_id):
                raise IdReused
            return found.view()
        stored = self.payments.get(payment_request_id)
        if stored is not None:
            stored = replace(stored, in_use=self._in_use(payment_request_id))
        payment = check_payment(stored, customer_id)
        self.searches[pairing_id] = Search(
            pairing_id=pairing_id,
            customer_id=customer_id,
            payment_request_id=payment_request_id,
            topic_sensitivity=topic_sensitivity,
            status=PairingStatus.SEARCHING,
            wave=0,
            deadline_at=at,
            session_id=None,
            cause=None,
            payment_status=payment.status,
            duration_minutes=payment.duration_minutes,
            amount=payment.amount,
            currency=payment.currency,
            offers=(),
        )
        self._answer("open")
        return self.searches[pairing_id].view()

    async def load_view(self, pairing_id: str, customer_id: str) -> PairingView:
        await self._arrive()
        search = self.searches.get(pairing_id)
        if search is None or search.customer_id != customer_id:
            raise NotFound
        return search.view()

    async def cancel(self, pairing_id: str, customer_id: str, at: Moment) -> PairingView:
        await self._arrive()
        search = self.searches.get(pairing_id)
        if search is None or search.customer_id != customer_id:
            raise NotFound
        if search.status is PairingStatus.MATCHED:
            raise InvalidState
        if search.status is PairingStatus.SEARCHING and search.rerouted_session_id is not None:
            raise InvalidState
        if search.status is PairingStatus.SEARCHING:
            self._resolve_open(pairing_id, OfferStatus.CANCELLED)
            self._resolve(pairing_id, PairingStatus.CANCELLED, FailureCause.CUSTOMER_CANCELLED)
        self._answer("cancel")
        return self.searches[pairing_id].view()

    # ---- the search's side

    async def load(self, pairing_id: str) -> Search:
        await self._arrive()
        if pairing_id not in self.searches:
            raise NotFound
        return self.searches[pairing_id]

    async def send_wave(
        self, search: Search, mitra_ids: Sequence[str], *, absent: Collection[str], deadline_at: Moment, at: Moment
    ) -> int:
        await self._arrive()
        self._require_searching(search)
        self._resolve_open(search.pairing_id, OfferStatus.TIMED_OUT)
        present = self.searches[search.pairing_id]
        asked = {offer.mitra_id for offer in present.offers}
        offers = tuple(
            Offer(
                offer_id=str(uuid4()),
                mitra_id=mitra_id,
                wave=search.wave + 1,
                status=OfferStatus.OPEN,
                deadline_at=deadline_at,
            )
            for mitra_id in mitra_ids
            if mitra_id not in asked and self._may_be_asked(mitra_id)
        )
        if offers:
            self.searches[search.pairing_id] = replace(
                present, wave=search.wave + 1, deadline_at=deadline_at, offers=present.offers + offers
            )
            self.pushes += [offer.offer_id for offer in offers if offer.mitra_id in absent]
        self._answer("send_wave")
        return len(offers)

    async def give_up(self, search: Search, at: Moment) -> None:
        await self._arrive()
        self._require_searching(search)
        self._fail(search.pairing_id)
        self._answer("give_up")

    async def take_up(self, not_before: Moment, kept: Collection[str] = ()) -> list[str]:
        """All that the asker does not keep: it is the only node, in whichever incarnation."""
        await self._arrive()
        taken = [
            search
            for search in self.searches.values()
            if search.status is PairingStatus.SEARCHING and search.pairing_id not in kept
        ]
        for search in taken:
            offers = tuple(
                replace(offer, deadline_at=max(offer.deadline_at, search.offers_end_at(not_before)))
                if offer.status is OfferStatus.OPEN
                else offer
                for offer in search.offers
            )
            deadline_at = max(search.deadline_at, not_before)
            self.searches[search.pairing_id] = replace(search, offers=offers, deadline_at=deadline_at)
        return [search.pairing_id for search in taken]

    async def find_available(self, limit: int, exclude: Collection[str]) -> list[str]:
        await self._arrive()
        found = [
            mitra
            for mitra in self.mitras.values()
            if self._may_be_asked(mitra.mitra_id) and mitra.mitra_id not in exclude
        ]
        return [mitra.mitra_id for mitra in sorted(found, key=lambda mitra: mitra.idle_since)[:limit]]

    # ---- the mitra's side

    async def accept(self, offer_id: str, mitra_id: str, open_: Callable[[Search], Step], at: Moment) -> FakeAnswered:
        await self._arrive()
        search, offer = self._find_offer(offer_id, mitra_id)
        if offer.status is OfferStatus.ACCEPTED and search.session_id is not None:
            session = self.sessions[search.session_id].session
            return FakeAnswered(search.pairing_id, None, FakeBefore(session.session_id, session.status.value))
        if offer.status is not OfferStatus.OPEN:
            raise OfferResolved
        if search.rerouted_session_id is not None:
            return FakeAnswered(search.pairing_id, None, rerouted_session_id=search.rerouted_session_id)
        mitra = self.mitras[mitra_id]
        if not mitra.is_active:
            raise MitraDeactivated
        if mitra.living >= mitra.max_sessions:
            raise CapacityExceeded
        if not search.payable:
            self._fail(search.pairing_id)
            self._answer("accept")
            return FakeAnswered(search.pairing_id, None)
        opened = open_(search)
        mitra.living, mitra.idle_since = mitra.living + 1, at
        self.sessions[opened.session.session_id] = opened
        self._set_offer(search.pairing_id, offer_id, OfferStatus.ACCEPTED)
        self._resolve_open(search.pairing_id, OfferStatus.TAKEN)
        self.searches[search.pairing_id] = replace(
            self.searches[search.pairing_id], status=PairingStatus.MATCHED, session_id=opened.session.session_id
        )
        if opened.session.status is SessionStatus.ACTIVE:
            self.set_payment(search.payment_request_id, PaymentStatus.CONSUMED)
        self._answer("accept")
        return FakeAnswered(search.pairing_id, opened)

    async def decline(self, offer_id: str, mitra_id: str, at: Moment) -> str:
        await self._arrive()
        search, offer = self._find_offer(offer_id, mitra_id)
        if offer.status not in {OfferStatus.OPEN, OfferStatus.DECLINED}:
            raise OfferResolved
        self._set_offer(search.pairing_id, offer_id, OfferStatus.DECLINED)
        self._answer("decline")
        return search.pairing_id

    async def list_open(self, mitra_id: str) -> list[protocol.Offer]:
        await self._arrive()
        return [
            search.frame(offer)
            for search in self.searches.values()
            for offer in search.offers
            if offer.mitra_id == mitra_id and offer.status is OfferStatus.OPEN
        ]

    async def rescind(self, mitra_id: str, at: Moment) -> list[str]:
        await self._arrive()
        lost = []
        for search in list(self.searches.values()):
            for offer in search.offers:
                if offer.mitra_id == mitra_id and offer.status is OfferStatus.OPEN:
                    self._set_offer(search.pairing_id, offer.offer_id, OfferStatus.CANCELLED)
                    lost.append(search.pairing_id)
        self._answer("rescind")
        return lost

    # ---- pieces

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable

    def _answer(self, name: str) -> None:
        if name in self.lost_answers:
            self.lost_answers.remove(name)
            raise StoreUnavailable

    def _in_use(self, payment_request_id: str) -> bool:
        searching = any(
            search.payment_request_id == payment_request_id
            and search.status in {PairingStatus.SEARCHING, PairingStatus.MATCHED}
            for search in self.searches.values()
        )
        return searching or any(
            step.session.payment_request_id == payment_request_id for step in self.sessions.values()
        )

    def _may_be_asked(self, mitra_id: str) -> bool:
        mitra = self.mitras[mitra_id]
        return mitra.is_active and mitra.is_online and mitra.living < mitra.max_sessions

    def _require_searching(self, search: Search) -> None:
        present = self.searches[search.pairing_id]
        if (present.status, present.wave) != (PairingStatus.SEARCHING, search.wave):
            raise StepOvertaken

    def _find_offer(self, offer_id: str, mitra_id: str) -> tuple[Search, Offer]:
        for search in self.searches.values():
            for offer in search.offers:
                if (offer.offer_id, offer.mitra_id) == (offer_id, mitra_id):
                    return search, offer
        raise NotFound

    def _set_offer(self, pairing_id: str, offer_id: str, status: OfferStatus) -> None:
        search = self.searches[pairing_id]
        offers = tuple(
            replace(offer, status=status) if offer.offer_id == offer_id else offer for offer in search.offers
        )
        self.searches[pairing_id] = replace(search, offers=offers)

    def _resolve_open(self, pairing_id: str, status: OfferStatus) -> None:
        for offer in self.searches[pairing_id].offers:
            if offer.status is OfferStatus.OPEN:
                self._set_offer(pairing_id, offer.offer_id, status)

    def _fail(self, pairing_id: str) -> None:
        payable = self.searches[pairing_id].payable
        self._resolve_open(pairing_id, OfferStatus.TIMED_OUT if payable else OfferStatus.CANCELLED)
        self._resolve(pairing_id, PairingStatus.FAILED, cause_of(self.searches[pairing_id]))

    def _resolve(self, pairing_id: str, status: PairingStatus, cause: FailureCause) -> None:
        self.searches[pairing_id] = replace(self.searches[pairing_id], status=status, cause=cause.value)
        self.failures.append((pairing_id, cause.value))
