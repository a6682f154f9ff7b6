"""What operators read, from rows that plain SQL put there."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from halo.errors import NotFound
from halo.session import SessionStatus
from halo.store.operators import OTHERS, REFUSALS_MAX, Operators
from halo.store.postgres import Postgres, open_postgres
from halo.trace import Trace, following
from tests.store.rows import NOW, add_customer, add_mitra, add_payment, add_session, new_id


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def operators(db: Postgres) -> Operators:
    return Operators(db)


@pytest.fixture
async def customer(db: Postgres) -> str:
    return await add_customer(db)


@pytest.fixture
async def mitra(db: Postgres) -> str:
    return await add_mitra(db, is_online=True)


async def put(db: Postgres, table: str, **columns: Any) -> None:
    """A row; moments are marked by a name that ends in `at`."""
    places = ", ".join(f"at(%({name})s)" if name.endswith("at") else f"%({name})s" for name in columns)
    await db.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", columns)


async def extend(db: Postgres, session_id: str, customer_id: str, status: str = "accepted") -> str:
    """An accepted extension with its ledger row, or a rejected one with its refund; the payment's id."""
    paid = "consumed" if status == "accepted" else "failed"
    payment = await add_payment(db, customer_id, paid, session_id=session_id)
    await put(
        db,
        "session_extensions",
        extension_id=new_id(),
        session_id=session_id,
        payment_request_id=payment,
        status=status,
        duration_minutes=5,
        price=5_000,
        currency="IDR",
        requested_at=NOW,
        deadline_at=NOW + 60_000,
        timeout_seconds=60,
        default_action_on_timeout="auto_approve",
        refusal_outcome="resume",
        config_version=0,
        responded_at=NOW + 1_000,
        decided_by="answered",
    )
    money = {"payment_request_id": payment, "session_id": session_id, "customer_id": customer_id, "currency": "IDR"}
    if status == "accepted":
        await put(
            db, "customer_transactions", **money, type="extension", amount=5_000, duration_minutes=5, at=NOW + 1_000
        )
    else:
        await refund(db, **money, created_at=NOW + 1_000)
    return payment


async def fail_an_extension(db: Postgres, session_id: str, customer_id: str) -> None:
    """One that was decided, and its row among the failures."""
    payment = await extend(db, session_id, customer_id)
    (asked,) = await db.fetch_all(
        "SELECT extension_id FROM session_extensions WHERE payment_request_id = %(id)s", {"id": payment}
    )
    failed = {"customer_id": customer_id, "extension_id": asked.extension_id, "session_id": session_id}
    await put(db, "pairing_failures", cause="extension_rejected", at=NOW, **failed)


async def refund(db: Postgres, **columns: Any) -> None:
    values = {"kind": "payment_failed", "cause": "extension_rejected", "amount": 5_000, "currency": "IDR"} | columns
    await put(db, "refunds", **values)


async def age(db: Postgres, session_id: str, created_at: int) -> None:
    await db.execute(
        "UPDATE chat_sessions SET created_at = at(%(at)s) WHERE session_id = %(id)s",
        {"at": created_at, "id": session_id},
    )


async def test_one_session_is_told_with_its_timeline_and_all_its_money(
    db: Postgres, operators: Operators, customer: str, mitra: str
) -> None:
    paid = await add_payment(db, customer, "consumed", is_extension=False)
    session_id = await add_session(db, customer, mitra, "closing", paid)
    accepted = await extend(db, session_id, customer)
    rejected = await extend(db, session_id, customer, "rejected")
    for version, (leaving, reaching) in enumerate([(None, "active"), ("active", "closing")], start=1):
        await put(
            db,
            "session_timeline",
            session_id=session_id,
            version=version,
            epoch=1,
            at=NOW + version,
            event="DeadlineReached",
            from_status=leaving,
            to_status=reaching,
            cause="time_up",
            evidence='{"heartbeat_age_ms": 12}',
        )
    await put(db, "messages", session_id=session_id, seq=1, sender="mitra", id="m1", body="a secret", at=NOW)

    record = await operators.load_session(session_id)

    assert (record.session.session_id, record.session.status) == (session_id, "closing")
    assert [entry.to_status for entry in record.timeline] == ["active", "closing"]
    assert record.timeline[0].evidence == {"heartbeat_age_ms": 12}
    assert record.timeline[0].at == "2026-11-23T20:15:00.124Z"
    assert record.payments[0].id == paid
    assert {payment.id for payment in record.payments} == {paid, accepted, rejected}
    assert {(asked.payment_request_id, asked.status) for asked in record.extensions} == {
        (accepted, "accepted"),
        (rejected, "rejected"),
    }
    assert [(entry.payment_request_id, entry.amount) for entry in record.ledger] == [(accepted, 5_000)]
    assert [(owed.payment_request_id, owed.status) for owed in record.refunds] == [(rejected, "due")]
    assert record.messages_count == 1
    assert "a secret" not in repr(record)


