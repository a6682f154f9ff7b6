"""How a session ends: the rules that lead to `ended`, all through one gate.

The gate settles the clock, gives the time left to somebody, resolves what is pending and fails what nobody used, so that no
ending can leave a request without an answer or money without an outcome (M6, M7). A session never ends in any other way.
Read next: `halo/rules.py`, whose table names these.
"""

from dataclasses import replace
from typing import Any

from halo import accounts, notices
from halo.accounts import TimeLeft
from halo.clock import Moment
from halo.effects import (
    CloseSearch,
    Decision,
    Effect,
    FailPayment,
    FailUnusedPayments,
    RecordFailure,
    RefundTimeLeft,
    ResolveExtension,
    Send,
)
from halo.events import DeadlineReached, EndedBy, EndRequested, PaymentFailed, SearchFailed
from halo.payment import PaymentStatus
from halo.session import DecidedBy, EndReason, ExtensionStatus, FailureCause, Session, SessionStatus


def payment_failed(session: Session, event: PaymentFailed) -> Decision:
    """The provider says that no money will come."""
    return _end(session, event.at, EndReason.PAYMENT_FAILED, TimeLeft.FORFEITED, cause="payment_failed")


def hold_over(session: Session, event: DeadlineReached) -> Decision:
    """The mitra has waited long enough for the money."""
    return _end(session, event.at, EndReason.PAYMENT_TIMEOUT, TimeLeft.FORFEITED, cause="payment_hold_over")


def grace_over(session: Session, event: DeadlineReached) -> Decision:
    """All was served, all was said."""
    return _end(session, event.at, EndReason.COMPLETED, TimeLeft.FORFEITED, cause="grace_over")


def nobody_found(session: Session, event: SearchFailed) -> Decision:
    """Everybody was asked, and no other mitra took over."""
    ended = _end(session, event.at, EndReason.NO_MITRA, TimeLeft.REFUNDED, cause=event.cause)
    return replace(ended, evidence={**ended.evidence, "pairing_id": event.pairing_id})


def search_over(session: Session, event: DeadlineReached) -> Decision:
    """No other mitra took over in time."""
    return _end(session, event.at, EndReason.NO_MITRA, TimeLeft.REFUNDED, cause="no_mitra")


_ENDINGS = {
    EndedBy.CUSTOMER: (EndReason.ENDED_BY_CUSTOMER, TimeLeft.FORFEITED),
    EndedBy.MITRA: (EndReason.ENDED_BY_MITRA, TimeLeft.REFUNDED),
    EndedBy.ADMIN: (EndReason.ENDED_BY_ADMIN, TimeLeft.REFUNDED),
    EndedBy.DEACTIVATION: (EndReason.MITRA_DEACTIVATED, TimeLeft.REFUNDED),
}
"""Who ends decides about the time left: only a customer can give up minutes (spec 1 B)."""


def end_requested(session: Session, event: EndRequested) -> Decision:
    """A person ends it."""
    reason, time_left = _ENDINGS[event.by]
    return _end(session, event.at, reason, time_left, cause=event.by)


_UNPAID = {
    EndReason.PAYMENT_FAILED: FailureCause.PAYMENT_FAILED,
    EndReason.PAYMENT_TIMEOUT: FailureCause.PAYMENT_EXPIRED,
}
"""What the session's own payment failed of, when it was never charged; any other end of a hold is `session_ended`."""


_SEARCH_ENDS = {
    EndReason.NO_MITRA: FailureCause.TIMED_OUT,
    EndReason.ENDED_BY_CUSTOMER: FailureCause.CUSTOMER_CANCELLED,
}
"""What the session's search for another mitra comes to with it; any other end is `session_ended`."""


def _end(session: Session, at: Moment, reason: EndReason, time_left: TimeLeft, *, cause: str) -> Decision:
    """The one gate into `ended`."""
    ended = accounts.ended(session, at, reason, time_left)
    effects: list[Effect] = []
    if session.status is SessionStatus.PENDING_PAYMENT:
        # Nothing was charged yet; failed now, so that money which arrives late is refunded whole.
        why = _UNPAID.get(reason, FailureCause.SESSION_ENDED)
        expected = (
            PaymentStatus.PENDING if reason is EndReason.PAYMENT_TIMEOUT else None
        )  # money that came just now is not late
        effects += [
            FailPayment(payment_request_id=session.payment_request_id, cause=why, expected=expected),
            RecordFailure(cause=why, extension_id=None),
        ]
    if session.extension is not None:
        pending = session.extension
        effects += [
            ResolveExtension(
                extension_id=pending.extension_id,
                status=ExtensionStatus.CANCELLED,
                decided_by=DecidedBy.SESSION_END,
            ),
            FailPayment(payment_request_id=pending.payment_request_id, cause=FailureCause.SESSION_ENDED),
            RecordFailure(cause=FailureCause.SESSION_ENDED, extension_id=pending.extension_id),
        ]
    if session.status is SessionStatus.REROUTING:
        effects.append(CloseSearch(cause=_SEARCH_ENDS.get(reason, FailureCause.SESSION_ENDED)))
    effects.append(FailUnusedPayments(session_id=session.session_id))
    amount = accounts.refund_amount(ended)
    if amount:
        effects.append(RefundTimeLeft(amount=amount, currency=session.currency, refunded_ms=ended.refunded_ms))
    effects.append(Send(frame=notices.ended(ended)))
    evidence = _evidence(session, at, time_left, amount)
    return Decision(session=ended, effects=tuple(effects), cause=cause, evidence=evidence)


def _evidence(session: Session, at: Moment, time_left: TimeLeft, refund_amount: int) -> dict[str, Any]:
    """What was still open when it ended, and who got it: the request, the payment on hold, the time left."""
    evidence: dict[str, Any] = {}
    if session.status is SessionStatus.PENDING_PAYMENT:
        evidence["payment_request_id"] = session.payment_request_id
    if session.extension is not None:
        evidence |= {
            "extension_id": session.extension.extension_id,
            "payment_request_id": session.extension.payment_request_id,
        }
    if left_ms := accounts.settled(session, at).remaining_ms:
        evidence |= {"remaining_ms": left_ms, "time_left": time_left.value}
    if refund_amount:
        evidence |= {"refund_amount": refund_amount, "currency": session.currency}
    return evidence
