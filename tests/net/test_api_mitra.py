import pytest

from halo.availability import Verdict
from halo.errors import MitraDeactivated, MitraOffline, Refusal, StoreUnavailable
from tests.net.desk_fakes import MITRA, NOON, OFFER, PAIRING, SESSION, STRANGER, House

STATUS = "/api/mitra/status"


async def test_going_online_is_written_first_and_mirrored_after() -> None:
    house = House()
    answer = await house.call("POST", f"{STATUS}/online", by=MITRA)
    assert answer.status == 200
    assert answer.json == {
        "is_online": True,
        "is_reachable": True,
        "capacity": 1,
        "max_sessions": 3,
        "last_heartbeat_at": "2026-11-24T12:00:00.000Z",
    }
    assert house.mirror.told == [("online", MITRA)]


async def test_going_offline_makes_unreachable_whatever_the_mirror_still_says() -> None:
    house = House()
    house.mitras.is_online = True
    answer = await house.call("POST", f"{STATUS}/offline", by=MITRA)
    assert (answer.json["is_online"], answer.json["is_reachable"]) == (False, False)
    assert house.mirror.told == [("offline", MITRA)]


async def test_the_status_tells_the_newest_heartbeat_from_wherever_it_is_known() -> None:
    house = House()
    house.mitras.is_online, house.mitras.heartbeat_at = True, NOON - 60_000
    answer = await house.call("GET", STATUS, by=MITRA)
    assert answer.json["last_heartbeat_at"] == "2026-11-24T11:59:55.000Z"
    house.mirror.verdict = Verdict(online=True, heartbeat_age_ms=None, heartbeat_fresh=False, source="mirror")
    answer = await house.call("GET", STATUS, by=MITRA)
    assert (answer.json["last_heartbeat_at"], answer.json["is_reachable"]) == ("2026-11-24T11:59:00.000Z", False)


async def test_a_heartbeat_is_for_the_mirror_alone_and_answers_nothing() -> None:
    house = House()
    answer = await house.call("POST", f"{STATUS}/heartbeat", by=MITRA)
    assert (answer.status, answer.raw) == (204, b"")
    assert house.mirror.told == [("heartbeat", MITRA)]


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (MitraDeactivated(), 403, "MITRA_DEACTIVATED"),
        (MitraOffline(), 409, "MITRA_OFFLINE"),
        (StoreUnavailable(), 503, "STORE_UNAVAILABLE"),
    ],
)
async def test_a_heartbeat_that_is_not_taken_says_why(refusal: Refusal, status: int, code: str) -> None:
    house = House()
    house.mirror.refusal = refusal
    answer = await house.call("POST", f"{STATUS}/heartbeat", by=MITRA)
    assert (answer.status, answer.code) == (status, code)


async def test_a_customer_sees_how_many_mitras_are_available() -> None:
    answer = await House().call("GET", "/api/customer/beacon")
    assert answer.json == {"available_mitras": 7, "as_of": "2026-11-24T12:00:00.000Z"}


async def test_a_mitra_sees_the_offers_that_stand_open() -> None:
    answer = await House().call("GET", "/api/offers", by=MITRA)
    assert answer.json == {
        "offers": [
            {
                "offer_id": OFFER,
                "pairing_id": PAIRING,
                "topic_sensitivity": "sensitive",
                "duration_minutes": 10,
                "price": 10_000,
                "currency": "IDR",
                "deadline_at": "2026-11-24T12:00:00.000Z",
            }
        ]
    }


async def test_an_offer_is_accepted_or_declined() -> None:
    house = House()
    accepted = await house.call("POST", f"/api/offers/{OFFER}/accept", by=MITRA)
    assert (accepted.status, accepted.json) == (200, {"session_id": SESSION, "status": "active"})
    declined = await house.call("POST", f"/api/offers/{OFFER}/decline", by=MITRA)
    assert (declined.status, declined.json) == (200, {"session_id": None, "status": "declined"})
    assert (await house.call("POST", f"/api/offers/{STRANGER}/accept", by=MITRA)).code == "NOT_FOUND"


async def test_an_accept_under_a_key_is_done_once() -> None:
    house = House()
    answers = [
        await house.call("POST", f"/api/offers/{OFFER}/accept", by=MITRA, **{"Idempotency-Key": "yes"})
        for _ in range(2)
    ]
    assert [answer.json for answer in answers] == [{"session_id": SESSION, "status": "active"}] * 2
    assert house.pairings.accepted == 1
