"""What leaves halo: a claimed row of the outbox, what a courier made of it, and what becomes of the row then.

Pure: moments and dice are handed in. A row is delivered at least once: a sender that dies between the sending and the writing leaves a
lease that runs out, and the row goes out again; so pushes carry a collapse key and refunds an id by which the second one is known. It
must never lose a row in silence: each ends as sent, cancelled, expired or dead, with the reason. Read next: `halo/actors/outbox.py`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from halo.clock import Moment
from halo.histogram import Histogram

PUSH_PATIENCE_MS: Final = 5_000
"""How long a frame that was told to a socket may stay unanswered before the push goes: a sleeping radio needs about two seconds, and an
offer that waits for 30 s must leave its mitra most of them."""
GIVE_UP_MS: Final = 24 * 3600 * 1000
"""After the first attempt (of a replay: after its own first): a day, in which somebody has seen the alarm."""
RETRY_AFTER_MAX_MS: Final = 3_600_000
"""What a server may ask for by `Retry-After`; one that says next week must not silence refunds until then."""
ERROR_CHARACTERS_MAX: Final = 200


class OutboxKind(StrEnum):
    PUSH = "push"
    REFUND = "refund"


class OutboxStatus(StrEnum):
    DUE = "due"
    SENT = "sent"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts: doubling, up to a longest one."""

    first_ms: int
    longest_ms: int

    def wait_ms(self, tries: int, dice: float) -> int:
        """After so many tries; `dice` in [0, 1) spreads it over the second half, so that rows that failed together do not return together."""
        whole = min(self.longest_ms, self.first_ms << min(max(tries - 1, 0), 30))
        return round(whole * (0.5 + dice / 2))


BACKOFFS: Final[Mapping[OutboxKind, Backoff]] = {
    # A push is worth little a minute later; 30 s is also how late one may be once the provider is back.
    OutboxKind.PUSH: Backoff(first_ms=1_000, longest_ms=30_000),
    # About a hundred attempts in the 24 h: a provider that is down for a morning is not hammered.
    OutboxKind.REFUND: Backoff(first_ms=5_000, longest_ms=15 * 60_000),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A phone: where somebody is signed in and wants pushes."""

    auth_session_id: str
    token: str = field(repr=False)
    locale: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """Money that is due back, for the payment provider."""

    refund_id: str
    payment_request_id: str
    provider_ref: str | None
    session_id: str | None
    kind: str
    cause: str
    amount: int
    currency: str
    created_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row that this node is to deliver now, with all that is needed for it."""

    outbox_id: str
    kind: OutboxKind
    user_id: str
    template: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    collapse_key: str
    is_expired: bool = False
    """Claimed too late: its row is `expired` already."""
    receipt: str | None = None
    """Names the ping that followed the frame; None when nobody was told by a frame, or another node told them."""
    attempts: int
    """This one included; the fence of the row."""
    tries: int
    """The same since the last replay."""
    first_attempt_at: Moment
    expires_at: Moment | None = None
    session_id: str | None = None
    """What it is about, if that is a session: an offer is not."""
    traceparent: str | None = None
    devices: tuple[Device, ...] = ()
    reached: frozenset[str] = frozenset()
    """Auth sessions whose devices have it already."""
    refund: Refund | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a courier made of a claim. `failure` may pass with time, `refusal` never does; with neither it is done."""

    reached: tuple[str, ...] = ()
    dropped: tuple[str, ...] = field(default=(), repr=False)
    """Tokens that belong to no phone any more."""
    failure: str | None = None
    retry_after_ms: int | None = None
    refusal: str | None = None
    nobody: str | None = None
    """Why there was nobody to deliver it to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of a claimed row."""

    outbox_id: str
    kind: OutboxKind
    attempts: int
    status: OutboxStatus
    due_at: Moment | None = None
    """When it is tried again, if it is."""
    error: str | None = None
    reached: tuple[str, ...] = ()
    dropped: tuple[str, ...] = field(default=(), repr=False)


def conclude(claim: Claim, delivery: Delivery, now: Moment, dice: float) -> Outcome:
    """What becomes of the row after this delivery."""
    status, due_at = OutboxStatus.SENT, None
    error = delivery.failure or delivery.refusal or delivery.nobody
    if delivery.failure is not None:
        wait_ms = BACKOFFS[claim.kind].wait_ms(claim.tries, dice)
        due_at = now + max(wait_ms, min(delivery.retry_after_ms or 0, RETRY_AFTER_MAX_MS))
        status = OutboxStatus.DUE
        if claim.expires_at is not None and due_at >= claim.expires_at:
            status, due_at = OutboxStatus.EXPIRED, None
        elif due_at - claim.first_attempt_at > GIVE_UP_MS:
            status, due_at = OutboxStatus.DEAD, None
    elif claim.reached or delivery.reached:
        pass  # somebody has it; what is wrong with another device is kept as the error
    elif delivery.refusal is not None:
        status = OutboxStatus.DEAD
    elif delivery.nobody is not None:
        status = OutboxStatus.CANCELLED
    return Outcome(
        outbox_id=claim.outbox_id,
        kind=claim.kind,
        attempts=claim.attempts,
        status=status,
        due_at=due_at,
        error=None if error is None else _plain(error),
        reached=delivery.reached,
        dropped=delivery.dropped,
    )


def _plain(error: str) -> str:
    """Short and printable: part of it may be a stranger's words, and Postgres takes no U+0000."""
    return "".join(character if character.isprintable() else "?" for character in error[:ERROR_CHARACTERS_MAX])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A row that nobody tries any more, for operators."""

    outbox_id: str
    kind: OutboxKind
    user_id: str
    session_id: str | None
    template: str
    attempts: int
    last_error: str | None
    created_at: Moment
    finished_at: Moment | None


@dataclass(slots=True)
class OutboxReport:
    """The outbox of this node as operators and metrics see it; what waits is the whole cluster's."""

    finished: Counter[tuple[OutboxKind, OutboxStatus]] = field(default_factory=Counter)
    """Rows of this node by where they ended."""
    retried: Counter[OutboxKind] = field(default_factory=Counter)
    """Attempts that failed and will be made again."""
    in_hand: Counter[OutboxKind] = field(default_factory=Counter)
    waiting: Mapping[tuple[OutboxKind, OutboxStatus], int] = field(default_factory=dict)
    """Rows that are due or dead, as of `counted_at`."""
    oldest_due_at: Mapping[OutboxKind, Moment] = field(default_factory=dict)
    counted_at: Moment | None = None
    send_seconds: dict[tuple[OutboxKind, OutboxStatus], Histogram] = field(default_factory=dict)
    """How long couriers took, by what became of the row; `due` is to be tried again."""

    def sent(self, kind: OutboxKind, status: OutboxStatus, seconds: float) -> None:
        """A courier is back."""
        self.send_seconds.setdefault((kind, status), Histogram()).observe(seconds)

    def note(self, outcome: Outcome) -> None:
        """An outcome was written down."""
        if outcome.status is OutboxStatus.DUE:
            self.retried[outcome.kind] += 1
        else:
            self.finished[outcome.kind, outcome.status] += 1

    def oldest_due_age_ms(self, kind: OutboxKind) -> int:
        """How late the oldest row is, as of the last count; 0 when none is late."""
        if self.counted_at is None:
            return 0
        return max(0, self.counted_at - self.oldest_due_at.get(kind, self.counted_at))
