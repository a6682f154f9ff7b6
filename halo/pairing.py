"""Pairing: who may search, what happens next to a search, and what it came to when nobody was found.

A *search* is a pairing with all its offers, read in one snapshot; `next_move` makes of it a wait, a wave or the end. Pure: the
moment, the configuration and the rows are handed in, and the conditional statements of `halo/store/offers.py` have the last word
when two things happen at once. It must never keep anything that is not a column, so that a restart resumes a wave in its middle.
Read next: `halo/actors/search.py`, the task that makes the moves; `halo/store/pairings.py`, which writes them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from halo import protocol
from halo.clock import Moment, rfc3339
from halo.config import LiveConfig
from halo.effects import Step
from halo.errors import InvalidState, NotFound, PaymentInUse
from halo.payment import Payment, PaymentStatus
from halo.rules import open_session
from halo.session import FailureCause, Session, SessionStatus


class PairingStatus(StrEnum):
    """`searching` → one of the others, once."""

    SEARCHING = "searching"
    MATCHED = "matched"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OfferStatus(StrEnum):
    """`open` → one of the others, once. `taken`: another mitra was first. `cancelled`: the question was withdrawn."""

    OPEN = "open"
    ACCEPTED = "accepted"
    DECLINED = "declined"
    TAKEN = "taken"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingView:
    """A pairing as its customer sees it (spec 4)."""

    pairing_id: str
    status: PairingStatus
    session_id: str | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One mitra, asked once in a pairing."""

    offer_id: str
    mitra_id: str
    wave: int
    status: OfferStatus
    deadline_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A pairing, its payment and all its offers; columns have the same names."""

    pairing_id: str
    customer_id: str
    payment_request_id: str
    topic_sensitivity: protocol.Topic
    status: PairingStatus
    wave: int
    """How many waves have been sent; 0 before the first."""
    deadline_at: Moment
    """When the present wave is over; before the first, when that may start."""
    session_id: str | None
    cause: str | None
    rerouted_session_id: str | None = None
    """The session that lost its mitra, when another is sought for it."""
    session_deadline_at: Moment | None = None
    """When that session waits no longer, whatever the configuration says by now; no offer of this search outlives it."""
    without_mitra_ids: tuple[str, ...] = ()
    """The mitras it had, who are not asked: it was taken from each of them."""
    payment_status: PaymentStatus
    duration_minutes: int
    amount: int
    """Minor units of `currency`."""
    currency: str
    offers: tuple[Offer, ...]

    @property
    def payable(self) -> bool:
        """What it can still become does not wait for money that will not come; a session that lost its mitra has been paid for."""
        return self.rerouted_session_id is not None or self.payment_status in PAYABLE

    def offers_end_at(self, wanted: Moment) -> Moment:
        """When offers end that were to end at `wanted`: nobody is told a moment at which the session will not wait any more."""
        return wanted if self.session_deadline_at is None else min(wanted, self.session_deadline_at)

    def view(self) -> PairingView:
        return PairingView(pairing_id=self.pairing_id, status=self.status, session_id=self.session_id, cause=self.cause)

    def frame(self, offer: Offer) -> protocol.Offer:
        """The question as the mitra gets it."""
        return protocol.Offer(
            offer_id=offer.offer_id,
            pairing_id=self.pairing_id,
            topic_sensitivity=self.topic_sensitivity,
            duration_minutes=self.duration_minutes,
            price=self.amount,
            currency=self.currency,
            deadline_at=rfc3339(offer.deadline_at),
        )


SESSION_PATIENCE_MS: Final = 1_000
"""A session whose deadline has come ends, and its search with it, unless it is owed downtime: after a second the rows tell which."""
PAYABLE = frozenset({PaymentStatus.PENDING, PaymentStatus.CONFIRMED})
"""A payment in one of these can still open a session."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`, unless somebody answers."""

    until: Moment


@dataclass(frozen=True, slots=True)
class AskWave:
    """Offers go to the longest-idle available mitras, without those in `exclude`."""

    wave: int
    exclude: frozenset[str]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The search is over; why is said by `cause_of`, when the rows are locked."""


Move: TypeAlias = Wait | AskWave | GiveUp


def next_move(search: Search, at: Moment, *, waves: int, not_before: Moment = 0) -> Move:
    """What happens next to a search that is `searching`.

    Offers never run out before `not_before`: after an outage people need a moment to come back. Whoever has been asked is not asked
    again, and when nobody is left who could still answer, the next wave starts at once (spec 4, fine print).
    """
    if not search.payable:
        return GiveUp()
    if search.wave == 0:
        until = search.deadline_at
    elif any(offer.status is OfferStatus.OPEN for offer in search.offers):
        until = max(search.deadline_at, not_before)
    else:
        until = at
    if at < until:
        return Wait(until)
    if search.wave >= waves:
        return GiveUp()
    if search.session_deadline_at is not None and at >= search.session_deadline_at:
        return Wait(at + SESSION_PATIENCE_MS)
    asked = frozenset(offer.mitra_id for offer in search.offers)
    return AskWave(search.wave + 1, asked.union(search.without_mitra_ids))


def cause_of(search: Search) -> FailureCause:
    """The one cause of a search that found nobody (spec 4, fine print)."""
    if not search.payable:
        return FailureCause.PAYMENT_FAILED
    if not search.offers:
        return FailureCause.NO_MITRA_AVAILABLE
    if all(offer.status is OfferStatus.DECLINED for offer in search.offers):
        return FailureCause.ALL_DECLINED
    return FailureCause.TIMED_OUT


def evidence_of(search: Search) -> dict[str, int]:
    """What the audit row keeps: the waves, and how many offers ended how."""
    return {"waves": search.wave, **count_statuses(search.offers)}


def count_statuses(offers: Iterable[Offer]) -> dict[str, int]:
    return {status.value: count for status, count in sorted(Counter(offer.status for offer in offers).items())}


def check_payment(payment: Payment | None, customer_id: str) -> Payment:
    """The payment can pay for a session of this customer.

    Raises:
        NotFound: there is none, or it is somebody else's.
        InvalidState: it was made for an extension, or is neither pending nor confirmed.
        PaymentInUse: another search or session has it.
    """
    if payment is None or payment.customer_id != customer_id:
        raise NotFound("There is no such payment.")
    if payment.is_extension:
        raise InvalidState("The payment was made for an extension, not for a session.")
    if payment.status not in PAYABLE:
        raise InvalidState(f"The payment is {payment.status}; it must be pending or confirmed.")
    if payment.in_use:
        raise PaymentInUse
    return payment


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a session is opened with besides its search: chosen by the desk before the rows are locked."""

    session_id: str
    at: Moment
    minute_ms: int
    config: LiveConfig


def open_match(search: Search, mitra_id: str, opening: Opening) -> Step:
    """The first step of the session that `mitra_id` has won; `search` is locked, and its payment payable."""
    session = Session(
        session_id=opening.session_id,
        customer_id=search.customer_id,
        mitra_id=mitra_id,
        payment_request_id=search.payment_request_id,
        topic_sensitivity=search.topic_sensitivity,
        status=SessionStatus.PENDING_PAYMENT,
        duration_minutes=search.duration_minutes,
        minute_ms=opening.minute_ms,
        price=search.amount,
        currency=search.currency,
    )
    return open_session(session, opening.at, opening.config, confirmed=search.payment_status is PaymentStatus.CONFIRMED)
