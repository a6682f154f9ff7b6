"""What only the real rows can show: constraints as the last word, unknown commits, taking up from the dead, capacity, the timeline."""

from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest
import trio

from halo.clock import SystemClock
from halo.effects import MoveExtensionDeadline, Step
from halo.errors import NotFound, StepOvertaken, StoreUnavailable
from halo.events import (
    DeadlineReached,
    DowntimeCredited,
    EndedBy,
    EndRequested,
    Event,
    PaymentConfirmed,
    PaymentFailed,
)
from halo.payment import PaymentStatus
from halo.rules import step
from halo.session import Party, Session
from halo.store import sessions as room
from halo.store.invariants import find_violations
from halo.store.nodes import NodeLease
from halo.store.payments import Payments
from halo.store.postgres import OperationRepeated, Postgres, open_postgres
from halo.store.sessions import Differences, Page, Sessions, TakenUp
from tests.store.cutting_proxy import Fault, open_cutting_proxy
from tests.store.ground import (
    CONFIG,
    held_inserts,
    lines,
    only,
    open_journal,
    open_node,
    open_session_row,
    sessions_of,
    standing_still,
)
from tests.store.rows import NOW, SetClock, add_customer, add_mitra, count, new_id
from tests.store.test_fakes import answers, asks

OWNER = new_id()
NOBODY: frozenset[Party] = frozenset()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def sessions(db: Postgres) -> Sessions:
    return Sessions(db, OWNER)


async def until_taken(db: Postgres, owner: str) -> None:
    with trio.fail_after(10):
        while not await db.fetch_all("SELECT FROM chat_sessions WHERE owner = %(owner)s", {"owner": owner}):
            await trio.sleep(0.01)


def end(session: Session, by: EndedBy = EndedBy.MITRA) -> Step:
    return step(session, EndRequested(at=NOW + 60_000, by=by))


async def die(db: Postgres, node_id: str, alive_at: int) -> None:
    """The node's last beat was then; its lock is gone with its connection."""
    await db.execute("UPDATE nodes SET alive_at = at(%(at)s) WHERE node_id = %(id)s", {"at": alive_at, "id": node_id})


# ---- one transaction


async def test_every_column_of_a_session_survives_the_way_there_and_back(db: Postgres, sessions: Sessions) -> None:
    opened = await open_session_row(db, OWNER)
    stored = await sessions.load(opened.session.session_id)
    assert stored is not None
    assert stored.session == opened.session
    row = await only(db, "SELECT owner, created_at, updated_at, ended_at FROM chat_sessions")
    assert (row.owner, row.created_at, row.ended_at) == (OWNER, NOW, None)


async def test_an_end_moves_capacity_idleness_and_the_timeline_with_the_row(db: Postgres, sessions: Sessions) -> None:
    mitra_id = await add_mitra(db)
    first = await open_session_row(db, OWNER, mitra_id=mitra_id)
    second = await open_session_row(db, OWNER, mitra_id=mitra_id)
    before = await sessions.load_capacity(mitra_id)
    assert before.count == 2
    await sessions.commit(first.session, end(first.session), new_id(), NOBODY)
    after = await sessions.load_capacity(mitra_id)
    assert (after.count, after.version) == (1, before.version + 1)
    assert (await only(db, "SELECT idle_since FROM mitras")).idle_since == NOW - 1000  # one still lives
    await sessions.commit(second.session, end(second.session), new_id(), NOBODY)
    assert (await only(db, "SELECT idle_since FROM mitras")).idle_since == NOW + 60_000
    assert (await sessions.load_capacity(mitra_id)).count == 0
    row = await only(
        db, "SELECT ended_at, end_reason FROM chat_sessions WHERE session_id = %(id)s", id=first.session.session_id
    )
    assert tuple(row) == (NOW + 60_000, "ended_by_mitra")
    assert (await sessions.load_capacity(new_id())).count == 0


