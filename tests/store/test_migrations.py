from importlib import resources
from pathlib import Path

import psycopg
import pytest
import trio

from halo.errors import StoreUnavailable
from halo.outbox import OutboxKind
from halo.store.invariants import find_violations
from halo.store.migrations import SchemaMismatch, migrate
from halo.store.outbox import Outbox
from halo.store.postgres import Postgres, open_postgres
from tests.store.rows import (
    NOW,
    SetClock,
    add_customer,
    add_mitra,
    add_offer,
    add_pairing,
    add_payment,
    add_session,
    count,
    new_id,
)

FIRST = "CREATE TABLE people (name text);\n-- several statements\nINSERT INTO people VALUES ('first; ''one''');"
SECOND = "ALTER TABLE people ADD COLUMN greeting text;\nUPDATE people SET greeting = 'hello ' || name;"


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    (tmp_path / "0001_people.sql").write_text(FIRST)
    return tmp_path


async def test_files_are_applied_in_order_and_once_with_data_between(empty_database_url: str, steps: Path) -> None:
    assert await migrate(empty_database_url, steps) == ["0001_people"]
    async with open_postgres(empty_database_url) as db:
        await db.execute("INSERT INTO people VALUES ('second')")
        (steps / "0002_greetings.sql").write_text(SECOND)
        assert await migrate(empty_database_url, steps) == ["0002_greetings"]
        assert await migrate(empty_database_url, steps) == []
        greetings = await db.fetch_all("SELECT greeting FROM people ORDER BY 1")
        assert [row.greeting for row in greetings] == ["hello first; 'one'", "hello second"]
        applied = await db.fetch_all("SELECT name, applied_at FROM schema_migrations ORDER BY name")
        assert [row.name for row in applied] == ["0001_people", "0002_greetings"]
        assert applied[0].applied_at <= applied[1].applied_at


async def test_several_nodes_that_start_at_once_apply_each_file_once(empty_database_url: str, steps: Path) -> None:
    (steps / "0002_greetings.sql").write_text(SECOND)
    applied: list[list[str]] = []

    async def start() -> None:
        applied.append(await migrate(empty_database_url, steps))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(start)
    assert sorted(applied) == [[]] * 5 + [["0001_people", "0002_greetings"]]


async def test_a_changed_file_is_refused(empty_database_url: str, steps: Path) -> None:
    await migrate(empty_database_url, steps)
    (steps / "0001_people.sql").write_text(FIRST + " ")
    with pytest.raises(SchemaMismatch, match="0001_people was changed"):
        await migrate(empty_database_url, steps)


async def test_a_database_of_a_newer_halo_is_refused(empty_database_url: str, steps: Path) -> None:
    newer = steps / "0002_greetings.sql"
    newer.write_text(SECOND)
    await migrate(empty_database_url, steps)
    newer.unlink()
    with pytest.raises(SchemaMismatch, match="0002_greetings, which this version of halo does not know"):
        await migrate(empty_database_url, steps)


async def test_a_file_that_slips_in_before_an_applied_one_is_refused(empty_database_url: str, steps: Path) -> None:
    (steps / "0003_later.sql").write_text("SELECT 1")
    await migrate(empty_database_url, steps)
    (steps / "0002_greetings.sql").write_text(SECOND)
    with pytest.raises(SchemaMismatch, match="0002_greetings is new"):
        await migrate(empty_database_url, steps)


