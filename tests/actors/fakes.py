"""The outside of a session's actor, in memory: the rows of all nodes, one node's view of them, the facts, and ears that remember.

`FakeDatabase` keeps the guards of the real store (status, epoch, version, owner, the unique bindings of payments), which
`tests/store/test_fakes.py` proves by one suite for both. Every call of a `FakeNode` may be given a `Fault`: the store away before its
effect, or after it (then its caller cannot know), any other exception, a delay. A node that was killed applies nothing any more,
also not what is under way.
"""

import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, assert_never
from uuid import uuid4

import trio

from halo import protocol
from halo.accounts import Charge, spread
from halo.actors.commands import Said, View
from halo.actors.ports import MessageRow, Meters, Ports
from halo.actors.registry import Registry
from halo.actors.session import SessionActor
from halo.actors.supervisor import RestartBudget
from halo.clock import Moment
from halo.config import LiveConfig
from halo.effects import (
    CloseSearch,
    ConsumePayment,
    Effect,
    FailPayment,
    FailUnusedPayments,
    LedgerType,
    MoveExtensionDeadline,
    OpenExtension,
    OpenSearch,
    PushIfAbsent,
    RecordFailure,
    RefundTimeLeft,
    ResolveExtension,
    Send,
    Step,
    WinOffer,
)
from halo.errors import (
    CapacityExceeded,
    MitraDeactivated,
    OfferResolved,
    Refusal,
    StepOvertaken,
    StoreUnavailable,
)
from halo.events import Reachability
from halo.outbox import PUSH_PATIENCE_MS
from halo.pairing import OfferStatus, PairingStatus
from halo.payment import Payment, PaymentStatus
from halo.rules import open_session, refuse_message
from halo.session import DecidedBy, Extension, ExtensionStatus, FailureCause, Party, Session, SessionStatus

START: Moment = 1_795_521_600_000
"""2026-11-24T12:00:00Z, when Trio's mock clock stands at 0."""
THERE = Reachability(
    online=True,
    heartbeat_age_ms=12_000,
    heartbeat_fresh=True,
    connected=True,
    socket_answered_age_ms=3_000,
    source="mirror",
)
BOUND = {ExtensionStatus.PENDING, ExtensionStatus.ACCEPTED}
UNSPENT = {PaymentStatus.PENDING, PaymentStatus.CONFIRMED}


def new_id() -> str:
    return str(uuid4())


class TrioClock:
    """Moments that go with Trio's clock, so that autojump moves both."""

    def now(self) -> Moment:
        return START + round(trio.current_time() * 1000)


# ---- faults


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one call: first it waits, then it fails before its effect, or after it."""

    before: Callable[[], Exception] | None = None
    after: Callable[[], Exception] | None = None
    delay_seconds: float = 0.0
    held: trio.Event | None = None
    """The call stands still, without its effect, until this is set."""
    held_after: trio.Event | None = None
    """The effect is there, the answer is not, until this is set."""


AWAY = Fault(before=StoreUnavailable)
UNKNOWN = Fault(after=StoreUnavailable)
"""It was done, and its caller is told that the store does not answer."""
OVERTAKEN = Fault(before=StepOvertaken)
NO_FAULT = Fault()


class Broken(Exception):
    """A fault of the program, as a test imagines it."""


# ---- the rows


@dataclass(frozen=True, slots=True)
class Message:
    seq: int
    sender: str
    id: str
    body: str
    at: Moment


@dataclass(frozen=True, slots=True)
class LedgerRow:
    session_id: str
    type: LedgerType
    amount: int
    duration_minutes: int


@dataclass(frozen=True, slots=True)
class RefundRow:
    session_id: str | None
    cause: str
    amount: int
    refunded_ms: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the timeline."""

    version: int
    epoch: int
    at: Moment
    event: str
    from_status: str | None
    to_status: str
    cause: str
    downtime_ms: int
    late_ms: int
    """How long after its deadline, when it is one."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A session's row with the last `seq`, as the ports hand it out."""

    session: Session
    last_seq: int


@dataclass(frozen=True, slots=True)
class TakenUpRow:
    stored: StoredRow
    last_kept_at: Moment


@dataclass(frozen=True, slots=True)
class DifferencesFound:
    strays: list[TakenUpRow]
    lost: dict[str, int]


@dataclass(frozen=True, slots=True)
class MitraRow:
    """A mitra's room; one of whom no test has said anything is active and has plenty."""

    is_active: bool = True
    max_sessions: int = 1_000


