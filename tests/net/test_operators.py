import logging
from dataclasses import replace
from typing import Any

import pytest
import trio
from prometheus_client import Counter

from halo.clock import rfc3339
from halo.errors import MitraDeactivated, StoreUnavailable
from halo.events import EndedBy
from halo.net.operators import create_admin
from halo.parsing import Address
from halo.routes import OPERATOR_ROUTES, Who
from halo.session import SessionStatus
from halo.store.mitras import Deactivation
from halo.sweep import SweepReport
from halo.watch import Alarm
from tests.net.desk_fakes import ADMIN_KEY, FAMILY, MITRA, PAYMENT, SESSION, STRANGER, House, session, speak

KEYED = [route for route in OPERATOR_ROUTES if route.who is Who.OPERATOR]


@pytest.mark.parametrize("route", KEYED, ids=lambda route: route.name)
async def test_nothing_of_the_operators_is_answered_without_the_right_key(route: Any) -> None:
    house = House()
    path = route.path.replace("{session_id}", SESSION).replace("{mitra_id}", MITRA)
    for key in (None, "", "wrong", ADMIN_KEY + "x", "schlüssel"):
        answer = await house.operate(route.method, path, {}, key)
        assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")


async def test_without_a_configured_key_no_key_opens_the_operators_api() -> None:
    house = House(admin_key=None)
    for key in (None, "", "None", ADMIN_KEY):
        assert (await house.operate("GET", "/api/overview", key=key)).status == 401


async def test_wrong_keys_are_told_to_wait_and_never_lock_out_the_right_one() -> None:
    house = House()
    statuses = [(await house.operate("GET", "/api/overview", key=f"guess {n}")).status for n in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    refused = await house.operate("GET", "/api/overview", key="guess")
    assert (refused.status, refused.code) == (429, "RATE_LIMITED")
    assert int(refused.headers["retry-after"]) <= 6
    assert [(await house.operate("GET", "/api/overview")).status for _ in range(20)] == [200] * 20
    house.clock.moment += 6_000
    assert (await house.operate("GET", "/api/overview", key="guess")).status == 401


FROM_PAGES = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://localhost:3000"},
]


@pytest.mark.parametrize("headers", FROM_PAGES, ids=str)
async def test_a_strange_web_page_is_refused_before_its_key_is_looked_at_and_costs_no_token(
    headers: dict[str, str],
) -> None:
    house = House()
    for path in ("/api/overview", "/metrics", "/healthz"):
        for key in ("wrong", ADMIN_KEY):
            answers = [
                await speak(house.admin, "GET", path, None, {"Authorization": f"Bearer {key}", **headers})
                for _ in range(11)
            ]
            assert {(answer.status, answer.code) for answer in answers} == {(403, "FORBIDDEN")}
    assert (await house.operate("GET", "/api/overview", key="wrong")).status == 401


async def test_the_operators_own_page_may_ask() -> None:
    house = House()
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "Authorization": f"Bearer {ADMIN_KEY}"}
    assert (await speak(house.admin, "GET", "/api/overview", None, own)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8802", "127.0.0.1.evil.example", "localhost.evil", "[::2]:1", "10.0.0.1"]
)
async def test_a_name_that_was_bound_to_this_machine_by_others_reaches_nothing(host: str) -> None:
    house = House()
    for path in ("/api/overview", "/metrics", "/healthz", "/nowhere"):
        answer = await speak(house.admin, "GET", path, None, {"Host": host, "Authorization": f"Bearer {ADMIN_KEY}"})
        assert (answer.status, answer.code) == (421, "MISDIRECTED")


@pytest.mark.parametrize(
    "host", ["localhost:8802", "LOCALHOST", "127.0.0.1:8802", "127.0.0.1", "[::1]:8802", "[::1]", "127.0.0.9:1"]
)
async def test_the_listener_answers_to_the_names_of_this_machine_and_to_its_own(host: str) -> None:
    house = House(admin_bind=Address("127.0.0.9", 8802))
    answer = await speak(
        house.admin, "GET", "/api/overview", None, {"Host": host, "Authorization": f"Bearer {ADMIN_KEY}"}
    )
    assert answer.status == 200


