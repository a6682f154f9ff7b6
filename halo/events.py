"""What can happen to a session, when it happened, and the outside facts that the decision needs.

Events are values. A fact that a rule needs (a reachability, a configuration, the moment) is gathered by the actor beforehand
and travels inside the event, so that `halo.rules.step` asks nobody anything. Read next: `halo/rules.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from halo.clock import Moment
from halo.config import LiveConfig
from halo.session import Extension, FailureCause


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentConfirmed:
    at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFailed:
    """The money of a session on hold, or of a pending extension, will not come or was taken back."""

    at: Moment
    config: LiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachability:
    """What was known of the mitra when the policy had to decide; goes on the timeline as evidence."""

    online: bool
    heartbeat_age_ms: int | None
    heartbeat_fresh: bool
    connected: bool
    """A socket of the mitra answered within the keepalive; being in the session never counts."""
    socket_answered_age_ms: int | None
    source: str
    """`mirror` or `postgres`."""

    def evidence(self) -> dict[str, Any]:
        """What the timeline keeps of it."""
        return {
            "mitra_online": self.online,
            "heartbeat_age_ms": self.heartbeat_age_ms,
            "heartbeat_fresh": self.heartbeat_fresh,
            "mitra_connected": self.connected,
            "socket_answered_age_ms": self.socket_answered_age_ms,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineReached:
    at: Moment
    config: LiveConfig
    reachability: Reachability | None = None
    """Gathered for `extending` only; without it a policy never approves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionRequested:
    """The request has passed `halo.extension.check`; the payment is the one that it names."""

    at: Moment
    extension: Extension


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionAnswered:
    at: Moment
    extension_id: str
    accepted: bool
    config: LiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionCancelled:
    at: Moment
    extension_id: str
    config: LiveConfig


class EndedBy(StrEnum):
    CUSTOMER = "customer"
    MITRA = "mitra"
    ADMIN = "admin"
    DEACTIVATION = "deactivation"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRequested:
    at: Moment
    by: EndedBy


class LostBy(StrEnum):
    """Why a session is without its mitra."""

    SILENT = "mitra_silent"
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class MitraLost:
    at: Moment
    deadline_at: Moment
    """Until when another mitra is sought; the search itself may give up earlier."""
    cause: LostBy
    pairing_id: str
    """The search that is opened with it."""
    silent_ms: int | None = None
    """For how long the mitra had been neither reachable nor connected; None for a transfer."""
    reachability: Reachability | None = None
    """What was known of the mitra; goes on the timeline as evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MitraAssigned:
    """Another mitra has accepted the offer of the session's search."""

    at: Moment
    mitra_id: str
    pairing_id: str
    offer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFailed:
    """The session's search has asked everybody there was, and is over."""

    at: Moment
    pairing_id: str
    cause: FailureCause


@dataclass(frozen=True, slots=True, kw_only=True)
class DowntimeCredited:
    at: Moment
    downtime_ms: int
    """How long no node kept the session's clock."""
    not_before: Moment
    """Deadlines that have fallen meanwhile wait until then (`reconnect_grace_seconds`)."""


Event: TypeAlias = (
    PaymentConfirmed | PaymentFailed | DeadlineReached | ExtensionRequested | ExtensionAnswered | ExtensionCancelled | EndRequested
    | MitraLost | MitraAssigned | SearchFailed | DowntimeCredited
)  # fmt: skip
