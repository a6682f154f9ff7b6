"""A desk of fakes: each remembers what it was asked and answers from plain attributes, so that a route is tested without a store."""

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio
from standardwebhooks import Webhook

from halo import config
from halo.actors.commands import View
from halo.availability import Available, Verdict
from halo.clock import Moment, rfc3339
from halo.config import LiveConfig, RefusalOutcome, TimeoutAction
from halo.errors import Busy, IdempotencyMismatch, InvalidState, NotFound, Refusal, SessionNotActive, StoreUnavailable
from halo.events import EndedBy
from halo.net.api import create_api
from halo.net.desk import Desk
from halo.net.operators import create_admin
from halo.net.tokens import Tokens
from halo.oversight import OperatedRefunds, OperatedSessions, Overview, PairingFailures, SessionRecord
from halo.pairing import PairingStatus, PairingView
from halo.payment import Payment, PaymentStatus, price
from halo.protocol import Offer, Topic
from halo.session import EndReason, Extension, ExtensionStatus, FailureCause, Party, Session, SessionStatus
from halo.settings import Settings
from halo.store.auth_sessions import Opened, RevokedBecause
from halo.store.idempotency import Fresh, Repeated
from halo.store.mitras import Deactivation, MitraPresence, MitraStatus
from halo.store.payments import Settlement
from halo.sweep import SweepReport
from halo.watch import Alarm
from tests.net.gatehouse_fakes import FakeGatehouse
from tests.net.insight_fakes import FakeInside

NOON: Moment = 1_795_521_600_000
"""2026-11-24T12:00:00Z."""
CUSTOMER, MITRA, STRANGER = (str(UUID(int=number)) for number in (1, 2, 3))
SESSION, PAYMENT, EXTENSION, PAIRING, OFFER = (str(UUID(int=number)) for number in (10, 20, 30, 40, 50))
FAMILY = str(UUID(int=60))

SERVER_KEY = "server key of the tests"
ADMIN_KEY = "admin key of the tests"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a webhook secret of 32 bytes ...").decode()


def settings(**changes: Any) -> Settings:
    environment = {
        "HALO_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "HALO_VALKEY_URL": "redis://127.0.0.1:1/0",
        "HALO_TOKEN_SECRET": "a token secret that is long enough for HS256",
        "HALO_SERVER_KEY": SERVER_KEY,
        "HALO_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "HALO_ADMIN_KEY": ADMIN_KEY,
    }
    return replace(Settings.read(environment, {}), **changes)


@dataclass
class SetClock:
    moment: Moment = NOON

    def now(self) -> Moment:
        return self.moment


def session(**changes: Any) -> Session:
    """Ten minutes were paid at noon, and run."""
    values: dict[str, Any] = {
        "session_id": SESSION,
        "customer_id": CUSTOMER,
        "mitra_id": MITRA,
        "payment_request_id": PAYMENT,
        "topic_sensitivity": "regular",
        "status": SessionStatus.ACTIVE,
        "duration_minutes": 10,
        "minute_ms": 60_000,
        "price": 10_000,
        "currency": "IDR",
        "paid_amount": 10_000,
        "started_at": NOON,
        "running_since": NOON,
        "expires_at": NOON + 600_000,
        "deadline_at": NOON + 600_000,
        "paid_ms": 600_000,
        "remaining_ms": 600_000,
    }
    return Session(**values | changes)


def extension(**changes: Any) -> Extension:
    values: dict[str, Any] = {
        "extension_id": EXTENSION,
        "session_id": SESSION,
        "payment_request_id": PAYMENT,
        "status": ExtensionStatus.PENDING,
        "duration_minutes": 5,
        "price": 5_000,
        "currency": "IDR",
        "requested_at": NOON,
        "deadline_at": NOON + 60_000,
        "timeout_seconds": 60,
        "default_action_on_timeout": TimeoutAction.AUTO_APPROVE,
        "refusal_outcome": RefusalOutcome.RESUME,
        "config_version": 0,
    }
    return Extension(**values | changes)


