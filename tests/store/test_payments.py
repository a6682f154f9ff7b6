from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio

from halo.config import LiveConfig
from halo.errors import (
    DiscountNotForExtensions,
    DiscountUsed,
    InvalidState,
    NotFound,
    PaymentMismatch,
    SessionNotActive,
    StepOvertaken,
    ValidationFailed,
)
from halo.payment import Payment, PaymentStatus
from halo.session import FailureCause
from halo.store.payments import Payments, Settlement, consumption, failure, failure_of_unused
from halo.store.postgres import Postgres, Transaction, open_postgres
from tests.store.rows import (
    NOW,
    SetClock,
    add_customer,
    add_extension,
    add_mitra,
    add_pairing,
    add_payment,
    add_session,
    count,
    new_id,
)

CONFIG = LiveConfig()
NONEXISTENT = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def payments(db: Postgres, clock: SetClock) -> Payments:
    return Payments(db, clock)


@pytest.fixture
async def customer(db: Postgres) -> str:
    return await add_customer(db)


async def pay(payments: Payments, payment: Payment | str, webhook_id: str | None = None, **changes: Any) -> Settlement:
    """The provider reports the money that was asked for, or something near it."""
    if isinstance(payment, str):
        payment = await payments.load(payment)
    report: dict[str, Any] = {"provider_ref": "ref", "amount": payment.amount, "currency": payment.currency} | changes
    return await payments.confirm(payment.payment_request_id, webhook_id=webhook_id, **report)


async def buy(payments: Payments, customer: str, minutes: int = 5, **options: Any) -> Payment:
    return await payments.create(customer, duration_minutes=minutes, config=CONFIG, **options)


async def assert_refunded_once(db: Postgres, payment: Payment, cause: str) -> None:
    """One refund of everything, and one row of the outbox that will deliver it."""
    rows = await db.fetch_all(
        "SELECT * FROM refunds WHERE payment_request_id = %(id)s", {"id": payment.payment_request_id}
    )
    assert [(row.kind, row.cause, row.amount, row.currency, row.status, row.customer_id) for row in rows] == [
        ("payment_failed", cause, payment.amount, payment.currency, "due", payment.customer_id)
    ]
    [row] = rows
    told = await db.fetch_all(
        "SELECT * FROM outbox WHERE collapse_key = 'refund:' || %(id)s::text", {"id": row.refund_id}
    )
    assert [(out.kind, out.user_id, out.template, out.payload, out.due_at) for out in told] == [
        ("refund", payment.customer_id, "refund_due", {"refund_id": row.refund_id}, row.created_at)
    ]


# ---- asking


async def test_a_request_is_priced_by_the_server_and_pending(payments: Payments, customer: str) -> None:
    payment = await buy(payments, customer, 7)
    assert (payment.status, payment.amount, payment.currency, payment.duration_minutes) == (
        PaymentStatus.PENDING,
        7000,
        "IDR",
        7,
    )
    assert (payment.created_at, payment.in_use, payment.session_id, payment.failure_cause) == (NOW, False, None, None)
    assert await payments.load(payment.payment_request_id) == payment


async def test_a_discounted_request_costs_less(payments: Payments, customer: str) -> None:
    payment = await buy(payments, customer, 7, is_first_session_discount=True)
    assert payment.is_first_session_discount
    assert payment.amount == 3500


@pytest.mark.parametrize("minutes", [0, -1, 241])
async def test_minutes_out_of_bounds_leave_no_row(
    payments: Payments, db: Postgres, customer: str, minutes: int
) -> None:
    with pytest.raises(ValidationFailed):
        await buy(payments, customer, minutes)
    assert await count(db, "payment_requests") == 0


async def test_a_discount_never_pays_for_an_extension(payments: Payments, customer: str) -> None:
    with pytest.raises(DiscountNotForExtensions):
        await buy(payments, customer, is_extension=True, is_first_session_discount=True)


async def test_only_an_extension_names_a_session(payments: Payments, db: Postgres, customer: str) -> None:
    session_id = await add_session(db, customer, await add_mitra(db))
    with pytest.raises(ValidationFailed) as refused:
        await buy(payments, customer, session_id=session_id)
    assert [error["field"] for error in refused.value.errors] == ["session_id"]


