from typing import Any

import pytest

from halo.errors import ExtensionLimit, PaymentInUse, PaymentMismatch, Refusal, SessionNotActive
from halo.events import EndedBy
from halo.session import SessionStatus
from tests.net.desk_fakes import CUSTOMER, EXTENSION, MITRA, PAYMENT, SESSION, STRANGER, House, Said, extension, session

CHAT = f"/api/chat/{SESSION}"
ASK = {"duration_minutes": 5, "price": 5_000, "extension_payment_request_id": PAYMENT}


async def test_the_session_is_told_in_full_to_either_participant() -> None:
    house = House()
    house.clock.moment += 100_001
    for who in (CUSTOMER, MITRA):
        answer = await house.call("GET", f"{CHAT}/info", by=who)
        assert answer.json == {
            "session": {
                "session_id": SESSION,
                "status": "active",
                "end_reason": None,
                "customer_id": CUSTOMER,
                "mitra_id": MITRA,
                "topic_sensitivity": "regular",
                "duration_minutes": 10,
                "started_at": "2026-11-24T12:00:00.000Z",
                "expires_at": "2026-11-24T12:10:00.000Z",
                "remaining_seconds": 500,
                "deadline_at": "2026-11-24T12:10:00.000Z",
                "last_seq": 3,
            },
            "pending_extension": None,
            "last_seq": 3,
            "server_time": "2026-11-24T12:01:40.001Z",
        }


async def test_a_pending_extension_is_told_with_its_session() -> None:
    house = House()
    house.sessions.living[SESSION] = session(
        status=SessionStatus.EXTENDING, running_since=None, expires_at=None, extension=extension()
    )
    answer = await house.call("GET", f"{CHAT}/info")
    assert answer.json["pending_extension"] == {
        "extension_id": EXTENSION,
        "session_id": SESSION,
        "status": "pending",
        "duration_minutes": 5,
        "price": 5_000,
        "requested_at": "2026-11-24T12:00:00.000Z",
        "deadline_at": "2026-11-24T12:01:00.000Z",
        "payment_request_id": PAYMENT,
    }


@pytest.mark.parametrize("path", [f"{CHAT}/info", f"{CHAT}/messages", f"/api/chat/{PAYMENT}/info"])
async def test_somebody_elses_session_looks_as_if_there_were_none(path: str) -> None:
    answer = await House().call("GET", path, by=STRANGER)
    assert (answer.status, answer.code) == (404, "NOT_FOUND")


async def test_one_sees_ones_own_living_sessions_and_no_others() -> None:
    house = House()
    assert [one["session_id"] for one in (await house.call("GET", "/api/chat")).json["sessions"]] == [SESSION]
    assert (await house.call("GET", "/api/chat", by=STRANGER)).json["sessions"] == []


async def test_messages_come_in_order_after_a_seq_and_in_pages() -> None:
    house = House()
    answer = await house.call("GET", f"{CHAT}/messages?after_seq=1&limit=1")
    assert answer.json == {
        "messages": [
            {
                "type": "message",
                "session_id": SESSION,
                "seq": 2,
                "id": "c2",
                "sender": "customer",
                "body": "hello 2",
                "at": "2026-11-24T12:00:00.000Z",
            }
        ],
        "last_seq": 3,
    }
    assert (await house.call("GET", f"{CHAT}/messages?after_seq=99")).json == {"messages": [], "last_seq": 3}
    assert (await house.call("GET", f"{CHAT}/messages?after_seq=-1&limit=x")).fields == ["after_seq", "limit"]


@pytest.mark.parametrize("status", list(SessionStatus))
async def test_a_mitra_reads_nothing_once_the_rows_name_her_successor_whatever_the_actor_here_says(
    status: SessionStatus,
) -> None:
    """The rows may hold what was said to her successor (X1)."""
    house = House()
    house.sessions.living[SESSION] = session(status=status)
    house.messages.readers = {CUSTOMER, STRANGER}
    answer = await house.call("GET", f"{CHAT}/messages", by=MITRA)
    assert (answer.status, answer.code) == (404, "NOT_FOUND")
    assert (await house.call("GET", f"{CHAT}/messages", by=CUSTOMER)).status == 200
    assert (await house.call("GET", f"{CHAT}/messages", by=STRANGER)).status == 200


