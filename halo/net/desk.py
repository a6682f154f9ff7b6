"""The desk behind the HTTP servers: all that a call may ask for, each as narrow as its callers need it.

`halo/server.py` lays the real stores and actors on it, tests lay fakes. A port declares what is called here and nothing more. It
must never hold state of its own. Read next: `halo/net/api.py`, `halo/net/operators.py`.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from halo.actors.commands import View
from halo.actors.ports import MessageRow
from halo.availability import Available, Verdict
from halo.clock import Clock, Moment
from halo.config import LiveConfig
from halo.events import EndedBy
from halo.net.http_meter import HttpMeter
from halo.net.status.insight import Insight
from halo.net.status.ports import Gatehouse
from halo.net.tokens import Tokens
from halo.oversight import OperatedRefunds, OperatedSessions, Overview, PairingFailures, SessionRecord
from halo.pairing import PairingView
from halo.payment import Payment
from halo.protocol import Offer, Topic
from halo.session import Extension, FailureCause, Party
from halo.settings import Settings
from halo.store.auth_sessions import Opened, RevokedBecause
from halo.store.idempotency import Fresh, Repeated
from halo.store.mitras import Deactivation, MitraPresence, MitraStatus
from halo.store.payments import Settlement
from halo.sweep import SweepReport
from halo.watch import Alarm


class AuthSessions(Protocol):
    """Families of refresh tokens."""

    async def open(
        self,
        user_type: Party,
        user_id: str | None = None,
        *,
        display_name: str | None = None,
        push_token: str | None = None,
        locale: str = ...,
        max_sessions: int | None = None,
        auth_session_id: str | None = None,
    ) -> Opened: ...

    async def rotate(self, refresh_token: str) -> Opened: ...

    async def revoke(self, auth_session_id: str, because: RevokedBecause) -> bool: ...


class Payments(Protocol):
    """Payment requests, and what the provider reports of them."""

    async def create(
        self,
        customer_id: str,
        *,
        duration_minutes: int,
        is_extension: bool = False,
        is_first_session_discount: bool = False,
        session_id: str | None = None,
        config: LiveConfig,
        payment_request_id: str | None = None,
    ) -> Payment: ...

    async def load(self, payment_request_id: str) -> Payment: ...

    async def confirm(
        self, payment_request_id: str, *, provider_ref: str, amount: int, currency: str, webhook_id: str | None = None
    ) -> Settlement: ...

    async def fail(
        self, payment_request_id: str, cause: FailureCause = ..., webhook_id: str | None = None
    ) -> Settlement: ...


class Mitras(Protocol):
    """The rows of mitras."""

    async def go_online(self, mitra_id: str, at: Moment) -> MitraStatus: ...

    async def go_offline(self, mitra_id: str, at: Moment) -> MitraStatus: ...

    async def load_status(self, mitra_id: str) -> MitraStatus: ...

    async def list(
        self, presence: MitraPresence | None = None, *, limit: int = ..., after: str | None = None
    ) -> Sequence[MitraStatus]: ...

    async def deactivate(self, mitra_id: str, operator: str) -> Deactivation: ...

    async def activate(self, mitra_id: str, operator: str) -> MitraStatus: ...


class Mirror(Protocol):
    """Who is there, as Valkey knows it; told after Postgres has committed."""

    @property
    def trusted(self) -> bool: ...

    async def went_online(self, mitra_id: str, at: Moment) -> None: ...

    async def went_offline(self, mitra_id: str) -> None: ...

    async def deactivated(self, mitra_id: str) -> None: ...

    async def activated(self, mitra_id: str) -> None: ...

    async def heartbeat(self, mitra_id: str, at: Moment) -> None: ...

    async def reachability(self, mitra_id: str) -> Verdict: ...


class LiveConfigs(Protocol):
    """The rows of the live configuration; a change is audited there, and every node is told."""

    async def load(self) -> tuple[LiveConfig, Sequence[str]]: ...

    async def change(
        self, changes: Mapping[str, object], changed_by: str, *, expected_version: int | None = None
    ) -> LiveConfig: ...


class IdempotencyKeys(Protocol):
    """Requests that were done before, and their answers."""

    async def begin(self, user_id: str, route: str, key: str, body_hash: bytes) -> Fresh | Repeated: ...

    async def finish(self, fresh: Fresh, status: int, answer: bytes) -> bool: ...

    async def abandon(self, fresh: Fresh) -> bool: ...


class Pairings(Protocol):
    """Searches for a mitra, and the offers that they make."""

    async def start(
        self, customer_id: str, payment_request_id: str, topic_sensitivity: Topic, pairing_id: str | None = None
    ) -> PairingView: ...

    async def view(self, pairing_id: str, customer_id: str) -> PairingView: ...

    async def cancel(self, pairing_id: str, customer_id: str) -> PairingView: ...

    async def list_offers(self, mitra_id: str) -> Sequence[Offer]: ...

    async def accept(self, offer_id: str, mitra_id: str) -> tuple[str, str]: ...

    async def decline(self, offer_id: str, mitra_id: str) -> None: ...

    def payment_settled(self, payment_request_id: str) -> None: ...

    async def rescind_for(self, mitra_id: str) -> None: ...


class Sessions(Protocol):
    """The door to every living session; `halo.actors.registry.Registry`."""

    async def view(self, session_id: str, *, user_id: str | None) -> View: ...

    async def living_of(self, user_id: str) -> Sequence[View]: ...

    async def request_extension(
        self,
        session_id: str,
        *,
        customer_id: str,
        duration_minutes: int | None,
        price: int | None,
        payment_request_id: str | None,
        extension_id: str | None = None,
    ) -> Extension: ...

    async def respond_extension(
        self, session_id: str, extension_id: str, *, mitra_id: str, accepted: bool
    ) -> Extension: ...

    async def cancel_extension(self, session_id: str, extension_id: str, *, customer_id: str) -> Extension: ...

    async def end(self, session_id: str, by: EndedBy, *, user_id: str | None) -> View: ...

    async def transfer(self, session_id: str) -> View: ...

    async def payment_settled(self, session_id: str) -> None: ...


class MessagesRead(Protocol):
    """What a participant may read, and how much there was at that moment."""

    @property
    def messages(self) -> Sequence[MessageRow]: ...

    @property
    def last_seq(self) -> int: ...


class Messages(Protocol):
    """What was said, in order."""

    async def list_messages(self, session_id: str, after_seq: int, limit: int) -> Sequence[MessageRow]: ...

    async def list_messages_to(self, reader_id: str, session_id: str, after_seq: int, limit: int) -> MessagesRead: ...


class Connections(Protocol):
    """Who has a socket on this node."""

    def close_auth_session(self, auth_session_id: str, code: int) -> None: ...

    def close_user(self, user_id: str, code: int) -> None: ...


class Availability(Protocol):
    """Who is there, by the mirror; `halo.store.available.AvailableMitras`."""

    async def count_available(self) -> Available: ...

    async def count_online(self) -> int: ...

    async def find_available(self, limit: int, exclude: Collection[str]) -> Sequence[str]: ...


class OperatorRows(Protocol):
    """The operators' view of Postgres; `halo.store.operators.Operators`."""

    async def load_overview(self, now: Moment, *, online: int, available: int, degraded: bool) -> Overview: ...

    async def list_sessions(self, status: str | None, limit: int, cursor: str | None) -> OperatedSessions: ...

    async def load_session(self, session_id: str) -> SessionRecord: ...

    async def list_failures(self, limit: int, cursor: int | None) -> PairingFailures: ...

    async def list_refunds(self, status: str | None, limit: int, cursor: str | None) -> OperatedRefunds: ...

    async def record_attempt(self, operator: str, action: str, subject: str, details: Mapping[str, Any]) -> int: ...

    async def record_outcome(self, action_id: int, code: str | None) -> None: ...

    async def record_refusal(self, operator: str, action: str, subject: str, code: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Everything that the two HTTP applications need, and nothing that they could keep to themselves."""

    settings: Settings
    clock: Clock
    tokens: Tokens
    auth_sessions: AuthSessions
    payments: Payments
    mitras: Mitras
    mirror: Mirror
    live_config: LiveConfigs
    current_config: Callable[[], LiveConfig]
    config_changed: Callable[[LiveConfig], None]
    """Puts a change in force on this node before its operator has the answer; the others hear of it from Postgres."""
    idempotency: IdempotencyKeys
    pairings: Pairings
    sessions: Sessions
    messages: Messages
    connections: Connections
    availability: Availability
    room_changed: Callable[[str], None]
    """A mitra may take more or fewer sessions from now on; the mirror will hear of it."""
    operators: OperatorRows
    insight: Insight
    """What the status page sees beyond the operators' API."""
    gatehouse: Gatehouse
    """Operators' own accounts, sessions and tries to sign in."""
    metrics: CollectorRegistry
    http_meter: HttpMeter = field(default_factory=HttpMeter)
    sweeps: Callable[[], Sequence[SweepReport]]
    alarms: Callable[[], Sequence[Alarm]]
    """What the watchdog of this node found and what still stands."""
    store_answers: Callable[[], Awaitable[bool]]
    """Whether Postgres answers, within a second or so."""
    starting: Callable[[], bool]
    draining: Callable[[], bool]
