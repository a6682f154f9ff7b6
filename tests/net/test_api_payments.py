import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from halo.payment import PaymentStatus
from tests.net.desk_fakes import MITRA, SESSION, STRANGER, WEBHOOK_SECRET, House, speak

WEBHOOK = "/api/payments/webhook"


async def pay(house: House, **asked: Any) -> Any:
    answer = await house.call("POST", "/api/payments", {"duration_minutes": 5, **asked})
    assert answer.status == 201
    return answer.json


def report(payment: Any, **changes: Any) -> dict[str, Any]:
    return {
        "type": "payment.confirmed",
        "payment_request_id": payment["id"],
        "provider_ref": "p-1",
        "amount": payment["amount"],
        "currency": payment["currency"],
    } | changes


async def test_a_payment_is_pending_and_priced_by_the_server() -> None:
    house = House()
    payment = await pay(house)
    assert payment == {
        "id": payment["id"],
        "status": "pending",
        "amount": 5_000,
        "currency": "IDR",
        "duration_minutes": 5,
        "is_extension": False,
        "is_first_session_discount": False,
        "session_id": None,
        "failure_cause": None,
        "created_at": "2026-11-24T12:00:00.000Z",
    }
    discounted = await pay(house, is_first_session_discount=True)
    assert discounted["amount"] == 2_500
    extension = await pay(house, is_extension=True, session_id=SESSION)
    assert (extension["is_extension"], extension["session_id"]) == (True, SESSION)


async def test_a_price_from_the_client_is_not_even_a_field() -> None:
    answer = await House().call("POST", "/api/payments", {"duration_minutes": 5, "amount": 1})
    assert (answer.status, answer.fields) == (422, ["amount"])


async def test_minutes_outside_the_bounds_are_refused_by_name() -> None:
    house = House()
    for minutes in (0, -1, 241, 10**30):
        answer = await house.call("POST", "/api/payments", {"duration_minutes": minutes})
        assert (answer.status, answer.fields) == (422, ["duration_minutes"])


async def test_a_payment_is_seen_by_its_customer_and_by_nobody_else() -> None:
    house = House()
    payment = await pay(house)
    path = f"/api/payments/{payment['id']}"
    assert (await house.call("GET", path)).json == payment
    assert (await house.call("GET", path, by=STRANGER)).code == "NOT_FOUND"
    assert (await house.call("GET", path, by=MITRA)).code == "FORBIDDEN"


# ---- the provider


async def test_the_provider_confirms_and_whoever_waits_is_told_also_at_a_repeat() -> None:
    house = House()
    payment = await pay(house)
    house.payments.waiting_session_id = SESSION
    answer = await house.deliver(report(payment))
    assert (answer.status, answer.raw) == (204, b"")
    assert house.payments.rows[payment["id"]].status is PaymentStatus.CONFIRMED
    assert (await house.deliver(report(payment))).status == 204
    assert house.sessions.settled == [SESSION, SESSION], "the first telling may have been lost with its node"


async def test_a_failed_payment_is_told_too_and_nobody_is_nudged_when_nobody_waits() -> None:
    house = House()
    payment = await pay(house)
    assert (await house.deliver(report(payment, type="payment.failed"))).status == 204
    assert house.payments.rows[payment["id"]].failure_cause == "payment_failed"
    assert house.sessions.settled == []
    assert house.pairings.settled == [payment["id"]], "a search with this payment must give up"


async def test_an_unknown_payment_is_not_found_and_an_unknown_type_is_named() -> None:
    house = House()
    payment = await pay(house)
    assert (await house.deliver(report(payment, payment_request_id=SESSION))).code == "NOT_FOUND"
    answer = await house.deliver(report(payment, type="payment.disputed"))
    assert (answer.status, answer.fields) == (422, ["type"])


async def test_fields_that_the_provider_adds_are_passed_over() -> None:
    house = House()
    assert (await house.deliver(report(await pay(house), fee=12, nested={"a": [1]}))).status == 204


async def test_a_signature_made_with_another_secret_is_refused() -> None:
    house = House()
    payment = await pay(house)
    answer = await house.deliver(report(payment), secret="whsec_" + "QUFB" * 8)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")
    assert house.payments.rows[payment["id"]].status is PaymentStatus.PENDING


