"""The registry: crashes stay where they happen, sessions are taken up and given up whole, and there is one door to them."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.actors.supervisor import RestartBudget
from halo.errors import ActorFault, Draining, ExtensionResolved, NotFound, Refusal, SessionNotActive, StoreUnavailable
from halo.events import EndedBy
from halo.payment import PaymentStatus
from halo.session import EndReason, ExtensionStatus, Party, SessionStatus
from tests.actors.fakes import AWAY, OVERTAKEN, START, UNKNOWN, Broken, Chat, FakeEar, Fault, House, open_house

BROKEN = Fault(before=Broken)
BROKEN_AFTER = Fault(after=Broken)
BUDGET = RestartBudget(restarts=2, period_seconds=60)


async def settle() -> None:
    await wait_all_tasks_blocked()


async def refused_with(call: Any) -> type[Refusal]:
    with pytest.raises(Refusal) as caught:
        await call
    return type(caught.value)


# ---- crashes


async def test_a_crash_is_told_as_retryable_and_never_replayed_and_the_sockets_stay(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", BROKEN)
        assert await refused_with(chat.asks()) is ActorFault
        assert ActorFault.retryable
        await trio.sleep(1)
        assert (chat.customer.closed, chat.mitra.closed) == ([], [])
        assert house.database.tables.extensions == {}
        assert house.node.calls.count("commit") == 1
        await chat.asks()  # it runs again
        assert chat.mitra.types() == ["extension_request", "session_paused"]
        assert len(claims_errors) == 1


async def test_everything_in_hand_is_refused_at_a_crash_and_what_waited_behind_is_done(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        held = trio.Event()
        house.node.fails("append", Fault(held=held, before=Broken))
        chat.says(chat.customer, "m1")
        await settle()
        chat.says(chat.customer, "m2")  # in the mailbox, not in hand
        held.set()
        await trio.sleep(1)
        assert chat.customer.answers == [("m1", "INTERNAL"), ("m2", 1)]


async def test_what_a_crashed_commit_had_done_is_spoken_of_after_the_restart(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", BROKEN_AFTER)
        assert await refused_with(chat.asks()) is ActorFault
        await trio.sleep(1)
        assert chat.mitra.types() == ["extension_request", "session_paused"]
        assert chat.actor.session == chat.row


async def test_what_a_crashed_append_had_stored_is_heard_once_after_the_restart(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("append", BROKEN_AFTER)
        chat.says(chat.customer, "m1")
        await trio.sleep(1)
        chat.says(chat.customer, "m1")
        await settle()
        assert chat.customer.answers == [("m1", "INTERNAL"), ("m1", 1)]
        assert chat.mitra.bodies() == [(1, "body of m1")]


async def test_who_was_answered_before_a_crash_is_not_refused_after_it_and_everybody_hears_what_was_stored(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    """It crashed behind an acknowledgement in the middle of what one append had stored."""
    async with open_house() as house:
        chat = await house.opens()
        stored = chat.customer.stored

        def crashes(client_id: str, seq: int, at: int) -> None:
            stored(client_id, seq, at)
            if client_id == "m2":
                raise Broken

        chat.customer.stored = crashes  # type: ignore[method-assign]
        for id_ in ("m1", "m2", "m3"):
            chat.says(chat.customer, id_)
        await trio.sleep(1)
        assert chat.customer.answers == [("m1", 1), ("m2", 2), ("m3", "INTERNAL")]
        assert [seq for seq, _ in chat.mitra.bodies()] == [1, 2, 3]
        chat.says(chat.customer, "m3")
        await settle()
        assert chat.customer.answers[-1] == ("m3", 3)
        assert len(claims_errors) == 1


@pytest.mark.parametrize("waits", ["credit", "stop"])
async def test_what_nobody_asked_for_survives_a_crash_before_it(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord], waits: str
) -> None:
    """A lost credit would cost the customer its minutes, a lost stop would hold up the drain."""
    async with open_house(reconnect_grace_seconds=0) as house:
        chat = await house.opens()
        house.node.fails("append", BROKEN)
        chat.says(chat.customer, "m1")
        if waits == "credit":
            house.loses_clocks_for(7_000)
            await trio.sleep(1)
            assert chat.row.deadline_at == START + 607_000
        else:
            with trio.fail_after(5):
                await house.registry.drain()
            assert len(house.registry) == 0
        assert chat.customer.answers == [("m1", "INTERNAL")]


async def test_a_crash_while_the_store_is_away_does_not_spend_the_budget(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    """A minute without Postgres must not park whoever happened to crash in it."""
    async with open_house(budget=BUDGET) as house:
        chat = await house.opens(minutes=10)
        house.node.fails("commit", BROKEN)
        house.node.fails("load", *[AWAY] * 100)
        assert await refused_with(chat.asks()) is ActorFault
        await trio.sleep(60)
        assert not chat.actor.is_parked
        assert len(claims_errors) == 1
        await chat.asks()


async def test_past_its_budget_a_session_is_parked_alone(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=BUDGET) as house:
        sick, well = await house.opens(), await house.opens()
        for _ in range(3):
            house.node.fails("commit", BROKEN)
            assert await refused_with(sick.asks()) is ActorFault
            await trio.sleep(0.2)
        assert sick.actor.is_parked
        assert (sick.customer.closed, sick.mitra.closed) == ([], [])
        assert await refused_with(sick.asks()) is ActorFault
        with pytest.raises(ActorFault):
            sick.says(sick.customer, "m1")
        await house.registry.payment_settled(sick.session_id)
        assert len(sick.actor.mailbox) == 0
        await trio.sleep(1000)
        assert sick.row.status is SessionStatus.ACTIVE  # an operator has to look
        assert well.row.status is SessionStatus.ENDED  # and the other lived as ever
        assert [type(actor) for actor in house.registry] == [type(sick.actor)]


async def test_other_sessions_notice_nothing_of_a_crash(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    """X6: not even the one whose commands are under way in the same moment."""
    async with open_house() as house:
        sick, *others = [await house.opens() for _ in range(5)]
        house.node.fails("commit", BROKEN, *[Fault(delay_seconds=0.01)] * 4)
        told: list[str] = []

        async def ask(chat: Chat) -> None:
            try:
                told.append((await chat.asks()).status)
            except ActorFault:
                told.append("fault")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, sick)
            await settle()
            for chat in others:
                nursery.start_soon(ask, chat)
        assert sorted(told) == ["fault", *["pending"] * 4]
        assert all(chat.mitra.types() == ["extension_request", "session_paused"] for chat in others)
        assert len(claims_errors) == 1


async def test_draining_does_not_wait_for_the_parked(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=RestartBudget(restarts=0)) as house:
        sick, _ = await house.opens(), await house.opens()
        house.node.fails("commit", BROKEN)
        assert await refused_with(sick.asks()) is ActorFault
        await settle()
        with trio.fail_after(5):
            await house.registry.drain()
        assert [actor.is_parked for actor in house.registry] == [True]


async def test_draining_stops_who_is_opened_meanwhile(autojump_clock: MockClock) -> None:
    """An accept was under way: its session gets its actor, which stops at once."""
    async with open_house() as house:
        chat = await house.opens()
        held = trio.Event()
        house.node.fails("append", Fault(held=held))
        chat.says(chat.customer, "m1")
        await settle()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(house.registry.drain)
                await settle()
                late = await house.opens()
                held.set()
        assert len(house.registry) == 0
        assert late.row.status is SessionStatus.ACTIVE


async def test_draining_is_over_when_the_last_one_is_parked(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=RestartBudget(restarts=0)) as house:
        chat = await house.opens()
        held = trio.Event()
        house.node.fails("append", Fault(held=held, before=Broken))
        chat.says(chat.customer, "m1")
        await settle()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(house.registry.drain)
                await settle()
                held.set()
        assert chat.actor.is_parked


# ---- ownership


async def test_an_actor_whose_session_was_taken_by_another_node_sends_its_sockets_there_and_stops(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.alive = False  # as the other node sees it: our lock is gone
        async with open_house(house.database) as other:
            assert await other.registry.restore() == 1
            house.node.alive = True
            assert await refused_with(chat.asks()) is Draining
            await settle()
            for ear in (chat.customer, chat.mitra):
                assert ear.types() == ["reconnect"]
                assert ear.heard[0]["reason"] == "moved"
                assert ear.closed == [4000]
            assert house.registry.find(chat.session_id) is None
            assert house.database.tables.extensions == {}
            other.node.alive_at = house.clock.now()


async def test_messages_of_a_stale_epoch_are_refused_and_never_stored(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.alive = False
        async with open_house(house.database) as other:
            await other.registry.restore()
            house.node.alive = True
            chat.says(chat.customer, "m1")
            await settle()
            assert chat.customer.answers == [("m1", "STORE_UNAVAILABLE")]
            assert chat.messages == []
            assert chat.customer.closed == [4000]


async def test_a_session_taken_up_from_ourselves_replaces_the_older_incarnation(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        row = house.database.tables.sessions[chat.session_id]
        house.database.tables.sessions[chat.session_id] = type(row)(row.session, None, row.updated_at)
        older = chat.actor
        assert await house.registry.restore() == 1
        await settle()
        assert chat.actor is not older
        assert chat.customer.closed == [4000]
        chat.listens()
        await chat.asks()
        assert chat.row.epoch == 2


# ---- restore


async def restored(house: House, chat: Chat) -> Chat:
    """The same chat in another house."""
    chat.house = house
    chat.customer, chat.mitra = FakeEar(Party.CUSTOMER, chat.customer_id), FakeEar(Party.MITRA, chat.mitra_id)
    chat.listens()
    return chat


async def test_a_restart_credits_the_downtime_and_the_session_goes_on(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=5)
        await trio.sleep(60)
        house.crash()
    await trio.sleep(1000)
    async with open_house(house.database) as second:
        assert await second.registry.restore() == 1
        await settle()
        await restored(second, chat)
        assert chat.history == ["mitra_accepted", "downtime_credited"]
        assert chat.row.deadline_at == START + 1_300_000
        await trio.sleep(239)
        assert chat.history[-1] == "downtime_credited"
        await trio.sleep(2)
        assert chat.row.status is SessionStatus.CLOSING
        assert chat.row.served_ms == 300_000


@pytest.mark.parametrize("away_seconds", [0.5, 500.0])
async def test_deadlines_that_fell_meanwhile_wait_for_people_to_return(
    autojump_clock: MockClock, away_seconds: float
) -> None:
    async with open_house(extension_timeout_seconds=60) as house:
        chat = await house.opens(minutes=5)
        extension = await chat.asks()
        await trio.sleep(59.9)
        house.crash()
    await trio.sleep(away_seconds)
    back = trio.current_time()
    async with open_house(house.database, reconnect_grace_seconds=10) as second:
        await second.registry.restore()
        await settle()
        await restored(second, chat)
        await trio.sleep(9.5)
        assert house.database.tables.extensions[extension.extension_id][0].status is ExtensionStatus.PENDING
        await trio.sleep(1)
        assert house.database.tables.extensions[extension.extension_id][0].status is ExtensionStatus.ACCEPTED
        assert chat.customer.when("extension_response") == [pytest.approx(back + 10, abs=0.01)]
        assert chat.history.count("deadline_reached") == 1


async def test_a_large_restore_goes_page_by_page(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halo.actors.registry.TAKE_UP_PAGE", 3)
    async with open_house() as house:
        chats = [await house.opens() for _ in range(7)]
        ended = chats.pop()
        await house.registry.end(ended.session_id, EndedBy.ADMIN, user_id=None)
        house.crash()
    async with open_house(house.database) as second:
        assert await second.registry.restore() == 6
        assert second.node.calls.count("take_up") == 3
        assert len(second.registry) == 6
        assert await second.registry.restore() == 0
        await settle()
        assert all(chat.row.epoch == 2 for chat in chats)


async def test_sessions_whose_taking_up_was_not_answered_are_found_the_next_time(autojump_clock: MockClock) -> None:
    """They are ours in the store and kept by nobody: without this they would stay so until the next restart."""
    async with open_house() as house:
        chat = await house.opens(minutes=5)
        await trio.sleep(60)
        house.crash()
    await trio.sleep(100)
    async with open_house(house.database) as second:
        second.node.fails("take_up", UNKNOWN)
        assert await refused_with(second.registry.restore()) is StoreUnavailable
        assert len(second.registry) == 0
        await trio.sleep(5)
        assert await second.registry.restore() == 1
        await settle()
        assert chat.row.deadline_at == START + 405_000  # all of it is credited, the wait for the second try too
        assert await second.registry.restore() == 0


async def test_who_dies_before_its_first_credit_leaves_all_of_the_downtime_to_the_next(
    autojump_clock: MockClock,
) -> None:
    """Two crashes in a row: the first downtime must not be forgotten because somebody lived for a moment between them."""
    async with open_house() as house:
        chat = await house.opens(minutes=5)
        await trio.sleep(60)
        house.crash()
    await trio.sleep(100)
    async with open_house(house.database) as second:
        second.node.fails("commit_credits", AWAY)
        second.node.fails("commit", *[AWAY] * 100)
        assert await second.registry.restore() == 1
        await trio.sleep(3)
        second.crash()
    await trio.sleep(50)
    async with open_house(house.database) as third:
        assert await third.registry.restore() == 1
        await settle()
        assert chat.row.deadline_at == START + 453_000


async def test_a_restore_credits_everybody_in_one_commit(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chats = [await house.opens(minutes=5) for _ in range(20)]
        house.crash()
    await trio.sleep(100)
    async with open_house(house.database) as second:
        assert await second.registry.restore() == 20
        await settle()
        assert second.node.calls.count("commit_credits") == 1
        assert second.node.calls.count("commit") == 0
        assert {chat.row.deadline_at for chat in chats} == {START + 400_000}
        assert not second.registry.owes_downtime()


@pytest.mark.parametrize("fault", [AWAY, UNKNOWN, OVERTAKEN])
async def test_where_nobody_could_be_credited_together_each_is_credited_alone_and_once(
    autojump_clock: MockClock, fault: Fault
) -> None:
    async with open_house() as house:
        chats = [await house.opens(minutes=5) for _ in range(3)]
        house.crash()
    await trio.sleep(100)
    async with open_house(house.database) as second:
        second.node.fails("commit_credits", fault)
        assert await second.registry.restore() == 3
        await trio.sleep(1)
        assert {chat.row.deadline_at for chat in chats} == {START + 400_000}
        assert {tuple(chat.history[:2]) for chat in chats} == {("mitra_accepted", "downtime_credited")}


async def test_money_that_came_while_its_session_had_no_actor_starts_it_at_the_restore(
    autojump_clock: MockClock,
) -> None:
    """The webhook had committed, and the node died before the nudge."""
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        await trio.sleep(5)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.CONFIRMED)
        house.crash()
    async with open_house(house.database) as second:
        await second.registry.restore()
        await settle()
        assert (chat.row.status, chat.row.started_at) == (SessionStatus.ACTIVE, START + 5_000)


async def test_a_session_whose_opening_was_answered_late_starts_with_all_of_its_minutes(
    autojump_clock: MockClock,
) -> None:
    """The accept was committed, its answer lost, and the search finds it matched only when the store is back."""
    async with open_house() as house:
        opened = house.commits_opening(minutes=10)
        await trio.sleep(60)
        house.loses_clocks_for(60_000)  # the beat is back first, and knows nothing of this one
        await house.registry.opened(opened)
        await trio.sleep(1)
        row = house.database.session(opened.session.session_id)
        assert row.expires_at == START + 660_000
        assert house.database.history(row.session_id) == ["mitra_accepted", "downtime_credited"]


async def test_a_session_that_pairing_committed_without_learning_of_it_gets_its_actor(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        async with open_house(house.database) as other:
            stray = await other.opens()
            house.database.tables.sessions[stray.session_id] = replace(
                house.database.tables.sessions[stray.session_id], owner=house.node.owner
            )
            await trio.sleep(5)
            assert await house.registry.restore() == 1
            await settle()
            assert house.registry.find(stray.session_id) is not None
            assert chat.row.epoch == stray.row.epoch == 1


async def test_a_living_nodes_sessions_are_left_alone(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        async with open_house(house.database) as other:
            assert await other.registry.restore() == 0
            assert chat.row.epoch == 1


# ---- the door


async def test_opened_twice_is_started_once(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        actor = chat.actor
        await house.registry.opened(_Step(chat.row))  # type: ignore[arg-type]
        assert chat.actor is actor
        assert house.outside.changed == [chat.mitra_id, chat.mitra_id]


class _Step:
    def __init__(self, session: Any) -> None:
        self.session = session


async def test_an_ended_session_is_viewed_and_refuses_by_name(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        extension = await chat.asks()
        chat.says(chat.customer, "m1")
        await house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=chat.customer_id)
        await settle()
        view = await house.registry.view(chat.session_id, user_id=chat.mitra_id)
        assert (view.session.status, view.last_seq) == (SessionStatus.ENDED, 0)
        assert await refused_with(chat.asks()) is SessionNotActive
        assert await refused_with(chat.answers(extension, accepted=True)) is ExtensionResolved
        assert await refused_with(chat.cancels(extension)) is ExtensionResolved
        unknown = house.registry.respond_extension(
            chat.session_id, chat.session_id, mitra_id=chat.mitra_id, accepted=True
        )
        assert await refused_with(unknown) is NotFound
        assert await refused_with(house.registry.end(chat.session_id, EndedBy.ADMIN, user_id=None)) is SessionNotActive


async def test_a_session_that_lives_elsewhere_is_answered_as_retryable(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        async with open_house(house.database) as other:
            chat.house = other
            assert await refused_with(chat.asks()) is StoreUnavailable
            await other.registry.drain()
            assert await refused_with(chat.asks()) is Draining
            other.node.fails("load", AWAY)
            assert await refused_with(chat.view()) is StoreUnavailable


async def test_a_users_living_sessions_are_listed_and_the_ended_are_not(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat, other = await house.opens(), await house.opens()
        assert [view.session.session_id for view in await house.registry.living_of(chat.mitra_id)] == [chat.session_id]
        await house.registry.end(chat.session_id, EndedBy.ADMIN, user_id=None)
        assert await house.registry.living_of(chat.mitra_id) == []
        assert len(await house.registry.living_of(other.customer_id)) == 1


async def test_a_nudge_for_a_session_that_is_not_here_is_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        async with open_house(house.database) as other:
            await other.registry.payment_settled(chat.session_id)
        assert chat.history == ["mitra_accepted"]


async def test_a_nudge_fits_into_a_full_mailbox(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.FAILED)
        for number in range(512):
            chat.says(chat.customer, f"m{number}")
        await house.registry.payment_settled(chat.session_id)
        assert len(chat.actor.mailbox) == 513
        await settle()
        assert chat.row.end_reason is EndReason.PAYMENT_FAILED


async def test_cancelling_everything_leaves_nobody_waiting(autojump_clock: MockClock) -> None:
    """As when the drain has taken too long: who still waits is told to come back."""
    told: list[type[Refusal]] = []

    async def ask(chat: Chat) -> None:
        told.append(await refused_with(chat.asks()))

    async with trio.open_nursery() as askers:
        async with open_house() as house:
            chat = await house.opens()
            house.node.fails("commit", Fault(held=trio.Event()))
            askers.start_soon(ask, chat)
            await settle()
    assert told == [Draining]


async def test_an_unknown_commit_at_the_end_of_a_node_is_found_by_the_next(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", UNKNOWN)
        assert await refused_with(chat.asks()) is StoreUnavailable
        house.crash()
    async with open_house(house.database) as second:
        await second.registry.restore()
        await settle()
        await restored(second, chat)
        assert chat.actor.view().session.status is SessionStatus.EXTENDING
        assert chat.actor.view().session.extension is not None