async def test_the_overview_counts_those_online_and_those_available_as_the_mirror_does() -> None:
    overview = (await House().operate("GET", "/api/overview")).json
    assert (overview["mitras_online"], overview["mitras_available"]) == (9, 7)


async def test_the_overview_says_whether_valkey_is_away() -> None:
    house = House()
    assert (await house.operate("GET", "/api/overview")).json["degraded"] is False
    house.mirror.trusted = False
    assert (await house.operate("GET", "/api/overview")).json["degraded"] is True


async def test_the_overview_tells_of_each_sweep_when_it_ran_and_what_came_of_it() -> None:
    house = House()
    house.sweeps = [
        SweepReport(name="auto_offline", interval_seconds=30.0),
        SweepReport(
            name="reseed",
            interval_seconds=300.0,
            runs=3,
            failures=1,
            last_run_at=house.clock.moment,
            duration_ms=1_200,
            rows=100,
            error="MirrorUnavailable: Valkey is away",
            found={"online": 2},
        ),
    ]
    never, reseed = (await house.operate("GET", "/api/overview")).json["sweeps"]
    assert (never["name"], never["last_run_at"], never["error"]) == ("auto_offline", None, None)
    assert reseed == {
        "name": "reseed",
        "every_seconds": 300.0,
        "runs": 3,
        "failures": 1,
        "last_run_at": rfc3339(house.clock.moment),
        "duration_ms": 1_200,
        "rows": 100,
        "error": "MirrorUnavailable: Valkey is away",
        "waits_for": None,
        "found": {"online": 2},
    }


# ---- configuration


async def test_a_change_is_in_force_on_this_node_when_it_is_answered() -> None:
    house = House()
    answer = await house.operate("PATCH", "/api/config", {"price_per_minute": 2_000, "extension_refusal": "close"})
    assert (answer.status, answer.json["price_per_minute"], answer.json["version"]) == (200, 2_000, 1)
    assert (await house.operate("GET", "/api/config")).json == answer.json
    assert (await house.call("POST", "/api/payments", {"duration_minutes": 5})).json["amount"] == 10_000
    assert house.live_config.changed_by


async def test_all_keys_change_or_none_and_each_bad_one_is_named() -> None:
    house = House()
    changes = {"price_per_minute": 1, "currency": "rupiah", "colour": "red", "version": 9, "max_minutes": True}
    answer = await house.operate("PATCH", "/api/config", changes)
    assert (answer.status, answer.code) == (422, "VALIDATION_ERROR")
    assert sorted(answer.fields) == ["colour", "currency", "max_minutes", "version"]
    assert (await house.operate("GET", "/api/config")).json["price_per_minute"] == 1_000


@pytest.mark.parametrize(("body", "status"), [(b"[]", 422), (b"{", 400), (b'{"currency":NaN}', 400)])
async def test_a_change_that_is_no_json_object_is_refused(body: bytes, status: int) -> None:
    assert (await House().operate("PATCH", "/api/config", body)).status == status


# ---- mitras


async def test_mitras_are_listed_in_pages_by_status() -> None:
    house = House()
    answer = await house.operate("GET", "/api/mitras?limit=1&status=online")
    assert [mitra["mitra_id"] for mitra in answer.json["mitras"]] == [MITRA]
    following = await house.operate("GET", f"/api/mitras?cursor={answer.json['next_cursor']}")
    assert ([mitra["mitra_id"] for mitra in following.json["mitras"]], following.json["next_cursor"]) == (
        [STRANGER],
        None,
    )
    assert (await house.operate("GET", "/api/mitras?status=asleep")).fields == ["status"]


def with_deactivation(*session_ids: str) -> House:
    house = House()
    house.mitras.deactivation = Deactivation(
        mitra_id=MITRA, auth_session_ids=[FAMILY], offer_ids=[], pairing_ids=[], session_ids=list(session_ids)
    )
    return house