@dataclass(frozen=True, slots=True)
class OfferRow:
    mitra_id: str
    status: OfferStatus = OfferStatus.OPEN


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A search for another mitra."""

    pairing_id: str
    rerouted_session_id: str
    status: PairingStatus = PairingStatus.SEARCHING
    session_id: str | None = None
    cause: str | None = None
    offers: tuple[tuple[str, OfferRow], ...] = ()
    """With their ids."""

    def resolved(self, status: OfferStatus) -> "SearchRow":
        """With every open offer in this status."""
        moved = (
            (id_, replace(offer, status=status) if offer.status is OfferStatus.OPEN else offer)
            for id_, offer in self.offers
        )
        return replace(self, offers=tuple(moved))


@dataclass(frozen=True, slots=True)
class SessionRow:
    session: Session
    owner: str | None
    updated_at: Moment


@dataclass
class Tables:
    """What one transaction may change; copied for it, and put in place of the old at its commit."""

    sessions: dict[str, SessionRow] = field(default_factory=dict)
    payments: dict[str, Payment] = field(default_factory=dict)
    money_came: frozenset[str] = frozenset()
    extensions: dict[str, tuple[Extension, DecidedBy | None]] = field(default_factory=dict)
    ledger: dict[str, LedgerRow] = field(default_factory=dict)
    """By payment: the unique index of M1."""
    refunds: dict[tuple[str, str], RefundRow] = field(default_factory=dict)
    """By payment and kind."""
    failures: tuple[tuple[FailureCause, str | None], ...] = ()
    pushes: dict[str, tuple[str, str, Moment]] = field(default_factory=dict)
    """By collapse key: user, template, due moment."""
    timeline: dict[tuple[str, int], Entry] = field(default_factory=dict)
    operations: frozenset[str] = frozenset()
    searches: dict[str, SearchRow] = field(default_factory=dict)
    mitras: dict[str, MitraRow] = field(default_factory=dict)

    def copy(self) -> "Tables":
        return Tables(
            sessions=dict(self.sessions),
            payments=dict(self.payments),
            money_came=self.money_came,
            extensions=dict(self.extensions),
            ledger=dict(self.ledger),
            refunds=dict(self.refunds),
            failures=self.failures,
            pushes=dict(self.pushes),
            timeline=dict(self.timeline),
            operations=self.operations,
            searches=dict(self.searches),
            mitras=dict(self.mitras),
        )

    # ---- searches for another mitra, which come before the session's own row, as in the real store

    def move_search(self, effect: Effect, before: Session) -> None:
        match effect:
            case OpenSearch():
                self._require(self.find_search(before.session_id) is None)
                self._require(effect.pairing_id not in self.searches)
                self.searches[effect.pairing_id] = SearchRow(effect.pairing_id, before.session_id)
            case WinOffer():
                self._win_offer(effect, before)
            case CloseSearch():
                search = self.find_search(before.session_id)
                if search is not None:
                    self.withdraw(search, effect.cause)
            case _:
                pass

    def find_search(self, session_id: str) -> SearchRow | None:
        """The one that searches for this session."""
        searching = (row for row in self.searches.values() if row.status is PairingStatus.SEARCHING)
        return next((row for row in searching if row.rerouted_session_id == session_id), None)

    def withdraw(self, search: SearchRow, cause: FailureCause) -> None:
        by_customer = cause is FailureCause.CUSTOMER_CANCELLED
        status = PairingStatus.CANCELLED if by_customer else PairingStatus.FAILED
        closed = replace(search.resolved(OfferStatus.CANCELLED), status=status, cause=cause.value)
        self.searches[search.pairing_id] = closed
        self.failures = (*self.failures, (cause, None))

    def _win_offer(self, effect: WinOffer, before: Session) -> None:
        mitra = self.mitras.get(effect.mitra_id, MitraRow())
        if not mitra.is_active:
            raise MitraDeactivated
        theirs = [row.session for row in self.sessions.values() if row.session.mitra_id == effect.mitra_id]
        if sum(session.status is not SessionStatus.ENDED for session in theirs) >= mitra.max_sessions:
            raise CapacityExceeded
        search = self.searches[effect.pairing_id]
        offer = dict(search.offers).get(effect.offer_id)
        if (
            search.status is not PairingStatus.SEARCHING
            or search.rerouted_session_id != before.session_id
            or offer != OfferRow(effect.mitra_id)
        ):
            raise OfferResolved
        won = {effect.offer_id: replace(offer, status=OfferStatus.ACCEPTED)}
        offers = tuple((id_, won.get(id_, row)) for id_, row in search.offers)
        matched = replace(search, status=PairingStatus.MATCHED, session_id=before.session_id, offers=offers)
        self.searches[search.pairing_id] = matched.resolved(OfferStatus.TAKEN)

    # ---- effects, each with the guard of its SQL

    def apply(self, effect: Effect, decided: Step, present: frozenset[Party]) -> None:  # noqa: C901  # one case an effect
        after, at = decided.session, decided.at
        match effect:
            case Send() | OpenSearch() | WinOffer() | CloseSearch():
                pass  # said afterwards, or moved before
            case ConsumePayment():
                self._consume(effect, after)
            case FailPayment():
                expected = effect.expected
                self._require(expected in {None, self.payments[effect.payment_request_id].status})
                self._fail(effect.payment_request_id, effect.cause.value, after.session_id)
            case FailUnusedPayments():
                for payment in list(self.payments.values()):
                    if payment.is_extension and payment.session_id == effect.session_id:
                        self._fail(payment.payment_request_id, FailureCause.SESSION_ENDED.value, effect.session_id)
            case RefundTimeLeft():
                self._give_back(effect, decided)
            case OpenExtension():
                self._open_extension(effect.extension)
            case ResolveExtension():
                extension, decided_by = self.extensions[effect.extension_id]
                self._require(decided_by is None)
                self.extensions[effect.extension_id] = (replace(extension, status=effect.status), effect.decided_by)
                self.pushes.pop(f"extension:{effect.extension_id}", None)
            case MoveExtensionDeadline():
                extension, decided_by = self.extensions[effect.extension_id]
                if decided_by is None:
                    moved = replace(extension, deadline_at=effect.deadline_at)
                    self.extensions[effect.extension_id] = (moved, None)
            case RecordFailure():
                self.failures = (*self.failures, (effect.cause, effect.extension_id))
            case PushIfAbsent():
                user_id = after.mitra_id if effect.party is Party.MITRA else after.customer_id
                due_at = at + (PUSH_PATIENCE_MS if effect.party in present else 0)
                self.pushes[effect.collapse_key] = (user_id, effect.template, due_at)
            case _:
                assert_never(effect)

    def _consume(self, effect: ConsumePayment, after: Session) -> None:
        payment = self.payments[effect.payment_request_id]
        self._require(payment.status is PaymentStatus.CONFIRMED and payment.session_id in {None, after.session_id})
        assert payment.payment_request_id not in self.ledger, "charged at most once (M1)"
        spent = replace(payment, status=PaymentStatus.CONSUMED, session_id=after.session_id)
        self.payments[payment.payment_request_id] = spent
        row = LedgerRow(after.session_id, effect.type, payment.amount, payment.duration_minutes)
        self.ledger[payment.payment_request_id] = row

    def _give_back(self, effect: RefundTimeLeft, decided: Step) -> None:
        after = decided.session
        rows = reversed(self.ledger.items())
        charges = [Charge(id_, row.amount) for id_, row in rows if row.session_id == after.session_id]
        for share in spread(effect.amount, effect.refunded_ms, charges):
            self._require((share.payment_request_id, "time_left") not in self.refunds)
            cause = after.end_reason or decided.cause
            row = RefundRow(after.session_id, cause, share.amount, share.refunded_ms)
            self.refunds[share.payment_request_id, "time_left"] = row

    def _fail(self, payment_request_id: str, cause: str, session_id: str) -> None:
        payment = self.payments[payment_request_id]
        if payment.status not in UNSPENT:
            return
        self.payments[payment_request_id] = replace(payment, status=PaymentStatus.FAILED, failure_cause=cause)
        if payment_request_id in self.money_came:
            self.refunds[payment_request_id, "payment_failed"] = RefundRow(session_id, cause, payment.amount)

    def _open_extension(self, extension: Extension) -> None:
        payment = self.payments.get(extension.payment_request_id)
        self._require(
            payment is not None
            and payment.status is PaymentStatus.CONFIRMED
            and payment.is_extension
            and payment.session_id in {None, extension.session_id}
        )
        assert payment is not None
        for other, _ in self.extensions.values():
            self._require(other.payment_request_id != extension.payment_request_id or other.status not in BOUND)
            self._require(other.session_id != extension.session_id or other.status is not ExtensionStatus.PENDING)
        self.payments[payment.payment_request_id] = replace(payment, session_id=extension.session_id)
        self.extensions[extension.extension_id] = (extension, None)

    @staticmethod
    def _require(holds: bool) -> None:  # the guard of a statement: it matched, or it did not
        if not holds:
            raise StepOvertaken


class FakeDatabase:
    """The rows that all nodes share."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.messages: dict[str, list[Message]] = defaultdict(list)
        self.nodes: dict[str, FakeNode] = {}

    # ---- what a test peoples it with, outside of any node

    def add_payment(self, customer_id: str, status: PaymentStatus = PaymentStatus.CONFIRMED, **changes: Any) -> Payment:
        """A payment for 5 minutes of extension, 5000 IDR, unless told otherwise."""
        defaults: dict[str, Any] = {"session_id": None, "amount": 5_000, "duration_minutes": 5, "is_extension": True}
        payment = Payment(
            **{
                "payment_request_id": new_id(),
                "customer_id": customer_id,
                "status": status,
                "currency": "IDR",
                "is_first_session_discount": False,
                "failure_cause": None,
                "created_at": START,
                **defaults,
                **changes,
            }
        )
        self.tables.payments[payment.payment_request_id] = payment
        if status in {PaymentStatus.CONFIRMED, PaymentStatus.CONSUMED}:
            self.tables.money_came |= {payment.payment_request_id}
        return payment

    def settle(self, payment_request_id: str, status: PaymentStatus) -> None:
        """The provider reports that the money of a pending payment came, or never will."""
        payment = self.tables.payments[payment_request_id]
        if status is PaymentStatus.CONFIRMED:
            self.tables.money_came |= {payment_request_id}
            if payment.status is PaymentStatus.FAILED:
                refund = RefundRow(payment.session_id, payment.failure_cause or "", payment.amount)
                self.tables.refunds[payment_request_id, "payment_failed"] = refund
        if payment.status is PaymentStatus.PENDING:
            cause = "payment_failed" if status is PaymentStatus.FAILED else None
            self.tables.payments[payment_request_id] = replace(payment, status=status, failure_cause=cause)

    def insert(self, opened: Step, owner: str | None) -> None:
        """A session as pairing commits it, in one transaction with its first effects."""
        draft = self.tables.copy()
        session = opened.session
        draft.sessions[session.session_id] = SessionRow(session, owner, opened.at)
        draft.timeline[session.session_id, session.version] = _entry(opened, None)
        for effect in opened.effects:
            draft.apply(effect, opened, frozenset(Party))
        self.tables = draft

    def add_offer(self, session_id: str, mitra_id: str | None = None) -> tuple[str, str, str]:
        """The session's search asks one more mitra: her id, the pairing's and the offer's."""
        search, mitra_id, offer_id = self.search(session_id), mitra_id or new_id(), new_id()
        asked = replace(search, offers=(*search.offers, (offer_id, OfferRow(mitra_id))))
        self.tables.searches[search.pairing_id] = asked
        return mitra_id, search.pairing_id, offer_id

    def fail_search(self, pairing_id: str, cause: FailureCause) -> None:
        """The search's own task gives it up."""
        search = self.tables.searches[pairing_id]
        if search.status is PairingStatus.SEARCHING:
            self.tables.withdraw(search, cause)

    def move_on(self, session_id: str, **changes: Any) -> None:
        """Another writer's doing, for tests of what the actor makes of it."""
        row = self.tables.sessions[session_id]
        self.tables.sessions[session_id] = replace(row, session=replace(row.session, **changes))

    # ---- what a test looks at

    def session(self, session_id: str) -> Session:
        return self.tables.sessions[session_id].session

    def search(self, session_id: str) -> SearchRow:
        """The last search for another mitra of this session."""
        return [row for row in self.tables.searches.values() if row.rerouted_session_id == session_id][-1]

    def history(self, session_id: str) -> list[str]:
        entries = sorted(
            (version, entry) for (id_, version), entry in self.tables.timeline.items() if id_ == session_id
        )
        return [entry.event for _, entry in entries]

    def find_payment(self, payment_request_id: str) -> Payment | None:
        """With `in_use` as the real query sees it."""
        payment = self.tables.payments.get(payment_request_id)
        if payment is None:
            return None
        bound = any(
            extension.payment_request_id == payment_request_id and extension.status in BOUND
            for extension, _ in self.tables.extensions.values()
        )
        opened = any(
            row.session.payment_request_id == payment_request_id and row.session.status is not SessionStatus.ENDED
            for row in self.tables.sessions.values()
        )
        return replace(payment, in_use=bound or opened)