async def test_a_file_that_fails_leaves_nothing_of_itself(empty_database_url: str, steps: Path) -> None:
    (steps / "0002_broken.sql").write_text("CREATE TABLE half (n int); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(empty_database_url, steps)
    async with open_postgres(empty_database_url) as db:
        assert await db.fetch_one("SELECT to_regclass('half') AS half") == (None,)
        assert [row.name for row in await db.fetch_all("SELECT name FROM schema_migrations")] == ["0001_people"]
    (steps / "0002_broken.sql").write_text("CREATE TABLE whole (n int)")
    assert await migrate(empty_database_url, steps) == ["0002_broken"]


@pytest.mark.parametrize("name", ["1_short.sql", "0002-dash.sql", "0001_again.sql"])
async def test_a_badly_named_file_is_refused_before_anything_is_done(
    empty_database_url: str, steps: Path, name: str
) -> None:
    (steps / name).write_text("SELECT 1")
    with pytest.raises(SchemaMismatch, match=name.removesuffix(".sql")):
        await migrate(empty_database_url, steps)
    async with open_postgres(empty_database_url) as db:
        assert await db.fetch_one("SELECT to_regclass('schema_migrations') AS it") == (None,)


async def test_a_migration_that_is_given_up_lets_the_next_node_work(empty_database_url: str, steps: Path) -> None:
    (steps / "0002_slow.sql").write_text("SELECT pg_sleep(0.5)")
    with trio.move_on_after(0.2) as scope:
        await migrate(empty_database_url, steps)
    assert scope.cancelled_caught
    with trio.fail_after(10):
        assert (await migrate(empty_database_url, steps))[-1] == "0002_slow"


async def test_a_database_that_is_away_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await migrate("postgresql://nobody@127.0.0.1:1/x")


async def test_the_packages_own_files_apply_to_an_empty_database(empty_database_url: str) -> None:
    assert (await migrate(empty_database_url))[0] == "0001_foundation"
    assert await migrate(empty_database_url) == []


def copy_files(to: Path, first: str, last: str) -> None:
    """The package's own files from one number to another."""
    for file in (resources.files("halo.store") / "sql").iterdir():
        if file.name.endswith(".sql") and first <= file.name[:4] <= last:
            (to / file.name).write_text(file.read_text())


async def seek(db: Postgres, customer_id: str, payment: str, session_id: str) -> str:
    """A search for another mitra, by plain SQL."""
    pairing_id = new_id()
    await db.execute(
        """INSERT INTO pairings (pairing_id, customer_id, payment_request_id, deadline_at, created_at, rerouted_session_id)
           VALUES (%(id)s, %(customer_id)s, %(payment)s, at(%(at)s), at(%(at)s), %(session_id)s)""",
        {"id": pairing_id, "customer_id": customer_id, "payment": payment, "at": NOW, "session_id": session_id},
    )
    return pairing_id


async def test_pairings_from_before_reroutes_keep_their_meaning_and_their_unique_index(
    empty_database_url: str, tmp_path: Path
) -> None:
    """0004: a match and a search that are there stay what they were, and only searches for another mitra may come beside a match."""
    copy_files(tmp_path, "0001", "0003")
    await migrate(empty_database_url, tmp_path)
    async with open_postgres(empty_database_url) as db:
        mitra_id = await add_mitra(db)
        customer_id = await add_customer(db)
        paid = await add_payment(db, customer_id, "confirmed", is_extension=False)
        session_id = await add_session(db, customer_id, mitra_id, "pending_payment", paid)
        await db.execute(
            """INSERT INTO session_timeline (session_id, version, epoch, at, event, to_status, cause)
               VALUES (%(id)s, 1, 1, at(%(at)s), 'mitra_accepted', 'pending_payment', 'payment_pending')""",
            {"id": session_id, "at": NOW},
        )
        matched = await add_pairing(db, customer_id, paid)
        await db.execute(
            "UPDATE pairings SET status = 'matched', session_id = %(session)s, resolved_at = at(%(at)s)",
            {"session": session_id, "at": NOW},
        )
        await add_offer(db, matched, mitra_id, "accepted")
        other = await add_customer(db)
        wanted = await add_payment(db, other, "confirmed", is_extension=False)
        searching = await add_pairing(db, other, wanted)
        await add_offer(db, searching, mitra_id)
    copy_files(tmp_path, "0004", "0004")
    assert await migrate(empty_database_url, tmp_path) == ["0004_reroute"]
    async with open_postgres(empty_database_url) as db:
        rows = await db.fetch_all(
            "SELECT pairing_id, status, session_id, rerouted_session_id FROM pairings ORDER BY status"
        )
        assert [tuple(row) for row in rows] == [
            (matched, "matched", session_id, None),
            (searching, "searching", None, None),
        ]
        for searcher, payment in ((customer_id, paid), (other, wanted)):
            with pytest.raises(psycopg.errors.UniqueViolation, match="pairings_one_search"):
                await add_pairing(db, searcher, payment)
        of_session = (customer_id, paid, session_id)
        first = await seek(db, *of_session)
        with pytest.raises(psycopg.errors.UniqueViolation, match="pairings_one_reroute"):
            await seek(db, *of_session)
        await db.execute(
            "UPDATE pairings SET status = 'failed', cause = 'timed_out' WHERE pairing_id = %(id)s", {"id": first}
        )
        await seek(db, *of_session)
        assert await count(db, "pairings", "rerouted_session_id IS NOT NULL") == 2
        await db.execute(
            "UPDATE pairings SET status = 'failed', cause = 'timed_out' WHERE rerouted_session_id IS NOT NULL"
        )
        assert (await find_violations(db))[1] == []


async def test_what_waited_in_the_outbox_before_it_was_sent_is_sent_and_phones_speak_indonesian(
    empty_database_url: str, tmp_path: Path
) -> None:
    """0005: a row and a phone of the version before lose nothing."""
    copy_files(tmp_path, "0001", "0004")
    await migrate(empty_database_url, tmp_path)
    user_id = new_id()
    async with open_postgres(empty_database_url) as db:
        await db.execute(
            """INSERT INTO outbox (kind, user_id, template, collapse_key, due_at)
               VALUES ('push', %(id)s, 'offer', 'offer:1', at(%(at)s)), ('refund', %(id)s, 'refund_due', 'refund:1', at(%(at)s))""",
            {"id": user_id, "at": NOW},
        )
        await db.execute(
            """INSERT INTO auth_sessions (auth_session_id, user_type, user_id, refresh_token_hash, push_token, expires_at)
               VALUES (gen_random_uuid(), 'mitra', %(id)s, 'x', 'phone', at(%(at)s) + interval '1 day')""",
            {"id": user_id, "at": NOW},
        )
    copy_files(tmp_path, "0005", "0005")
    assert await migrate(empty_database_url, tmp_path) == ["0005_outbox"]
    async with open_postgres(empty_database_url) as db:
        outbox = Outbox(db, new_id(), SetClock())
        [push] = await outbox.claim(OutboxKind.PUSH, 10)
        assert [(device.token, device.locale) for device in push.devices] == [("phone", "id")]
        [refund] = await outbox.claim(OutboxKind.REFUND, 10)
        assert (push.tries, refund.tries, push.receipt) == (1, 1, None)


async def test_what_several_mitras_of_one_session_said_before_is_put_under_each_of_them(
    empty_database_url: str, tmp_path: Path
) -> None:
    """0009: a session that was handed on twice by the version before, and one that never was."""
    copy_files(tmp_path, "0001", "0008")
    await migrate(empty_database_url, tmp_path)
    async with open_postgres(empty_database_url) as db:
        first, second, third = [await add_mitra(db) for _ in range(3)]
        session_id = await add_session(db, await add_customer(db), third)
        quiet = await add_session(db, await add_customer(db), first)
        for version, was, at in ((3, first, NOW + 10_000), (5, second, NOW + 20_000)):
            await db.execute(
                """INSERT INTO session_timeline (session_id, version, epoch, at, event, to_status, cause, evidence)
                   VALUES (%(id)s, %(version)s, 1, at(%(at)s), 'mitra_assigned', 'active', 'offer_accepted',
                           jsonb_build_object('from', %(was)s::text, 'to', 'whoever'))""",
                {"id": session_id, "version": version, "was": was, "at": at},
            )
        said = [
            (1, "mitra", 0),
            (2, "customer", 5_000),
            (3, "mitra", 10_000),
            (4, "mitra", 15_000),
            (5, "mitra", 25_000),
        ]
        for of_session in (session_id, quiet):
            for seq, sender, after_ms in said:
                await db.execute(
                    "INSERT INTO messages (session_id, seq, sender, id, body, at) VALUES (%(id)s, %(seq)s, %(sender)s, %(name)s, 'hello', at(%(at)s))",
                    {"id": of_session, "seq": seq, "sender": sender, "name": str(seq), "at": NOW + after_ms},
                )
    copy_files(tmp_path, "0009", "0009")
    assert await migrate(empty_database_url, tmp_path) == ["0009_former_mitras"]
    async with open_postgres(empty_database_url) as db:
        rows = await db.fetch_all("SELECT session_id, former_mitra_ids FROM chat_sessions")
        assert {row.session_id: list(row.former_mitra_ids) for row in rows} == {session_id: [first, second], quiet: []}
        senders = "SELECT sender FROM messages WHERE session_id = %(id)s ORDER BY seq"
        assert [row.sender for row in await db.fetch_all(senders, {"id": session_id})] == [
            "mitra", "customer", "mitra:2", "mitra:2", "mitra:3",
        ]  # fmt: skip
        assert {row.sender for row in await db.fetch_all(senders, {"id": quiet})} == {"mitra", "customer"}


async def test_of_what_was_written_down_before_it_was_tried_nobody_claims_to_know_the_outcome(
    empty_database_url: str, tmp_path: Path
) -> None:
    """0012: what a store wrote down with what it did is done; of the rest only the attempt is known."""
    copy_files(tmp_path, "0001", "0011")
    await migrate(empty_database_url, tmp_path)
    rows = (
        ("ani", "end_session"),
        ("ani", "revive"),
        ("watchdog", "revive"),
        ("ani", "deactivate_mitra"),
        ("ani", "read_messages"),
    )
    async with open_postgres(empty_database_url) as db:
        for operator, action in rows:
            values = {"operator": operator, "action": action}
            await db.execute(
                "INSERT INTO operator_actions (operator, action, subject) VALUES (%(operator)s, %(action)s, 'x')",
                values,
            )
    copy_files(tmp_path, "0012", "0012")
    assert await migrate(empty_database_url, tmp_path) == ["0012_audit_outcomes"]
    async with open_postgres(empty_database_url) as db:
        found = await db.fetch_all("SELECT outcome, times, code FROM operator_actions ORDER BY action_id")
        assert [row.outcome for row in found] == ["attempted", "attempted", "done", "done", "attempted"]
        assert {(row.times, row.code) for row in found} == {(1, None)}
