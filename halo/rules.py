"""The law of a session: which event is legal in which status, where it leads, what is written and what is said.

`step(session, event)` is pure: it reads no clock and does no I/O; time and outside facts arrive inside events. The table `RULES` is
the whole law, and the diagram in the README is drawn from it. Whatever the table does not name is refused by name and changes
nothing; `ended` accepts no event at all. The rules of the clock stand here, those of an extension in `halo/answers.py`, those that
end a session in `halo/endings.py`. Read next: these two, then `halo/actors/decider.py` (which calls `step` and commits).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from halo import accounts, answers, endings, notices, outcomes
from halo.clock import Moment, rfc3339
from halo.config import LiveConfig
from halo.effects import (
    ConsumePayment,
    Decision,
    Effect,
    LedgerType,
    MoveExtensionDeadline,
    OpenSearch,
    PushIfAbsent,
    Send,
    Step,
    WinOffer,
)
from halo.errors import ExtensionResolved, Refusal, SessionIsPaused, SessionNotActive
from halo.events import (
    DeadlineReached,
    DowntimeCredited,
    EndRequested,
    Event,
    ExtensionAnswered,
    ExtensionCancelled,
    ExtensionRequested,
    MitraAssigned,
    MitraLost,
    PaymentConfirmed,
    PaymentFailed,
    SearchFailed,
)
from halo.session import Party, Session, SessionStatus

timer_frame = notices.timer
"""What the clock says at a moment; the actor sends it on its own between two steps."""


def _payment_confirmed(session: Session, event: PaymentConfirmed) -> Decision:
    started = replace(accounts.granted(session, event.at, session.duration_minutes, session.price), started_at=event.at)
    effects = (
        ConsumePayment(payment_request_id=session.payment_request_id, type=LedgerType.SESSION),
        Send(frame=notices.started(started)),
    )
    return Decision(session=started, effects=effects, cause="payment_confirmed")


def _time_up(session: Session, event: DeadlineReached) -> Decision:
    grace_ms = event.config.closure_grace_seconds * 1000
    closing = accounts.closing(session, event.at, grace_ms)
    said = Send(frame=notices.closing(closing, grace_ms, "time_up"))
    return Decision(session=closing, effects=(said,), cause="time_up")


def _mitra_lost(session: Session, event: MitraLost) -> Decision:
    waiting = accounts.rerouting(session, event.at, event.deadline_at)
    if waiting.remaining_ms == 0:
        # The deadline is on its way: nobody is asked to take over no minutes at all, and the customer keeps the grace.
        raise SessionNotActive("The session's time is up; there is nothing left to take over.")
    evidence: dict[str, Any] = {"mitra_id": session.mitra_id, "pairing_id": event.pairing_id}
    if event.reachability is not None:
        evidence |= {"silent_ms": event.silent_ms, **event.reachability.evidence()}
    effects = (OpenSearch(pairing_id=event.pairing_id), Send(frame=notices.rerouting(waiting)))
    return Decision(session=waiting, effects=effects, cause=event.cause, evidence=evidence)


def _mitra_assigned(session: Session, event: MitraAssigned) -> Decision:
    former_mitra_ids = (*session.former_mitra_ids, session.mitra_id)
    taken_over = replace(session, mitra_id=event.mitra_id, former_mitra_ids=former_mitra_ids)
    started = accounts.running(taken_over, event.at)
    effects = (
        WinOffer(pairing_id=event.pairing_id, offer_id=event.offer_id, mitra_id=event.mitra_id),
        Send(frame=notices.started(started)),
    )
    evidence = {"from": session.mitra_id, "to": event.mitra_id, "pairing_id": event.pairing_id}
    return Decision(session=started, effects=effects, cause="offer_accepted", evidence=evidence)


def _downtime_credited(session: Session, event: DowntimeCredited) -> Decision:
    credited = accounts.credited(session, event.downtime_ms, event.not_before)
    effects: list[Effect] = []
    if credited.extension is not None:
        effects.append(
            MoveExtensionDeadline(
                extension_id=credited.extension.extension_id, deadline_at=credited.extension.deadline_at
            )
        )
    effects.append(Send(frame=timer_frame(credited, event.at)))
    evidence = {"downtime_ms": event.downtime_ms, "not_before": rfc3339(event.not_before)}
    return Decision(session=credited, effects=tuple(effects), cause="no_owner", evidence=evidence)


@dataclass(frozen=True, slots=True)
class Rule:
    """One cell of the table: the function, every status it may lead to, and its label in the diagram."""

    apply: Callable[[Session, Any], Decision]
    leads_to: tuple[SessionStatus, ...]
    label: str


_S = SessionStatus
_END = Rule(endings.end_requested, (_S.ENDED,), "ended by a person")
_ASKED = Rule(answers.extension_requested, (_S.EXTENDING,), "extension requested")


def _credited(status: SessionStatus) -> Rule:
    return Rule(_downtime_credited, (status,), "downtime credited")


RULES: dict[SessionStatus, dict[type[Event], Rule]] = {
    _S.PENDING_PAYMENT: {
        PaymentConfirmed: Rule(_payment_confirmed, (_S.ACTIVE,), "payment confirmed"),
        PaymentFailed: Rule(endings.payment_failed, (_S.ENDED,), "payment failed"),
        DeadlineReached: Rule(endings.hold_over, (_S.ENDED,), "hold over"),
        EndRequested: _END,
        DowntimeCredited: _credited(_S.PENDING_PAYMENT),
    },
    _S.ACTIVE: {
        DeadlineReached: Rule(_time_up, (_S.CLOSING,), "time up"),
        ExtensionRequested: _ASKED,
        EndRequested: _END,
        MitraLost: Rule(_mitra_lost, (_S.REROUTING,), "mitra lost or transfer"),
        DowntimeCredited: _credited(_S.ACTIVE),
    },
    _S.EXTENDING: {
        ExtensionAnswered: Rule(answers.extension_answered, (_S.ACTIVE, _S.CLOSING), "mitra answers"),
        ExtensionCancelled: Rule(answers.extension_cancelled, (_S.ACTIVE, _S.CLOSING), "customer cancels"),
        PaymentFailed: Rule(answers.extension_unpaid, (_S.ACTIVE, _S.CLOSING), "its payment failed"),
        DeadlineReached: Rule(answers.policy_decides, (_S.ACTIVE, _S.CLOSING), "policy decides"),
        EndRequested: _END,
        DowntimeCredited: _credited(_S.EXTENDING),
    },
    _S.CLOSING: {
        DeadlineReached: Rule(endings.grace_over, (_S.ENDED,), "grace over"),
        ExtensionRequested: _ASKED,
        EndRequested: _END,
        DowntimeCredited: _credited(_S.CLOSING),
    },
    _S.REROUTING: {
        MitraAssigned: Rule(_mitra_assigned, (_S.ACTIVE,), "another mitra accepts"),
        SearchFailed: Rule(endings.nobody_found, (_S.ENDED,), "nobody found"),
        DeadlineReached: Rule(endings.search_over, (_S.ENDED,), "nobody found in time"),
        EndRequested: _END,
        DowntimeCredited: _credited(_S.REROUTING),
    },
    _S.ENDED: {},
}

EVENT_NAMES: dict[type[Event], str] = {
    PaymentConfirmed: "payment_confirmed",
    PaymentFailed: "payment_failed",
    DeadlineReached: "deadline_reached",
    ExtensionRequested: "extension_requested",
    ExtensionAnswered: "extension_answered",
    ExtensionCancelled: "extension_cancelled",
    EndRequested: "end_requested",
    MitraLost: "mitra_lost",
    MitraAssigned: "mitra_assigned",
    SearchFailed: "search_failed",
    DowntimeCredited: "downtime_credited",
}
"""What the timeline calls each event."""


class DeadlineNotReached(Exception):
    """A deadline event came before its deadline: a fault of the caller, never of a user (T2)."""


def step(session: Session, event: Event) -> Step:
    """What `event` does to `session`; the version of the session afterwards is one higher.

    Raises:
        Refusal: the table has no rule for this event in this status; nothing changes.
        DeadlineNotReached: a `DeadlineReached` whose moment lies before the deadline.
    """
    rule = RULES[session.status].get(type(event))
    if rule is None:
        raise _illegal(session, event)
    if isinstance(event, DeadlineReached) and (session.deadline_at is None or event.at < session.deadline_at):
        raise DeadlineNotReached(f"{session.session_id}: {event.at} is before {session.deadline_at}")
    decision = rule.apply(session, event)
    return Step(
        session=replace(decision.session, version=session.version + 1),
        effects=(*decision.effects, *outcomes.pushes(session, event, decision.session)),
        at=event.at,
        event=EVENT_NAMES[type(event)],
        cause=decision.cause,
        evidence={**decision.evidence, **_deadline_of(session, event)},
        credited_ms=event.downtime_ms if isinstance(event, DowntimeCredited) else None,
    )


def _deadline_of(session: Session, event: Event) -> Mapping[str, str]:
    """What T2 is proved by afterwards: no deadline is acted upon before its time."""
    if not isinstance(event, DeadlineReached) or session.deadline_at is None:
        return {}
    return {"deadline_at": rfc3339(session.deadline_at)}


def _illegal(session: Session, event: Event) -> Refusal:
    if isinstance(event, ExtensionAnswered | ExtensionCancelled):
        return ExtensionResolved()
    return SessionNotActive(f"The session is {session.status}, which does not allow this.")


def open_session(session: Session, at: Moment, config: LiveConfig, *, confirmed: bool) -> Step:
    """The first step of a session that a mitra accepted: straight to `active` when the payment is confirmed, else on hold.

    `session` is in `pending_payment` with nothing on its accounts; its `price` is what its payment costs.
    """
    held = replace(session, deadline_at=at + config.payment_hold_seconds * 1000)
    if confirmed:
        started = step(held, PaymentConfirmed(at=at))
        # The mitra who accepts needs no push to know.
        effects = tuple(e for e in started.effects if not (isinstance(e, PushIfAbsent) and e.party is Party.MITRA))
        session = replace(started.session, version=held.version)
        return replace(started, session=session, effects=effects, event="mitra_accepted")
    waiting = Send(frame=notices.payment_pending(held), to=Party.CUSTOMER)
    effects = (waiting, outcomes.payment_awaited(held))
    return Step(session=held, effects=effects, at=at, event="mitra_accepted", cause="payment_pending")


def refuse_message(status: SessionStatus) -> Refusal | None:
    """Why a session in `status` takes no messages, or None when it does (spec 2, "Messages")."""
    match status:
        case SessionStatus.ACTIVE | SessionStatus.CLOSING:
            return None
        case SessionStatus.EXTENDING | SessionStatus.REROUTING:
            return SessionIsPaused()
        case SessionStatus.PENDING_PAYMENT | SessionStatus.ENDED:
            return SessionNotActive()
