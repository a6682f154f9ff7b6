"""A session: who talks, in which status, and its clock as accounts in milliseconds.

The state only; what may happen to it stands in one table in `halo/rules.py`. In every status
`paid_ms = served_ms + refunded_ms + forfeited_ms + remaining_ms` (spec 5, T1), where the clock, while it runs, is settled as of
`running_since`. Must never hold anything that is not a column of `chat_sessions` or its pending extension, so that a restart
finds the session as it was. Read next: `halo/events.py`, `halo/effects.py`, `halo/rules.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from halo import protocol
from halo.clock import Moment, rfc3339, rfc3339_or_none
from halo.config import RefusalOutcome, TimeoutAction


class SessionStatus(StrEnum):
    PENDING_PAYMENT = "pending_payment"
    ACTIVE = "active"
    EXTENDING = "extending"
    CLOSING = "closing"
    REROUTING = "rerouting"
    ENDED = "ended"


class EndReason(StrEnum):
    COMPLETED = "completed"
    ENDED_BY_CUSTOMER = "ended_by_customer"
    ENDED_BY_MITRA = "ended_by_mitra"
    PAYMENT_TIMEOUT = "payment_timeout"
    PAYMENT_FAILED = "payment_failed"
    NO_MITRA = "no_mitra"
    MITRA_DEACTIVATED = "mitra_deactivated"
    ENDED_BY_ADMIN = "ended_by_admin"


class Party(StrEnum):
    CUSTOMER = "customer"
    MITRA = "mitra"


class ExtensionStatus(StrEnum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


class DecidedBy(StrEnum):
    """Who decided about an extension; a value, so that no flag has to be threaded through (spec 4, `reason`)."""

    MITRA = "answered"
    POLICY = "timeout"
    SAFEGUARD = "safeguard"
    CUSTOMER = "cancelled"
    SESSION_END = "session_ended"
    PAYMENT = "payment_failed"


class FailureCause(StrEnum):
    """Why a payment, a pairing or an extension came to nothing (spec 3)."""

    NO_MITRA_AVAILABLE = "no_mitra_available"
    ALL_DECLINED = "all_declined"
    TIMED_OUT = "timed_out"
    CUSTOMER_CANCELLED = "customer_cancelled"
    PAYMENT_EXPIRED = "payment_expired"
    PAYMENT_FAILED = "payment_failed"
    EXTENSION_REJECTED = "extension_rejected"
    EXTENSION_TIMED_OUT = "extension_timed_out"
    EXTENSION_SAFEGUARD_TRIPPED = "extension_safeguard_tripped"
    SESSION_ENDED = "session_ended"


CUSTOMER_SENDER: Final = "customer"
MITRA_SENDER: Final = "mitra"


def sender_of(stored_sender: str) -> protocol.SenderName:
    """Who that is for everybody who reads: the party, whichever mitra of the session it was."""
    if stored_sender == CUSTOMER_SENDER:
        return "customer"
    return "mitra" if stored_sender == MITRA_SENDER or stored_sender.startswith(f"{MITRA_SENDER}:") else "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """One request for more time. The policy is the one in force when it was made (spec 1 B)."""

    extension_id: str
    session_id: str
    payment_request_id: str
    status: ExtensionStatus
    duration_minutes: int
    price: int
    currency: str
    requested_at: Moment
    deadline_at: Moment
    timeout_seconds: int
    default_action_on_timeout: TimeoutAction
    refusal_outcome: RefusalOutcome
    config_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Everything that decides about a session; columns of `chat_sessions` have the same names."""

    session_id: str
    customer_id: str
    mitra_id: str
    former_mitra_ids: tuple[str, ...] = ()
    """Those who had it before `mitra_id`, in their order: none of them is asked again, and each counted her own messages."""
    payment_request_id: str
    topic_sensitivity: protocol.Topic
    status: SessionStatus
    end_reason: EndReason | None = None
    duration_minutes: int
    """Minutes paid for so far, extensions included."""
    minute_ms: int
    """Length of a paid minute when the session was opened (`HALO_MINUTE_SECONDS`)."""
    price: int
    """What the session itself costs, extensions aside, in minor units of `currency`."""
    currency: str
    paid_amount: int = 0
    """Everything charged so far, in minor units of `currency`."""
    started_at: Moment | None = None
    running_since: Moment | None = None
    """When the accounts below were last settled; set exactly while the clock runs."""
    expires_at: Moment | None = None
    """End of the paid time; set exactly while the clock runs, and then `running_since + remaining_ms`."""
    deadline_at: Moment | None = None
    """When the status's one deadline falls; never before `expires_at`. None only in `ended`."""
    paid_ms: int = 0
    served_ms: int = 0
    refunded_ms: int = 0
    forfeited_ms: int = 0
    remaining_ms: int = 0
    """Time left as of `running_since`, or as of now while the clock stands still."""
    grace_left_ms: int | None = None
    """What was left of the grace when an extension was asked for in `closing`."""
    extension: Extension | None = None
    """The pending extension; set exactly in `extending`."""
    extensions_accepted: int = 0
    epoch: int = 1
    version: int = 1

    @property
    def mitra_sender(self) -> str:
        """Whom her messages are stored under. Client ids are unique for a person: the second mitra is `mitra:2`, and so on (C3)."""
        return f"{MITRA_SENDER}:{len(self.former_mitra_ids) + 1}" if self.former_mitra_ids else MITRA_SENDER

    def remaining_ms_at(self, now: Moment) -> int:
        """Paid time left at `now`, in milliseconds, never negative."""
        if self.running_since is None:
            return self.remaining_ms
        return max(0, self.remaining_ms - max(0, now - self.running_since))

    def state(self, now: Moment, last_seq: int) -> protocol.SessionState:
        """The session as apps see it; seconds are rounded up, so that a customer never reads less than is left."""
        return protocol.SessionState(
            session_id=self.session_id,
            status=self.status.value,
            end_reason=self.end_reason,
            customer_id=self.customer_id,
            mitra_id=self.mitra_id,
            topic_sensitivity=self.topic_sensitivity,
            duration_minutes=self.duration_minutes,
            started_at=rfc3339_or_none(self.started_at),
            expires_at=rfc3339_or_none(self.expires_at),
            remaining_seconds=ceil_seconds(self.remaining_ms_at(now)),
            deadline_at=rfc3339_or_none(self.deadline_at),
            last_seq=last_seq,
        )


def extension_state(extension: Extension) -> protocol.ExtensionState:
    """The extension as apps see it."""
    return protocol.ExtensionState(
        extension_id=extension.extension_id,
        session_id=extension.session_id,
        status=extension.status.value,
        duration_minutes=extension.duration_minutes,
        price=extension.price,
        requested_at=rfc3339(extension.requested_at),
        deadline_at=rfc3339(extension.deadline_at),
        payment_request_id=extension.payment_request_id,
    )


def ceil_seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)