@pytest.mark.parametrize("status", ["pending_payment", "active", "closing", "rerouting"])
async def test_time_is_bought_for_an_own_session_that_lives(
    payments: Payments, db: Postgres, customer: str, status: str
) -> None:
    session_id = await add_session(db, customer, await add_mitra(db), status)
    payment = await buy(payments, customer, is_extension=True, session_id=session_id)
    assert (payment.is_extension, payment.session_id) == (True, session_id)


async def test_no_time_is_bought_for_a_session_that_has_ended(payments: Payments, db: Postgres, customer: str) -> None:
    session_id = await add_session(db, customer, await add_mitra(db), "ended")
    with pytest.raises(SessionNotActive):
        await buy(payments, customer, is_extension=True, session_id=session_id)


@pytest.mark.parametrize("is_named", [True, False])
async def test_no_time_is_sold_in_a_currency_that_the_session_could_never_take(
    payments: Payments, db: Postgres, customer: str, is_named: bool
) -> None:
    """The currency was changed while the session ran: refused before anybody pays, and possible again once it is changed back."""
    session_id = await add_session(db, customer, await add_mitra(db), "active")
    options: dict[str, Any] = {"is_extension": True, "session_id": session_id if is_named else None}
    with pytest.raises(PaymentMismatch) as refused:
        await payments.create(customer, duration_minutes=5, config=LiveConfig(currency="USD"), **options)
    assert refused.value.message == "The session is paid in IDR, and time is sold in USD now; none can be added to it."
    assert await count(db, "payment_requests") == 1  # the session's own
    assert (await buy(payments, customer, **options)).currency == "IDR"


async def test_time_for_no_session_in_particular_is_sold_while_one_could_take_it(
    payments: Payments, db: Postgres, customer: str
) -> None:
    dollars = LiveConfig(currency="USD")
    for status in ("ended", "active"):
        await add_session(db, customer, await add_mitra(db), status)
        if status == "ended":  # nothing lives: it is for a session to come
            payment = await payments.create(customer, duration_minutes=5, config=dollars, is_extension=True)
            assert payment.currency == "USD"
    in_dollars = await add_session(db, customer, await add_mitra(db), "active")
    await db.execute("UPDATE chat_sessions SET currency = 'USD' WHERE session_id = %(id)s", {"id": in_dollars})
    assert (await payments.create(customer, duration_minutes=5, config=dollars, is_extension=True)).currency == "USD"
    await add_session(db, await add_customer(db), await add_mitra(db), "active")  # a stranger's says nothing


async def test_a_first_session_is_sold_in_the_new_currency_beside_one_that_runs_in_the_old(
    payments: Payments, db: Postgres, customer: str
) -> None:
    await add_session(db, customer, await add_mitra(db), "active")
    payment = await payments.create(customer, duration_minutes=5, config=LiveConfig(currency="USD"))
    assert (payment.currency, payment.amount) == ("USD", 5_000)


async def test_what_was_asked_for_keeps_its_price_whatever_is_changed_before_it_is_paid(
    payments: Payments, customer: str
) -> None:
    asked = await buy(payments, customer, is_first_session_discount=True)
    dearer = LiveConfig(price_per_minute=9_000, currency="USD", first_session_discount_percent=0)
    assert (await payments.create(customer, duration_minutes=5, config=dearer)).amount == 45_000
    settled = (await pay(payments, asked)).payment
    assert (settled.status, settled.amount, settled.currency) == (PaymentStatus.CONFIRMED, 2_500, "IDR")


async def test_somebody_elses_session_looks_like_none(payments: Payments, db: Postgres, customer: str) -> None:
    foreign = await add_session(db, await add_customer(db), await add_mitra(db))
    for session_id in (foreign, NONEXISTENT):
        with pytest.raises(NotFound):
            await buy(payments, customer, is_extension=True, session_id=session_id)


