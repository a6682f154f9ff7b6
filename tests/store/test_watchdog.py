"""The watchdog's questions and repairs on a real Postgres, each on a world that was broken on purpose.

The worlds and their breaks are those of `tests/store/test_invariants.py`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from halo.clock import SystemClock
from halo.errors import StoreUnavailable
from halo.store.invariants import INVARIANTS, find_violations
from halo.store.lookout import Lookout
from halo.store.mirror import Mirror
from halo.store.postgres import Postgres
from halo.store.sessions import Sessions
from halo.store.valkey import open_valkey
from halo.store.watchdog import FOUND_AT_MOST, WINDOWS, WatchedRows
from halo.watch import WATCHES, Repair
from tests.store.ground import only
from tests.store.rows import add_customer, add_payment, count, new_id
from tests.store.test_invariants import BREAKS, REFUSED, Healthy, db, healthy  # noqa: F401  # fixtures

DAY_MS = 24 * 3600 * 1000
OWNERLESS = "s4_everybody_has_an_owner"
WATCH = "m6_refused_means_refunded"
"""For repairs that any watch may have asked for."""
NOT_SEEN = {("c6_nothing_after_the_end", 1)}
"""Messages of no session at all: only the full questions find these."""
STRAY = """UPDATE chat_sessions SET status = 'closing', running_since = NULL, expires_at = NULL,
           deadline_at = now() + interval '1 hour' WHERE session_id = %(waiting)s"""


@pytest.fixture
async def rows(db: Postgres, valkey_url: str) -> AsyncIterator[WatchedRows]:  # noqa: F811
    async with open_valkey(valkey_url, "") as valkey, trio.open_nursery() as nursery:
        clock = SystemClock()
        mirror = Mirror(valkey, db, clock, 90_000)
        nursery.start_soon(mirror.serve)
        with trio.fail_after(10):
            while not mirror.trusted:
                await trio.sleep(0.01)
        yield WatchedRows(db, mirror, clock, has_refund_url=True)
        nursery.cancel_scope.cancel()


async def found_by(rows: WatchedRows, *, since: int | None = None) -> dict[str, list[str]]:
    """What each question finds, those that find nothing left out."""
    now = SystemClock().now()
    found = {}
    async with rows.look() as look:
        for name, watch in WATCHES.items():
            if watch.source in {"invariant", "queue"}:
                found[name] = await look.ask(name, since=now - 2 * DAY_MS if since is None else since, now=now)
    return {name: subjects for name, subjects in found.items() if subjects}


async def break_(world: Healthy, *statements: str) -> None:
    for statement in statements:
        await world.db.execute(statement, {k: v for k, v in world.ids.items() if f"%({k})s" in statement})


async def actions(postgres: Postgres) -> list[tuple[str, str]]:
    trail = await postgres.fetch_all("SELECT action, subject FROM operator_actions WHERE operator = 'watchdog'")
    return [(row.action, row.subject) for row in trail]


# ---- the questions


def test_every_invariant_is_watched_and_has_its_window() -> None:
    watched = {name for name, watch in WATCHES.items() if watch.source == "invariant"}
    assert watched == set(INVARIANTS) == set(WINDOWS)


async def test_in_a_healthy_world_no_question_finds_anything(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    assert await found_by(rows) == {}


async def test_a_healthy_world_is_not_broken_by_looking_at_a_part_of_it(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    """However the window cuts: at any moment between two rows, nobody misses a counterpart."""
    moments = await healthy.db.fetch_all(
        """SELECT DISTINCT at FROM session_timeline UNION SELECT confirmed_at FROM payment_requests WHERE confirmed_at IS NOT NULL
           UNION SELECT ended_at FROM chat_sessions WHERE ended_at IS NOT NULL UNION SELECT now() + interval '1 hour'"""
    )
    for row in moments:
        assert await found_by(rows, since=row.at) == {}


@pytest.mark.parametrize(
    ("name", "way"), [pytest.param(name, n, id=f"{name}-{n}") for name in BREAKS for n in range(len(BREAKS[name]))]
)
async def test_what_is_broken_is_found_through_the_window_by_its_own_question_and_by_no_other(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
    name: str,
    way: int,
) -> None:
    await break_(healthy, *BREAKS[name][way])
    assert set(await found_by(rows)) == (set() if (name, way) in NOT_SEEN else {name})


async def test_what_ended_before_the_window_is_not_looked_at(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    await break_(healthy, "DELETE FROM messages WHERE session_id = %(ended)s AND seq = 2")
    assert await found_by(rows, since=SystemClock().now() + DAY_MS) == {}
    assert any(each.startswith("c2_seq_is_dense") for each in (await find_violations(healthy.db))[1])


async def test_a_flood_of_breaches_is_counted_up_to_a_bound(db: Postgres, rows: WatchedRows) -> None:  # noqa: F811
    customer = await add_customer(db)
    payment = await add_payment(db, customer, "failed")
    await db.execute(
        """INSERT INTO refunds (refund_id, payment_request_id, customer_id, kind, cause, amount, currency, created_at)
           VALUES (gen_random_uuid(), %(payment)s, %(customer)s, 'payment_failed', 'payment_failed', 1, 'IDR', now())""",
        {"payment": payment, "customer": customer},
    )
    for _ in range(FOUND_AT_MOST + 1):
        await db.execute(
            """INSERT INTO outbox (kind, user_id, template, collapse_key, due_at)
               VALUES ('push', gen_random_uuid(), 'offer', gen_random_uuid()::text, now() - interval '6 minutes')"""
        )
    assert len((await found_by(rows))["outbox_is_sent"]) == FOUND_AT_MOST


async def test_more_than_are_named_at_once_are_all_named_in_turn(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    await break_(healthy, "UPDATE chat_sessions SET owner = NULL")
    now = SystemClock().now()
    async with rows.look() as look:
        all_of = await look.ask(OWNERLESS, since=now, now=now)
        assert all_of == sorted(all_of)
        assert len(all_of) == await count(healthy.db, "chat_sessions", "status <> 'ended'")
        assert await look.ask(OWNERLESS, since=now, now=now, after=all_of[1]) == all_of[2:] + all_of[:2]
        assert await look.ask(OWNERLESS, since=now, now=now, after=all_of[-1]) == all_of


async def test_refunds_without_an_address_are_an_alarm_of_their_own(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    await break_(healthy, "UPDATE outbox SET due_at = now() - interval '1 hour', status = 'due'")
    kinds = {row.kind for row in await healthy.db.fetch_all("SELECT DISTINCT kind FROM outbox")}
    assert kinds == {"push", "refund"}
    refunds = {
        row.id for row in await healthy.db.fetch_all("SELECT refund_id::text AS id FROM refunds WHERE status = 'due'")
    }
    found = await found_by(rows)
    assert set(found) == {"outbox_is_sent", "refunds_are_sent"}
    assert set(found["refunds_are_sent"]) == refunds
    rows._has_refund_url = False
    found = await found_by(rows)
    assert set(found) == {"outbox_is_sent", "refunds_have_an_address"}
    assert set(found["refunds_have_an_address"]) == refunds
    assert len(found["outbox_is_sent"]) == await count(healthy.db, "outbox", "kind = 'push'")


@pytest.mark.parametrize(("kind", "alarm"), [("push", "outbox_is_sent"), ("refund", "refunds_are_sent")])
async def test_a_provider_that_refuses_for_hours_is_an_alarm_though_every_attempt_moves_the_next(
    db: Postgres,  # noqa: F811
    rows: WatchedRows,
    kind: str,
    alarm: str,
) -> None:
    for first in ("now() - interval '3 hours'", "now()", "NULL"):
        await db.execute(
            f"""INSERT INTO outbox (kind, user_id, template, collapse_key, due_at, first_attempt_at, attempts)
                VALUES ('{kind}', gen_random_uuid(), 't', gen_random_uuid()::text, now() + interval '10 minutes', {first}, 90)"""
        )
    found = await found_by(rows)
    assert {name: len(subjects) for name, subjects in found.items()} == {alarm: 1}


async def test_a_refund_that_was_given_up_is_an_alarm_until_somebody_has_dealt_with_it(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
) -> None:
    await break_(healthy, f"UPDATE refunds SET status = 'dead' WHERE payment_request_id = {REFUSED}")
    dead = await only(healthy.db, "SELECT refund_id::text AS id FROM refunds WHERE status = 'dead'")
    assert await found_by(rows) == {"refunds_are_delivered": [dead.id]}
    await break_(healthy, "UPDATE refunds SET status = 'delivered', delivered_at = now() WHERE status = 'dead'")
    assert await found_by(rows) == {}


async def test_a_question_that_takes_too_long_is_ended_by_postgres_and_the_next_look_is_whole(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await healthy.db.execute("ALTER TABLE refunds RENAME TO slow_refunds")
    await healthy.db.execute("CREATE VIEW refunds AS SELECT r.* FROM slow_refunds r, (SELECT pg_sleep(30)) AS slow")
    now = SystemClock().now()
    monkeypatch.setattr("halo.store.watchdog.STATEMENT_MS", 50)
    with trio.fail_after(25), pytest.raises(StoreUnavailable):
        async with rows.look() as look:
            await look.ask("m6_refused_means_refunded", since=now - DAY_MS, now=now)
    monkeypatch.undo()
    async with rows.look() as look:
        assert await look.ask("s4_everybody_has_an_owner", since=now, now=now) == []


# ---- the repairs


async def mend_all(rows: WatchedRows, name: str) -> dict[Repair, int]:
    """What a round would mend of this watch's row repairs."""
    mended: dict[Repair, int] = {}
    for subject in (await found_by(rows))[name]:
        for repair in WATCHES[name].repairs:
            if repair in rows._mends and await rows.mend(repair, subject, name):
                mended[repair] = mended.get(repair, 0) + 1
    return mended