@dataclass
class FakeAuthSessions:
    opened: list[dict[str, Any]] = field(default_factory=list)
    revoked: list[tuple[str, RevokedBecause]] = field(default_factory=list)
    refusal: Refusal | None = None

    async def open(self, user_type: Party, user_id: str | None = None, **more: Any) -> Opened:
        self.opened.append({"user_type": user_type, "user_id": user_id, **more})
        if self.refusal:
            raise self.refusal
        return Opened(
            auth_session_id=more["auth_session_id"] or FAMILY,
            user_type=user_type,
            user_id=user_id or str(uuid4()),
            refresh_token=f"refresh-{len(self.opened)}",
            expires_at=NOON,
        )

    async def rotate(self, refresh_token: str) -> Opened:
        if self.refusal:
            raise self.refusal
        return Opened(
            auth_session_id=FAMILY,
            user_type=Party.CUSTOMER,
            user_id=CUSTOMER,
            refresh_token=refresh_token + "+",
            expires_at=NOON,
        )

    async def revoke(self, auth_session_id: str, because: RevokedBecause) -> bool:
        self.revoked.append((auth_session_id, because))
        return True


@dataclass
class FakePayments:
    rows: dict[str, Payment] = field(default_factory=dict)
    deliveries: set[str] = field(default_factory=set)
    waiting_session_id: str | None = None
    created: int = 0

    async def create(self, customer_id: str, *, payment_request_id: str | None = None, **asked: Any) -> Payment:
        self.created += 1
        current: LiveConfig = asked.pop("config")
        session_id = asked.pop("session_id")
        payment = Payment(
            payment_request_id=payment_request_id or str(uuid4()),
            customer_id=customer_id,
            session_id=session_id,
            status=PaymentStatus.PENDING,
            amount=price(current, **asked),
            currency=current.currency,
            failure_cause=None,
            created_at=NOON,
            **asked,
        )
        return self.rows.setdefault(payment.payment_request_id, payment)

    async def load(self, payment_request_id: str) -> Payment:
        if payment_request_id not in self.rows:
            raise NotFound
        return self.rows[payment_request_id]

    async def confirm(self, payment_request_id: str, **report: Any) -> Settlement:
        return await self._settle(payment_request_id, PaymentStatus.CONFIRMED, report.get("webhook_id"))

    async def fail(
        self, payment_request_id: str, cause: FailureCause = FailureCause.PAYMENT_FAILED, webhook_id: str | None = None
    ) -> Settlement:
        return await self._settle(payment_request_id, PaymentStatus.FAILED, webhook_id, cause.value)

    async def _settle(
        self, payment_request_id: str, status: PaymentStatus, webhook_id: str | None, cause: str | None = None
    ) -> Settlement:
        payment = await self.load(payment_request_id)
        changed = webhook_id not in self.deliveries
        if webhook_id:
            self.deliveries.add(webhook_id)
        if changed:
            payment = self.rows[payment_request_id] = replace(payment, status=status, failure_cause=cause)
        return Settlement(payment=payment, changed=changed, waiting_session_id=self.waiting_session_id)


@dataclass
class FakeMitras:
    is_online: bool = False
    deactivation: Deactivation | None = None
    heartbeat_at: Moment | None = None

    def _status(self, mitra_id: str) -> MitraStatus:
        return MitraStatus(
            mitra_id=mitra_id,
            display_name="Sari",
            is_online=self.is_online,
            is_active=self.deactivation is None,
            last_heartbeat_at=self.heartbeat_at,
            capacity=1,
            max_sessions=3,
            created_at=NOON,
        )

    async def go_online(self, mitra_id: str, at: Moment) -> MitraStatus:
        self.is_online, self.heartbeat_at = True, at
        return self._status(mitra_id)

    async def go_offline(self, mitra_id: str, at: Moment) -> MitraStatus:
        self.is_online = False
        return self._status(mitra_id)

    async def load_status(self, mitra_id: str) -> MitraStatus:
        return self._status(mitra_id)

    async def list(
        self, presence: MitraPresence | None = None, *, limit: int = 100, after: str | None = None
    ) -> Sequence[MitraStatus]:
        ids = [mitra_id for mitra_id in (MITRA, STRANGER) if after is None or mitra_id > after]
        return [self._status(mitra_id) for mitra_id in ids[:limit]]

    async def deactivate(self, mitra_id: str, operator: str) -> Deactivation:
        if self.deactivation is None:
            raise NotFound
        return self.deactivation

    async def activate(self, mitra_id: str, operator: str) -> MitraStatus:
        return self._status(mitra_id)