async def test_a_session_that_is_ending_leaves_no_extension_payment_behind(
    payments: Payments, db: Postgres, customer: str
) -> None:
    """Money asked for at the moment of the end is either refused or failed with the session's other payments (M7)."""
    session_id = await add_session(db, customer, await add_mitra(db))
    refused = 0

    async def ask() -> None:
        nonlocal refused
        try:
            await buy(payments, customer, is_extension=True, session_id=session_id)
        except SessionNotActive:
            refused += 1

    async def end(tx: Transaction) -> None:
        await tx.execute(
            "UPDATE chat_sessions SET status = 'ended', end_reason = 'completed', deadline_at = NULL WHERE session_id = %(id)s",
            {"id": session_id},
        )
        await tx.execute(*failure_of_unused(session_id, NOW))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            if number == 10:
                nursery.start_soon(db.transact, end, new_id())
            nursery.start_soon(ask)
    made = await db.fetch_all("SELECT status, failure_cause FROM payment_requests WHERE is_extension")
    assert len(made) + refused == 20
    assert {(row.status, row.failure_cause) for row in made} <= {("failed", "session_ended")}


# ---- the same id again


async def test_a_repeat_under_its_id_finds_the_first_request(payments: Payments, db: Postgres, customer: str) -> None:
    payment_request_id = new_id()
    first = await buy(payments, customer, 5, payment_request_id=payment_request_id)
    dearer = LiveConfig(price_per_minute=9, max_minutes=2)
    again = await payments.create(customer, duration_minutes=5, config=dearer, payment_request_id=payment_request_id)
    assert again == first
    assert await count(db, "payment_requests") == 1


async def test_a_repeat_is_answered_though_it_would_be_refused_by_now(payments: Payments, customer: str) -> None:
    payment_request_id = new_id()
    first = await buy(payments, customer, is_first_session_discount=True, payment_request_id=payment_request_id)
    await pay(payments, first)
    again = await buy(payments, customer, is_first_session_discount=True, payment_request_id=payment_request_id)
    assert again.status is PaymentStatus.CONFIRMED


async def test_ten_repeats_at_once_make_one_request(payments: Payments, db: Postgres, customer: str) -> None:
    payment_request_id = new_id()
    answers: list[Payment] = []

    async def ask() -> None:
        answers.append(await buy(payments, customer, payment_request_id=payment_request_id))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert len(set(answers)) == 1
    assert await count(db, "payment_requests") == 1


async def test_an_id_of_somebody_elses_payment_shows_nothing(payments: Payments, db: Postgres, customer: str) -> None:
    foreign = await buy(payments, await add_customer(db))
    with pytest.raises(NotFound):
        await buy(payments, customer, payment_request_id=foreign.payment_request_id)


# ---- looking


@pytest.mark.parametrize(
    "payment_request_id", [NONEXISTENT, "no id at all", "", "\x00", "0" * 9000, f"urn:uuid:{NONEXISTENT}"]
)
async def test_what_does_not_exist_is_none_or_not_found(payments: Payments, payment_request_id: str) -> None:
    assert await payments.find(payment_request_id) is None
    with pytest.raises(NotFound):
        await payments.load(payment_request_id)


async def test_a_payment_is_in_use_while_an_extension_is_bound_to_it(
    payments: Payments, db: Postgres, customer: str
) -> None:
    session_id = await add_session(db, customer, await add_mitra(db))
    payment_request_id = await add_payment(db, customer, "confirmed")
    await add_extension(db, session_id, payment_request_id)
    assert (await payments.load(payment_request_id)).in_use
    await db.execute(
        "UPDATE session_extensions SET status = 'cancelled', decided_by = 'cancelled', responded_at = now()"
    )
    assert not (await payments.load(payment_request_id)).in_use


async def test_a_payment_is_in_use_while_a_pairing_searches_for_it(
    payments: Payments, db: Postgres, customer: str
) -> None:
    payment_request_id = await add_payment(db, customer, "confirmed", is_extension=False)
    await add_pairing(db, customer, payment_request_id)
    assert (await payments.load(payment_request_id)).in_use
    await db.execute("UPDATE pairings SET status = 'failed', cause = 'timed_out'")
    assert not (await payments.load(payment_request_id)).in_use


