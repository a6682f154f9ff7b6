"""What a step writes in its one transaction, and what it says after the commit.

The store interprets every effect but `Send`; the actor interprets `Send`. An effect names a fact, never a table, and both
interpreters end in `assert_never`, so that a new effect cannot be forgotten. Read next: `halo/store/sessions.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from halo import protocol
from halo.clock import Moment
from halo.payment import PaymentStatus
from halo.session import DecidedBy, Extension, ExtensionStatus, FailureCause, Party, Session


class LedgerType(StrEnum):
    SESSION = "session"
    EXTENSION = "extension"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumePayment:
    """The payment becomes `consumed` and gets its one ledger row (M1, M4)."""

    payment_request_id: str
    type: LedgerType


@dataclass(frozen=True, slots=True, kw_only=True)
class FailPayment:
    """The payment becomes `failed`; if its money had arrived, a refund of all of it is due (M6)."""

    payment_request_id: str
    cause: FailureCause
    expected: PaymentStatus | None = None
    """What the decision rests on: a payment that is something else by now overtakes the step. None: whatever it is, it ends here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailUnusedPayments:
    """Extension payments of this session that nobody used are failed, and refunded where confirmed (M7)."""

    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundTimeLeft:
    """Money for minutes that were paid and cannot be served; `amount` in minor units, given back on the payments that were charged for
    the session, the last one first (`halo.accounts.spread`)."""

    amount: int
    currency: str
    refunded_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExtension:
    """Insert the extension and bind its payment (M3)."""

    extension: Extension


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveExtension:
    extension_id: str
    status: ExtensionStatus
    decided_by: DecidedBy


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveExtensionDeadline:
    """Downtime was credited while the extension waited."""

    extension_id: str
    deadline_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFailure:
    """An audit row in `pairing_failures`, one cause each."""

    cause: FailureCause
    extension_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSearch:
    """A search for another mitra for this session (spec 3, "Reroute")."""

    pairing_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WinOffer:
    """The offer of the session's search is accepted, its mitra has room, and the search is matched; or nothing at all happens."""

    pairing_id: str
    offer_id: str
    mitra_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSearch:
    """Whatever search this session still has is over, with this cause; its open offers are withdrawn."""

    cause: FailureCause


@dataclass(frozen=True, slots=True, kw_only=True)
class PushIfAbsent:
    """A push for the outbox, cancelled when the party acknowledges the frame in time; texts live in templates."""

    party: Party
    template: str
    expires_at: Moment
    collapse_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A frame for one party, or for both when `to` is None; leaves after the commit only."""

    frame: protocol.Frame
    to: Party | None = None


Effect: TypeAlias = (
    ConsumePayment | FailPayment | FailUnusedPayments | RefundTimeLeft | OpenExtension | ResolveExtension
    | MoveExtensionDeadline | RecordFailure | OpenSearch | WinOffer | CloseSearch | PushIfAbsent | Send
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a rule makes of an event: the session afterwards, what to write and say, why, and on what evidence."""

    session: Session
    effects: tuple[Effect, ...]
    cause: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A decision, when it was made and about which event: what the store commits in one transaction."""

    session: Session
    effects: tuple[Effect, ...]
    at: Moment
    event: str
    cause: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    credited_ms: int | None = None
    """How much downtime it makes up for, when that is what it does."""