async def test_whichever_mitra_said_it_the_wire_names_the_party() -> None:
    house = House()
    house.messages.rows = [Said(1, "mitra", "1", "first"), Said(2, "mitra:2", "1", "second")]
    told = (await house.call("GET", f"{CHAT}/messages")).json["messages"]
    assert [(message["sender"], message["id"]) for message in told] == [("mitra", "1"), ("mitra", "1")]


async def test_an_extension_is_asked_for_with_exactly_what_was_sent() -> None:
    house = House()
    answer = await house.call("POST", f"{CHAT}/extensions", ASK)
    assert answer.status == 201
    assert set(answer.json) == {
        "extension_id", "session_id", "status", "duration_minutes", "price", "requested_at", "deadline_at",
        "payment_request_id",
    }  # fmt: skip
    asked = {"customer_id": CUSTOMER, "duration_minutes": 5, "price": 5_000, "payment_request_id": PAYMENT}
    asked |= {"extension_id": None}
    assert house.sessions.asked == [("request", SESSION, asked)]


@pytest.mark.parametrize("body", [{}, {"price": -1}, {"duration_minutes": 10**40, "price": None}])
async def test_what_is_missing_or_absurd_is_judged_after_the_session(body: Any) -> None:
    house = House()
    house.sessions.refusal = SessionNotActive()
    assert (await house.call("POST", f"{CHAT}/extensions", body)).code == "SESSION_NOT_ACTIVE"


async def test_a_payment_id_that_is_none_is_named() -> None:
    answer = await House().call("POST", f"{CHAT}/extensions", ASK | {"extension_payment_request_id": "mine"})
    assert (answer.status, answer.fields) == (422, ["extension_payment_request_id"])


@pytest.mark.parametrize("refusal", [SessionNotActive(), PaymentMismatch(), PaymentInUse(), ExtensionLimit()])
async def test_a_refusal_of_the_session_is_the_refusal_of_the_call(refusal: Refusal) -> None:
    house = House()
    house.sessions.refusal = refusal
    answer = await house.call("POST", f"{CHAT}/extensions", ASK)
    assert (answer.status, answer.code) == (refusal.status, refusal.code)


@pytest.mark.parametrize(("accepted", "status"), [(True, "accepted"), (False, "rejected")])
async def test_the_mitra_answers_an_extension(accepted: bool, status: str) -> None:
    house = House()
    answer = await house.call("POST", f"{CHAT}/extensions/{EXTENSION}/respond", {"accepted": accepted}, by=MITRA)
    assert (answer.status, answer.json["status"]) == (200, status)
    assert house.sessions.asked == [("respond", SESSION, EXTENSION, MITRA, accepted)]


async def test_an_answer_is_true_or_false_and_nothing_like_it() -> None:
    for body in ({}, {"accepted": "true"}, {"accepted": 1}, {"accepted": None}):
        answer = await House().call("POST", f"{CHAT}/extensions/{EXTENSION}/respond", body, by=MITRA)
        assert (answer.status, answer.fields) == (422, ["accepted"])


async def test_the_customer_takes_the_question_back() -> None:
    house = House()
    answer = await house.call("DELETE", f"{CHAT}/extensions/{EXTENSION}")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    assert house.sessions.asked == [("cancel", SESSION, EXTENSION, CUSTOMER)]


@pytest.mark.parametrize(("who", "by"), [(CUSTOMER, EndedBy.CUSTOMER), (MITRA, EndedBy.MITRA)])
async def test_a_participant_ends_the_session_in_their_own_name(who: str, by: EndedBy) -> None:
    house = House()
    answer = await house.call("POST", f"{CHAT}/end", by=who)
    assert (answer.status, answer.json["status"], answer.json["deadline_at"]) == (200, "ended", None)
    assert house.sessions.asked == [("end", SESSION, by, who)]
    assert (await house.call("POST", f"{CHAT}/end", by=who)).code == "SESSION_NOT_ACTIVE"
