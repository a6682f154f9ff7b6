"""The accounts of a session's clock, and the few moves between them.

Every millisecond that was paid for stands in exactly one account: `served_ms`, `refunded_ms`, `forfeited_ms` or `remaining_ms` (spec 5,
T1). A move books what was bought or carries time from one account to another, together with the status and the deadline that
belong to it; none loses any, and each exists once. Nothing here knows an event, a frame or a reason to do it.
Read next: `halo/rules.py`, which says when each move is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from halo.clock import Moment
from halo.session import EndReason, Extension, Session, SessionStatus


@dataclass(frozen=True, slots=True)
class Charge:
    """A payment that a session has used, and what may still be given back on it, in minor units."""

    payment_request_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one payment gives back of a session's time left: money in minor units, and the time that it stands for."""

    payment_request_id: str
    amount: int
    refunded_ms: int


class TimeLeft(StrEnum):
    """To whom the time goes that nobody will serve any more."""

    REFUNDED = "refunded"
    FORFEITED = "forfeited"


def settled(session: Session, at: Moment) -> Session:
    """The clock stopped at `at`: what ran since `running_since` becomes served time."""
    if session.running_since is None:
        return session
    left = session.remaining_ms_at(at)
    served_ms = session.served_ms + session.remaining_ms - left
    return replace(session, served_ms=served_ms, remaining_ms=left, running_since=None, expires_at=None)


def running(session: Session, at: Moment) -> Session:
    """Into `active`, with a clock that stood still until `at`."""
    expires_at = at + session.remaining_ms
    return replace(
        session,
        status=SessionStatus.ACTIVE,
        running_since=at,
        expires_at=expires_at,
        deadline_at=expires_at,
        grace_left_ms=None,
        extension=None,
    )


def granted(session: Session, at: Moment, minutes: int, amount: int) -> Session:
    """`minutes` that were bought for `amount` are added to the time left, and the clock runs from `at` (spec 1 B)."""
    granted_ms = minutes * session.minute_ms
    richer = replace(
        session,
        paid_ms=session.paid_ms + granted_ms,
        remaining_ms=session.remaining_ms + granted_ms,
        paid_amount=session.paid_amount + amount,
    )
    return running(richer, at)


def extending(session: Session, at: Moment, extension: Extension) -> Session:
    """Into `extending`: both clocks, of the paid time and of the grace, stand still from `at` on."""
    grace_left_ms = None
    if session.status is SessionStatus.CLOSING:
        assert session.deadline_at is not None  # closing always has its deadline
        grace_left_ms = max(0, session.deadline_at - at)
    return replace(
        settled(session, at),
        status=SessionStatus.EXTENDING,
        deadline_at=extension.deadline_at,
        grace_left_ms=grace_left_ms,
        extension=extension,
    )


def extended(session: Session, at: Moment, extension: Extension) -> Session:
    """Out of `extending` with the minutes that were asked for, on top of the time left."""
    longer = replace(
        session,
        duration_minutes=session.duration_minutes + extension.duration_minutes,
        extensions_accepted=session.extensions_accepted + 1,
    )
    return granted(longer, at, extension.duration_minutes, extension.price)


def closing(session: Session, at: Moment, grace_ms: int) -> Session:
    """Into the grace, which lasts `grace_ms` from `at`; time that was not served is forfeited."""
    stopped = settled(session, at)
    return replace(
        stopped,
        status=SessionStatus.CLOSING,
        deadline_at=at + grace_ms,
        forfeited_ms=stopped.forfeited_ms + stopped.remaining_ms,
        remaining_ms=0,
        grace_left_ms=None,
        extension=None,
    )


def rerouting(session: Session, at: Moment, deadline_at: Moment) -> Session:
    """Into `rerouting` until `deadline_at`: the time left is kept."""
    return replace(settled(session, at), status=SessionStatus.REROUTING, deadline_at=deadline_at)


def ended(session: Session, at: Moment, reason: EndReason, time_left: TimeLeft) -> Session:
    """The one way into `ended`: the clock stops, the time left goes to somebody, nothing stays open."""
    stopped = settled(session, at)
    left = stopped.remaining_ms
    return replace(
        stopped,
        status=SessionStatus.ENDED,
        end_reason=reason,
        deadline_at=None,
        remaining_ms=0,
        refunded_ms=stopped.refunded_ms + (left if time_left is TimeLeft.REFUNDED else 0),
        forfeited_ms=stopped.forfeited_ms + (left if time_left is TimeLeft.FORFEITED else 0),
        grace_left_ms=None,
        extension=None,
    )


def credited(session: Session, downtime_ms: int, not_before: Moment) -> Session:
    """Every deadline moved by a downtime that nobody served, and none earlier than `not_before` (T3)."""
    assert session.deadline_at is not None  # every living status has its deadline
    deadline_at = max(session.deadline_at + downtime_ms, not_before)
    moved = replace(session, deadline_at=deadline_at)
    if moved.running_since is not None and moved.expires_at is not None:
        moved = replace(
            moved, running_since=moved.running_since + downtime_ms, expires_at=moved.expires_at + downtime_ms
        )
    if moved.extension is not None:
        moved = replace(moved, extension=replace(moved.extension, deadline_at=deadline_at))
    return moved


def refund_amount(session: Session) -> int:
    """What its refunded time is worth in minor units: pro rata over everything paid, rounded in the customer's favour."""
    if session.paid_ms == 0:
        return 0
    return -(-session.paid_amount * session.refunded_ms // session.paid_ms)


def spread(amount: int, refunded_ms: int, charges: Sequence[Charge]) -> tuple[Share, ...]:
    """`amount` laid upon `charges` in their order, none above its own; the time goes with the money, and both sum to the whole.

    Nobody can be paid back more on a payment than was charged on it: the provider would refuse it. Charges that do not bear the whole
    amount are no session's (M4); then the rest stays unrefunded, and an invariant says so.
    """
    shares, laid, told_ms = list[Share](), 0, 0
    for charge in charges:
        part = min(charge.amount, amount - laid)
        if part <= 0:
            continue
        laid += part
        upto_ms = refunded_ms * laid // amount
        shares.append(Share(charge.payment_request_id, part, upto_ms - told_ms))
        told_ms = upto_ms
    return tuple(shares)


def in_whole_units(parts: Sequence[int], unit: int) -> tuple[int, ...]:
    """The parts as whole multiples of `unit` that sum to their sum, which is rounded down as people read a clock.

    Each is less than one unit off, and a part of nothing stays nothing: the units that rounding down has lost go to the largest
    remainders, the first of equals. Rounded one by one, the accounts on the page would not add up to what was paid.
    """
    wholes = [part // unit for part in parts]
    missing = sum(parts) // unit - sum(wholes)
    by_remainder = sorted(range(len(parts)), key=lambda index: -(parts[index] % unit))
    for index in by_remainder[:missing]:
        wholes[index] += 1
    return tuple(whole * unit for whole in wholes)