async def test_a_payment_is_in_use_while_its_session_lives(payments: Payments, db: Postgres, customer: str) -> None:
    payment_request_id = await add_payment(db, customer, "confirmed", is_extension=False)
    await add_session(db, customer, await add_mitra(db), "closing", payment_request_id)
    assert (await payments.load(payment_request_id)).in_use
    await db.execute("UPDATE chat_sessions SET status = 'ended', end_reason = 'completed', deadline_at = NULL")
    assert not (await payments.load(payment_request_id)).in_use


# ---- the money comes


async def test_money_confirms_a_pending_payment(payments: Payments, db: Postgres, customer: str) -> None:
    settled = await pay(payments, await buy(payments, customer), "w1")
    assert settled.changed
    assert settled.payment.status is PaymentStatus.CONFIRMED
    assert settled.waiting_session_id is None
    row = await db.fetch_one("SELECT confirmed_at, provider_ref FROM payment_requests")
    assert row is not None
    assert (row.confirmed_at, row.provider_ref) == (NOW, "ref")
    assert await count(db, "refunds") == 0


async def test_a_second_delivery_of_one_webhook_changes_nothing_and_answers_the_same(
    payments: Payments, db: Postgres, customer: str, clock: SetClock
) -> None:
    payment = await buy(payments, customer)
    first = await pay(payments, payment, "w1")
    clock.moment += 5000
    second = await pay(payments, payment, "w1", provider_ref="another")
    assert (first.changed, second.changed) == (True, False)
    assert first.payment == second.payment
    assert await count(db, "payment_requests", "confirmed_at = at(%(at)s) AND provider_ref = 'ref'", at=NOW) == 1


async def test_a_delivery_counts_once_even_when_it_says_something_else_the_second_time(
    payments: Payments, customer: str
) -> None:
    payment = await buy(payments, customer)
    await pay(payments, payment, "w1")
    assert not (await payments.fail(payment.payment_request_id, webhook_id="w1")).changed
    assert (await payments.load(payment.payment_request_id)).status is PaymentStatus.CONFIRMED


@pytest.mark.parametrize("changes", [{"amount": 4999}, {"amount": 5001}, {"currency": "USD"}])
async def test_other_money_than_asked_for_changes_nothing_and_its_webhook_may_come_again(
    payments: Payments, db: Postgres, customer: str, changes: dict[str, Any]
) -> None:
    payment = await buy(payments, customer)
    for _ in range(2):
        with pytest.raises(PaymentMismatch):
            await pay(payments, payment, "w1", **changes)
    assert await payments.load(payment.payment_request_id) == payment
    assert await count(db, "webhook_deliveries") == 0
    assert (await pay(payments, payment, "w1")).changed


async def test_money_that_was_not_asked_for_leaves_a_trace_for_operators_once(
    payments: Payments, db: Postgres, customer: str, caplog: pytest.LogCaptureFixture
) -> None:
    payment = await buy(payments, customer)
    for _ in range(3):  # the provider delivers it again and again
        with pytest.raises(PaymentMismatch):
            await pay(payments, payment, "w1", amount=payment.amount - 1)
    [action] = await db.fetch_all("SELECT operator, action, subject, details FROM operator_actions")
    assert (action.operator, action.action) == ("payment provider", "payment_mismatch")
    assert action.subject == payment.payment_request_id
    assert action.details["asked"] == f"{payment.amount} IDR"
    assert action.details["paid"] == f"{payment.amount - 1} IDR"
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 3
    assert all(payment.payment_request_id in record.getMessage() for record in warnings)