async def test_a_session_that_is_not_there_is_not_found(operators: Operators) -> None:
    with pytest.raises(NotFound):
        await operators.load_session(new_id())


async def test_pages_go_newest_first_without_gap_or_repeat_though_sessions_arrive_meanwhile(
    db: Postgres, operators: Operators, customer: str, mitra: str
) -> None:
    sessions = [await add_session(db, customer, mitra, "ended") for _ in range(5)]
    for number, session_id in enumerate(sessions):
        await age(db, session_id, NOW - 1_000 * (number // 2))  # two at a time share their moment
    first = await operators.list_sessions(None, 2, None)
    await age(db, await add_session(db, customer, mitra, "ended"), NOW + 1_000)
    second = await operators.list_sessions(None, 2, first.next_cursor)
    third = await operators.list_sessions(None, 2, second.next_cursor)
    told = [session.session_id for page in (first, second, third) for session in page.sessions]
    assert sorted(told) == sorted(sessions)
    assert set(told[:2]) == set(sessions[:2])
    assert third.next_cursor is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, {"closing", "pending_payment", "ended"}),
        ("living", {"closing", "pending_payment"}),
        ("ended", {"ended"}),
        ("active", set()),
    ],
)
async def test_sessions_are_filtered_by_status(
    db: Postgres, operators: Operators, customer: str, mitra: str, status: str | None, expected: set[str]
) -> None:
    for of in ("closing", "pending_payment", "ended"):
        await add_session(db, customer, mitra, of)
    page = await operators.list_sessions(status, 50, None)
    assert {session.status for session in page.sessions} == expected


async def test_a_cursor_that_names_nothing_gives_an_empty_page(
    db: Postgres, operators: Operators, customer: str, mitra: str
) -> None:
    await add_session(db, customer, mitra)
    page = await operators.list_sessions(None, 50, new_id())
    assert (page.sessions, page.next_cursor) == ((), None)
    assert (await operators.list_refunds(None, 50, new_id())).refunds == ()


async def test_refunds_are_told_by_status_and_in_pages(db: Postgres, operators: Operators, customer: str) -> None:
    for number in range(3):
        payment = await add_payment(db, customer, "failed")
        await refund(db, payment_request_id=payment, customer_id=customer, created_at=NOW + number)
    await db.execute(
        "UPDATE refunds SET status = 'delivered', delivered_at = at(%(at)s) WHERE created_at = at(%(at)s)", {"at": NOW}
    )
    due = await operators.list_refunds("due", 1, None)
    assert [owed.created_at for owed in due.refunds] == ["2026-11-23T20:15:00.125Z"]
    rest = await operators.list_refunds("due", 2, due.next_cursor)
    assert [owed.created_at for owed in rest.refunds] == ["2026-11-23T20:15:00.124Z"]
    assert rest.next_cursor is None
    [delivered] = (await operators.list_refunds("delivered", 50, None)).refunds
    assert (delivered.session_id, delivered.delivered_at) == (None, "2026-11-23T20:15:00.123Z")


async def test_failures_of_searches_are_told_newest_first_with_their_evidence_and_without_those_of_extensions(
    db: Postgres, operators: Operators, customer: str, mitra: str
) -> None:
    for cause in ("no_mitra_available", "timed_out", "all_declined"):
        await put(db, "pairing_failures", cause=cause, customer_id=customer, evidence='{"waves": 3}', at=NOW)
    await fail_an_extension(db, await add_session(db, customer, mitra, "ended"), customer)
    first = await operators.list_failures(2, None)
    assert [failure.cause for failure in first.pairing_failures] == ["all_declined", "timed_out"]
    assert first.pairing_failures[0].evidence == {"waves": 3}
    assert first.next_cursor is not None
    rest = await operators.list_failures(2, int(first.next_cursor))
    assert ([failure.cause for failure in rest.pairing_failures], rest.next_cursor) == (["no_mitra_available"], None)