async def test_the_timeline_keeps_cause_and_evidence(db: Postgres, sessions: Sessions) -> None:
    session = (await open_session_row(db, OWNER)).session
    event = DowntimeCredited(at=NOW + 5_000, downtime_ms=3_000, not_before=NOW + 9_000)
    await sessions.commit(session, step(session, event), new_id(), NOBODY)
    opened, credited = await sessions.list_timeline(session.session_id)
    assert (opened.version, opened.event, opened.from_status, opened.to_status) == (1, "mitra_accepted", None, "active")
    assert (credited.version, credited.epoch, credited.at, credited.cause) == (2, 1, NOW + 5_000, "no_owner")
    assert credited.evidence["downtime_ms"] == 3_000


async def test_all_of_a_step_or_nothing(db: Postgres, sessions: Sessions) -> None:
    """The last of its statements fails: neither row, timeline, ledger nor refund is there (M8)."""
    session = (await open_session_row(db, OWNER)).session
    decided = end(session)
    await db.execute("ALTER TABLE outbox ADD CHECK (kind <> 'refund')")
    with pytest.raises(psycopg.errors.CheckViolation):
        await sessions.commit(session, decided, new_id(), NOBODY)
    stored = await sessions.load(session.session_id)
    assert stored is not None
    assert stored.session == session
    assert [await count(db, table) for table in ("session_timeline", "refunds", "customer_transactions")] == [1, 0, 1]


async def test_the_same_operation_twice_is_done_once(db: Postgres, sessions: Sessions) -> None:
    session = (await open_session_row(db, OWNER)).session
    operation_id = new_id()
    await sessions.commit(session, end(session), operation_id, NOBODY)
    with pytest.raises(OperationRepeated):
        await sessions.commit(session, end(session), operation_id, NOBODY)
    assert await count(db, "refunds") == 1


async def test_a_commit_whose_answer_is_lost_has_one_effect_and_is_reported_done(
    database_url: str, db: Postgres
) -> None:
    session = (await open_session_row(db, OWNER)).session
    async with open_cutting_proxy(database_url) as proxy, open_postgres(proxy.url) as through:
        proxy.faults.append(Fault.ANSWER_LOST)
        await Sessions(through, OWNER).commit(session, end(session), new_id(), NOBODY)
        assert proxy.commits >= 1
    assert await count(db, "session_timeline") == 2
    assert await count(db, "refunds") == 1


@pytest.mark.parametrize(
    ("dropped", "left"),
    [("session_extensions_one_payment", "one_pending"), ("session_extensions_one_pending", "one_payment")],
)
async def test_each_unique_index_alone_has_the_last_word(
    db: Postgres, sessions: Sessions, dropped: str, left: str
) -> None:
    """M3 and S2: a second pending extension, on the same session and the same payment, meets whichever index is left."""
    session = (await open_session_row(db, OWNER)).session
    payment = await _pay(db, session)
    await sessions.commit(session, step(session, asks(session, payment)), new_id(), NOBODY)
    await db.execute(f"DROP INDEX {dropped}")
    # As if two nodes had not seen each other: the row is put back to where the second one decided.
    await db.execute(
        "UPDATE chat_sessions SET status = 'active', version = 1, running_since = at(%(at)s), expires_at = at(%(at)s)",
        {"at": NOW},
    )
    await db.execute("DELETE FROM session_timeline WHERE version = 2")
    with pytest.raises(StepOvertaken, match=left):
        await sessions.commit(session, step(session, asks(session, payment)), new_id(), NOBODY)
    assert await count(db, "session_extensions") == 1


