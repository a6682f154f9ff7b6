"""Ownership: sessions are taken up and given up whole, with their time, and nobody keeps what another node has."""

import logging
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from halo.actors.supervisor import RestartBudget
from halo.errors import Draining, StoreUnavailable
from halo.events import EndedBy
from halo.payment import PaymentStatus
from halo.session import ExtensionStatus, Party, SessionStatus
from tests.actors.fakes import AWAY, OVERTAKEN, START, UNKNOWN, Broken, Chat, FakeEar, Fault, House, open_house
from tests.actors.test_registry import refused_with, settle

BROKEN = Fault(before=Broken)


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


async def test_whose_session_was_taken_unnoticed_sends_its_sockets_there_at_the_next_look(
    autojump_clock: MockClock,
) -> None:
    """The lease was gone for less than a gap, and nobody has said anything since (C4, X1)."""
    async with open_house() as house:
        chat, kept = await house.opens(), await house.opens()
        house.node.alive = False
        async with open_house(house.database) as other:
            assert await other.registry.restore() == 2
            row = house.database.tables.sessions[kept.session_id]
            mine = replace(row, session=replace(row.session, epoch=1), owner=house.node.owner)
            house.database.tables.sessions[kept.session_id] = mine  # this one was not taken after all
            house.node.alive = True
            other.node.alive_at = house.clock.now()
            assert await house.registry.restore() == 0
            await trio.sleep(1)
            for ear in (chat.customer, chat.mitra):
                assert (ear.types(), ear.closed) == (["reconnect"], [4000])
            assert house.registry.find(chat.session_id) is None
            assert (kept.customer.heard, kept.customer.closed) == ([], [])
            kept.says(kept.customer, "m1")
            await settle()
            assert kept.customer.answers == [("m1", 1)]


async def test_an_actor_in_doubt_whose_session_is_still_its_own_goes_on(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.actor.doubt()
        await trio.sleep(1)
        chat.says(chat.customer, "m1")
        await settle()
        assert chat.customer.answers == [("m1", 1)]
        assert chat.customer.closed == []


async def test_a_parked_actor_whose_session_another_node_has_sends_its_sockets_there(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=RestartBudget(restarts=0)) as house:
        chat = await house.opens()
        house.node.fails("append", BROKEN)
        chat.says(chat.customer, "m1")
        await settle()
        assert chat.actor.is_parked
        house.node.alive = False
        async with open_house(house.database) as other:
            assert await other.registry.restore() == 1
            house.node.alive = True
            assert await house.registry.restore() == 0
            assert chat.customer.closed == [4000]
            assert (len(house.registry), house.registry.parked_at(chat.session_id)) == (0, None)
            assert not await house.registry.revive(chat.session_id)


async def test_a_session_that_went_and_came_back_is_kept_at_its_new_epoch(autojump_clock: MockClock) -> None:
    """Another node had it and died, we took it up again, and the answer to that was lost."""
    async with open_house() as house:
        chat = await house.opens()
        row = house.database.tables.sessions[chat.session_id]
        again = replace(row, session=replace(row.session, epoch=3))
        house.database.tables.sessions[chat.session_id] = again
        older = chat.actor
        assert await house.registry.restore() == 1
        await settle()
        assert chat.actor is not older
        assert chat.customer.closed == [4000]
        chat.listens()
        chat.says(chat.customer, "m1")
        await settle()
        assert chat.customer.answers == [("m1", 1)]
        assert await house.registry.restore() == 0
        await trio.sleep(1)
        assert chat.actor.session.epoch == 3


async def test_an_end_that_is_being_committed_while_the_rows_are_compared_is_no_loss(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        await house.registry.end(chat.session_id, EndedBy.ADMIN, user_id=None)
        house.registry.disown({chat.session_id: 1})
        await settle()
        assert chat.customer.closed == [1000]


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
    monkeypatch.setattr("halo.actors.ownership.TAKE_UP_PAGE", 3)
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
