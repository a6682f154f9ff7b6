"""Who may call and how often; that each route asks for its own kind of caller stands in `test_call.py`."""

import pytest

from halo.errors import MitraDeactivated
from halo.session import Party
from tests.net.desk_fakes import CUSTOMER, MITRA, STRANGER, House

PAY = {"duration_minutes": 5}


async def test_a_user_may_make_a_hundred_calls_at_once_and_twenty_a_second() -> None:
    house = House()
    assert [(await house.call("GET", "/api/chat")).status for _ in range(100)] == [200] * 100
    refused = await house.call("GET", "/api/chat")
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "RATE_LIMITED", "1")
    assert refused.json["retry_after_ms"] == 50
    assert (await house.call("GET", "/api/chat", by=STRANGER)).status == 200
    house.clock.moment += 1_000
    assert [(await house.call("GET", "/api/chat")).status for _ in range(21)] == [200] * 20 + [429]


async def test_a_user_may_create_thirty_things_at_once_and_thirty_a_minute() -> None:
    house = House()
    assert [(await house.call("POST", "/api/payments", PAY)).status for _ in range(31)] == [201] * 30 + [429]
    assert (await house.call("GET", "/api/chat")).status == 200
    house.clock.moment += 2_000
    assert [(await house.call("POST", "/api/payments", PAY)).status for _ in range(2)] == [201, 429]


async def test_zero_lifts_the_limits() -> None:
    house = House(requests_per_s=0, creates_per_minute=0)
    assert {(await house.call("POST", "/api/payments", PAY)).status for _ in range(150)} == {201}


async def test_ten_failed_authentications_a_minute_then_the_address_must_wait() -> None:
    house = House()
    wrong = {"Authorization": "Bearer nonsense"}
    statuses = [(await house.call("GET", "/api/chat", by=None, **wrong)).status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert (await house.call("GET", "/api/chat")).status == 200, "a good token still comes in from the same address"
    house.clock.moment += 6_000
    assert (await house.call("GET", "/api/chat", by=None, **wrong)).status == 401


async def test_a_revoked_family_is_refused_at_once_and_a_deactivated_one_is_told_so() -> None:
    house = House()
    token = {"Authorization": f"Bearer {house.token()}"}
    house.tokens.revocations.add(house.tokens.verify(house.token()).auth_session_id)
    assert (await house.call("GET", "/api/chat", by=None, **token)).code == "UNAUTHENTICATED"
    other = House()
    other.tokens.revocations.add(other.tokens.verify(other.token(MITRA)).auth_session_id, MitraDeactivated)
    answer = await other.call("GET", "/api/mitra/status", by=MITRA)
    assert (answer.status, answer.code) == (403, "MITRA_DEACTIVATED")


async def test_a_party_is_judged_by_its_token_and_not_by_its_id() -> None:
    house = House()
    token = {"Authorization": f"Bearer {house.token(CUSTOMER, Party.MITRA)}"}
    assert (await house.call("POST", "/api/payments", PAY, by=None, **token)).code == "FORBIDDEN"


@pytest.mark.parametrize("shown", ["Basic abc", "Bearer", "Bearer ", "Bearer  ", "token", "", "Bearer a b", "bearer ä"])
async def test_what_is_no_bearer_token_is_no_token(shown: str) -> None:
    answer = await House().call("GET", "/api/chat", by=None, Authorization=shown)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")


async def test_the_scheme_may_be_written_in_any_case() -> None:
    house = House()
    answer = await house.call("GET", "/api/chat", by=None, Authorization=f"bearer {house.token()}")
    assert answer.status == 200


async def test_a_token_is_not_taken_from_the_query() -> None:
    house = House()
    assert (await house.call("GET", f"/api/chat?access_token={house.token()}", by=None)).status == 401


async def test_an_empty_secret_opens_nothing() -> None:
    house = House(server_key="", admin_key="")
    assert (await house.call("POST", "/api/auth/sessions", {"user_type": "customer"}, by=None)).status == 401
    assert (await house.operate("GET", "/api/overview", key="")).status == 401