@dataclass
class FakeMirror:
    trusted: bool = True
    told: list[tuple[str, str]] = field(default_factory=list)
    refusal: Refusal | None = None
    verdict: Verdict = field(
        default_factory=lambda: Verdict(online=True, heartbeat_age_ms=5_000, heartbeat_fresh=True, source="mirror")
    )

    async def went_online(self, mitra_id: str, at: Moment) -> None:
        self.told.append(("online", mitra_id))

    async def went_offline(self, mitra_id: str) -> None:
        self.told.append(("offline", mitra_id))

    async def deactivated(self, mitra_id: str) -> None:
        self.told.append(("deactivated", mitra_id))

    async def activated(self, mitra_id: str) -> None:
        self.told.append(("activated", mitra_id))

    async def heartbeat(self, mitra_id: str, at: Moment) -> None:
        if self.refusal:
            raise self.refusal
        self.told.append(("heartbeat", mitra_id))

    async def reachability(self, mitra_id: str) -> Verdict:
        return self.verdict


@dataclass
class FakeLiveConfig:
    current: LiveConfig = field(default_factory=LiveConfig)
    stored: LiveConfig = field(default_factory=LiveConfig)
    changed_by: str | None = None
    unreadable: list[str] = field(default_factory=list)

    async def load(self) -> tuple[LiveConfig, Sequence[str]]:
        return self.stored, self.unreadable

    async def change(
        self, changes: Mapping[str, object], changed_by: str, *, expected_version: int | None = None
    ) -> LiveConfig:
        if expected_version not in {None, self.stored.version}:
            raise InvalidState
        self.stored, self.changed_by = config.change(self.stored, changes), changed_by
        self.unreadable = [key for key in self.unreadable if key not in changes]
        return self.stored

    def apply(self, changed: LiveConfig) -> None:
        self.current = changed


@dataclass
class FakeIdempotency:
    kept: dict[tuple[str, str, str], tuple[bytes, Repeated | None]] = field(default_factory=dict)

    async def begin(self, user_id: str, route: str, key: str, body_hash: bytes) -> Fresh | Repeated:
        place = (user_id, route, key)
        if place in self.kept:
            was, answer = self.kept[place]
            if was != body_hash:
                raise IdempotencyMismatch
            if answer is None:
                raise Busy
            return answer
        self.kept[place] = (body_hash, None)
        return Fresh(user_id=user_id, route=route, key=key, held_by=str(uuid4()))

    async def finish(self, fresh: Fresh, status: int, answer: bytes) -> bool:
        place = (fresh.user_id, fresh.route, fresh.key)
        self.kept[place] = (self.kept[place][0], Repeated(status=status, answer=answer))
        return True

    async def abandon(self, fresh: Fresh) -> bool:
        return self.kept.pop((fresh.user_id, fresh.route, fresh.key), None) is not None


