"""What the status page reads, from rows that plain SQL put there."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from halo.store.live_config import LiveConfigStore
from halo.store.lookout import Lookout, SessionFilter, id_range
from halo.store.postgres import Postgres, open_postgres
from tests.store.rows import NOW, add_customer, add_mitra, add_payment, add_session, new_id
from tests.store.test_operators import age, extend, put, refund

DAY_MS = 24 * 3_600_000


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def lookout(db: Postgres) -> Lookout:
    return Lookout(db)


async def put_mitra(db: Postgres, **columns: Any) -> str:
    mitra_id = new_id()
    await put(db, "mitras", mitra_id=mitra_id, **columns)
    return mitra_id


async def put_one_of_each(db: Postgres) -> dict[str, str]:
    """A mitra in each state, by its name."""
    heard = {"is_online": True, "last_heartbeat_at": NOW}
    mitras = {
        "available": await put_mitra(db, display_name="Ayu 100%", **heard),
        "full": await put_mitra(db, display_name="Bayu", max_sessions=1, **heard),
        "silent": await put_mitra(db, display_name="Citra_1", is_online=True, last_heartbeat_at=NOW - 60_001),
        "offline": await put_mitra(db, display_name="Dewi"),
        "deactivated": await put_mitra(db, display_name="Eka", is_active=False),
    }
    await add_session(db, await add_customer(db), mitras["full"])
    return mitras


async def test_every_mitra_is_counted_once_by_why_she_is_available_or_not(db: Postgres, lookout: Lookout) -> None:
    await put_one_of_each(db)
    await put_mitra(db, is_online=True)  # never heard of
    census = await lookout.load_census(NOW, NOW - 60_000)
    assert (census.available, census.full, census.silent, census.offline, census.deactivated) == (1, 1, 2, 1, 1)
    assert census.outbox == ()


async def test_what_waits_in_the_outbox_is_counted_with_the_oldest(db: Postgres, lookout: Lookout) -> None:
    for number, status in enumerate(("due", "due", "dead", "sent")):
        more = {"kind": "refund", "template": "refund_due", "collapse_key": "x", "status": status}
        await put(db, "outbox", user_id=new_id(), due_at=NOW + number, **more)
    waiting = (await lookout.load_census(NOW, NOW)).outbox
    assert [(row.kind, row.status, row.count, row.oldest_due_at) for row in waiting] == [
        ("refund", "dead", 1, None),
        ("refund", "due", 2, NOW),
    ]


async def test_what_is_refused_again_and_again_waits_since_its_first_attempt(db: Postgres, lookout: Lookout) -> None:
    """Each attempt moves `due_at`: by that it would always be young."""
    more = {"kind": "push", "template": "offer", "collapse_key": "x", "status": "due"}
    await put(db, "outbox", user_id=new_id(), due_at=NOW + 30_000, first_attempt_at=NOW - 3 * 3_600_000, **more)
    await put(db, "outbox", user_id=new_id(), due_at=NOW, **more)
    [waiting] = (await lookout.load_census(NOW, NOW)).outbox
    assert (waiting.count, waiting.oldest_due_at) == (2, NOW - 3 * 3_600_000)


async def test_mitras_are_listed_by_state_name_and_id(db: Postgres, lookout: Lookout) -> None:
    mitras = await put_one_of_each(db)
    for state, mitra_id in mitras.items():
        [found] = await lookout.list_mitras(state, None, NOW - 60_000, 50, None)
        assert (found.mitra_id, found.state) == (mitra_id, state)
    for search, state in (("100%", "available"), ("citra_", "silent"), ("AYU 1", "available")):
        assert [found.state for found in await lookout.list_mitras(None, search, NOW - 60_000, 50, None)] == [state]
    assert await lookout.list_mitras(None, "%", NOW, 50, None) == await lookout.list_mitras(None, "100%", NOW, 50, None)
    [one] = await lookout.list_mitras(None, mitras["full"][:13].upper(), NOW - 60_000, 50, None)
    assert (one.display_name, one.capacity, one.max_sessions) == ("Bayu", 1, 1)
    listed = [found.mitra_id for found in await lookout.list_mitras(None, None, NOW, 2, None)]
    rest = [found.mitra_id for found in await lookout.list_mitras(None, None, NOW, 50, listed[-1])]
    assert [*listed, *rest] == sorted(mitras.values())


async def test_sessions_are_found_by_the_beginning_of_any_id_and_by_every_filter(
    db: Postgres, lookout: Lookout
) -> None:
    customer, mitra = await add_customer(db), await add_mitra(db)
    living, ended = [await add_session(db, customer, mitra, status) for status in ("closing", "ended")]
    await age(db, living, NOW)
    await age(db, ended, NOW - DAY_MS)
    await add_session(db, await add_customer(db), await add_mitra(db))

    async def found(**wanted: Any) -> list[str]:
        return [session.session_id for session in await lookout.list_sessions(SessionFilter(**wanted), 50, None)]

    assert await found(beginning=living) == [living]
    for beginning in (customer, customer[:13], mitra.replace("-", ""), mitra[:13]):
        assert await found(beginning=beginning) == [living, ended]
        assert await found(beginning=beginning, status="living") == [living]
        assert await found(beginning=beginning, end_reason="completed") == [ended]
        assert await found(beginning=beginning, since=NOW) == [living]
        assert await found(beginning=beginning, topic="sensitive") == []
    assert len(await found()) == 3
    assert len(await found(status="living", topic="regular")) == 2
    assert await found(status="ended", end_reason="completed", since=NOW - DAY_MS) == [ended]
    assert [session.session_id for session in await lookout.list_living_of(mitra, 50)] == [living]


@pytest.mark.parametrize("beginning", [False, True])
async def test_a_search_goes_on_after_the_row_that_its_cursor_names(
    db: Postgres, lookout: Lookout, beginning: bool
) -> None:
    customer, mitra = await add_customer(db), await add_mitra(db)
    for _ in range(5):
        await age(db, await add_session(db, customer, mitra), NOW)
    wanted, told, cursor = SessionFilter(beginning=customer if beginning else None), [], None
    while page := await lookout.list_sessions(wanted, 2, cursor):
        cursor = page[-1].session_id
        told += [session.session_id for session in page]
    assert len(told) == len(set(told)) == 5
    assert await lookout.list_sessions(wanted, 2, new_id()) == []


def test_a_beginning_is_every_id_between_two() -> None:
    assert id_range("ab-1") == ("ab1" + "0" * 29, "ab1" + "f" * 29)


async def test_searches_and_extensions_are_counted_apart(db: Postgres, lookout: Lookout) -> None:
    customer, mitra = await add_customer(db), await add_mitra(db)
    for cause, at in (("timed_out", NOW), ("timed_out", NOW - 2 * DAY_MS), ("all_declined", NOW - 8 * DAY_MS)):
        await put(db, "pairing_failures", cause=cause, customer_id=customer, at=at)
    session_id = await add_session(db, customer, mitra)
    await extend(db, session_id, customer)
    await extend(db, session_id, customer, "rejected")
    [rejected] = await lookout.list_outcomes("rejected", 50, None)
    columns = {"cause": "extension_rejected", "extension_id": rejected.extension_id, "customer_id": customer}
    await put(db, "pairing_failures", **columns, at=NOW)

    assert [(row.name, row.day, row.week) for row in await lookout.count_failures(NOW)] == [("timed_out", 1, 2)]
    assert [row.cause for row in await lookout.list_failures(None, 50, None)] == [
        "all_declined",
        "timed_out",
        "timed_out",
    ]
    [newest, _] = await lookout.list_failures("timed_out", 50, None)
    assert [row.cause for row in await lookout.list_failures(None, 50, newest.failure_id)] == ["timed_out"]
    assert (await lookout.load_census(NOW, NOW)).failures == {"timed_out": 1}
    counted = await lookout.count_outcomes(NOW + 2_000)
    assert {(row.name, row.decided_by, row.day, row.week) for row in counted} == {
        ("accepted", "answered", 1, 1),
        ("rejected", "answered", 1, 1),
    }
    first = await lookout.list_outcomes(None, 1, None)
    second = await lookout.list_outcomes(None, 5, first[0].extension_id)
    assert {row.status for row in [*first, *second]} == {"accepted", "rejected"}
    assert {row.status: row.failure_id is None for row in [*first, *second]} == {"accepted": True, "rejected": False}


async def test_refunds_are_summed_by_status_and_currency(db: Postgres, lookout: Lookout) -> None:
    customer = await add_customer(db)
    rows = [
        ("due", "IDR", NOW, None),
        ("due", "IDR", NOW, None),
        ("due", "EUR", NOW, None),
        ("dead", "IDR", NOW - 90 * DAY_MS, None),
        ("delivered", "IDR", NOW - 90 * DAY_MS, NOW),
        ("delivered", "IDR", NOW - 90 * DAY_MS, NOW - 31 * DAY_MS),
    ]
    for status, currency, created_at, delivered_at in rows:
        payment = await add_payment(db, customer, "failed")
        more = {"created_at": created_at, "delivered_at": delivered_at, "status": status, "currency": currency}
        await refund(db, payment_request_id=payment, customer_id=customer, **more)
    assert [(row.status, row.currency, row.count, row.amount) for row in await lookout.sum_refunds(NOW)] == [
        ("dead", "IDR", 1, 5_000),
        ("delivered", "IDR", 1, 5_000),
        ("due", "EUR", 1, 5_000),
        ("due", "IDR", 2, 10_000),
    ]


async def test_the_trail_is_filtered_by_who_and_by_whom(db: Postgres, lookout: Lookout) -> None:
    for operator, subject in (("ani", "x"), ("budi", "x"), ("ani", "y")):
        await put(db, "operator_actions", operator=operator, action="end_session", subject=subject)
    all_of = await lookout.list_actions(None, None, None, 50, None)
    assert [(row.operator, row.subject) for row in all_of] == [("ani", "y"), ("budi", "x"), ("ani", "x")]
    assert [row.subject for row in await lookout.list_actions("ani", None, None, 50, None)] == ["y", "x"]
    assert [row.operator for row in await lookout.list_actions(None, "x", None, 50, None)] == ["budi", "ani"]
    assert len(await lookout.list_actions("ani", "x", None, 50, None)) == 1
    assert len(await lookout.list_actions(None, None, None, 50, all_of[0].action_id)) == 2


async def test_the_trail_is_filtered_by_what_became_of_it(db: Postgres, lookout: Lookout) -> None:
    for outcome, code in (("done", None), ("refused", "FORBIDDEN"), ("attempted", None)):
        more = {} if code is None else {"code": code}
        await put(db, "operator_actions", operator="ani", action="end_session", subject="x", outcome=outcome, **more)
    [refused] = await lookout.list_actions(None, None, "refused", 50, None)
    assert (refused.outcome, refused.code, refused.times, refused.trace_id) == ("refused", "FORBIDDEN", 1, None)
    assert [row.outcome for row in await lookout.list_actions("ani", "x", "attempted", 50, None)] == ["attempted"]


async def test_whatever_an_alarm_names_leads_to_its_session_or_at_least_to_what_it_is(
    db: Postgres, lookout: Lookout
) -> None:
    customer, mitra = await add_customer(db), await add_mitra(db)
    session_id = await add_session(db, customer, mitra)
    await extend(db, session_id, customer)
    [asked] = await db.fetch_all("SELECT extension_id FROM session_extensions")
    [own] = await db.fetch_all("SELECT payment_request_id AS id FROM chat_sessions")
    lonely = await add_payment(db, customer, "failed")
    await refund(db, payment_request_id=lonely, customer_id=customer, created_at=NOW)
    await refund(db, payment_request_id=own.id, customer_id=customer, session_id=session_id, created_at=NOW)
    refunds = {
        row.payment_request_id: row.refund_id
        for row in await db.fetch_all("SELECT payment_request_id, refund_id FROM refunds")
    }
    pairing_id, offer_id = new_id(), new_id()
    times = {"deadline_at": NOW, "created_at": NOW}
    await put(
        db, "pairings", pairing_id=pairing_id, customer_id=customer, payment_request_id=own.id, status="matched",
        session_id=session_id, **times,
    )  # fmt: skip
    await put(db, "offers", offer_id=offer_id, pairing_id=pairing_id, mitra_id=mitra, wave=1, **times)

    for kind, of in (
        ("payment", own.id), ("refund", refunds[own.id]), ("extension", asked.extension_id), ("search", pairing_id), ("offer", offer_id),
    ):  # fmt: skip
        [session] = await lookout.list_sessions(SessionFilter(beginning=of), 50, None)
        assert session.session_id == session_id, kind
        [thing] = await lookout.list_things(of[:18])
        assert (thing.kind, thing.thing_id, thing.session_id, thing.customer_id) == (kind, of, session_id, customer)
    for kind, of in (("payment", lonely), ("refund", refunds[lonely])):
        assert await lookout.list_sessions(SessionFilter(beginning=of), 50, None) == []
        [thing] = await lookout.list_things(of)
        assert (thing.kind, thing.session_id, thing.customer_id) == (kind, None, customer)
    assert [thing.kind for thing in await lookout.list_things(mitra)] == ["mitra"]
    assert await lookout.list_things(new_id()) == []


async def test_what_the_watchdog_did_to_a_session_is_listed_by_its_session(db: Postgres, lookout: Lookout) -> None:
    session_id, other = new_id(), new_id()

    async def act(operator: str, action: str, subject: str, **details: str) -> None:
        await put(
            db, "operator_actions", operator=operator, action=action, subject=subject, details=json.dumps(details)
        )

    await act("watchdog", "nudge", session_id)  # as before the session was written beside it
    await act("watchdog", "add_refund", new_id(), session_id=session_id, because="m6_refused_means_refunded")
    await act("watchdog", "nudge", other, session_id=other)
    await act("watchdog", "refresh_capacity", new_id())
    await act("ani", "end_session", session_id)
    done = await lookout.list_watchdog_actions(session_id)
    assert [action.action for action in done] == ["add_refund", "nudge"]
    assert done[0].details["because"] == "m6_refused_means_refunded"
    assert [action.action for action in await lookout.list_watchdog_actions(session_id, limit=1)] == ["add_refund"]
    assert [action.subject for action in await lookout.list_watchdog_actions(other)] == [other]


async def test_a_change_of_the_configuration_is_told_with_what_was_before(db: Postgres, lookout: Lookout) -> None:
    store = LiveConfigStore(db)
    await store.change({"price_per_minute": 200, "currency": "EUR"}, "ani")
    await store.change({"price_per_minute": 300}, "budi")
    steps = await lookout.list_config_steps(10)
    assert [(step.version, step.changed_by, step.key, step.old, step.new) for step in steps] == [
        (2, "budi", "price_per_minute", 200, 300),
        (1, "ani", "currency", None, "EUR"),
        (1, "ani", "price_per_minute", None, 200),
    ]
    assert [step.version for step in await lookout.list_config_steps(1)] == [2]
