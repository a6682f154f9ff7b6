"""Who is told by push what became of their session, because their phone may be in the background (spec 1 C: silence about outcomes).

Read off a step: where it came from, what happened, where it led. A party that did it itself is not told what it knows. A push of a
session replaces the one before, on the phone as in the outbox, so that an old outcome never arrives after a newer one. No I/O. Read
next: `halo/rules.py`, which adds these to each step; `halo/push.py`, what they say.
"""

from halo.clock import Moment
from halo.effects import PushIfAbsent
from halo.events import (
    DeadlineReached,
    EndedBy,
    EndRequested,
    Event,
    ExtensionAnswered,
    MitraAssigned,
    MitraLost,
    PaymentConfirmed,
    PaymentFailed,
)
from halo.push import Template
from halo.session import Party, Session, SessionStatus

NEWS_MS = 3_600_000
"""How long the end of a session is news: a phone that was off for longer finds it in the app."""
OUTCOMES = frozenset(Template) - {Template.OFFER, Template.EXTENSION_REQUEST}
"""The templates that say how something came out; the other two ask something."""

_BOTH = (Party.CUSTOMER, Party.MITRA)
_CUSTOMER = (Party.CUSTOMER,)


def pushes(before: Session, event: Event, after: Session) -> tuple[PushIfAbsent, ...]:
    """The outcome of this step for those who did not bring it about."""
    told = _told(before, event, after)
    if told is None:
        return ()
    template, parties = told
    expires_at = after.deadline_at if after.deadline_at is not None else event.at + NEWS_MS
    return tuple(_push(after, template, party, expires_at) for party in parties)


def payment_awaited(held: Session) -> PushIfAbsent:
    """A mitra accepted, and waits for the customer's money."""
    assert held.deadline_at is not None  # a hold has its end
    return _push(held, Template.PAYMENT_PENDING, Party.CUSTOMER, held.deadline_at)


def _told(before: Session, event: Event, after: Session) -> tuple[Template, tuple[Party, ...]] | None:
    if after.status is SessionStatus.ENDED:
        return Template.SESSION_ENDED, _bystanders(before, event)
    match event:
        case PaymentConfirmed():
            return Template.SESSION_STARTED, _BOTH
        case MitraLost():
            return Template.SESSION_REROUTING, _CUSTOMER
        case MitraAssigned():
            return Template.SESSION_REROUTED, _CUSTOMER
        case ExtensionAnswered(accepted=accepted):
            return Template.EXTENSION_ACCEPTED if accepted else Template.EXTENSION_REFUSED, _CUSTOMER
        case PaymentFailed():
            return Template.EXTENSION_UNPAID, _CUSTOMER
        case DeadlineReached() if before.status is SessionStatus.EXTENDING:
            approved = after.extensions_accepted > before.extensions_accepted
            return Template.EXTENSION_ACCEPTED if approved else Template.EXTENSION_TIMED_OUT, _CUSTOMER
        case DeadlineReached():
            return Template.SESSION_CLOSING, _BOTH
        case _:
            return None


def _bystanders(before: Session, event: Event) -> tuple[Party, ...]:
    """Those whom an end concerns and who did not bring it about; a mitra who was lost or shut out is not in the session any more."""
    by = event.by if isinstance(event, EndRequested) else None
    parties = []
    if by is not EndedBy.CUSTOMER:
        parties.append(Party.CUSTOMER)
    if by not in {EndedBy.MITRA, EndedBy.DEACTIVATION} and before.status is not SessionStatus.REROUTING:
        parties.append(Party.MITRA)
    return tuple(parties)


def _push(session: Session, template: Template, party: Party, expires_at: Moment) -> PushIfAbsent:
    return PushIfAbsent(
        party=party,
        template=template.value,
        expires_at=expires_at,
        collapse_key=f"session:{session.session_id}:{party.value}",
    )