@dataclass
class FakePairings:
    started: list[tuple[Any, ...]] = field(default_factory=list)
    view_now: PairingView = field(
        default_factory=lambda: PairingView(pairing_id=PAIRING, status=PairingStatus.SEARCHING)
    )
    settled: list[str] = field(default_factory=list)
    rescinded: list[str] = field(default_factory=list)
    accepted: int = 0
    refusal: Refusal | None = None

    async def start(
        self, customer_id: str, payment_request_id: str, topic_sensitivity: Topic, pairing_id: str | None = None
    ) -> PairingView:
        self.started.append((customer_id, payment_request_id, topic_sensitivity, pairing_id))
        return replace(self.view_now, pairing_id=pairing_id or PAIRING)

    async def view(self, pairing_id: str, customer_id: str) -> PairingView:
        if (pairing_id, customer_id) != (PAIRING, CUSTOMER):
            raise NotFound
        return self.view_now

    async def cancel(self, pairing_id: str, customer_id: str) -> PairingView:
        return replace(
            await self.view(pairing_id, customer_id), status=PairingStatus.CANCELLED, cause="customer_cancelled"
        )

    async def list_offers(self, mitra_id: str) -> Sequence[Offer]:
        return [
            Offer(
                offer_id=OFFER,
                pairing_id=PAIRING,
                topic_sensitivity="sensitive",
                duration_minutes=10,
                price=10_000,
                currency="IDR",
                deadline_at=rfc3339(NOON),
            )
        ]

    async def accept(self, offer_id: str, mitra_id: str) -> tuple[str, str]:
        if offer_id != OFFER:
            raise NotFound
        self.accepted += 1
        return SESSION, "active"

    async def decline(self, offer_id: str, mitra_id: str) -> None:
        if offer_id != OFFER:
            raise NotFound

    def payment_settled(self, payment_request_id: str) -> None:
        self.settled.append(payment_request_id)

    async def rescind_for(self, mitra_id: str) -> None:
        if self.refusal:
            raise self.refusal
        self.rescinded.append(mitra_id)


@dataclass
class FakeSessions:
    living: dict[str, Session] = field(default_factory=lambda: {SESSION: session()})
    last_seq: int = 3
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)
    refusal: Refusal | None = None

    async def view(self, session_id: str, *, user_id: str | None) -> View:
        found = self.living.get(session_id)
        if found is None or (user_id is not None and user_id not in {found.customer_id, found.mitra_id}):
            raise NotFound
        return View(session=found, last_seq=self.last_seq)

    async def living_of(self, user_id: str) -> Sequence[View]:
        return [
            View(session=found, last_seq=self.last_seq)
            for found in self.living.values()
            if user_id in {found.customer_id, found.mitra_id}
        ]

    async def request_extension(self, session_id: str, **asked: Any) -> Extension:
        self.asked.append(("request", session_id, asked))
        if self.refusal:
            raise self.refusal
        return extension()

    async def respond_extension(
        self, session_id: str, extension_id: str, *, mitra_id: str, accepted: bool
    ) -> Extension:
        self.asked.append(("respond", session_id, extension_id, mitra_id, accepted))
        return extension(status=ExtensionStatus.ACCEPTED if accepted else ExtensionStatus.REJECTED)

    async def cancel_extension(self, session_id: str, extension_id: str, *, customer_id: str) -> Extension:
        self.asked.append(("cancel", session_id, extension_id, customer_id))
        return extension(status=ExtensionStatus.CANCELLED)

    async def transfer(self, session_id: str) -> View:
        self.asked.append(("transfer", session_id))
        if self.refusal:
            raise self.refusal
        view = await self.view(session_id, user_id=None)
        if view.session.status is not SessionStatus.ACTIVE:
            raise SessionNotActive
        waiting = session(session_id=session_id, status=SessionStatus.REROUTING, running_since=None, expires_at=None)
        self.living[session_id] = waiting
        return View(session=waiting, last_seq=self.last_seq)

    async def end(self, session_id: str, by: EndedBy, *, user_id: str | None) -> View:
        self.asked.append(("end", session_id, by, user_id))
        if self.refusal:
            raise self.refusal
        view = await self.view(session_id, user_id=user_id)
        if view.session.status is SessionStatus.ENDED:
            raise SessionNotActive
        ended = session(
            session_id=session_id,
            status=SessionStatus.ENDED,
            end_reason=EndReason.ENDED_BY_ADMIN,
            running_since=None,
            expires_at=None,
            deadline_at=None,
            remaining_ms=0,
            served_ms=600_000,
        )
        self.living[session_id] = ended
        return View(session=ended, last_seq=self.last_seq)

    async def payment_settled(self, session_id: str) -> None:
        self.settled.append(session_id)


@dataclass(frozen=True)
class Said:
    seq: int
    sender: str
    id: str
    body: str
    at: Moment = NOON


@dataclass
class Page:
    messages: Sequence[Said]
    last_seq: int