async def test_of_two_commits_in_one_instant_one_wins(db: Postgres, sessions: Sessions) -> None:
    session = (await open_session_row(db, OWNER)).session
    told: list[str] = []

    async def commit(event: Event) -> None:
        try:
            await sessions.commit(session, step(session, event), new_id(), NOBODY)
            told.append("done")
        except StepOvertaken:
            told.append("overtaken")

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(commit, DowntimeCredited(at=NOW, downtime_ms=number, not_before=NOW))
        assert sorted(told) == ["done", "overtaken", "overtaken"]
        told.clear()
        stored = await sessions.load(session.session_id)
        assert stored is not None
        session = stored.session


async def test_a_moved_deadline_leaves_a_decided_extension_alone(db: Postgres, sessions: Sessions) -> None:
    session = (await open_session_row(db, OWNER)).session
    extending = step(session, asks(session, await _pay(db, session)))
    await sessions.commit(session, extending, new_id(), NOBODY)
    extension = extending.session.extension
    assert extension is not None
    await db.execute("UPDATE session_extensions SET status = 'accepted', responded_at = now(), decided_by = 'answered'")
    event = DowntimeCredited(at=NOW + 70_000, downtime_ms=5_000, not_before=NOW)
    moved = step(extending.session, event)
    assert any(isinstance(effect, MoveExtensionDeadline) for effect in moved.effects)
    await sessions.commit(extending.session, moved, new_id(), NOBODY)
    assert (await only(db, "SELECT deadline_at FROM session_extensions")).deadline_at == extension.deadline_at


async def _pay(db: Postgres, session: Session) -> str:
    row = await only(
        db,
        """INSERT INTO payment_requests (payment_request_id, customer_id, status, amount, currency, duration_minutes, is_extension,
                                         confirmed_at)
           VALUES (gen_random_uuid(), %(customer_id)s, 'confirmed', 5000, 'IDR', 5, true, now()) RETURNING payment_request_id""",
        customer_id=session.customer_id,
    )
    return str(row.payment_request_id)


async def test_a_session_that_is_gone_is_overtaken_whatever_else_its_step_trips_over(
    db: Postgres, sessions: Sessions
) -> None:
    """The statements travel together: the timeline's foreign key speaks before anybody looks at the guard."""
    session = (await open_session_row(db, OWNER, confirmed=False)).session
    for table in ("session_timeline", "chat_sessions"):
        await db.execute(f"DELETE FROM {table}")
    with pytest.raises(StepOvertaken, match="session_timeline"):
        await sessions.commit(session, end(session), new_id(), NOBODY)
    credit = step(session, DowntimeCredited(at=NOW, downtime_ms=1_000, not_before=NOW))
    with pytest.raises(StepOvertaken, match="session_timeline"):
        await sessions.commit_credits([credit])


async def test_a_constraint_that_stops_an_overtaken_step_first_does_not_hide_that_it_was_overtaken(
    db: Postgres, sessions: Sessions
) -> None:
    session = (await open_session_row(db, OWNER)).session
    decided = end(session)
    moved = step(session, DowntimeCredited(at=NOW, downtime_ms=1_000, not_before=NOW))
    await sessions.commit(session, moved, new_id(), NOBODY)
    await db.execute("DELETE FROM session_timeline WHERE version = 2")
    await db.execute("ALTER TABLE outbox ADD CHECK (kind <> 'refund')")
    with pytest.raises(StepOvertaken):
        await sessions.commit(session, decided, new_id(), NOBODY)


async def test_a_refusal_is_overtaken_when_the_provider_took_the_payment_back_first(
    db: Postgres, sessions: Sessions
) -> None:
    """Else its one cause would be the mitra's, and no cause on record would fit the payment's (M6)."""
    session = (await open_session_row(db, OWNER)).session
    payment = await _pay(db, session)
    extending = step(session, asks(session, payment))
    await sessions.commit(session, extending, new_id(), NOBODY)
    refused = step(extending.session, answers(extending.session, accepted=False))
    await Payments(db, SetClock()).fail(payment)
    with pytest.raises(StepOvertaken, match="payment"):
        await sessions.commit(extending.session, refused, new_id(), NOBODY)
    void = step(extending.session, PaymentFailed(at=NOW + 71_000, config=CONFIG))
    await sessions.commit(extending.session, void, new_id(), NOBODY)
    assert (await find_violations(db))[1] == []