async def test_a_deactivation_shuts_out_at_once_everywhere_on_this_node() -> None:
    house = with_deactivation(SESSION)
    answer = await house.operate("POST", f"/api/mitras/{MITRA}/deactivate")
    assert answer.status == 200
    assert answer.json == {
        "mitra_id": MITRA,
        "is_active": False,
        "ended_sessions": [SESSION],
        "revoked_auth_sessions": 1,
    }
    assert house.mirror.told == [("deactivated", MITRA)]
    assert house.connections.closed == [(MITRA, 4403)]
    assert house.sessions.asked == [("end", SESSION, EndedBy.DEACTIVATION, MITRA)]
    assert house.pairings.rescinded == [MITRA]
    with pytest.raises(MitraDeactivated):
        house.tokens.verify(house.token(MITRA))


async def test_one_session_that_cannot_be_ended_does_not_save_the_others() -> None:
    house = with_deactivation(PAYMENT, SESSION)
    house.sessions.living[SESSION] = session(status=SessionStatus.ENDED, running_since=None, expires_at=None)
    house.sessions.refusal = house.pairings.refusal = StoreUnavailable()
    answer = await house.operate("POST", f"/api/mitras/{MITRA}/deactivate")
    assert (answer.status, answer.json["ended_sessions"]) == (200, [])
    assert {asked[1] for asked in house.sessions.asked} == {PAYMENT, SESSION}


