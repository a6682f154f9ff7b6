from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from halo.errors import StoreUnavailable
from halo.net.call import WRITE_SECONDS, Call, new_app, serve_routes
from halo.routes import API_ROUTES, Who
from tests.net.desk_fakes import CUSTOMER, MITRA, PAYMENT, SESSION, STRANGER, House

PAY = {"duration_minutes": 5}


def path_of(path: str) -> str:
    for name in ("session_id", "extension_id", "payment_request_id", "pairing_id", "offer_id"):
        path = path.replace("{" + name + "}", SESSION)
    return path


GUARDED = [route for route in API_ROUTES if route.who in {Who.CUSTOMER, Who.MITRA, Who.USER}]


@pytest.mark.parametrize("route", GUARDED, ids=lambda route: route.name)
async def test_no_call_that_needs_a_user_is_answered_without_a_token(route: Any) -> None:
    house = House(sandbox=True)
    answer = await house.call(route.method, path_of(route.path), by=None)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "route", [route for route in GUARDED if route.who is not Who.USER], ids=lambda route: route.name
)
async def test_a_call_for_the_other_party_is_forbidden(route: Any) -> None:
    other = MITRA if route.who is Who.CUSTOMER else CUSTOMER
    answer = await House(sandbox=True).call(route.method, path_of(route.path), {}, by=other)
    assert (answer.status, answer.code) == (403, "FORBIDDEN")


async def test_a_path_is_exact_no_slash_more_and_none_doubled() -> None:
    house = House()
    for path in ("/api/chat/", "/api//chat", "/API/chat"):
        assert (await house.call("GET", path)).status == 404


async def test_a_bad_id_in_a_path_names_nothing() -> None:
    answer = await House().call("GET", "/api/chat/not-a-uuid/info")
    assert (answer.status, answer.code) == (404, "NOT_FOUND")


async def test_ids_in_a_path_may_be_in_upper_case() -> None:
    assert (await House().call("GET", f"/api/chat/{SESSION.upper()}/info")).json["session"]["session_id"] == SESSION


async def test_malformed_wrong_typed_and_oversized_bodies_get_their_codes() -> None:
    house = House()
    assert (await house.call("POST", "/api/payments", b"{")).code == "MALFORMED"
    assert (await house.call("POST", "/api/payments", {"duration_minutes": "5", "x": 1})).fields == [
        "duration_minutes",
        "x",
    ]
    plain = {"content-type": "text/plain"}
    assert (await house.call("POST", "/api/payments", b"{}", **plain)).code == "UNSUPPORTED_MEDIA_TYPE"
    assert (await house.call("POST", "/api/payments", b" " * 65_537)).code == "BODY_TOO_LARGE"


async def test_a_node_that_drains_takes_no_call_but_still_describes_itself() -> None:
    house = House()
    house.draining = True
    answer = await house.call("GET", "/api/chat")
    assert (answer.status, answer.code, answer.json["retryable"]) == (503, "DRAINING", True)
    assert (await house.call("GET", "/openapi.json", by=None)).status == 200


# ---- Idempotency-Key


async def test_the_same_key_and_body_get_the_same_answer_and_the_thing_is_made_once() -> None:
    house = House()
    first = await house.call("POST", "/api/payments", PAY, **{"Idempotency-Key": "k"})
    again = await house.call("POST", "/api/payments", PAY, **{"Idempotency-Key": "k"})
    assert (first.status, first.raw, first.headers) == (again.status, again.raw, again.headers)
    assert house.payments.created == 1
    assert (await house.call("POST", "/api/payments", PAY)).json["id"] != first.json["id"]


async def test_the_same_key_with_another_body_is_refused() -> None:
    house = House()
    await house.call("POST", "/api/payments", PAY, **{"Idempotency-Key": "k"})
    answer = await house.call("POST", "/api/payments", {"duration_minutes": 6}, **{"Idempotency-Key": "k"})
    assert (answer.status, answer.code) == (422, "IDEMPOTENCY_MISMATCH")