async def test_a_hold_that_is_over_is_overtaken_by_a_confirmation_that_was_first(
    db: Postgres, sessions: Sessions
) -> None:
    """The provider was told that its money counts: no session is ended for want of it."""
    session = (await open_session_row(db, OWNER, confirmed=False)).session
    over = step(session, DeadlineReached(at=session.deadline_at or 0, config=CONFIG))
    settled = await Payments(db, SetClock()).confirm(
        session.payment_request_id, provider_ref="x", amount=5_000, currency="IDR"
    )
    assert (settled.payment.status, settled.waiting_session_id) == (PaymentStatus.CONFIRMED, session.session_id)
    with pytest.raises(StepOvertaken, match="payment"):
        await sessions.commit(session, over, new_id(), NOBODY)
    started = step(session, PaymentConfirmed(at=session.deadline_at or 0))
    await sessions.commit(session, started, new_id(), NOBODY)
    assert (await find_violations(db))[1] == []


# ---- credits in bulk


async def test_many_credits_in_one_commit_leave_what_each_alone_would_leave(db: Postgres, sessions: Sessions) -> None:
    running = (await open_session_row(db, OWNER)).session
    held = (await open_session_row(db, OWNER, confirmed=False)).session
    waiting = (await open_session_row(db, OWNER)).session
    extending = step(waiting, asks(waiting, await _pay(db, waiting)))
    await sessions.commit(waiting, extending, new_id(), NOBODY)
    event = DowntimeCredited(at=NOW + 70_000, downtime_ms=30_000, not_before=NOW + 80_000)
    owed = [step(session, event) for session in (running, held, extending.session)]
    await sessions.commit_credits(owed)
    for credit in owed:
        stored = await sessions.load(credit.session.session_id)
        assert stored is not None
        assert stored.session == credit.session  # with the extension's own deadline
        entry = (await sessions.list_timeline(credit.session.session_id))[-1]
        assert (entry.version, entry.event, entry.cause) == (credit.session.version, "downtime_credited", "no_owner")
        assert entry.from_status == entry.to_status == credit.session.status.value
        assert entry.evidence == dict(credit.evidence)
    assert {row.updated_at for row in await db.fetch_all("SELECT updated_at FROM chat_sessions")} == {NOW + 70_000}
    assert (await find_violations(db))[1] == []


async def test_one_credit_that_was_overtaken_leaves_none_of_its_page(db: Postgres, sessions: Sessions) -> None:
    fine, stale = [(await open_session_row(db, OWNER)).session for _ in range(2)]
    await db.execute("UPDATE chat_sessions SET epoch = 2 WHERE session_id = %(id)s", {"id": stale.session_id})
    event = DowntimeCredited(at=NOW + 70_000, downtime_ms=30_000, not_before=NOW)
    with pytest.raises(StepOvertaken):
        await sessions.commit_credits([step(fine, event), step(stale, event)])
    assert await count(db, "session_timeline", "version > 1") == 0
    assert await count(db, "chat_sessions", "version > 1") == 0


# ---- taking up


async def test_sessions_of_the_dead_are_taken_up_with_a_new_epoch_and_those_of_the_living_are_not(db: Postgres) -> None:
    async with open_node(db) as living, open_node(db) as me:
        dead = NodeLease(db, living._clock)
        await dead.open()
        theirs = await open_session_row(db, living.node_id)
        mine = await open_session_row(db, me.node_id)
        orphan = await open_session_row(db, dead.node_id)
        ended = await open_session_row(db, dead.node_id)
        await Sessions(db, dead.node_id).commit(ended.session, end(ended.session), new_id(), NOBODY)
        (taken,) = await sessions_of(db, me).take_up(100)
        assert taken.stored.session == replace(orphan.session, epoch=2)
        assert await sessions_of(db, me).take_up(100) == []
        epochs = {
            row.session_id: row.epoch for row in await db.fetch_all("SELECT session_id, epoch FROM chat_sessions")
        }
        assert (epochs[theirs.session.session_id], epochs[mine.session.session_id]) == (1, 1)