def signed(text: str, *, age: timedelta = timedelta(0), webhook_id: str = "m") -> dict[str, str]:
    at = datetime.now(UTC) - age
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(WEBHOOK_SECRET).sign(webhook_id, at, text),
        "content-type": "application/json",
    }


async def test_the_signature_is_over_the_bytes_that_came_and_over_the_id_and_the_time() -> None:
    house = House()
    text = json.dumps(report(await pay(house)))
    good = signed(text)
    assert (await speak(house.api, "POST", WEBHOOK, text.replace(" ", "").encode(), good)).status == 401
    assert (await speak(house.api, "POST", WEBHOOK, text.encode(), good | {"webhook-id": "other"})).status == 401
    assert (await speak(house.api, "POST", WEBHOOK, text.encode(), good | {"webhook-timestamp": "1"})).status == 401
    assert (await speak(house.api, "POST", WEBHOOK, text.encode(), good)).status == 204


@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(minutes=-6)], ids=["old", "from the future"])
async def test_a_delivery_from_long_ago_or_from_the_future_is_refused(age: timedelta) -> None:
    house = House()
    text = json.dumps(report(await pay(house)))
    assert (await speak(house.api, "POST", WEBHOOK, text.encode(), signed(text, age=age))).status == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,not base64!"},
        {"webhook-signature": "v2,AAAA"},
        {"webhook-signature": "v1,ä"},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "1e400"},
        {"webhook-timestamp": "soon"},
        {"webhook-id": "x" * 300},
    ],
)
async def test_headers_that_the_library_cannot_take_apart_are_bad_signatures_and_no_faults(
    changes: dict[str, str],
) -> None:
    house = House()
    text = json.dumps(report(await pay(house)))
    answer = await speak(house.api, "POST", WEBHOOK, text.encode(), signed(text) | changes)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")


async def test_a_signed_body_that_is_not_utf8_is_a_bad_signature_and_no_fault() -> None:
    assert (await speak(House().api, "POST", WEBHOOK, b"\xff\xfe", signed("{}"))).status == 401


async def test_of_several_signatures_one_good_one_is_enough() -> None:
    house = House()
    text = json.dumps(report(await pay(house)))
    headers = signed(text)
    headers["webhook-signature"] = "v1,AAAA " + headers["webhook-signature"]
    assert (await speak(house.api, "POST", WEBHOOK, text.encode(), headers)).status == 204


# ---- the sandbox


async def test_without_the_sandbox_nobody_confirms_their_own_payment() -> None:
    house = House(sandbox=False)
    payment = await pay(house)
    answer = await house.call("POST", f"/api/sandbox/payments/{payment['id']}/confirm")
    assert (answer.status, answer.code) == (404, "NOT_FOUND")
    assert house.payments.rows[payment["id"]].status is PaymentStatus.PENDING


async def test_in_the_sandbox_a_customer_confirms_their_own_payment_and_can_do_so_again() -> None:
    house = House(sandbox=True)
    payment = await pay(house)
    house.payments.waiting_session_id = SESSION
    path = f"/api/sandbox/payments/{payment['id']}/confirm"
    answer = await house.call("POST", path)
    assert (answer.status, answer.json) == (200, payment | {"status": "confirmed"})
    assert house.sessions.settled == [SESSION]
    assert (await house.call("POST", path)).json["status"] == "confirmed"
    assert (await house.call("POST", path, by=STRANGER)).code == "NOT_FOUND"


@pytest.mark.parametrize("status", [PaymentStatus.CONSUMED, PaymentStatus.FAILED])
async def test_what_is_spent_or_failed_cannot_be_confirmed(status: PaymentStatus) -> None:
    house = House(sandbox=True)
    payment = await pay(house)
    row = house.payments.rows[payment["id"]]
    house.payments.rows[payment["id"]] = replace(
        row, status=status, failure_cause="x" if status is PaymentStatus.FAILED else None
    )
    answer = await house.call("POST", f"/api/sandbox/payments/{payment['id']}/confirm")
    assert (answer.status, answer.code) == (409, "INVALID_STATE")


async def test_a_secret_without_padding_is_taken_too() -> None:
    house = House(webhook_secret=WEBHOOK_SECRET.rstrip("="))
    answer = await house.deliver(report(await pay(house)), secret=WEBHOOK_SECRET)
    assert answer.status == 204