async def test_a_key_belongs_to_one_user_and_one_path() -> None:
    house = House()
    mine = await house.call("POST", "/api/payments", PAY, **{"Idempotency-Key": "k"})
    theirs = await house.call("POST", "/api/payments", PAY, by=STRANGER, **{"Idempotency-Key": "k"})
    assert mine.json["id"] != theirs.json["id"]
    pairing = await house.call("POST", "/api/pairings", {"payment_request_id": PAYMENT}, **{"Idempotency-Key": "k"})
    assert pairing.status == 202


async def test_a_key_used_on_one_session_says_nothing_about_another() -> None:
    house = House()
    for session_id in (SESSION, PAYMENT):
        await house.call("POST", f"/api/chat/{session_id}/extensions", {}, **{"Idempotency-Key": "k"})
    assert [asked[1] for asked in house.sessions.asked] == [SESSION, PAYMENT]


async def test_a_refused_call_frees_its_key() -> None:
    house = House()
    ask = {"duration_minutes": 5, "price": 5_000, "extension_payment_request_id": PAYMENT}
    house.sessions.refusal = StoreUnavailable()
    path = f"/api/chat/{SESSION}/extensions"
    assert (await house.call("POST", path, ask, **{"Idempotency-Key": "k"})).status == 503
    house.sessions.refusal = None
    assert (await house.call("POST", path, ask, **{"Idempotency-Key": "k"})).status == 201
    assert len(house.sessions.asked) == 2


async def test_what_was_made_is_answered_though_its_key_could_not_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()

    async def fail(*_: object) -> bool:
        raise StoreUnavailable

    monkeypatch.setattr(house.idempotency, "finish", fail)
    assert (await house.call("POST", "/api/payments", PAY, **{"Idempotency-Key": "k"})).status == 201


# ---- whoever hangs up


async def take_and_hang_up(act: Callable[[], Awaitable[object]], started: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(act)
        await started.wait()
        nursery.cancel_scope.cancel()


async def test_a_change_runs_to_its_end_though_the_client_hung_up_in_the_middle(autojump_clock: object) -> None:
    house, started, done = House(), trio.Event(), []

    async def slowly(session_id: str) -> None:
        started.set()
        await trio.sleep(1)
        done.append(session_id)

    house.sessions.payment_settled = slowly  # type: ignore[method-assign]  # the fake is made slow
    house.payments.waiting_session_id = SESSION
    payment = await house.payments.create(
        CUSTOMER,
        payment_request_id=PAYMENT,
        duration_minutes=5,
        is_extension=False,
        is_first_session_discount=False,
        session_id=None,
        config=house.live_config.current,
    )
    report = {"type": "payment.confirmed", "payment_request_id": PAYMENT, "provider_ref": "r", "amount": payment.amount}
    await take_and_hang_up(lambda: house.deliver(report | {"currency": "IDR"}), started)
    assert done == [SESSION]


async def test_a_change_that_hangs_is_given_up_after_some_seconds_and_said_to_be_retryable(
    autojump_clock: object,
) -> None:
    house = House()

    async def hang(*_: object, **__: object) -> Any:
        await trio.sleep_forever()

    house.sessions.end = hang  # type: ignore[method-assign]  # the fake hangs
    began = trio.current_time()
    answer = await house.call("POST", f"/api/chat/{SESSION}/end")
    assert trio.current_time() - began == pytest.approx(WRITE_SECONDS)
    assert (answer.status, answer.code, answer.json["retryable"]) == (503, "STORE_UNAVAILABLE", True)


def test_a_route_without_handler_and_a_handler_without_route_are_found_at_the_start() -> None:
    async def nothing(call: Call) -> None: ...

    with pytest.raises(ValueError, match="beacon"):
        serve_routes(new_app("t"), API_ROUTES, {}, None)  # type: ignore[arg-type]  # it is never reached
    with pytest.raises(ValueError, match="unknown"):
        serve_routes(new_app("t"), (), {"unknown": nothing}, None)  # type: ignore[arg-type]
