from halo.pairing import PairingStatus, PairingView
from tests.net.desk_fakes import CUSTOMER, PAIRING, PAYMENT, SESSION, STRANGER, House


async def test_a_search_is_started_and_answered_at_once() -> None:
    house = House()
    answer = await house.call(
        "POST", "/api/pairings", {"payment_request_id": PAYMENT, "topic_sensitivity": "sensitive"}
    )
    assert (answer.status, answer.json) == (
        202,
        {"pairing_id": PAIRING, "status": "searching", "session_id": None, "cause": None},
    )
    assert house.pairings.started == [(CUSTOMER, PAYMENT, "sensitive", None)]


async def test_a_topic_is_regular_unless_it_is_said_to_be_sensitive() -> None:
    house = House()
    await house.call("POST", "/api/pairings", {"payment_request_id": PAYMENT})
    assert house.pairings.started[0][2] == "regular"
    answer = await house.call("POST", "/api/pairings", {"payment_request_id": PAYMENT, "topic_sensitivity": "secret"})
    assert (answer.status, answer.fields) == (422, ["topic_sensitivity"])


async def test_a_key_gives_the_search_its_id_so_that_a_repeat_finds_it() -> None:
    house = House()
    answer = await house.call("POST", "/api/pairings", {"payment_request_id": PAYMENT}, **{"Idempotency-Key": "k"})
    assert house.pairings.started[0][3] == answer.json["pairing_id"]


async def test_a_search_is_seen_and_cancelled_by_its_customer_only() -> None:
    house = House()
    house.pairings.view_now = PairingView(pairing_id=PAIRING, status=PairingStatus.MATCHED, session_id=SESSION)
    answer = await house.call("GET", f"/api/pairings/{PAIRING}")
    assert (answer.status, answer.json["status"], answer.json["session_id"]) == (200, "matched", SESSION)
    assert (await house.call("GET", f"/api/pairings/{PAIRING}", by=STRANGER)).code == "NOT_FOUND"
    cancelled = await house.call("DELETE", f"/api/pairings/{PAIRING}")
    assert (cancelled.status, cancelled.json["status"], cancelled.json["cause"]) == (
        200,
        "cancelled",
        "customer_cancelled",
    )