def _entry(decided: Step, before: Session | None) -> Entry:
    after = decided.session
    status = before.status.value if before else None
    late_ms = 0
    if before is not None and before.deadline_at is not None and decided.event == "deadline_reached":
        late_ms = decided.at - before.deadline_at
    downtime_ms = decided.evidence.get("downtime_ms", 0)
    return Entry(
        after.version,
        after.epoch,
        decided.at,
        decided.event,
        status,
        after.status.value,
        decided.cause,
        downtime_ms,
        late_ms,
    )


class FakeNode:
    """One node's door to the rows: `SessionRows`, `MessageRows`, `MessageLog`, `Ownership` and the payments of `Facts`."""

    def __init__(self, database: FakeDatabase, owner: str | None = None) -> None:
        self.owner = owner or new_id()
        self.database = database
        self.alive = True
        self.alive_at: Moment = 0
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        """By the name of the method, for its next calls."""
        self.dice: Callable[[str], Fault] | None = None
        """Asked when no fault is lined up."""
        self.calls: list[str] = []
        self.appended: list[int] = []
        """How many rows each append brought."""
        database.nodes[self.owner] = self

    def fails(self, method: str, *faults: Fault) -> None:
        self.faults[method].extend(faults)

    @asynccontextmanager
    async def _call(self, method: str) -> AsyncIterator[None]:
        self.calls.append(method)
        await trio.lowlevel.checkpoint()
        waiting = self.faults[method]
        fault = waiting.popleft() if waiting else self.dice(method) if self.dice else NO_FAULT
        if fault.delay_seconds:
            await trio.sleep(fault.delay_seconds)
        if fault.held is not None:
            await fault.held.wait()
        if not self.alive:
            await trio.sleep_forever()  # a crash is not a cancel: who is dead applies nothing and hears nothing
        if fault.before is not None:
            raise fault.before()
        yield
        if fault.held_after is not None:
            await fault.held_after.wait()
        if fault.after is not None:
            raise fault.after()

    # ---- SessionRows

    async def commit(
        self,
        before: Session,
        decided: Step,
        operation_id: str,
        present: frozenset[Party],
        decide_again: Callable[[], Step] | None = None,
    ) -> Step:
        async with self._call("commit"):
            draft = self.database.tables.copy()
            for effect in decided.effects:
                draft.move_search(effect, before)
            if decide_again is not None and any(isinstance(effect, WinOffer) for effect in decided.effects):
                decided = decide_again()
            after = decided.session
            row = draft.sessions.get(after.session_id)
            if (
                row is None
                or row.owner != self.owner
                or (row.session.status, row.session.epoch, row.session.version)
                != (before.status, after.epoch, before.version)
            ):
                raise StepOvertaken
            assert operation_id not in draft.operations
            draft.operations |= {operation_id}
            draft.sessions[after.session_id] = SessionRow(after, self.owner, decided.at)
            assert (after.session_id, after.version) not in draft.timeline
            draft.timeline[after.session_id, after.version] = _entry(decided, before)
            for effect in decided.effects:
                draft.apply(effect, decided, present)
            self.database.tables = draft
        return decided

    async def load(self, session_id: str) -> StoredRow | None:
        async with self._call("load"):
            return self._stored(session_id)
        raise AssertionError("unreachable")  # the context manager swallows nothing

    async def find_extension(self, session_id: str, extension_id: str) -> Extension | None:
        async with self._call("find_extension"):
            found = self.database.tables.extensions.get(extension_id)
            return found[0] if found is not None and found[0].session_id == session_id else None
        raise AssertionError("unreachable")

    # ---- MessageRows

    async def list_messages(self, session_id: str, after_seq: int, limit: int) -> Sequence[MessageRow]:
        async with self._call("list_messages"):
            return [row for row in self.database.messages[session_id] if row.seq > after_seq][:limit]
        raise AssertionError("unreachable")

    async def list_message_ids(self, session_id: str, after_seq: int, limit: int) -> list[tuple[int, str, str]]:
        async with self._call("list_message_ids"):
            rows = [row for row in self.database.messages[session_id] if row.seq > after_seq][:limit]
            return [(row.seq, row.sender, row.id) for row in rows]
        raise AssertionError("unreachable")

    async def find_message(self, session_id: str, sender: str, client_id: str) -> MessageRow | None:
        async with self._call("find_message"):
            rows = self.database.messages[session_id]
            return next((row for row in rows if (row.sender, row.id) == (sender, client_id)), None)
        raise AssertionError("unreachable")

    # ---- MessageLog

    async def append(self, session_id: str, epoch: int, rows: Sequence[MessageRow]) -> None:
        async with self._call("append"):
            self.appended.append(len(rows))
            there = self.database.messages[session_id]
            row = self.database.tables.sessions.get(session_id)
            if row is None or row.session.epoch != epoch or refuse_message(row.session.status) is not None:
                raise StepOvertaken
            seqs = {message.seq for message in there}
            ids = {(message.sender, message.id) for message in there}
            if any(new.seq in seqs or (new.sender, new.id) in ids for new in rows):
                raise StepOvertaken
            there += [Message(new.seq, new.sender, new.id, new.body, new.at) for new in rows]
            there.sort(key=lambda message: message.seq)

    # ---- Ownership

    async def commit_credits(self, owed: Sequence[Step]) -> None:
        async with self._call("commit_credits"):
            draft = self.database.tables.copy()
            for credit in owed:
                after, row = credit.session, draft.sessions[credit.session.session_id]
                if row.owner != self.owner or (row.session.epoch, row.session.version) != (
                    after.epoch,
                    after.version - 1,
                ):
                    raise StepOvertaken
                draft.sessions[after.session_id] = SessionRow(after, self.owner, credit.at)
                draft.timeline[after.session_id, after.version] = _entry(credit, row.session)
                for effect in credit.effects:
                    draft.apply(effect, credit, frozenset())
            self.database.tables = draft

    async def take_up(self, limit: int) -> list[TakenUpRow]:
        async with self._call("take_up"):
            rows = self.database.tables.sessions
            orphans = [
                row
                for row in rows.values()
                if row.session.status is not SessionStatus.ENDED
                and row.owner != self.owner
                and not self._has_living_owner(row)
            ]
            taken = []
            for row in sorted(orphans, key=lambda row: row.session.deadline_at or 0)[:limit]:
                owner = self.database.nodes.get(row.owner or "")
                last = self.database.tables.timeline[row.session.session_id, row.session.version]
                kept = max(owner.alive_at if owner and last.epoch == row.session.epoch else 0, row.updated_at)
                session = replace(row.session, epoch=row.session.epoch + 1)
                mine = SessionRow(session, self.owner, kept)
                rows[row.session.session_id] = mine
                stored = self._stored(row.session.session_id)
                assert stored is not None
                taken.append(TakenUpRow(stored, kept))
            return taken
        raise AssertionError("unreachable")

    async def compare(self, kept: Mapping[str, int]) -> DifferencesFound:
        async with self._call("compare"):
            own = {
                (row.session.session_id, row.session.epoch): row
                for row in self.database.tables.sessions.values()
                if row.owner == self.owner and row.session.status is not SessionStatus.ENDED
            }
            strays = [(self._stored(key[0]), row.updated_at) for key, row in own.items() if key not in kept.items()]
            return DifferencesFound(
                [TakenUpRow(stored, at) for stored, at in strays if stored],
                {session_id: epoch for session_id, epoch in kept.items() if (session_id, epoch) not in own},
            )
        raise AssertionError("unreachable")

    async def list_living_of(self, user_id: str) -> list[str]:
        async with self._call("list_living_of"):
            return [
                row.session.session_id
                for row in self.database.tables.sessions.values()
                if user_id in {row.session.customer_id, row.session.mitra_id}
                and row.session.status is not SessionStatus.ENDED
            ]
        raise AssertionError("unreachable")

    # ---- Facts

    async def find_payment(self, payment_request_id: str) -> Payment | None:
        async with self._call("find_payment"):
            return self.database.find_payment(payment_request_id)
        raise AssertionError("unreachable")

    def _has_living_owner(self, row: SessionRow) -> bool:
        owner = self.database.nodes.get(row.owner or "")
        return owner is not None and owner.alive

    def _stored(self, session_id: str) -> StoredRow | None:
        row = self.database.tables.sessions.get(session_id)
        if row is None:
            return None
        last_seq = max((message.seq for message in self.database.messages[session_id]), default=0)
        return StoredRow(row.session, last_seq)


