"""`halo explain`: the timeline with causes and evidence, and never a word of what was said."""

import json

from halo.events import EndedBy, EndRequested, ExtensionAnswered
from halo.explain import explain_session
from halo.rules import step
from halo.store.postgres import Postgres, open_postgres
from halo.store.sessions import Sessions
from tests.store.ground import CONFIG, Line, open_journal, open_session_row
from tests.store.rows import NOW, add_payment, new_id
from tests.store.test_fakes import asks

SECRET = "nobody else may read this"


async def a_told_session(db: Postgres) -> str:
    """Paid, extended, and ended by its mitra a minute later, with a message in between."""
    owner = new_id()
    session = (await open_session_row(db, owner)).session
    rows = Sessions(db, owner)
    payment = await add_payment(db, session.customer_id, "confirmed")
    asked = step(session, asks(session, payment, NOW + 60_000))
    assert asked.session.extension is not None
    extension_id = asked.session.extension.extension_id
    answered = step(
        asked.session, ExtensionAnswered(at=NOW + 70_000, extension_id=extension_id, accepted=True, config=CONFIG)
    )
    ended = step(answered.session, EndRequested(at=NOW + 130_000, by=EndedBy.MITRA))
    async with open_journal(db) as journal:
        await journal.append(session.session_id, 1, [Line(1, "customer", "m-1", SECRET)])
    before = session
    for decided in (asked, answered, ended):
        await rows.commit(before, decided, new_id(), frozenset())
        before = decided.session
    return session.session_id


async def test_the_story_has_every_step_with_its_cause_and_the_sums(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        session_id = await a_told_session(db)
        told = await explain_session(db, session_id)
    assert told is not None
    lines = told.splitlines()
    assert lines[0] == f"session {session_id}: ended (ended_by_mitra)"
    assert "paid 600 s = served 120 + refunded 480 + forfeited 0 + remaining 0" in lines[1]
    assert "10000 IDR charged" in lines[1]
    steps = [line for line in lines if " because " in line]
    assert [line.split()[1] for line in steps] == [
        "mitra_accepted",
        "extension_requested",
        "extension_answered",
        "end_requested",
    ]
    assert "active → extending" in steps[1]
    assert "because mitra_accepted" in steps[2]
    assert steps[3].startswith("2026-11-23T20:17:10.123Z")
    assert "because mitra" in steps[3]


async def test_as_json_it_is_the_same_timeline(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        session_id = await a_told_session(db)
        told = json.loads(await explain_session(db, session_id, as_json=True) or "")
    assert (told["session_id"], told["status"], told["end_reason"]) == (session_id, "ended", "ended_by_mitra")
    assert [(entry["version"], entry["to"]) for entry in told["timeline"]] == [
        (1, "active"),
        (2, "extending"),
        (3, "active"),
        (4, "ended"),
    ]
    assert told["timeline"][1]["evidence"]["duration_minutes"] == 5


async def test_a_decision_is_told_with_who_made_it_when_and_about_which_payment(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        session_id = await a_told_session(db)
        told = await explain_session(db, session_id)
        timeline = json.loads(await explain_session(db, session_id, as_json=True) or "")["timeline"]
    assert told is not None
    asked, answered, ended = timeline[1:]
    facts = answered["evidence"]
    assert (facts["by"], facts["asked_at"], facts["decided_at"]) == ("mitra", asked["at"], answered["at"])
    assert facts["asked_at"] < facts["decided_at"] < facts["deadline_at"]
    assert (facts["payment_status"], facts["default_action_on_timeout"]) == ("confirmed", "auto_approve")
    line = next(line for line in told.splitlines() if " extension_answered " in line)
    assert all(f"{name} {facts[name]}" in line for name in ("by", "decided_at", "deadline_at", "payment_request_id"))
    assert ended["evidence"]["time_left"] == "refunded"


async def test_what_the_watchdog_mended_is_told_where_it_happened_with_why(database_url: str) -> None:
    found = "m6_refused_means_refunded"
    async with open_postgres(database_url) as db:
        session_id, payment = await a_told_session(db), new_id()
        put = (
            "INSERT INTO operator_actions (operator, action, subject, details, at)"
            " VALUES (%(by)s, 'add_refund', %(subject)s, %(details)s::jsonb, at(%(at)s))"
        )
        details = json.dumps({"session_id": session_id, "because": found, "refund_id": "r-1"})
        for by in ("watchdog", "ani"):  # what people did is on the trail
            await db.execute(put, {"by": by, "subject": payment, "details": details, "at": NOW + 65_000})
        told = await explain_session(db, session_id)
        mended = json.loads(await explain_session(db, session_id, as_json=True) or "")["watchdog"]
    assert told is not None
    *_, answered, ended = lines = told.splitlines()[2:]
    assert (len(lines), " extension_answered " in answered, " end_requested " in ended) == (5, True, True)
    assert f"watchdog             add_refund               because {found} (" in lines[2]
    assert lines[2].endswith(f"[subject {payment}, refund_id r-1]")
    evidence = {"refund_id": "r-1"}
    at = "2026-11-23T20:16:05.123Z"
    assert mended == [{"at": at, "action": "add_refund", "subject": payment, "because": found, "evidence": evidence}]


async def test_what_was_said_is_not_told(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        session_id = await a_told_session(db)
        for as_json in (False, True):
            told = await explain_session(db, session_id, as_json=as_json)
            assert told is not None
            assert SECRET not in told
            assert as_json or "1 messages" in told or "1 message" in told


async def test_a_session_that_does_not_exist_has_no_story(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        assert await explain_session(db, new_id()) is None
