import logging
from typing import Any

import pytest

from halo.errors import MitraDeactivated, Unauthenticated
from halo.session import Party
from halo.store.auth_sessions import RefreshTokenReused, RevokedBecause
from tests.net.desk_fakes import CUSTOMER, FAMILY, SERVER_KEY, House, Told

SIGN_IN = "/api/auth/sessions"


async def sign_in(house: House, body: Any, key: str | None = SERVER_KEY, **headers: str) -> Told:
    if key is not None:
        headers["X-Halo-Key"] = key
    return await house.call("POST", SIGN_IN, body, by=None, **headers)


async def test_the_backend_signs_a_user_in_and_gets_both_tokens() -> None:
    house = House()
    answer = await sign_in(
        house,
        {
            "user_type": "mitra",
            "user_id": CUSTOMER,
            "display_name": "Sari",
            "push_token": "p",
            "locale": "en",
            "max_sessions": 2,
        },
    )
    assert answer.status == 201
    assert set(answer.json) == {"user_id", "access_token", "refresh_token", "expires_in"}
    assert (answer.json["user_id"], answer.json["expires_in"]) == (CUSTOMER, 600)
    identity = house.tokens.verify(answer.json["access_token"])
    assert (identity.user_id, identity.user_type, identity.auth_session_id) == (CUSTOMER, Party.MITRA, FAMILY)
    assert house.auth_sessions.opened == [
        {
            "user_type": Party.MITRA,
            "user_id": CUSTOMER,
            "display_name": "Sari",
            "push_token": "p",
            "locale": "en",
            "max_sessions": 2,
            "auth_session_id": None,
        }
    ]
    assert house.room_changed == [CUSTOMER]


@pytest.mark.parametrize("key", [None, "", "wrong", SERVER_KEY + "x", "schlüssel"])
async def test_without_the_right_key_nobody_is_signed_in(key: str | None) -> None:
    house = House()
    answer = await sign_in(house, {"user_type": "customer"}, key)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")
    assert not house.auth_sessions.opened


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, ["user_type"]),
        ({"user_type": "admin"}, ["user_type"]),
        ({"user_type": "customer", "user_id": "42", "display_name": "x" * 201}, ["user_id", "display_name"]),
        ({"user_type": "mitra", "push_token": "x" * 4097}, ["push_token"]),
        ({"user_type": "mitra", "push_token": " "}, ["push_token"]),
        ({"user_type": "mitra", "locale": "fr"}, ["locale"]),
        ({"user_type": "mitra", "display_name": "a\x00b"}, ["display_name"]),
        ({"user_type": "mitra", "role": "x"}, ["role"]),
    ],
)
async def test_each_bad_field_of_a_sign_in_is_named(body: Any, named: list[str]) -> None:
    answer = await sign_in(House(), body)
    assert (answer.status, answer.code, answer.fields) == (422, "VALIDATION_ERROR", named)


async def test_a_repeated_sign_in_is_the_same_user_and_family_with_new_tokens_and_none_is_kept() -> None:
    house = House()
    first = await sign_in(house, {"user_type": "customer"}, **{"Idempotency-Key": "k"})
    again = await sign_in(house, {"user_type": "customer"}, **{"Idempotency-Key": "k"})
    assert first.json["user_id"] == again.json["user_id"]
    assert len({opened["auth_session_id"] for opened in house.auth_sessions.opened}) == 1
    assert first.json["refresh_token"] != again.json["refresh_token"]
    [(_, kept)] = house.idempotency.kept.values()
    assert kept is not None
    assert kept.answer == b""


async def test_a_deactivated_mitra_is_not_signed_in() -> None:
    house = House()
    house.auth_sessions.refusal = MitraDeactivated()
    answer = await sign_in(house, {"user_type": "mitra", "user_id": CUSTOMER})
    assert (answer.status, answer.code) == (403, "MITRA_DEACTIVATED")


async def test_a_refresh_token_is_traded_for_the_next_pair() -> None:
    house = House()
    answer = await house.call("POST", "/api/auth/refresh", {"refresh_token": "old"}, by=None)
    assert (answer.status, answer.json["refresh_token"], answer.json["user_id"]) == (200, "old+", CUSTOMER)
    assert house.tokens.verify(answer.json["access_token"]).user_id == CUSTOMER


async def test_a_refresh_token_seen_twice_revokes_its_family_and_closes_its_sockets_here_at_once() -> None:
    house = House()
    house.auth_sessions.refusal = RefreshTokenReused(FAMILY)
    answer = await house.call("POST", "/api/auth/refresh", {"refresh_token": "stolen"}, by=None)
    assert (answer.status, answer.code) == (401, "TOKEN_REUSED")
    assert house.connections.closed == [(FAMILY, 4401)]
    assert (await house.call("GET", "/api/chat")).code == "UNAUTHENTICATED"


async def test_refresh_tokens_that_are_none_count_as_failed_authentications() -> None:
    house = House()
    house.auth_sessions.refusal = Unauthenticated()
    statuses = [
        (await house.call("POST", "/api/auth/refresh", {"refresh_token": f"guess {n}"}, by=None)).status
        for n in range(11)
    ]
    assert statuses == [401] * 10 + [429]


async def test_signing_out_ends_the_family_and_its_sockets() -> None:
    house = House()
    answer = await house.call("DELETE", "/api/auth/sessions/current")
    assert (answer.status, answer.raw) == (204, b"")
    assert house.auth_sessions.revoked == [(FAMILY, RevokedBecause.SIGNED_OUT)]
    assert house.connections.closed == [(FAMILY, 4401)]
    assert (await house.call("GET", "/api/chat")).status == 401


async def test_no_token_name_or_key_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    house = House()
    answer = await sign_in(house, {"user_type": "customer", "display_name": "Sari Dewi", "push_token": "push-1"})
    await sign_in(house, {"user_type": "x", "display_name": "Sari Dewi"})
    await sign_in(house, {"user_type": "customer"}, "a wrong key")
    for secret in ("Sari", "push-1", SERVER_KEY, "a wrong key", answer.json["access_token"]):
        assert secret not in caplog.text
