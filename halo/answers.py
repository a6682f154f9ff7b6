"""What becomes of a request for more time: asked, answered, cancelled, or left to the policy when its deadline falls.

A person's no, a policy's no and a tripped safeguard stay three different things in every record (spec 1 C). Nothing is charged
but by `_accepted`, and nothing is accepted in silence unless the mitra was seen to be there. Whether a request may be made at
all is `halo/extension.py`. Read next: `halo/rules.py`, whose table names these.
"""

from typing import Any

from halo import accounts, notices
from halo.clock import Moment, rfc3339
from halo.config import LiveConfig, RefusalOutcome, TimeoutAction
from halo.effects import (
    ConsumePayment,
    Decision,
    Effect,
    FailPayment,
    LedgerType,
    OpenExtension,
    PushIfAbsent,
    RecordFailure,
    ResolveExtension,
    Send,
)
from halo.errors import ExtensionResolved
from halo.events import (
    DeadlineReached,
    ExtensionAnswered,
    ExtensionCancelled,
    ExtensionRequested,
    PaymentFailed,
    Reachability,
)
from halo.payment import PaymentStatus
from halo.session import DecidedBy, Extension, ExtensionStatus, FailureCause, Party, Session


def extension_requested(session: Session, event: ExtensionRequested) -> Decision:
    """Clock and chat stand still until somebody decides."""
    extension = event.extension
    effects = (
        OpenExtension(extension=extension),
        PushIfAbsent(
            party=Party.MITRA,
            template="extension_request",
            expires_at=extension.deadline_at,
            collapse_key=f"extension:{extension.extension_id}",
        ),
        Send(frame=notices.extension_request(session, extension), to=Party.MITRA),
        Send(frame=notices.paused(extension)),
    )
    evidence = {
        "by": _DECIDERS[DecidedBy.CUSTOMER],
        "extension_id": extension.extension_id,
        "payment_request_id": extension.payment_request_id,
        "payment_status": PaymentStatus.CONFIRMED.value,
        "duration_minutes": extension.duration_minutes,
        "price": extension.price,
        "deadline_at": rfc3339(extension.deadline_at),
        "timeout_seconds": extension.timeout_seconds,
        "default_action_on_timeout": extension.default_action_on_timeout.value,
        "refusal_outcome": extension.refusal_outcome.value,
        "config_version": extension.config_version,
    }
    paused = accounts.extending(session, event.at, extension)
    return Decision(session=paused, effects=effects, cause="customer", evidence=evidence)


def extension_answered(session: Session, event: ExtensionAnswered) -> Decision:
    """The mitra says yes or no.

    Raises:
        ExtensionResolved: another request was meant than the one that waits.
    """
    extension = _pending(session, event.extension_id)
    evidence = {
        **_grounds(session, extension, event.at, DecidedBy.MITRA),
        "mitra_id": session.mitra_id,
        "payment_status": PaymentStatus.CONFIRMED.value,
    }
    if event.accepted:
        after, effects = _accepted(session, extension, event.at, DecidedBy.MITRA)
        return Decision(session=after, effects=effects, cause="mitra_accepted", evidence=evidence)
    after, effects = _refused(session, extension, event.at, DecidedBy.MITRA, event.config)
    return Decision(session=after, effects=effects, cause="mitra_refused", evidence=evidence)


def extension_cancelled(session: Session, event: ExtensionCancelled) -> Decision:
    """The customer takes the request back: the payment is free again, and the session goes back to where it was.

    Raises:
        ExtensionResolved: another request was meant than the one that waits.
    """
    extension = _pending(session, event.extension_id)
    after, said = _without_more_time(session, event.at, event.config, RefusalOutcome.RESUME, "extension_cancelled")
    effects = (
        ResolveExtension(
            extension_id=extension.extension_id,
            status=ExtensionStatus.CANCELLED,
            decided_by=DecidedBy.CUSTOMER,
        ),
        Send(frame=notices.extension_response(extension, DecidedBy.CUSTOMER, None)),
        said,
    )
    # Its payment's status is left out: nobody read it, for a wish needs no money.
    evidence = {**_grounds(session, extension, event.at, DecidedBy.CUSTOMER), "customer_id": session.customer_id}
    return Decision(session=after, effects=effects, cause="customer", evidence=evidence)


def extension_unpaid(session: Session, event: PaymentFailed) -> Decision:
    """The provider took the money back before anybody decided: the request is void, and the payment keeps its own cause."""
    extension = _pending(session)
    after, said = _without_more_time(session, event.at, event.config, RefusalOutcome.RESUME, "payment_failed")
    effects = (
        ResolveExtension(
            extension_id=extension.extension_id,
            status=ExtensionStatus.CANCELLED,
            decided_by=DecidedBy.PAYMENT,
        ),
        RecordFailure(cause=FailureCause.PAYMENT_FAILED, extension_id=extension.extension_id),
        Send(frame=notices.extension_response(extension, DecidedBy.PAYMENT, None)),
        said,
    )
    evidence = {
        **_grounds(session, extension, event.at, DecidedBy.PAYMENT),
        "payment_status": PaymentStatus.FAILED.value,
    }
    return Decision(session=after, effects=effects, cause="payment_failed", evidence=evidence)