async def test_a_payment_left_behind_by_its_session_is_failed_with_its_refund_due(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
) -> None:
    await break_(healthy, *BREAKS["m7_nothing_left_undecided"][1])
    [payment] = (await found_by(rows))["m7_nothing_left_undecided"]
    assert await mend_all(rows, "m7_nothing_left_undecided") == {Repair.FAIL_PAYMENT: 1}
    row = await only(
        healthy.db,
        """SELECT p.status, p.failure_cause, r.amount, r.status AS refund, r.session_id::text AS session_id
           FROM payment_requests p JOIN refunds r USING (payment_request_id) WHERE p.payment_request_id = %(id)s""",
        id=payment,
    )
    assert tuple(row) == ("failed", "session_ended", 5000, "due", healthy.ids["ended"])
    assert await actions(healthy.db) == [("fail_payment", payment)]
    assert await found_by(rows) == {}


async def test_a_payment_of_a_session_that_lives_is_left_alone(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    payment = await add_payment(healthy.db, healthy.ids["customer"], "confirmed", session_id=healthy.ids["active"])
    assert not await rows.mend(Repair.FAIL_PAYMENT, payment, WATCH)
    assert await actions(healthy.db) == []


@pytest.mark.parametrize("by", ["extension", "payment"])
async def test_a_refund_that_is_missing_is_written(healthy: Healthy, rows: WatchedRows, by: str) -> None:  # noqa: F811
    before = await only(
        healthy.db,
        f"SELECT payment_request_id::text, session_id, cause, amount FROM refunds WHERE payment_request_id = {REFUSED}",
    )
    told = await count(healthy.db, "outbox", "kind = 'refund'")
    await break_(healthy, f"DELETE FROM refunds WHERE payment_request_id = {REFUSED}")
    if by == "payment":
        assert await rows.mend(Repair.ADD_REFUND, before.payment_request_id, WATCH)
    else:
        extension = await only(
            healthy.db, "SELECT extension_id::text FROM session_extensions WHERE status = 'rejected'"
        )
        assert await rows.mend(Repair.ADD_REFUND, extension.extension_id, WATCH)
    after = await only(
        healthy.db,
        f"SELECT payment_request_id::text, session_id, cause, amount FROM refunds WHERE payment_request_id = {REFUSED}",
    )
    assert after == before
    assert await count(healthy.db, "outbox", "kind = 'refund'") == told + 1
    assert await actions(healthy.db) == [("add_refund", before.payment_request_id)]
    assert await found_by(rows) == {}


async def test_a_refund_of_the_wrong_amount_is_not_touched(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    await break_(healthy, f"UPDATE refunds SET amount = 1 WHERE payment_request_id = {REFUSED}")
    assert await mend_all(rows, "m6_refused_means_refunded") == {}
    assert set(await found_by(rows)) == {"m6_refused_means_refunded"}
    assert await actions(healthy.db) == []


async def test_a_request_in_a_session_that_does_not_wait_is_cancelled_and_refunded_on_the_timeline(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
) -> None:
    await break_(
        healthy,
        STRAY,
        "UPDATE session_timeline SET to_status = 'closing' WHERE session_id = %(waiting)s AND version = 2",
    )
    found = await found_by(rows)
    session_id = healthy.ids["waiting"]
    assert found["s2_one_pending_extension"] == [session_id]
    before = await Sessions(healthy.db, "").load(session_id)
    assert before is not None
    assert await rows.mend(Repair.CANCEL_EXTENSION, session_id, WATCH)
    row = await only(
        healthy.db,
        """SELECT e.status, e.decided_by, p.status AS payment, r.amount, f.cause FROM session_extensions e
           JOIN payment_requests p USING (payment_request_id) JOIN refunds r ON r.payment_request_id = p.payment_request_id
           JOIN pairing_failures f ON f.extension_id = e.extension_id WHERE e.session_id = %(id)s""",
        id=session_id,
    )
    assert tuple(row) == ("cancelled", "safeguard", "failed", 5000, "extension_safeguard_tripped")
    after = await Sessions(healthy.db, "").load(session_id)
    assert after is not None
    assert (after.session.version, after.session.extension) == (before.session.version + 1, None)
    last = (await Sessions(healthy.db, "").list_timeline(session_id))[-1]
    assert (last.event, last.cause) == ("watchdog_repaired", "extension_without_its_session")
    assert await actions(healthy.db) == [("cancel_extension", session_id)]
    assert "s2_one_pending_extension" not in await found_by(rows)


async def test_a_request_that_outlived_its_session_is_cancelled_and_the_timeline_stays_shut(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
) -> None:
    await break_(healthy, "UPDATE session_extensions SET session_id = %(ended)s WHERE status = 'pending'")
    history = await count(healthy.db, "session_timeline")
    assert await rows.mend(Repair.CANCEL_EXTENSION, healthy.ids["ended"], WATCH)
    row = await only(healthy.db, "SELECT status, decided_by FROM session_extensions WHERE status = 'cancelled'")
    assert tuple(row) == ("cancelled", "session_ended")
    assert await count(healthy.db, "session_timeline") == history
    assert await actions(healthy.db) == [("cancel_extension", healthy.ids["ended"])]


async def test_a_request_in_a_session_that_waits_for_it_is_left_alone(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    assert not await rows.mend(Repair.CANCEL_EXTENSION, healthy.ids["waiting"], WATCH)
    assert await count(healthy.db, "session_extensions", "status = 'pending'") == 1


@asynccontextmanager
async def rerouting(world: Healthy) -> AsyncIterator[str]:
    """A session that lost its mitra 21 seconds ago, and that nobody seeks another for."""
    await break_(
        world,
        """UPDATE chat_sessions SET status = 'rerouting', running_since = NULL, expires_at = NULL, deadline_at = now() + interval '1 minute',
                  updated_at = now() - interval '21 seconds' WHERE session_id = %(active)s""",
        "UPDATE session_timeline SET to_status = 'rerouting' WHERE session_id = %(active)s AND version = 3",
    )
    yield world.ids["active"]


async def test_a_session_that_waits_for_another_mitra_gets_its_search_again_once(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
) -> None:
    async with rerouting(healthy) as session_id:
        assert (await found_by(rows))["reroute_has_one_search"] == [session_id]
        assert await mend_all(rows, "reroute_has_one_search") == {Repair.REOPEN_SEARCH: 1}
        assert not await rows.mend(Repair.REOPEN_SEARCH, session_id, WATCH)
        row = await only(
            healthy.db,
            """SELECT p.status, p.owner = s.owner AS kept_by_its_owner FROM pairings p JOIN chat_sessions s ON s.session_id = p.rerouted_session_id
               WHERE s.session_id = %(id)s""",
            id=session_id,
        )
        assert tuple(row) == ("searching", True)
        assert await actions(healthy.db) == [("reopen_search", session_id)]
        [action] = await Lookout(healthy.db).list_watchdog_actions(session_id)
        assert set(action.details) == {"because", "session_id", "pairing_id"}
        assert "reroute_has_one_search" not in await found_by(rows)


async def test_a_search_that_outlived_its_session_is_closed(healthy: Healthy, rows: WatchedRows) -> None:  # noqa: F811
    async with rerouting(healthy) as session_id:
        assert await rows.mend(Repair.REOPEN_SEARCH, session_id, WATCH)
    await break_(
        healthy,
        """UPDATE chat_sessions SET status = 'closing' WHERE session_id = %(active)s""",
    )
    [search] = (await found_by(rows))["reroute_has_one_search"]
    assert await mend_all(rows, "reroute_has_one_search") == {Repair.CLOSE_SEARCH: 1}
    row = await only(healthy.db, "SELECT status, cause FROM pairings WHERE pairing_id = %(id)s", id=search)
    assert tuple(row) == ("failed", "session_ended")
    assert "reroute_has_one_search" not in await found_by(rows)
    closed = (await Lookout(healthy.db).list_watchdog_actions(healthy.ids["active"]))[0]
    assert (closed.action, closed.subject) == ("close_search", search)


@pytest.mark.parametrize(
    ("repair", "statements", "subject"),
    [
        (Repair.ADD_REFUND, (f"DELETE FROM refunds WHERE payment_request_id = {REFUSED}",), REFUSED),
        (Repair.FAIL_PAYMENT, BREAKS["m7_nothing_left_undecided"][1], "(SELECT payment_request_id FROM payment_requests WHERE session_id = %(ended)s AND status = 'confirmed')"),
        (Repair.CANCEL_EXTENSION, (STRAY,), "%(waiting)s::uuid"),
    ],
)  # fmt: skip
async def test_two_watchdogs_at_once_mend_once(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
    repair: Repair,
    statements: tuple[str, ...],
    subject: str,
) -> None:
    await break_(healthy, *statements)
    named: Mapping[str, str] = {k: v for k, v in healthy.ids.items() if f"%({k})s" in subject}
    one = str((await only(healthy.db, f"SELECT {subject}::text AS id", **named)).id)
    refunds = await count(healthy.db, "refunds")
    mended: list[bool] = []

    async def mend() -> None:
        mended.append(await rows.mend(repair, one, WATCH))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(mend)
    assert sorted(mended) == [False, False, False, True]
    assert await count(healthy.db, "refunds") == refunds + 1
    assert [action for action, _ in await actions(healthy.db)] == [repair.value]


@pytest.mark.parametrize(
    ("repair", "statements", "subject"),
    [
        (Repair.ADD_REFUND, (f"DELETE FROM refunds WHERE payment_request_id = {REFUSED}",), REFUSED),
        (Repair.FAIL_PAYMENT, BREAKS["m7_nothing_left_undecided"][1], "(SELECT payment_request_id FROM payment_requests WHERE session_id = %(ended)s AND status = 'confirmed')"),
        (Repair.CANCEL_EXTENSION, (STRAY,), "%(waiting)s::uuid"),
    ],
)  # fmt: skip
async def test_a_repair_that_fails_halfway_does_nothing(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
    repair: Repair,
    statements: tuple[str, ...],
    subject: str,
) -> None:
    """The trail cannot be written, and it comes last: what was done before it is undone."""
    await break_(healthy, *statements, "ALTER TABLE operator_actions ADD CHECK (operator <> 'watchdog')")
    named: Mapping[str, str] = {k: v for k, v in healthy.ids.items() if f"%({k})s" in subject}
    one = str((await only(healthy.db, f"SELECT {subject}::text AS id", **named)).id)
    tables = ("refunds", "outbox", "pairing_failures", "session_timeline", "payment_requests", "session_extensions")

    async def picture() -> dict[str, str]:
        return {
            table: (
                await only(healthy.db, f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) AS sum FROM {table} t")
            ).sum
            for table in tables
        }

    before = await picture()
    with pytest.raises(psycopg.errors.CheckViolation):
        await rows.mend(repair, one, WATCH)
    assert await picture() == before


# ---- the record


async def test_what_was_mended_by_an_actor_is_on_record(db: Postgres, rows: WatchedRows) -> None:  # noqa: F811
    subject = new_id()
    await rows.record(Repair.NUDGE, subject, "timers_are_on_time")
    row = await only(db, "SELECT operator, action, subject, details FROM operator_actions")
    assert (row.operator, row.action, row.subject) == ("watchdog", "nudge", subject)
    assert row.details == {"because": "timers_are_on_time"}


@pytest.mark.parametrize(
    ("subject", "session"),
    [
        ("%(active)s", "active"),
        ("(SELECT extension_id FROM session_extensions WHERE status = 'pending')", "waiting"),
        (REFUSED, "ended"),
        ("%(own_payment)s", "active"),
        ("(SELECT pairing_id FROM pairings WHERE rerouted_session_id = %(rerouting)s)", "rerouting"),
    ],
)
async def test_whatever_was_mended_its_session_lists_it_with_the_reason(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
    subject: str,
    session: str,
) -> None:
    named = {k: v for k, v in healthy.ids.items() if f"%({k})s" in subject}
    one = await only(healthy.db, f"SELECT {subject}::text AS id", **named)
    await rows.record(Repair.NUDGE, one.id, OWNERLESS)
    lookout = Lookout(healthy.db)
    [action] = await lookout.list_watchdog_actions(healthy.ids[session])
    assert (action.action, action.subject) == ("nudge", one.id)
    assert action.details == {"because": OWNERLESS, "session_id": healthy.ids[session]}
    assert await lookout.list_watchdog_actions(healthy.ids["closing"]) == []


@pytest.mark.parametrize("repair", [Repair.ADD_REFUND, Repair.FAIL_PAYMENT, Repair.CANCEL_EXTENSION])
async def test_a_repair_of_rows_is_part_of_its_sessions_story(
    healthy: Healthy,  # noqa: F811
    rows: WatchedRows,
    repair: Repair,
) -> None:
    session, way, statements = {
        Repair.ADD_REFUND: ("ended", WATCH, (f"DELETE FROM refunds WHERE payment_request_id = {REFUSED}",)),
        Repair.FAIL_PAYMENT: ("ended", "m7_nothing_left_undecided", BREAKS["m7_nothing_left_undecided"][1]),
        Repair.CANCEL_EXTENSION: ("waiting", "s2_one_pending_extension", (STRAY,)),
    }[repair]
    await break_(healthy, *statements)
    assert (await mend_all(rows, way))[repair] == 1
    [action] = await Lookout(healthy.db).list_watchdog_actions(healthy.ids[session])
    assert action.action == repair
    assert (action.details["because"], action.details["session_id"]) == (way, healthy.ids[session])