@dataclass
class FakeFacts:
    """What decisions ask: a configuration that tests set, the payments of the node, and a mitra as seen from outside."""

    node: FakeNode
    live_config: LiveConfig = field(default_factory=LiveConfig)
    seen: Reachability = THERE

    def config(self) -> LiveConfig:
        return self.live_config

    async def find_payment(self, payment_request_id: str) -> Payment | None:
        return await self.node.find_payment(payment_request_id)

    async def reachability(self, mitra_id: str) -> Reachability:
        async with self.node._call("reachability"):
            return self.seen
        raise AssertionError("unreachable")


@dataclass
class FakeLease:
    kept: bool = True

    def keeps_clocks(self) -> bool:
        return self.kept


@dataclass
class FakeOutside:
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Whose pong was asked for, behind the frames."""
    changed: list[str] = field(default_factory=list)
    told: list[tuple[str, protocol.Frame]] = field(default_factory=list)
    searches: list[tuple[str, str]] = field(default_factory=list)
    """Opened ones, with why."""
    outcomes: list[str] = field(default_factory=list)

    def capacity_changed(self, mitra_id: str) -> None:
        self.changed.append(mitra_id)

    def tell(self, user_id: str, frame: protocol.Frame) -> None:
        self.told.append((user_id, frame))

    def ask_receipt(self, user_id: str, receipt: str, session_id: str) -> None:
        self.asked.append((user_id, receipt))

    def search_opened(self, pairing_id: str, cause: str) -> None:
        self.searches.append((pairing_id, cause))

    def search_over(self, outcome: str) -> None:
        self.outcomes.append(outcome)


# ---- those who listen and speak


class FakeEar:
    """A socket on a chat: what it heard, when (seconds of Trio's clock), and how it was closed."""

    def __init__(self, party: Party, user_id: str = "") -> None:
        self.party = party
        self._user_id = user_id
        self.heard: list[dict[str, Any]] = []
        self.heard_at: list[float] = []
        self.closed: list[int] = []
        self.answers: list[tuple[str, int | str]] = []
        """Each message of its own with the `seq` it got, or the code of the refusal."""

    @property
    def user_id(self) -> str:
        return self._user_id

    def hint(self, frame: bytes) -> None:
        self.send(frame)

    def send(self, frame: bytes) -> None:
        self.heard.append(json.loads(frame))
        self.heard_at.append(round(trio.current_time(), 3))

    def close(self, code: int) -> None:
        self.closed.append(code)

    def stored(self, client_id: str, seq: int, at: Moment) -> None:
        self.answers.append((client_id, seq))

    def not_stored(self, client_id: str, refusal: Refusal) -> None:
        self.answers.append((client_id, refusal.code))

    def types(self) -> list[str]:
        return [frame["type"] for frame in self.heard]

    def of(self, type_: str) -> list[dict[str, Any]]:
        return [frame for frame in self.heard if frame["type"] == type_]

    def when(self, type_: str) -> list[float]:
        """The seconds at which frames of this type were heard."""
        return [at for frame, at in zip(self.heard, self.heard_at, strict=True) if frame["type"] == type_]

    def bodies(self) -> list[tuple[int, str]]:
        return [(frame["seq"], frame["body"]) for frame in self.of("message")]

    def forget(self) -> None:
        self.heard.clear()
        self.heard_at.clear()


# ---- a whole house


@dataclass
class Chat:
    """A living session with both participants on it."""

    house: "House"
    session_id: str
    customer_id: str
    mitra_id: str
    payment: Payment
    customer: FakeEar
    mitra: FakeEar

    @property
    def actor(self) -> SessionActor:
        actor = self.house.registry.find(self.session_id)
        assert actor is not None, "the session has no actor"
        return actor

    @property
    def row(self) -> Session:
        return self.house.database.session(self.session_id)

    @property
    def history(self) -> list[str]:
        return self.house.database.history(self.session_id)

    @property
    def messages(self) -> list[tuple[int, str, str]]:
        return [(m.seq, m.sender, m.body) for m in self.house.database.messages[self.session_id]]

    def says(self, who: FakeEar, id_: str, body: str | None = None) -> None:
        self.actor.hand_in(Said(who, id_, body if body is not None else f"body of {id_}"))

    def listens(self) -> None:
        """Both join the present actor anew."""
        self.actor.join(self.customer)
        self.actor.join(self.mitra)
        self.forget()

    def forget(self) -> None:
        self.customer.forget()
        self.mitra.forget()

    def extension_payment(self, **changes: Any) -> Payment:
        return self.house.database.add_payment(self.customer_id, **changes)

    async def asks(self, payment: Payment | None = None) -> Extension:
        payment = payment or self.extension_payment()
        return await self.house.registry.request_extension(
            self.session_id,
            customer_id=self.customer_id,
            duration_minutes=payment.duration_minutes,
            price=payment.amount,
            payment_request_id=payment.payment_request_id,
        )

    async def answers(self, extension: Extension, *, accepted: bool) -> Extension:
        return await self.house.registry.respond_extension(
            self.session_id, extension.extension_id, mitra_id=self.mitra_id, accepted=accepted
        )

    async def cancels(self, extension: Extension) -> Extension:
        return await self.house.registry.cancel_extension(
            self.session_id, extension.extension_id, customer_id=self.customer_id
        )

    async def transfers(self) -> View:
        return await self.house.registry.transfer(self.session_id)

    def offers(self, mitra_id: str | None = None) -> tuple[str, str, str]:
        """Another mitra is asked: her id, the pairing's and the offer's."""
        return self.house.database.add_offer(self.session_id, mitra_id)

    async def assigns(self, mitra_id: str, pairing_id: str, offer_id: str) -> View:
        return await self.house.registry.assign(
            self.session_id, mitra_id=mitra_id, pairing_id=pairing_id, offer_id=offer_id
        )

    async def view(self) -> View:
        return await self.house.registry.view(self.session_id, user_id=None)


class House:
    """One node with its actors, on a database that may outlive it."""

    def __init__(
        self, nursery: trio.Nursery, database: FakeDatabase, config: LiveConfig, budget: RestartBudget | None
    ) -> None:
        self.nursery = nursery
        self.database = database
        self.node = FakeNode(database)
        self.clock = TrioClock()
        self.facts = FakeFacts(self.node, config)
        self.lease = FakeLease()
        self.outside = FakeOutside()
        self.meters = Meters()
        ports = Ports(
            clock=self.clock,
            rows=self.node,
            messages=self.node,
            log=self.node,
            facts=self.facts,
            lease=self.lease,
            outside=self.outside,
            meters=self.meters,
        )
        self.registry = Registry(nursery, ports, self.node, budget)

    def loses_clocks_for(self, milliseconds: int) -> None:
        """As if from now on for so long no clock was kept, and the beat returned already."""
        now = self.clock.now()
        self.registry.credit_downtime(now, now + milliseconds)

    def commits_opening(self, *, minutes: int = 10, confirmed: bool = True, minute_ms: int = 60_000) -> Step:
        """A session that a mitra has just accepted, and of which its node does not know yet."""
        customer_id, mitra_id = new_id(), new_id()
        payment = self.database.add_payment(
            customer_id,
            PaymentStatus.CONFIRMED if confirmed else PaymentStatus.PENDING,
            amount=minutes * 1000,
            duration_minutes=minutes,
            is_extension=False,
        )
        session = Session(
            session_id=new_id(),
            customer_id=customer_id,
            mitra_id=mitra_id,
            payment_request_id=payment.payment_request_id,
            topic_sensitivity="regular",
            status=SessionStatus.PENDING_PAYMENT,
            duration_minutes=minutes,
            minute_ms=minute_ms,
            price=minutes * 1000,
            currency="IDR",
        )
        opened = open_session(session, self.clock.now(), self.facts.live_config, confirmed=confirmed)
        self.database.insert(opened, self.node.owner)
        return opened

    async def opens(self, *, minutes: int = 10, confirmed: bool = True, minute_ms: int = 60_000) -> Chat:
        """A session that a mitra has just accepted, with both participants on it."""
        opened = self.commits_opening(minutes=minutes, confirmed=confirmed, minute_ms=minute_ms)
        await self.registry.opened(opened)
        session = opened.session
        payment = self.database.tables.payments[session.payment_request_id]
        ears = FakeEar(Party.CUSTOMER, session.customer_id), FakeEar(Party.MITRA, session.mitra_id)
        chat = Chat(self, session.session_id, session.customer_id, session.mitra_id, payment, *ears)
        chat.listens()
        return chat

    def crash(self) -> None:
        """The process dies: what is under way applies nothing, nobody is told anything."""
        self.node.alive_at = self.clock.now()
        self.node.alive = False
        self.nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_house(
    database: FakeDatabase | None = None, *, budget: RestartBudget | None = None, **settings: Any
) -> AsyncIterator[House]:
    """A node; its actors are cancelled when the block is left."""
    async with trio.open_nursery() as nursery:
        yield House(nursery, database or FakeDatabase(), LiveConfig(**settings), budget)
        nursery.cancel_scope.cancel()