@dataclass
class FakeMessages:
    readers: set[str] = field(default_factory=lambda: {CUSTOMER, MITRA})
    rows: list[Said] = field(default_factory=lambda: [Said(n, "customer", f"c{n}", f"hello {n}") for n in (1, 2, 3)])

    async def list_messages(self, session_id: str, after_seq: int, limit: int) -> Sequence[Said]:
        return [row for row in self.rows if row.seq > after_seq][:limit]

    async def list_messages_to(self, reader_id: str, session_id: str, after_seq: int, limit: int) -> Page:
        if reader_id not in self.readers:
            raise NotFound
        return Page(
            await self.list_messages(session_id, after_seq, limit), max((row.seq for row in self.rows), default=0)
        )


@dataclass
class FakeConnections:
    closed: list[tuple[str, int]] = field(default_factory=list)

    def close_auth_session(self, auth_session_id: str, code: int) -> None:
        self.closed.append((auth_session_id, code))

    def close_user(self, user_id: str, code: int) -> None:
        self.closed.append((user_id, code))


@dataclass
class FakeOperators:
    recorded: list[tuple[Any, ...]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    """`attempted`, `done` or the code, for each of `recorded`."""
    refused: list[tuple[str, ...]] = field(default_factory=list)
    is_away: bool = False
    """Neither an outcome nor a refusal can be written down."""
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    sessions: dict[str, SessionRecord] = field(default_factory=dict)
    refunds: OperatedRefunds = field(default_factory=lambda: OperatedRefunds(refunds=(), next_cursor=None))

    async def load_overview(self, now: Moment, *, online: int, available: int, degraded: bool) -> Overview:
        return Overview(
            server_time=rfc3339(now),
            sessions={"active": 1},
            mitras_total=1,
            mitras_online=online,
            mitras_deactivated=0,
            mitras_available=available,
            pairings_searching=0,
            pairing_failures_24h={},
            refunds_due={"IDR": 5_000},
            degraded=degraded,
        )

    async def list_sessions(self, status: str | None, limit: int, cursor: str | None) -> OperatedSessions:
        self.asked.append((status, limit, cursor))
        return OperatedSessions(sessions=(), next_cursor=None)

    async def load_session(self, session_id: str) -> SessionRecord:
        if session_id not in self.sessions:
            raise NotFound
        return self.sessions[session_id]

    async def list_failures(self, limit: int, cursor: int | None) -> PairingFailures:
        self.asked.append((limit, cursor))
        return PairingFailures(pairing_failures=(), next_cursor=None)

    async def list_refunds(self, status: str | None, limit: int, cursor: str | None) -> OperatedRefunds:
        self.asked.append((status, limit, cursor))
        return self.refunds

    async def record_attempt(self, operator: str, action: str, subject: str, details: Mapping[str, Any]) -> int:
        self.recorded.append((operator, action, subject, details))
        self.outcomes.append("attempted")
        return len(self.outcomes) - 1

    async def record_outcome(self, action_id: int, code: str | None) -> None:
        if self.is_away:
            raise StoreUnavailable
        assert self.outcomes[action_id] == "attempted"
        self.outcomes[action_id] = code or "done"

    async def record_refusal(self, operator: str, action: str, subject: str, code: str) -> None:
        if self.is_away:
            raise StoreUnavailable
        self.refused.append((operator, action, subject, code))


class FakeAvailability:
    """Seven of nine."""

    available = 7
    online = 9
    others: tuple[str, ...] = ("another mitra",)
    """Whom a search would find, beside those it excludes."""

    async def find_available(self, limit: int, exclude: Collection[str]) -> list[str]:
        return [mitra_id for mitra_id in self.others if mitra_id not in exclude][:limit]

    async def count_available(self) -> Available:
        return Available(count=self.available, as_of=NOON)

    async def count_online(self) -> int:
        return self.online


class House:
    """A desk with its fakes, the two applications, and the ways in which a test speaks to them."""

    def __init__(self, **changes: Any) -> None:
        self.settings = settings(**changes)
        self.clock = SetClock()
        self.tokens = Tokens(self.settings.token_secret, self.settings.access_token_seconds, self.clock)
        self.auth_sessions = FakeAuthSessions()
        self.payments = FakePayments()
        self.mitras = FakeMitras()
        self.mirror = FakeMirror()
        self.live_config = FakeLiveConfig()
        self.idempotency = FakeIdempotency()
        self.pairings = FakePairings()
        self.sessions = FakeSessions()
        self.messages = FakeMessages()
        self.connections = FakeConnections()
        self.operators = FakeOperators()
        self.gatehouse = FakeGatehouse(self.clock)
        self.inside = FakeInside()
        self.metrics = CollectorRegistry()
        self.starting = self.draining = False
        self.sweeps: list[SweepReport] = []
        self.alarms: list[Alarm] = []
        self.store_is_up = True
        self.availability = FakeAvailability()
        self.room_changed: list[str] = []
        self.desk = Desk(
            settings=self.settings,
            clock=self.clock,
            tokens=self.tokens,
            auth_sessions=self.auth_sessions,
            payments=self.payments,
            mitras=self.mitras,
            mirror=self.mirror,
            live_config=self.live_config,
            current_config=lambda: self.live_config.current,
            config_changed=self.live_config.apply,
            idempotency=self.idempotency,
            pairings=self.pairings,
            sessions=self.sessions,
            messages=self.messages,
            connections=self.connections,
            availability=self.availability,
            room_changed=self.room_changed.append,
            operators=self.operators,
            insight=self.inside.insight(),
            gatehouse=self.gatehouse.gatehouse(),
            metrics=self.metrics,
            sweeps=lambda: self.sweeps,
            alarms=lambda: self.alarms,
            store_answers=self._store_answers,
            starting=lambda: self.starting,
            draining=lambda: self.draining,
        )
        self.api = create_api(self.desk)
        self.admin = create_admin(self.desk)

    async def _store_answers(self) -> bool:
        return self.store_is_up

    def token(self, user_id: str = CUSTOMER, user_type: Party | None = None, family: str = FAMILY) -> str:
        kind = user_type or (Party.MITRA if user_id == MITRA else Party.CUSTOMER)
        return self.tokens.issue(kind, user_id, family)

    async def call(
        self, method: str, path: str, body: Any = None, *, by: str | None = CUSTOMER, **headers: str
    ) -> "Told":
        """A call to the apps' API; a `body` that is bytes goes as it is, everything else as JSON. `by=None`: no token."""
        if by is not None:
            headers = {"Authorization": f"Bearer {self.token(by)}", **headers}
        return await speak(self.api, method, path, body, headers)

    async def operate(self, method: str, path: str, body: Any = None, key: str | None = ADMIN_KEY) -> "Told":
        """A call to the admin listener."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return await speak(self.admin, method, path, body, headers)

    async def deliver(self, report: Any, webhook_id: str = "msg_1", secret: str = WEBHOOK_SECRET) -> "Told":
        """The payment provider's webhook, signed."""
        text = json.dumps(report)
        now = datetime.now(UTC)
        headers = {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(webhook_id, now, text),
        }
        return await speak(self.api, "POST", "/api/payments/webhook", text.encode(), headers)


@dataclass(frozen=True)
class Told:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str:
        """Of a problem document, which is checked on the way."""
        assert self.headers["content-type"] == "application/problem+json"
        document = self.json
        assert document["status"] == self.status
        assert {"type", "title", "status", "detail", "instance", "code", "retryable", "errors"} <= document.keys()
        return str(document["code"])

    @property
    def fields(self) -> list[str]:
        """The fields that a problem names."""
        return [error["field"] for error in self.json["errors"]]


async def speak(app: QuartTrio, method: str, path: str, body: Any, headers: dict[str, str]) -> Told:
    if body is not None:
        headers = {"content-type": "application/json", **headers}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    client = app.test_client()
    response = await client.open(path, method=method, data=data, headers=headers)  # type: ignore[call-arg]  # `json` has a default, which its protocol forgot
    raw = await response.get_data(as_text=False)
    return Told(response.status_code, {name.lower(): value for name, value in response.headers.items()}, bytes(raw))
