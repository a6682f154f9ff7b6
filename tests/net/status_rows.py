"""Rows for the status page, in any number and with whatever people could write in them, laid on a house of fakes."""

from uuid import UUID

from halo.actors.history import Sample
from halo.actors.upkeep import Upkeep
from halo.net.status.insight import Parked
from halo.outbox import DeadLetter, OutboxKind
from halo.oversight import (
    Accounts,
    LedgerEntry,
    OperatedExtension,
    OperatedRefund,
    OperatedRefunds,
    OperatedSession,
    SessionRecord,
    TimelineEntry,
)
from halo.resources import PaymentState
from halo.store.lookout import (
    Census,
    ConfigStep,
    Counted,
    Failed,
    OperatorAction,
    Outcome,
    RefundSum,
    SeenMitra,
    Thing,
    Waiting,
)
from halo.sweep import SweepReport
from halo.watch import Alarm
from tests.net.desk_fakes import CUSTOMER, EXTENSION, MITRA, NOON, PAIRING, PAYMENT, SESSION, House

AT = "2026-11-24T12:00:00.000Z"


def an_id(number: int) -> str:
    return str(UUID(int=1_000_000 + number))


def operated(number: int = 0, **changes: object) -> OperatedSession:
    values: dict[str, object] = {
        "session_id": SESSION if number == 0 else an_id(number),
        "status": "active",
        "end_reason": None,
        "customer_id": CUSTOMER,
        "mitra_id": MITRA,
        "topic_sensitivity": "regular",
        "duration_minutes": 10,
        "paid_amount": 10_000,
        "currency": "IDR",
        "created_at": AT,
        "started_at": AT,
        "expires_at": "2026-11-24T12:10:00.000Z",
        "deadline_at": "2026-11-24T12:10:00.000Z",
        "ended_at": None,
        "extensions_accepted": 1,
        "owner": an_id(0),
        "epoch": 1,
        "version": 3,
    }
    return OperatedSession(**values | changes)  # type: ignore[arg-type]


def record(text: str = "word", **changes: object) -> SessionRecord:
    """A session on which everything has happened once; `text` stands wherever a row holds words."""
    money = {"amount": 10_000, "currency": "IDR"}
    return SessionRecord(
        session=operated(0, **changes),
        accounts=Accounts(paid_ms=900_000, served_ms=300_000, refunded_ms=0, forfeited_ms=0, remaining_ms=600_000),
        messages_count=3,
        timeline=(
            TimelineEntry(
                version=1, epoch=1, at=AT, event="mitra_accepted", from_status=None, to_status="active",
                cause="payment_confirmed", evidence={},
            ),
            TimelineEntry(
                version=2, epoch=1, at=AT, event="deadline_reached", from_status="extending", to_status="active",
                cause="policy_approved",
                evidence={"heartbeat_fresh": True, "mitra_online": True, "heartbeat_age_ms": 4_200, "new": text},
            ),
            TimelineEntry(
                version=3, epoch=1, at=AT, event=text, from_status="active", to_status=text, cause=text,
                evidence={text: text, "pairing_id": PAIRING},
            ),
        ),
        payments=(
            PaymentState(
                id=PAYMENT, status="failed", duration_minutes=5, is_extension=True, is_first_session_discount=False,
                session_id=SESSION, failure_cause=text, created_at=AT, **money,  # type: ignore[arg-type]
            ),
        ),
        extensions=(
            OperatedExtension(
                extension_id=EXTENSION, session_id=SESSION, status="accepted", duration_minutes=5, price=5_000,
                requested_at=AT, deadline_at=AT, payment_request_id=PAYMENT, currency="IDR",
                default_action_on_timeout="auto_approve", responded_at=AT, decided_by=text,
            ),
        ),
        ledger=(
            LedgerEntry(
                transaction_id=an_id(1), payment_request_id=PAYMENT, type="session", duration_minutes=10, at=AT,
                **money,  # type: ignore[arg-type]
            ),
        ),
        refunds=(refund(0, text),),
    )  # fmt: skip


def refund(number: int, text: str) -> OperatedRefund:
    return OperatedRefund(
        refund_id=an_id(number), payment_request_id=PAYMENT, session_id=SESSION, customer_id=CUSTOMER, kind="time_left",
        cause=text, amount=5_000, currency="IDR", refunded_ms=60_000, status="due", created_at=AT, delivered_at=None,
    )  # fmt: skip