async def test_one_reference_for_two_payments_is_taken_and_warned_of(
    payments: Payments, customer: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await buy(payments, customer), await buy(payments, customer)
    assert (await pay(payments, first, "w1", provider_ref="ref-1")).changed
    assert "provider_ref_shared" not in caplog.text
    assert (await pay(payments, second, "w2", provider_ref="ref-1")).changed
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "provider_ref_shared" in record.getMessage()
    assert first.payment_request_id in record.getMessage()
    assert second.payment_request_id in record.getMessage()


async def test_money_for_an_unknown_payment_is_refused_and_its_webhook_may_come_again(
    payments: Payments, db: Postgres
) -> None:
    with pytest.raises(NotFound):
        await payments.confirm(NONEXISTENT, provider_ref="ref", amount=1, currency="IDR", webhook_id="w1")
    with pytest.raises(NotFound):
        await payments.fail(NONEXISTENT, webhook_id="w1")
    assert await count(db, "webhook_deliveries") == 0


@pytest.mark.parametrize("status", ["confirmed", "consumed"])
async def test_the_same_news_in_another_webhook_changes_nothing(
    payments: Payments, db: Postgres, customer: str, status: str, clock: SetClock
) -> None:
    payment_request_id = await add_payment(db, customer, status)
    clock.moment += 5000
    settled = await pay(payments, payment_request_id, "w2")
    assert not settled.changed
    assert settled.payment.status == status
    assert await count(db, "payment_requests", "confirmed_at = at(%(at)s)", at=NOW) == 1
    assert await count(db, "refunds") == 0


async def test_money_that_comes_after_the_failure_is_due_back_exactly_once(
    payments: Payments, db: Postgres, customer: str, clock: SetClock
) -> None:
    payment = await buy(payments, customer)
    await payments.fail(payment.payment_request_id, FailureCause.PAYMENT_EXPIRED)
    assert await count(db, "refunds") == 0
    clock.moment += 5000
    settled = [await pay(payments, payment, webhook_id) for webhook_id in ("w1", "w1", "w2", None)]
    assert [one.changed for one in settled] == [True, False, False, False]
    assert {one.payment.status for one in settled} == {PaymentStatus.FAILED}
    assert await count(db, "payment_requests", "confirmed_at = at(%(at)s)", at=NOW + 5000) == 1
    await assert_refunded_once(db, payment, "payment_expired")


async def test_the_refund_of_late_money_names_the_session_that_was_never_started(
    payments: Payments, db: Postgres, customer: str
) -> None:
    payment_request_id = await add_payment(db, customer, "failed", is_extension=False)
    session_id = await add_session(db, customer, await add_mitra(db), "ended", payment_request_id)
    await pay(payments, payment_request_id)
    assert await count(db, "refunds", "session_id = %(id)s", id=session_id) == 1


async def test_the_session_that_waits_for_a_payment_is_named(payments: Payments, db: Postgres, customer: str) -> None:
    on_hold = await add_payment(db, customer, "pending", is_extension=False)
    session_id = await add_session(db, customer, await add_mitra(db), "pending_payment", on_hold)
    assert (await pay(payments, on_hold, "w1")).waiting_session_id == session_id
    assert (
        await pay(payments, on_hold, "w1")
    ).waiting_session_id == session_id  # the first caller may have died before it told


async def test_the_session_that_extends_with_a_failed_payment_is_named(
    payments: Payments, db: Postgres, customer: str
) -> None:
    session_id = await add_session(db, customer, await add_mitra(db), "extending")
    bound = await add_payment(db, customer, "confirmed", session_id=session_id)
    await add_extension(db, session_id, bound)
    assert (await payments.fail(bound)).waiting_session_id == session_id


# ---- the money does not come


async def test_a_pending_payment_fails_without_a_refund(payments: Payments, db: Postgres, customer: str) -> None:
    payment = await buy(payments, customer)
    settled = await payments.fail(payment.payment_request_id, webhook_id="w1")
    assert settled.changed
    assert (settled.payment.status, settled.payment.failure_cause) == (PaymentStatus.FAILED, "payment_failed")
    assert await count(db, "refunds") == 0
    assert await count(db, "outbox") == 0


async def test_a_confirmed_payment_that_fails_is_due_back_once(payments: Payments, db: Postgres, customer: str) -> None:
    payment = (await pay(payments, await buy(payments, customer))).payment
    for webhook_id, changed in (("w1", True), ("w1", False), ("w2", False)):
        assert (await payments.fail(payment.payment_request_id, webhook_id=webhook_id)).changed is changed
    await assert_refunded_once(db, payment, "payment_failed")
    assert not (await pay(payments, payment, "w3")).changed
    await assert_refunded_once(db, payment, "payment_failed")


async def test_a_consumed_payment_cannot_fail(payments: Payments, db: Postgres, customer: str) -> None:
    payment_request_id = await add_payment(db, customer, "consumed")
    with pytest.raises(InvalidState):
        await payments.fail(payment_request_id, webhook_id="w1")
    assert (await payments.load(payment_request_id)).status is PaymentStatus.CONSUMED
    assert await count(db, "webhook_deliveries") == 0


# ---- discounts


async def test_a_customer_whose_session_has_started_gets_no_discount(
    payments: Payments, db: Postgres, customer: str
) -> None:
    await add_session(db, customer, await add_mitra(db), "ended")
    with pytest.raises(DiscountUsed):
        await buy(payments, customer, is_first_session_discount=True)


async def test_a_session_that_never_started_does_not_cost_the_discount(
    payments: Payments, db: Postgres, customer: str
) -> None:
    await add_session(db, customer, await add_mitra(db), "pending_payment")
    assert (await buy(payments, customer, is_first_session_discount=True)).amount == 2500


@pytest.mark.parametrize("status", ["confirmed", "consumed"])
async def test_a_customer_who_holds_a_discount_gets_no_second_one(
    payments: Payments, db: Postgres, customer: str, status: str
) -> None:
    await add_payment(db, customer, status, is_extension=False, is_first_session_discount=True)
    with pytest.raises(DiscountUsed):
        await buy(payments, customer, is_first_session_discount=True)
    assert (await buy(payments, await add_customer(db), is_first_session_discount=True)).amount == 2500


async def test_a_discount_that_failed_can_be_had_again(payments: Payments, customer: str) -> None:
    first = await buy(payments, customer, is_first_session_discount=True)
    await payments.fail(first.payment_request_id)
    second = await buy(payments, customer, is_first_session_discount=True)
    assert (await pay(payments, second)).payment.status is PaymentStatus.CONFIRMED


async def test_a_discount_whose_money_comes_after_the_first_session_has_started_is_due_back(
    payments: Payments, db: Postgres, customer: str
) -> None:
    """It was asked for before there was any; by now it would make a second session cheap."""
    discount = await payments.create(customer, duration_minutes=5, is_first_session_discount=True, config=CONFIG)
    await add_session(db, customer, await add_mitra(db), "active")
    settled = await payments.confirm(
        discount.payment_request_id, provider_ref="y", amount=discount.amount, currency=discount.currency
    )
    assert (settled.payment.status, settled.changed) == (PaymentStatus.FAILED, True)
    assert settled.payment.failure_cause == "payment_failed"
    refund = await db.fetch_one("SELECT amount, kind FROM refunds")
    assert tuple(refund or ()) == (discount.amount, "payment_failed")


async def test_of_many_discounts_confirmed_at_once_one_counts_and_the_others_are_due_back(
    payments: Payments, db: Postgres, customer: str
) -> None:
    asked = [await buy(payments, customer, is_first_session_discount=True) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for payment in asked:
            nursery.start_soon(pay, payments, payment, new_id())
    settled = [await payments.load(payment.payment_request_id) for payment in asked]
    assert Counter(payment.status for payment in settled) == {PaymentStatus.CONFIRMED: 1, PaymentStatus.FAILED: 7}
    for payment in settled:
        if payment.status is PaymentStatus.FAILED:
            await assert_refunded_once(db, payment, "payment_failed")
    assert await count(db, "refunds") == 7


async def test_a_discount_confirmed_behind_another_waits_for_it_and_is_due_back(
    payments: Payments, db: Postgres, customer: str
) -> None:
    """The narrow case of the test above, held open: the first has confirmed and not yet committed."""
    first, second = [await buy(payments, customer, is_first_session_discount=True) for _ in range(2)]
    is_waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"

    async def confirm_slowly(tx: Transaction) -> None:
        await tx.execute("SELECT 1 FROM customers WHERE customer_id = %(id)s FOR NO KEY UPDATE", {"id": customer})
        confirm = (
            "UPDATE payment_requests SET status = 'confirmed', confirmed_at = now() WHERE payment_request_id = %(id)s"
        )
        await tx.execute(confirm, {"id": first.payment_request_id})
        nursery.start_soon(pay, payments, second)
        with trio.fail_after(10):
            while not [row for row in await db.fetch_all(is_waiting) if row.n]:
                await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        await db.transact(confirm_slowly, new_id())
    assert (await payments.load(first.payment_request_id)).status is PaymentStatus.CONFIRMED
    await assert_refunded_once(db, second, "payment_failed")


# ---- several at once


@pytest.mark.parametrize("same_webhook", [True, False])
async def test_twenty_confirmations_at_once_change_one_thing(
    payments: Payments, db: Postgres, customer: str, same_webhook: bool
) -> None:
    payment = await buy(payments, customer)
    settled: list[Settlement] = []

    async def report(number: int) -> None:
        settled.append(await pay(payments, payment, "w" if same_webhook else f"w{number}"))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(report, number)
    assert sum(one.changed for one in settled) == 1
    assert {one.payment.status for one in settled} == {PaymentStatus.CONFIRMED}
    assert await count(db, "webhook_deliveries") == (1 if same_webhook else 20)
    assert await count(db, "refunds") == 0


async def test_confirmed_and_failed_in_one_moment_never_keeps_money_that_bought_nothing(
    payments: Payments, db: Postgres, customer: str
) -> None:
    for _ in range(15):
        payment = await buy(payments, customer)
        async with trio.open_nursery() as nursery:
            for report in (
                partial(pay, payments, payment, new_id()),
                partial(payments.fail, payment.payment_request_id, webhook_id=new_id()),
                partial(pay, payments, payment, new_id()),
            ):
                nursery.start_soon(report)
        assert (await payments.load(payment.payment_request_id)).status is PaymentStatus.FAILED
        await assert_refunded_once(db, payment, "payment_failed")


async def test_consumed_and_failed_in_one_moment_has_one_winner(
    payments: Payments, db: Postgres, customer: str
) -> None:
    mitra = await add_mitra(db)
    outcomes: Counter[tuple[str, int, int]] = Counter()
    for number in range(12):
        session_id = await add_session(db, customer, mitra)
        payment_request_id = await add_payment(db, customer, "confirmed")

        async def consume(session_id: str = session_id, payment_request_id: str = payment_request_id) -> None:
            async def work(tx: Transaction) -> None:
                await tx.execute(*consumption(payment_request_id, session_id, "extension", NOW))

            await db.transact(work, new_id())

        async def fail(payment_request_id: str = payment_request_id) -> None:
            try:
                await payments.fail(payment_request_id)
            except InvalidState:
                return

        async with trio.open_nursery() as nursery:
            for contender in (consume, fail) if number % 2 else (fail, consume):
                nursery.start_soon(contender)
        of_payment = "payment_request_id = %(id)s"
        outcomes[
            (await payments.load(payment_request_id)).status,
            await count(db, "customer_transactions", of_payment, id=payment_request_id),
            await count(db, "refunds", of_payment, id=payment_request_id),
        ] += 1
    assert set(outcomes) <= {("consumed", 1, 0), ("failed", 0, 1)}


# ---- inside a session's transaction


async def test_a_consumed_payment_leaves_one_ledger_row_with_what_was_paid(
    db: Postgres, payments: Payments, customer: str
) -> None:
    session_id = await add_session(db, customer, await add_mitra(db))
    payment_request_id = await add_payment(db, customer, "confirmed")
    spend = consumption(payment_request_id, session_id, "extension", NOW + 7)
    assert await db.transact(lambda tx: tx.execute(*spend), new_id()) == 1
    payment = await payments.load(payment_request_id)
    assert (payment.status, payment.session_id) == (PaymentStatus.CONSUMED, session_id)
    [row] = await db.fetch_all("SELECT * FROM customer_transactions")
    assert (row.payment_request_id, row.customer_id, row.session_id) == (payment_request_id, customer, session_id)
    assert (row.type, row.amount, row.currency, row.duration_minutes, row.at) == ("extension", 5000, "IDR", 5, NOW + 7)


@pytest.mark.parametrize("status", ["pending", "consumed", "failed"])
async def test_only_a_confirmed_payment_is_consumed(db: Postgres, customer: str, status: str) -> None:
    session_id = await add_session(db, customer, await add_mitra(db))
    payment_request_id = await add_payment(db, customer, status)
    spend = consumption(payment_request_id, session_id, "extension", NOW)
    assert await db.transact(lambda tx: tx.execute(*spend), new_id()) == 0
    assert await count(db, "customer_transactions") == 0


async def test_a_payment_made_for_one_session_is_not_spent_on_another(db: Postgres, customer: str) -> None:
    mitra = await add_mitra(db)
    first, second = [await add_session(db, customer, mitra) for _ in range(2)]
    payment_request_id = await add_payment(db, customer, "confirmed", session_id=first)
    spend = consumption(payment_request_id, second, "extension", NOW)
    assert await db.transact(lambda tx: tx.execute(*spend), new_id()) == 0


async def test_a_payment_fails_with_its_refund_in_the_callers_transaction_or_not_at_all(
    db: Postgres, payments: Payments, customer: str
) -> None:
    session_id = await add_session(db, customer, await add_mitra(db))
    payment_request_id = await add_payment(db, customer, "confirmed")

    async def work(tx: Transaction, fault: Exception | None) -> bool:
        failed = await tx.execute(*failure(payment_request_id, "extension_rejected", NOW, session_id=session_id)) == 1
        if fault is not None:
            raise fault
        return failed

    with pytest.raises(StepOvertaken):
        await db.transact(partial(work, fault=StepOvertaken("session")), new_id())
    assert await count(db, "refunds") == await count(db, "outbox") == 0
    assert await db.transact(partial(work, fault=None), new_id())
    await assert_refunded_once(db, await payments.load(payment_request_id), "extension_rejected")
    assert await count(db, "refunds", "session_id = %(id)s", id=session_id) == 1


@pytest.mark.parametrize("status", ["consumed", "failed"])
async def test_a_payment_that_is_settled_keeps_its_cause(
    db: Postgres, payments: Payments, customer: str, status: str
) -> None:
    payment_request_id = await add_payment(db, customer, status)
    before = await payments.load(payment_request_id)
    assert not await db.transact(lambda tx: tx.execute(*failure(payment_request_id, "session_ended", NOW)), new_id())
    assert await payments.load(payment_request_id) == before
    assert await count(db, "refunds") == 0


async def test_the_end_of_a_session_fails_its_unused_extension_payments_and_nothing_else(
    db: Postgres, payments: Payments, customer: str
) -> None:
    mitra = await add_mitra(db)
    own, other = [await add_session(db, customer, mitra) for _ in range(2)]
    pending, confirmed = [
        await add_payment(db, customer, status, session_id=own) for status in ("pending", "confirmed")
    ]
    untouched = {
        await add_payment(db, customer, "consumed", session_id=own),
        await add_payment(db, customer, "failed", session_id=own),
        await add_payment(db, customer, "confirmed", session_id=other),
        await add_payment(db, customer, "confirmed"),
        await add_payment(db, customer, "confirmed", is_extension=False, session_id=own),
    }
    before = {payment_request_id: await payments.load(payment_request_id) for payment_request_id in untouched}
    assert await db.transact(lambda tx: tx.execute(*failure_of_unused(own, NOW)), new_id()) == 2
    for payment_request_id in (pending, confirmed):
        payment = await payments.load(payment_request_id)
        assert (payment.status, payment.failure_cause) == (PaymentStatus.FAILED, "session_ended")
    assert {payment_request_id: await payments.load(payment_request_id) for payment_request_id in untouched} == before
    assert await count(db, "refunds") == 1
    await assert_refunded_once(db, await payments.load(confirmed), "session_ended")