async def test_a_node_is_dead_when_its_lock_is_gone_and_not_before(db: Postgres) -> None:
    async with open_node(db) as me:
        async with open_node(db) as other:
            await open_session_row(db, other.node_id)
            await die(db, other.node_id, NOW)  # however old its beat: it holds its lock
            assert await sessions_of(db, me).take_up(10) == []
        with trio.fail_after(10):
            while not await sessions_of(db, me).take_up(10):
                await trio.sleep(0.02)


@pytest.mark.parametrize("owner", ["forgotten", "none"])
async def test_sessions_without_any_owner_are_taken_up(db: Postgres, owner: str) -> None:
    opened = await open_session_row(db, new_id())
    if owner == "none":
        await db.execute("UPDATE chat_sessions SET owner = NULL")
    async with open_node(db) as me:
        (taken,) = await sessions_of(db, me).take_up(10)
        assert taken.stored.session.session_id == opened.session.session_id
        row = await only(db, "SELECT owner, epoch FROM chat_sessions")
        assert tuple(row) == (me.node_id, 2)


@pytest.mark.parametrize(("last_beat", "last_write", "kept"), [(900, 100, 900), (100, 900, 900)])
async def test_downtime_counts_from_the_last_beat_or_the_last_write_whichever_is_later(
    db: Postgres, last_beat: int, last_write: int, kept: int
) -> None:
    dead = NodeLease(db, SystemClock())
    await dead.open()
    await open_session_row(db, dead.node_id)
    await die(db, dead.node_id, NOW + last_beat)
    await db.execute("UPDATE chat_sessions SET updated_at = at(%(at)s)", {"at": NOW + last_write})
    async with open_node(db) as me:
        (taken,) = await sessions_of(db, me).take_up(10)
        assert taken.last_kept_at == NOW + kept
        row = await only(db, "SELECT updated_at FROM chat_sessions")
        assert row.updated_at == NOW + kept  # until the credit is written, the row itself remembers


async def test_who_took_up_and_died_without_a_step_has_kept_no_clock(db: Postgres) -> None:
    first, second = NodeLease(db, SystemClock()), NodeLease(db, SystemClock())
    await first.open()
    await second.open()
    await open_session_row(db, first.node_id)
    await die(db, first.node_id, NOW + 1_000)
    await db.execute("UPDATE chat_sessions SET updated_at = at(%(at)s)", {"at": NOW})
    (taken,) = await sessions_of(db, second).take_up(10)
    await die(db, second.node_id, NOW + 50_000)
    async with open_node(db) as me:
        (again,) = await sessions_of(db, me).take_up(10)
        assert (taken.last_kept_at, again.last_kept_at) == (NOW + 1_000, NOW + 1_000)
        assert again.stored.session.epoch == 3


async def test_downtime_counts_from_the_start_of_a_gap_whose_credits_died_with_their_node(db: Postgres) -> None:
    """The beat was back, and the node was killed before it had written down what it owed."""
    dead = NodeLease(db, SystemClock())
    await dead.open()
    await open_session_row(db, dead.node_id)
    await die(db, dead.node_id, NOW + 90_000)
    await db.execute("UPDATE nodes SET gap_since = at(%(at)s)", {"at": NOW + 20_000})
    await db.execute("UPDATE chat_sessions SET updated_at = at(%(at)s)", {"at": NOW})
    async with open_node(db) as me:
        (taken,) = await sessions_of(db, me).take_up(10)
        assert taken.last_kept_at == NOW + 20_000


