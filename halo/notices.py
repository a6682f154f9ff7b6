"""What a session says about itself: the frames that its rules send, built from the session and nothing else.

Whoever is told what stands in the rules; here is only how it is put, so that a notice that several rules give is worded once.
No decision, no clock. Read next: `halo/protocol.py` (the frames' types) and `halo/rules.py` (when they are said).
"""

from typing import Literal

from halo import protocol
from halo.clock import Moment, rfc3339, rfc3339_or_none
from halo.session import DecidedBy, Extension, Session, ceil_seconds


def payment_pending(session: Session) -> protocol.PaymentPending:
    """A mitra accepted and waits for the money."""
    return protocol.PaymentPending(
        session_id=session.session_id,
        payment_request_id=session.payment_request_id,
        deadline_at=_fixed(session.deadline_at),
    )


def started(session: Session) -> protocol.SessionStarted:
    """The clock runs, with this mitra."""
    return protocol.SessionStarted(
        session_id=session.session_id, mitra_id=session.mitra_id, expires_at=_fixed(session.expires_at)
    )


def resumed(session: Session) -> protocol.SessionResumed:
    """The clock runs again."""
    return protocol.SessionResumed(
        session_id=session.session_id,
        expires_at=_fixed(session.expires_at),
        remaining_seconds=ceil_seconds(session.remaining_ms),
    )


def closing(session: Session, grace_ms: int, reason: str) -> protocol.SessionClosing:
    """The grace has begun, or goes on with what was left of it."""
    return protocol.SessionClosing(
        session_id=session.session_id,
        reason=reason,
        closes_at=_fixed(session.deadline_at),
        grace_seconds=ceil_seconds(grace_ms),
    )


def rerouting(session: Session) -> protocol.SessionRerouting:
    """Another mitra is sought."""
    return protocol.SessionRerouting(session_id=session.session_id)


def ended(session: Session) -> protocol.SessionEnded:
    """It is over, and why."""
    assert session.end_reason is not None  # given only once it has ended
    return protocol.SessionEnded(session_id=session.session_id, end_reason=session.end_reason)


def timer(session: Session, now: Moment) -> protocol.SessionTimer:
    """What the clock says at `now`."""
    return protocol.SessionTimer(
        session_id=session.session_id,
        remaining_seconds=ceil_seconds(session.remaining_ms_at(now)),
        expires_at=rfc3339_or_none(session.expires_at),
        server_time=rfc3339(now),
    )


def extension_request(session: Session, extension: Extension) -> protocol.ExtensionRequest:
    """The question to the mitra, with all that it needs to decide."""
    return protocol.ExtensionRequest(
        extension_id=extension.extension_id,
        session_id=session.session_id,
        duration_minutes=extension.duration_minutes,
        price=extension.price,
        currency=extension.currency,
        topic_sensitivity=session.topic_sensitivity,
        timeout_seconds=extension.timeout_seconds,
        deadline_at=rfc3339(extension.deadline_at),
    )


def paused(extension: Extension) -> protocol.SessionPaused:
    """Chat and clock stand still until the question is decided."""
    return protocol.SessionPaused(
        session_id=extension.session_id,
        reason="extension_pending",
        extension_id=extension.extension_id,
        deadline_at=rfc3339(extension.deadline_at),
    )


_REASONS: dict[DecidedBy, Literal["answered", "timeout", "safeguard", "cancelled"]] = {
    DecidedBy.MITRA: "answered",
    DecidedBy.POLICY: "timeout",
    DecidedBy.SAFEGUARD: "safeguard",
    DecidedBy.CUSTOMER: "cancelled",
    DecidedBy.PAYMENT: "cancelled",
}
"""`reason` of `extension_response`: who decided (spec 4, fine print). A session's end is told by `session_ended` alone."""


def extension_response(
    extension: Extension, decided_by: DecidedBy, expires_at: Moment | None
) -> protocol.ExtensionResponse:
    """The decision; `expires_at` is the new end of the paid time, None when there is no more of it."""
    return protocol.ExtensionResponse(
        extension_id=extension.extension_id,
        session_id=extension.session_id,
        accepted=expires_at is not None,
        duration_minutes=extension.duration_minutes,
        expires_at=rfc3339_or_none(expires_at),
        reason=_REASONS[decided_by],
        via_timeout=decided_by in {DecidedBy.POLICY, DecidedBy.SAFEGUARD},
    )


def _fixed(moment: Moment | None) -> str:
    assert moment is not None  # the status that gives this notice always has it
    return rfc3339(moment)