def policy_decides(session: Session, event: DeadlineReached) -> Decision:
    """Nobody answered in time: the policy that was copied onto the request decides, on the evidence in the event."""
    extension = _pending(session)
    if extension.default_action_on_timeout is TimeoutAction.AUTO_REJECT:
        cause, decided_by = "policy_rejected", DecidedBy.POLICY
        after, effects = _refused(session, extension, event.at, DecidedBy.POLICY, event.config)
    elif _is_there(event.reachability):
        cause, decided_by = "policy_approved", DecidedBy.POLICY
        after, effects = _accepted(session, extension, event.at, DecidedBy.POLICY)
    else:
        cause, decided_by = "safeguard_tripped", DecidedBy.SAFEGUARD
        after, effects = _refused(session, extension, event.at, DecidedBy.SAFEGUARD, event.config)
    evidence = {
        **_grounds(session, extension, event.at, decided_by),
        "payment_status": PaymentStatus.CONFIRMED.value,
        **(event.reachability.evidence() if event.reachability is not None else {}),
    }
    return Decision(session=after, effects=effects, cause=cause, evidence=evidence)


def _pending(session: Session, extension_id: str | None = None) -> Extension:
    """The extension that waits in `extending`.

    Raises:
        ExtensionResolved: another one was meant.
    """
    if session.extension is None or extension_id not in {None, session.extension.extension_id}:
        raise ExtensionResolved
    return session.extension


def _is_there(seen: Reachability | None) -> bool:
    """Both legs of the safeguard: reachable by the mirror *and* connected; not knowing is no (spec 2)."""
    return seen is not None and seen.online and seen.heartbeat_fresh and seen.connected


_DECIDERS = {
    DecidedBy.MITRA: "mitra",
    DecidedBy.POLICY: "policy",
    DecidedBy.SAFEGUARD: "safeguard",
    DecidedBy.CUSTOMER: "customer",
    DecidedBy.PAYMENT: "payment provider",
}
"""Who decided, for those who read the timeline; the values of `DecidedBy` are those of the wire."""


def _grounds(session: Session, extension: Extension, at: Moment, decided_by: DecidedBy) -> dict[str, Any]:
    """What every decision about a request rests on: who decided and when, by which policy, about which payment, with what left.

    Who adds a `payment_status` has it held by the step itself: a payment that is something else by then overtakes it.
    """
    grounds = {
        "by": _DECIDERS[decided_by],
        "extension_id": extension.extension_id,
        "payment_request_id": extension.payment_request_id,
        "asked_at": rfc3339(extension.requested_at),
        "decided_at": rfc3339(at),
        "deadline_at": rfc3339(extension.deadline_at),
        "default_action_on_timeout": extension.default_action_on_timeout.value,
        "refusal_outcome": extension.refusal_outcome.value,
        "config_version": extension.config_version,
        "remaining_ms": session.remaining_ms,
    }
    return grounds if session.grace_left_ms is None else {**grounds, "grace_left_ms": session.grace_left_ms}


def _accepted(
    session: Session, extension: Extension, at: Moment, decided_by: DecidedBy
) -> tuple[Session, tuple[Effect, ...]]:
    """The only place where an extension is charged and its minutes are granted."""
    after = accounts.extended(session, at, extension)
    return after, (
        ResolveExtension(
            extension_id=extension.extension_id,
            status=ExtensionStatus.ACCEPTED,
            decided_by=decided_by,
        ),
        ConsumePayment(payment_request_id=extension.payment_request_id, type=LedgerType.EXTENSION),
        Send(frame=notices.extension_response(extension, decided_by, after.expires_at)),
        Send(frame=notices.resumed(after)),
    )


_REFUSALS = {
    DecidedBy.MITRA: (ExtensionStatus.REJECTED, FailureCause.EXTENSION_REJECTED),
    DecidedBy.POLICY: (ExtensionStatus.TIMEOUT, FailureCause.EXTENSION_TIMED_OUT),
    DecidedBy.SAFEGUARD: (ExtensionStatus.TIMEOUT, FailureCause.EXTENSION_SAFEGUARD_TRIPPED),
}


def _refused(
    session: Session, extension: Extension, at: Moment, decided_by: DecidedBy, config: LiveConfig
) -> tuple[Session, tuple[Effect, ...]]:
    status, cause = _REFUSALS[decided_by]
    after, said = _without_more_time(session, at, config, extension.refusal_outcome, cause)
    return after, (
        ResolveExtension(extension_id=extension.extension_id, status=status, decided_by=decided_by),
        FailPayment(payment_request_id=extension.payment_request_id, cause=cause, expected=PaymentStatus.CONFIRMED),
        RecordFailure(cause=cause, extension_id=extension.extension_id),
        Send(frame=notices.extension_response(extension, decided_by, None)),
        said,
    )


def _without_more_time(
    session: Session, at: Moment, config: LiveConfig, outcome: RefusalOutcome, reason: str
) -> tuple[Session, Send]:
    """Out of `extending`: back to the grace it came from, back to the chat, or to a new grace (spec 1 B)."""
    if session.grace_left_ms is not None:
        grace_ms = session.grace_left_ms
    elif session.remaining_ms > 0 and outcome is RefusalOutcome.RESUME:
        resumed = accounts.running(session, at)
        return resumed, Send(frame=notices.resumed(resumed))
    else:
        grace_ms = config.closure_grace_seconds * 1000
    closing = accounts.closing(session, at, grace_ms)
    return closing, Send(frame=notices.closing(closing, grace_ms, reason))