async def test_a_session_that_another_node_took_up_meanwhile_stays_there(db: Postgres) -> None:
    """Both saw its owner dead; the other one committed between our look and our lock."""
    dead, mine, theirs = NodeLease(db, SystemClock()), Sessions(db, new_id()), new_id()
    await dead.open()
    await open_session_row(db, dead.node_id)

    async def take_up() -> list[str]:
        return [taken.stored.session.session_id for taken in await mine.take_up(10)]

    async with standing_still(db, take_up) as held:
        await db.execute("UPDATE chat_sessions SET owner = %(owner)s, epoch = epoch + 1", {"owner": theirs})
    assert held.taken == []
    assert tuple(await only(db, "SELECT owner, epoch FROM chat_sessions")) == (theirs, 2)


async def test_a_restore_goes_in_pages_soonest_deadline_first_and_misses_nobody(db: Postgres) -> None:
    steps = [await open_session_row(db, OWNER, at=NOW + shift) for shift in (5_000, 1_000, 4_000, 2_000, 3_000)]
    async with open_node(db) as me:
        pages = [await sessions_of(db, me).take_up(2) for _ in range(4)]
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    wanted = [opened.session.session_id for opened in sorted(steps, key=lambda opened: opened.at)]
    taken = [{taken.stored.session.session_id for taken in page} for page in pages]
    assert taken == [set(wanted[:2]), set(wanted[2:4]), set(wanted[4:]), set()]


async def test_two_nodes_that_restore_at_once_share_without_overlap(db: Postgres) -> None:
    for _ in range(30):
        await open_session_row(db, OWNER)
    taken: list[str] = []

    async def restore(lease: NodeLease) -> None:
        while page := await sessions_of(db, lease).take_up(4):
            taken.extend(one.stored.session.session_id for one in page)

    async with open_node(db) as one, open_node(db) as other, trio.open_nursery() as nursery:
        nursery.start_soon(restore, one)
        nursery.start_soon(restore, other)
    assert len(taken) == len(set(taken)) == 30


async def test_taking_up_counts_the_messages_that_are_there(db: Postgres) -> None:
    session = (await open_session_row(db, OWNER)).session
    async with open_journal(db) as journal:
        await journal.append(session.session_id, 1, lines(1, 12))
    async with open_node(db) as me:
        (taken,) = await sessions_of(db, me).take_up(10)
    assert taken.stored.last_seq == 12


async def test_an_append_under_way_counts_before_its_session_goes_to_another_node(db: Postgres) -> None:
    """Its node is believed dead and runs on: what it acknowledges at the old epoch must be known to the new owner (S3, C4)."""
    session = (await open_session_row(db, OWNER)).session
    taken: list[TakenUp] = []
    async with open_journal(db) as journal, open_node(db) as me, held_inserts(db) as held:
        held.nursery.start_soon(journal.append, session.session_id, 1, lines(1, 1))
        await held.wait()

        async def take_up() -> None:
            taken.extend(await sessions_of(db, me).take_up(10))

        held.nursery.start_soon(take_up)
        await until_taken(db, me.node_id)
        async with open_journal(db) as later:
            with pytest.raises(StepOvertaken):  # it looks at the epoch now: it waits for nobody, and nobody for it
                await later.append(session.session_id, 1, lines(2, 2))
        assert taken == []
        await held.let_go()
    assert [(one.stored.session.epoch, one.stored.last_seq) for one in taken] == [(2, 1)]
    assert await count(db, "messages") == 1


async def test_an_append_that_does_not_end_leaves_its_session_for_the_next_look(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "APPENDS_SECONDS", 0.05)
    session = (await open_session_row(db, OWNER)).session
    async with open_journal(db) as journal, open_node(db) as me, held_inserts(db) as held:
        held.nursery.start_soon(journal.append, session.session_id, 1, lines(1, 1))
        await held.wait()
        mine = sessions_of(db, me)
        with pytest.raises(StoreUnavailable):
            await mine.take_up(10)
        with pytest.raises(StoreUnavailable):
            await mine.compare({})
        await held.let_go()
        monkeypatch.setattr(room, "APPENDS_SECONDS", 5.0)
        (stray,) = (await mine.compare({})).strays
    assert (stray.stored.session.epoch, stray.stored.last_seq) == (2, 1)


