"""What operators see and change, as typed structs: the answers of the operators' API (spec 4).

The status page and the JSON of the admin listener are made from the same values. What was said in a chat is no part of them:
who wants to read it must give a reason, and that is another call. Read next: `halo/resources.py`, `halo/store/operators.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from halo.config import KEYS
from halo.protocol import ExtensionState, Timestamp, Topic, Uuid
from halo.resources import Amount, Currency, PaymentState


class SweepState(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep of the node that answers: its last run."""

    name: Literal["auto_offline", "heartbeat_mirror", "reseed"]
    every_seconds: float
    runs: int
    failures: Annotated[int, Meta(description="runs with an error")]
    last_run_at: Timestamp | None
    duration_ms: int
    rows: Annotated[int, Meta(description="what the last run wrote")]
    error: str | None
    waits_for: Annotated[
        Literal["warm_up", "second_opinion"] | None, Meta(description="why it sets nobody, or not all, offline for now")
    ]
    found: Annotated[Mapping[str, int], Meta(description="counts by kind; of a reseed: the drift")]


class AlarmState(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must hold and does not, as the watchdog of the node that answers found it."""

    name: Annotated[str, Meta(description="the invariant or watch, as in `halo_invariant_violations`")]
    sentence: Annotated[str, Meta(description="what is broken, and what to do")]
    since: Timestamp
    violations: Annotated[int, Meta(description="at the last round; counted up to 100")]
    subjects: Annotated[tuple[str, ...], Meta(description="ids of what is broken, at most 20")]


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of everything that lives."""

    server_time: Timestamp
    sessions: Annotated[Mapping[str, int], Meta(description="by status; of the ended, those of the last 24 hours")]
    mitras_total: int
    mitras_online: Annotated[
        int,
        Meta(
            description="who said that they are online; more than available, for some of them are silent or have no room"
        ),
    ]
    mitras_deactivated: int
    mitras_available: Annotated[
        int,
        Meta(
            description="online, active, reachable and with room: the same number as the beacon's, at most some seconds old"
        ),
    ]
    pairings_searching: int
    pairing_failures_24h: Annotated[Mapping[str, int], Meta(description="by cause")]
    refunds_due: Annotated[Mapping[str, int], Meta(description="minor units by currency")]
    degraded: Annotated[bool, Meta(description="true while Valkey does not answer")]
    sweeps: tuple[SweepState, ...] = ()
    alarms: tuple[AlarmState, ...] = ()


class OperatedMitra(msgspec.Struct, frozen=True, kw_only=True):
    """A mitra as operators see her."""

    mitra_id: Uuid
    display_name: str
    is_active: bool
    is_online: bool
    capacity: int
    max_sessions: int
    last_heartbeat_at: Timestamp | None
    created_at: Timestamp


class OperatedMitras(msgspec.Struct, frozen=True, kw_only=True):
    """One page of mitras."""

    mitras: tuple[OperatedMitra, ...]
    next_cursor: str | None


ConfigChange: type[msgspec.Struct] = msgspec.defstruct(
    "ConfigChange",
    [(name, hint | msgspec.UnsetType, msgspec.UNSET) for name, hint in KEYS.items()],
    kw_only=True,
    frozen=True,
    forbid_unknown_fields=True,
)
"""What `PATCH /api/config` takes, for the description only: `halo.config.change` reads it key by key, to name each bad one."""


class Deactivated(msgspec.Struct, frozen=True, kw_only=True):
    """A mitra after she was shut out or let in again, and what that ended."""

    mitra_id: Uuid
    is_active: bool
    ended_sessions: tuple[Uuid, ...] = ()
    revoked_auth_sessions: int = 0


class OperatedSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session as operators see it."""

    session_id: Uuid
    status: str
    end_reason: str | None
    customer_id: Uuid
    mitra_id: Uuid
    topic_sensitivity: Topic
    duration_minutes: int
    paid_amount: Amount
    currency: Currency
    created_at: Timestamp
    started_at: Timestamp | None
    expires_at: Timestamp | None
    deadline_at: Timestamp | None
    ended_at: Timestamp | None
    extensions_accepted: int
    owner: str | None
    epoch: int
    version: int


class OperatedSessions(msgspec.Struct, frozen=True, kw_only=True):
    """One page of sessions."""

    sessions: tuple[OperatedSession, ...]
    next_cursor: str | None


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """The session's time in milliseconds: paid = served + refunded + forfeited + remaining, as of the last settling."""

    paid_ms: int
    served_ms: int
    refunded_ms: int
    forfeited_ms: int
    remaining_ms: int


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a session: where it led, why, and on what evidence."""

    version: int
    epoch: int
    at: Timestamp
    event: str
    from_status: str | None
    to_status: str
    cause: str
    evidence: Any


class OperatedExtension(ExtensionState, frozen=True, kw_only=True):
    """An extension with the policy that was copied onto it, and who decided."""

    currency: Currency
    default_action_on_timeout: str
    responded_at: Timestamp | None
    decided_by: str | None


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One charge."""

    transaction_id: Uuid
    payment_request_id: Uuid
    type: Literal["session", "extension"]
    amount: Amount
    currency: Currency
    duration_minutes: int
    at: Timestamp


class OperatedRefund(msgspec.Struct, frozen=True, kw_only=True):
    """Money that is owed or was given back."""

    refund_id: Uuid
    payment_request_id: Uuid
    session_id: Uuid | None
    customer_id: Uuid
    kind: Literal["payment_failed", "time_left"]
    cause: str
    amount: Amount
    currency: Currency
    refunded_ms: int
    status: Literal["due", "delivered", "dead"]
    created_at: Timestamp
    delivered_at: Timestamp | None


class OperatedRefunds(msgspec.Struct, frozen=True, kw_only=True):
    """One page of refunds."""

    refunds: tuple[OperatedRefund, ...]
    next_cursor: str | None


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One session with its history and its money; what was said in it is not an operator's to read here."""

    session: OperatedSession
    accounts: Accounts
    messages_count: int
    timeline: tuple[TimelineEntry, ...]
    payments: tuple[PaymentState, ...]
    extensions: tuple[OperatedExtension, ...]
    ledger: tuple[LedgerEntry, ...]
    refunds: tuple[OperatedRefund, ...]


class PairingFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why one search came to nothing; what became of an extension stands in its session."""

    failure_id: int
    cause: str
    pairing_id: Uuid | None
    session_id: Uuid | None
    extension_id: Uuid | None
    customer_id: Uuid
    mitra_id: Uuid | None
    evidence: Any
    at: Timestamp


class PairingFailures(msgspec.Struct, frozen=True, kw_only=True):
    """One page of them."""

    pairing_failures: tuple[PairingFailure, ...]
    next_cursor: str | None


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether this process can serve."""

    status: Literal["ok", "starting", "draining", "unavailable"]
    degraded: bool | None = None