def fill(house: House, count: int = 1, text: str = "word") -> None:
    """`count` rows of each kind."""
    inside, lookout = house.inside, house.inside.lookout
    numbers = range(count)
    house.operators.sessions[SESSION] = record(text)
    house.operators.refunds = OperatedRefunds(
        refunds=tuple(refund(number, text) for number in range(min(count, 50))), next_cursor=None
    )
    lookout.sessions = [operated(number, status=text) for number in numbers]
    lookout.things = [
        Thing(kind=kind, thing_id=an_id(8), status=text, customer_id=CUSTOMER, mitra_id=MITRA, session_id=None)
        for kind in ("refund", text)
    ]
    lookout.mitras = [
        SeenMitra(
            mitra_id=an_id(number), display_name=text, state="silent", last_heartbeat_at=NOON - 90_000, capacity=1,
            max_sessions=3, created_at=NOON,
        )
        for number in numbers
    ]  # fmt: skip
    lookout.failure_counts = [Counted(name=text, decided_by=None, day=1, week=2)]
    lookout.outcome_counts = [Counted(name="rejected", decided_by=text, day=3, week=4)]
    lookout.failures = [
        Failed(
            failure_id=number + 1, cause=text, pairing_id=PAIRING, session_id=None, extension_id=None,
            customer_id=CUSTOMER, mitra_id=None, evidence={"waves": 3, "declined": 2, text: text}, at=NOON,
        )
        for number in numbers
    ]  # fmt: skip
    lookout.outcomes = [
        Outcome(
            extension_id=an_id(number), session_id=SESSION, status="rejected", decided_by=text, duration_minutes=5,
            price=5_000, currency="IDR", requested_at=NOON, responded_at=NOON, failure_id=1,
        )
        for number in numbers
    ]  # fmt: skip
    lookout.refund_sums = [RefundSum(status="due", currency="IDR", count=2, amount=10_000)]
    lookout.actions = [
        OperatorAction(
            action_id=number + 1, operator=text, action=text, subject=text, details={"reason": text, text: {"a": text}},
            at=NOON, outcome="refused", code=text, times=3, trace_id=text,
        )
        for number in numbers
    ]  # fmt: skip
    lookout.config_steps = [
        ConfigStep(version=1, changed_by=text, changed_at=NOON, key="currency", old=None, new=text),
        ConfigStep(version=1, changed_by=text, changed_at=NOON, key="a_key_of_old", old=[1, 2], new=text),
    ]
    waiting = Waiting(kind="push", status="due", count=4, oldest_due_at=NOON - 400_000)
    lookout.census = Census(
        available=1, full=2, silent=3, offline=4, deactivated=5, failures={text: 6}, outbox=(waiting,)
    )
    inside.letters.dead = [
        DeadLetter(
            outbox_id=an_id(number), kind=OutboxKind.PUSH, user_id=CUSTOMER, session_id=SESSION, template=text,
            attempts=7, last_error=text, created_at=NOON, finished_at=NOON,
        )
        for number in numbers
    ]  # fmt: skip
    inside.samples = [
        Sample(at=NOON - 20_000, sessions=9, messages_per_second=1.5, commit_ms=4.0, lag_ms=3.0, postgres_ms=0.8, mitras_available=7),
        Sample(at=NOON - 10_000, sessions=10, messages_per_second=2.5, commit_ms=None, lag_ms=40, postgres_ms=None, mitras_available=None),
    ]  # fmt: skip
    inside.daemons = [Upkeep(name=text, since=NOON, crashes=1, last_crash_at=NOON, last_error=text)]
    inside.crashed = [
        Upkeep(name=an_id(number), since=NOON, crashes=2, last_crash_at=NOON, last_error=text) for number in numbers
    ]
    inside.parked = [
        Parked(session_id=SESSION if number == 0 else an_id(number), since=NOON - 60_000, last_error=text)
        for number in numbers
    ]
    house.alarms = [Alarm(name="actors_run", sentence=text, since=NOON, violations=1, subjects=(text,) * 7)]
    house.sweeps = [
        SweepReport(name="auto_offline", interval_seconds=30, runs=2, last_run_at=NOON, waits_for="warm_up"),
        SweepReport(name="reseed", interval_seconds=300, runs=2, failures=1, last_run_at=NOON, rows=3, error=text),
    ]