async def test_strays_are_sessions_of_ours_that_nobody_keeps(db: Postgres, sessions: Sessions) -> None:
    kept, stray = [(await open_session_row(db, OWNER)).session for _ in range(2)]
    await open_session_row(db, new_id())
    ended = (await open_session_row(db, OWNER)).session
    await sessions.commit(ended, end(ended), new_id(), NOBODY)
    (found,) = (await sessions.compare({kept.session_id: 1})).strays
    assert found.stored.session == stray
    assert await sessions.compare({kept.session_id: 1, stray.session_id: 1}) == Differences([], {})


async def test_what_is_ours_no_more_is_told_and_hides_no_stray(db: Postgres, sessions: Sessions) -> None:
    """As many rows as actors, and still not the same."""
    stray = (await open_session_row(db, OWNER)).session
    moved = (await open_session_row(db, new_id())).session
    ended = (await open_session_row(db, OWNER)).session
    await sessions.commit(ended, end(ended), new_id(), NOBODY)
    unknown = new_id()
    differences = await sessions.compare({moved.session_id: 1, ended.session_id: 1, unknown: 4})
    assert [one.stored.session for one in differences.strays] == [stray]
    assert differences.lost == {moved.session_id: 1, ended.session_id: 1, unknown: 4}


async def test_one_that_went_and_came_back_is_both_lost_and_a_stray(db: Postgres, sessions: Sessions) -> None:
    session = (await open_session_row(db, OWNER)).session
    await db.execute("UPDATE chat_sessions SET epoch = 3")
    differences = await sessions.compare({session.session_id: 1})
    assert [one.stored.session.epoch for one in differences.strays] == [3]
    assert differences.lost == {session.session_id: 1}


# ---- reading what was said


async def test_a_participant_reads_in_pages_how_much_there_is(db: Postgres, sessions: Sessions) -> None:
    session = (await open_session_row(db, OWNER)).session
    async with open_journal(db) as journal:
        assert await sessions.list_messages_to(session.mitra_id, session.session_id, 0, 10) == Page([], 0)
        await journal.append(session.session_id, 1, lines(1, 5))
    for reader in (session.customer_id, session.mitra_id):
        page = await sessions.list_messages_to(reader, session.session_id, 1, 3)
        assert page == Page(await sessions.list_messages(session.session_id, 1, 3), 5)
        assert [message.seq for message in page.messages] == [2, 3, 4]
        assert await sessions.list_messages_to(reader, session.session_id, 99, 3) == Page([], 5)


async def test_who_takes_no_part_any_more_reads_nothing_whatever_her_node_believes(
    db: Postgres, sessions: Sessions
) -> None:
    """The rows may hold what was said to her successor (X1)."""
    session = (await open_session_row(db, OWNER)).session
    async with open_journal(db) as journal:
        await journal.append(session.session_id, 1, lines(1, 1))
    successor = await add_mitra(db)
    await db.execute("UPDATE chat_sessions SET mitra_id = %(id)s", {"id": successor})
    for stranger in (session.mitra_id, new_id()):
        with pytest.raises(NotFound):
            await sessions.list_messages_to(stranger, session.session_id, 0, 10)
    assert (await sessions.list_messages_to(successor, session.session_id, 0, 10)).last_seq == 1
    with pytest.raises(NotFound):
        await sessions.list_messages_to(successor, new_id(), 0, 10)