async def test_the_overview_counts_what_lives_and_what_is_owed(
    db: Postgres, operators: Operators, customer: str
) -> None:
    mitra, out = [await add_mitra(db) for _ in range(2)]
    await db.execute("UPDATE mitras SET is_active = false WHERE mitra_id = %(id)s", {"id": out})
    await add_session(db, customer, mitra, "closing")
    lately, long_ago = [await add_session(db, customer, mitra, "ended") for _ in range(2)]
    await age(db, lately, NOW - 1_000)
    await age(db, long_ago, NOW - 25 * 3_600_000)
    payment = await add_payment(db, customer, "failed")
    await refund(db, payment_request_id=payment, customer_id=customer, created_at=NOW)
    await put(db, "pairing_failures", cause="timed_out", customer_id=customer, at=NOW)
    await put(db, "pairing_failures", cause="timed_out", customer_id=customer, at=NOW - 25 * 3_600_000)
    await fail_an_extension(db, lately, customer)

    overview = await operators.load_overview(NOW, online=9, available=7, degraded=True)

    assert set(overview.sessions) == set(SessionStatus)
    assert (overview.sessions["closing"], overview.sessions["ended"], overview.sessions["active"]) == (1, 1, 0)
    assert (overview.mitras_total, overview.mitras_deactivated) == (2, 1)
    assert (overview.mitras_online, overview.mitras_available, overview.degraded) == (9, 7, True)
    assert overview.refunds_due == {"IDR": 5_000}
    assert overview.pairing_failures_24h == {"timed_out": 1}
    assert overview.pairings_searching == 0


async def test_the_trail_says_who_did_what_to_whom(db: Postgres, operators: Operators) -> None:
    subject = new_id()
    trace = Trace.begun()
    with following(trace):
        action_id = await operators.record_attempt("admin key", "end_session", subject, {"status": "active"})
    query = "SELECT operator, action, subject, details, trace_id, outcome, code FROM operator_actions"
    [row] = await db.fetch_all(query)
    what = ("admin key", "end_session", subject, {"status": "active"}, trace.trace_id)
    assert tuple(row) == (*what, "attempted", None)
    await operators.record_outcome(action_id, "SESSION_NOT_ACTIVE")
    await operators.record_outcome(action_id, None)  # late: what was refused stays so
    [row] = await db.fetch_all(query)
    assert tuple(row) == (*what, "refused", "SESSION_NOT_ACTIVE")
    await operators.record_outcome(await operators.record_attempt("ann", "end_session", subject, {}), None)
    assert [row.outcome for row in await db.fetch_all(query + " ORDER BY action_id")] == ["refused", "done"]


async def test_equal_refusals_of_a_minute_are_counted_in_one_row(db: Postgres, operators: Operators) -> None:
    for _ in range(20):
        await operators.record_refusal("vera", "end_session", "x", "FORBIDDEN")
    await operators.record_refusal("vera", "end_session", "y", "FORBIDDEN")
    rows = await db.fetch_all("SELECT subject, outcome, times FROM operator_actions ORDER BY action_id")
    assert sum(row.times for row in rows) == 21
    assert {row.subject for row in rows} == {"x", "y"}
    assert len(rows) <= 4  # a minute may end in between
    assert {row.outcome for row in rows} == {"refused"}


async def test_whoever_makes_up_ids_cannot_fill_the_trail(db: Postgres, operators: Operators) -> None:
    for _ in range(5 * REFUSALS_MAX):
        await operators.record_refusal("vera", "end_session", new_id(), "FORBIDDEN")
    [row] = await db.fetch_all(
        "SELECT count(*) AS rows, sum(times)::bigint AS times,"
        " sum(times) FILTER (WHERE subject = %(others)s)::bigint AS others FROM operator_actions",
        {"others": OTHERS},
    )
    assert row.times == 5 * REFUSALS_MAX
    assert row.rows <= 2 * (REFUSALS_MAX + 1)  # a minute may end in between
    assert row.others >= 3 * REFUSALS_MAX