async def test_a_valkey_that_hangs_holds_up_neither_the_sockets_nor_the_sessions(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = with_deactivation(SESSION)

    async def hang(mitra_id: str) -> None:
        await trio.sleep(1)
        assert house.connections.closed
        assert house.sessions.asked

    monkeypatch.setattr(house.mirror, "deactivated", hang)
    assert (await house.operate("POST", f"/api/mitras/{MITRA}/deactivate")).status == 200


async def test_an_unknown_mitra_is_not_found_and_an_active_one_may_come_back() -> None:
    house = House()
    assert (await house.operate("POST", f"/api/mitras/{MITRA}/deactivate")).code == "NOT_FOUND"
    answer = await house.operate("POST", f"/api/mitras/{MITRA}/activate")
    assert (answer.status, answer.json["is_active"]) == (200, True)
    assert house.mirror.told == [("activated", MITRA)]


# ---- sessions


async def test_an_operator_ends_a_session_and_that_is_written_down_before_it_is_tried() -> None:
    house = House()
    answer = await house.operate("POST", f"/api/sessions/{SESSION}/end")
    assert (answer.status, answer.json["status"]) == (200, "ended")
    assert [entry[1:] for entry in house.operators.recorded] == [("end_session", SESSION, {"status": "active"})]
    assert house.sessions.asked == [("end", SESSION, EndedBy.ADMIN, None)]
    assert (await house.operate("POST", f"/api/sessions/{PAYMENT}/end")).code == "NOT_FOUND"


async def test_an_operator_transfers_a_session_and_that_is_written_down_before_it_is_tried() -> None:
    house = House()
    answer = await house.operate("POST", f"/api/sessions/{SESSION}/transfer")
    assert (answer.status, answer.json["status"]) == (200, "rerouting")
    details = {"status": "active", "mitra_id": MITRA}
    assert [entry[1:] for entry in house.operators.recorded] == [("transfer_session", SESSION, details)]
    assert house.sessions.asked == [("transfer", SESSION)]
    again = await house.operate("POST", f"/api/sessions/{SESSION}/transfer")
    assert (again.status, again.code) == (409, "SESSION_NOT_ACTIVE")
    assert (await house.operate("POST", f"/api/sessions/{PAYMENT}/transfer")).code == "NOT_FOUND"


async def test_a_transfer_that_would_find_nobody_is_refused_and_the_session_goes_on() -> None:
    house = House()
    house.availability.others = (MITRA, "a former one")
    house.sessions.living[SESSION] = session(former_mitra_ids=("a former one",))
    answer = await house.operate("POST", f"/api/sessions/{SESSION}/transfer")
    assert (answer.status, answer.code) == (409, "INVALID_STATE")
    assert "No other mitra" in answer.json["detail"]
    assert (house.sessions.asked, house.operators.outcomes) == ([], ["INVALID_STATE"])
    house.availability.others = (MITRA, "another")
    assert (await house.operate("POST", f"/api/sessions/{SESSION}/transfer")).status == 200
    house.availability.others = ()  # what is not active is refused for that, whoever is there
    assert (await house.operate("POST", f"/api/sessions/{SESSION}/transfer")).code == "SESSION_NOT_ACTIVE"


async def test_filters_limits_and_cursors_reach_the_rows() -> None:
    house = House()
    for path in (
        f"/api/sessions?status=living&limit=7&cursor={SESSION}",
        "/api/refunds?status=due",
        "/api/pairing-failures?cursor=12",
    ):
        assert (await house.operate("GET", path)).status == 200
    assert house.operators.asked == [("living", 7, SESSION), ("due", 50, None), (50, 12)]
    for path in ("/api/sessions?limit=0", "/api/refunds?cursor=x", "/api/pairing-failures?cursor=-1"):
        assert (await house.operate("GET", path)).status == 422


async def test_a_session_that_is_not_there_is_not_found() -> None:
    assert (await House().operate("GET", f"/api/sessions/{PAYMENT}")).code == "NOT_FOUND"


# ---- health


async def test_healthz_says_that_the_process_runs_even_while_it_drains() -> None:
    house = House()
    house.draining = True
    answer = await house.operate("GET", "/healthz", key=None)
    assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_readyz_follows_postgres_and_only_notes_valkey() -> None:
    house = House()
    assert (await house.operate("GET", "/readyz", key=None)).json == {"status": "ok", "degraded": False}
    house.mirror.trusted = False
    answer = await house.operate("GET", "/readyz", key=None)
    assert (answer.status, answer.json) == (200, {"status": "ok", "degraded": True})
    house.store_is_up = False
    answer = await house.operate("GET", "/readyz", key=None)
    assert (answer.status, answer.json["status"]) == (503, "unavailable")


async def test_readyz_does_not_wait_for_a_postgres_that_hangs(autojump_clock: trio.testing.MockClock) -> None:
    house = House()

    async def hang() -> bool:
        await trio.sleep_forever()
        raise AssertionError

    admin = create_admin(replace(house.desk, store_answers=hang))
    began = trio.current_time()
    answer = await speak(admin, "GET", "/readyz", None, {})
    assert (answer.status, answer.json["status"]) == (503, "unavailable")
    assert trio.current_time() - began <= 1.0


@pytest.mark.parametrize("state", ["starting", "draining"])
async def test_readyz_is_503_while_starting_or_draining(state: str) -> None:
    house = House()
    setattr(house, state, True)
    answer = await house.operate("GET", "/readyz", key=None)
    assert (answer.status, answer.json["status"]) == (503, state)


async def test_metrics_are_those_of_the_registry_that_was_passed_in() -> None:
    house = House()
    Counter("halo_steps", "Steps committed", registry=house.metrics).inc(3)
    answer = await house.operate("GET", "/metrics", key=None)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert b"halo_steps_total 3.0" in answer.raw


async def test_the_key_never_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    house = House()
    await house.operate("GET", "/api/overview")
    await house.operate("GET", "/api/overview", key="a wrong key")
    assert ADMIN_KEY not in caplog.text
    assert "a wrong key" not in caplog.text


async def test_the_overview_shows_what_the_watchdog_found_and_what_to_do() -> None:
    house = House()
    assert (await house.operate("GET", "/api/overview")).json["alarms"] == []
    house.alarms = [
        Alarm(
            name="clock_agrees",
            sentence="Mend time synchronisation.",
            since=1_795_464_900_123,
            violations=1,
            subjects=("clock",),
        )
    ]
    assert (await house.operate("GET", "/api/overview")).json["alarms"] == [
        {
            "name": "clock_agrees",
            "sentence": "Mend time synchronisation.",
            "since": "2026-11-23T20:15:00.123Z",
            "violations": 1,
            "subjects": ["clock"],
        }
    ]