async def test_a_crowd_that_comes_back_reads_its_histories_and_ids_in_a_few_statements(database_url: str) -> None:
    """Each gets its own, in order and from where it was; a stranger among them gets nothing; and one connection is enough."""
    async with open_postgres(database_url, size=1) as db, open_journal(db) as journal:
        sessions = Sessions(db, OWNER)
        chats = [(await open_session_row(db, OWNER)).session for _ in range(20)]
        for number, chat in enumerate(chats):
            await journal.append(chat.session_id, 1, lines(1, number + 1))
        pages: dict[tuple[int, str], Page] = {}
        ids: dict[int, list[tuple[int, str, str]]] = {}
        strangers = 0

        async def read(number: int, reader_id: str) -> None:
            pages[number, reader_id] = await sessions.list_messages_to(reader_id, chats[number].session_id, 2, 200)

        async def read_ids(number: int) -> None:
            ids[number] = await sessions.list_message_ids(chats[number].session_id, 0, number + 1)

        async def pry(number: int) -> None:
            nonlocal strangers
            with pytest.raises(NotFound):
                await sessions.list_messages_to(chats[number - 1].mitra_id, chats[number].session_id, 0, 200)
            strangers += 1

        before = db.statements
        async with trio.open_nursery() as nursery:
            for number, chat in enumerate(chats):
                for reader_id in (chat.customer_id, chat.mitra_id):
                    nursery.start_soon(read, number, reader_id)
                nursery.start_soon(read_ids, number)
                nursery.start_soon(pry, number)
        # 60 pages of 200 at 1,000 rows an answer, each statement but the last with five; ids go into the next one all together
        assert db.statements - before <= 1 + 12 + 1 + 2
        assert strangers == 20
        for number, chat in enumerate(chats):
            expected = Page(await sessions.list_messages(chat.session_id, 2, 200), number + 1)
            assert [message.seq for message in expected.messages] == list(range(3, number + 2))
            assert pages[number, chat.customer_id] == pages[number, chat.mitra_id] == expected
            assert ids[number] == [(seq, "customer", f"customer-{seq}") for seq in range(1, number + 2)]


# ---- looking things up


async def test_the_living_sessions_of_a_person_in_the_order_of_their_opening(db: Postgres, sessions: Sessions) -> None:
    customer, mitra = await add_customer(db), await add_mitra(db)
    later = await open_session_row(db, OWNER, customer_id=customer, mitra_id=mitra, at=NOW + 9)
    earlier = await open_session_row(db, OWNER, customer_id=customer, at=NOW)
    wanted = [earlier.session.session_id, later.session.session_id]
    assert await sessions.list_living_of(customer) == wanted
    assert await sessions.list_living_of(mitra) == [later.session.session_id]
    await sessions.commit(earlier.session, end(earlier.session), new_id(), NOBODY)
    assert await sessions.list_living_of(customer) == [later.session.session_id]


async def test_of_a_deactivated_mitra_those_living_sessions_are_listed_that_seek_no_other(
    db: Postgres, sessions: Sessions
) -> None:
    gone, stays = await add_mitra(db), await add_mitra(db)
    expected = {
        (await open_session_row(db, OWNER, mitra_id=gone, confirmed=paid)).session.session_id for paid in (True, False)
    }
    seeking = (await open_session_row(db, OWNER, mitra_id=gone)).session
    await db.execute(
        "UPDATE chat_sessions SET status = 'rerouting', running_since = NULL, expires_at = NULL WHERE session_id = %(id)s",
        {"id": seeking.session_id},
    )
    over = (await open_session_row(db, OWNER, mitra_id=gone)).session
    await sessions.commit(over, end(over), new_id(), NOBODY)
    await open_session_row(db, new_id(), mitra_id=gone)
    await open_session_row(db, OWNER, mitra_id=stays)
    assert await sessions.list_without_active_mitra() == {}
    await db.execute("UPDATE mitras SET is_active = false WHERE mitra_id = %(id)s", {"id": gone})
    assert await sessions.list_without_active_mitra() == dict.fromkeys(expected, gone)
